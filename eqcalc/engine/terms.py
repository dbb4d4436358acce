"""Words of generated kernels: numbers, sums and products, and the terms of a convolution."""

from __future__ import annotations

from collections import defaultdict

from eqcalc.engine.plan import ConvolutionPlan, Path

Terms = tuple[tuple[int, float], ...]


def number(x: float) -> str:
    return f"T({x!r})"


def times(factor: str, x: str) -> str:
    return {"1": x, "-1": f"-{x}"}.get(factor, f"{factor} * {x}")


def total(terms: list[str]) -> str:
    text = terms[0]
    for term in terms[1:]:
        text += f" - {term[1:]}" if term.startswith("-") else f" + {term}"
    return text


def unit(c: float) -> str:
    return {1.0: "1", -1.0: "-1"}.get(round(c, 14), number(c))


def pairs_of(path: Path) -> dict[tuple[int, int], Terms]:
    """{(m1, m3): ((m2, C), ...)}."""
    pairs = defaultdict(list)
    for m1, m2, m3, c in path.terms:
        pairs[m1, m3].append((m2, c))
    return {key: tuple(sorted(terms)) for key, terms in pairs.items()}


def blocks_of(plan: ConvolutionPlan) -> list[list[Path]]:
    """Paths that read the same block of features."""
    blocks = defaultdict(list)
    for path in plan.paths:
        blocks[path.x].append(path)
    return list(blocks.values())
