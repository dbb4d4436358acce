"""Couplings of a convolution's edges in CUDA C++, and sums of products with them."""

from __future__ import annotations

from eqcalc.engine.plan import Path
from eqcalc.engine.terms import products, times, total, unit
from eqcalc.program.trilinear import Inner


class Couplings:
    """The different G of a convolution: once for each edge of a tile, in shared memory.

    first_y: the first harmonic that varies; what is before it is 1.
    """

    def __init__(self, first_y: int) -> None:
        self._first_y = first_y
        self.lines: list[str] = []
        self._known: dict[Inner, int] = {}

    def harmonic(self, m2: int) -> str:
        """Of edge e."""
        return f"Y[{m2 - self._first_y}][e]"

    def scalar(self, terms: Inner) -> str:
        """What stands for sum_{m2} C Y_{m2} of edge e: a factor, "1" or "-1" left as they are."""
        if terms[0][0] < self._first_y:
            return unit(terms[0][1])
        sign = "-" if terms[0][1] < 0 else ""
        if len(terms) == 1 and abs(abs(terms[0][1]) - 1.0) < 1e-12:
            return f"{sign}{self.harmonic(terms[0][0])}"
        key = tuple((m2, -c if sign else c) for m2, c in terms)
        if key not in self._known:
            self._known[key] = len(self._known)
            value = total([times(unit(c), f"y[{m2 - self._first_y}]") for m2, c in key])
            self.lines.append(f"G[{self._known[key]}][n] = {value};")
        return f"{sign}G[{self._known[key]}][e]"

    def of(self, path: Path, what: str, first: int = 0) -> dict[tuple[int, int], str]:
        """Its gradient with respect to x or g, by number and by that of the other of the two.

        first: number of the path's first gradient g.
        """
        sums = path.form.gradient(what, within="y")
        return {(n, first + m): self.scalar(terms) for (n, m), terms in sums.items()}


def forward_terms(path: Path, every: dict[tuple[int, int], str], a: int) -> list[str]:
    """a += w x G; every: couplings by (m3, m1); a: number of the path's first sum."""
    lines = [f"const T z{m} = w * x{m};" for m in sorted({m1 for _, m1 in every})]
    for m3 in range(path.d3):
        lines += [f"a{a + m3} += {term};" for term in products(every, m3, "z")]
    return lines


def gather_terms(every: dict[tuple[int, int], str]) -> list[str]:
    """a += w g G, for each m1; every: couplings by (m1, number of g)."""
    return [
        f"a{m1} += w * ({total(products(every, m1, 'g'))});" for m1 in sorted({m for m, _ in every})
    ]


def gradient_terms(every: dict[tuple[int, int], str]) -> list[str]:
    """q = x g G, what is owed to w; every: couplings by (m1, number of g)."""
    return [
        f"{'q +=' if n else 'T q ='} x{m1} * ({total(products(every, m1, 'g'))});"
        for n, m1 in enumerate(sorted({m for m, _ in every}))
    ]
