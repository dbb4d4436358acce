"""Words of generated kernels: numbers, sums and products, and the terms of a convolution."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

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


def backward_terms(
    path: Path,
    pairs: dict[tuple[int, int], str],
    to_features: Callable[[int], list[str]],
    *,
    product: bool = False,
) -> list[str]:
    """What the gradients g of a path owe to the radial function, features and harmonics.

    pairs: couplings by (m1, m3); to_features: lines that add w u_{m1} = dE/dx_{m1} to where it
    belongs; product: sum w x u is wanted, too.
    """
    lines = [f"{{ V w, dw; radial.value_and_slope({weight_place(path)}, w, dw);"]
    lines += [f"const V g{m} = load(g + {path.out + m * path.stride} + c);" for m in range(path.d3)]
    used = sorted({m1 for m1, _ in pairs})
    for m1 in used:
        terms = [times(s, f"g{m3}") for (n1, m3), s in pairs.items() if n1 == m1]
        lines.append(f"const V u{m1} = {total(terms)};")
        lines.append(f"V q = x{m1} * u{m1};" if m1 == used[0] else f"q += x{m1} * u{m1};")
        lines += to_features(m1)
    lines.append("sr += dw * q;")
    if product:
        lines.append("product += w * q;")
    directions = direction_terms(path)
    if directions:
        lines += [f"const V z{m} = w * x{m};" for m in used]
    return [*lines, *directions, "}"]


def direction_terms(path: Path, first: int = 0, first_y: int = 1) -> list[str]:
    """s_{m2} += sum C z_{m1} g_{m3}, with the fewer products of the two orders.

    first: number of the path's first gradient; first_y: of the first harmonic that varies.
    """
    by_g, by_z = defaultdict(list), defaultdict(list)
    for m1, m2, m3, c in path.terms:
        if m2 >= first_y:
            by_g[m2, first + m3].append((f"z{m1}", c))
            by_z[m2, m1].append((f"g{first + m3}", c))
    outer, name = (by_g, "g") if len(by_g) <= len(by_z) else (by_z, "z")
    lines = []
    for (m2, m), terms in outer.items():
        inner = total([times(unit(c), x) for x, c in terms])
        lines.append(f"s{m2} += ({inner}) * {name}{m};")
    return lines


def weight_place(path: Path) -> str:
    """Place of the radial weights of channels c .. c + L - 1."""
    return f"{path.weight} + c / PADDING * {path.weight_step} + c % PADDING"
