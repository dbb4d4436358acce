"""Words of generated kernels: numbers, sums and products, and the terms of a convolution."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from eqcalc.engine.plan import ConvolutionPlan, Path


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


def products(sums: dict[tuple[int, int], str], n: int, name: str) -> list[str]:
    """Of a `TrilinearForm.gradient` with respect to factor n: sums within, times the third factor.

    sums: what stands for each sum; name: of the third factor.
    """
    return [times(made, f"{name}{m}") for (k, m), made in sums.items() if k == n]


def blocks_of(plan: ConvolutionPlan) -> list[list[Path]]:
    """Paths that read the same block of features."""
    blocks = defaultdict(list)
    for path in plan.paths:
        blocks[path.x].append(path)
    return list(blocks.values())


def backward_terms(
    path: Path,
    couplings: dict[tuple[int, int], str],
    to_features: Callable[[int], list[str]],
    *,
    product: bool = False,
) -> list[str]:
    """What the gradients g of a path owe to the radial function, features and harmonics.

    couplings: what stands for the sums of the gradient in x; to_features: lines that add
    w u_{m1} = dE/dx_{m1} to where it belongs; product: sum w x u is wanted, too.
    """
    lines = [f"{{ V w, dw; radial.value_and_slope({weight_place(path)}, w, dw);"]
    lines += [f"const V g{m} = load(g + {path.out + m * path.stride} + c);" for m in range(path.d3)]
    used = sorted({m1 for m1, _ in couplings})
    for m1 in used:
        lines.append(f"const V u{m1} = {total(products(couplings, m1, 'g'))};")
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
    """What harmonics are owed, with the fewer products of the two orders; z = w x.

    first: number of the path's first gradient; first_y: of the first harmonic that varies.
    """
    orders = []
    for within in ("x", "g"):
        owed = path.form.gradient("y", within)
        orders.append({key: terms for key, terms in owed.items() if key[0] >= first_y})
    by_g, by_z = orders
    features, gradients = ("z", 0), ("g", first)
    if len(by_g) <= len(by_z):
        owed, (inner, at), (outer, shift) = by_g, features, gradients
    else:
        owed, (inner, at), (outer, shift) = by_z, gradients, features
    return [
        f"s{m2} += ({total([times(unit(c), f'{inner}{at + n}') for n, c in terms])})"
        f" * {outer}{shift + m};"
        for (m2, m), terms in owed.items()
    ]


def weight_place(path: Path) -> str:
    """Place of the radial weights of channels c .. c + L - 1."""
    return f"{path.weight} + c / PADDING * {path.weight_step} + c % PADDING"
