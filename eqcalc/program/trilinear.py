r"""The form of three factors that a Clebsch-Gordan product is a gradient of.

For terms t = (m1, m2, m3) with coefficients C_t, features x, harmonics Y, a radial weight w and
gradients g of an energy with respect to what is made,

    S(w, x, Y, g) = w sum_t C_t x_{m1} Y_{m2} g_{m3}

is linear in each of its arguments, so that its gradients are the same terms without one factor:
dS/dg is what is made of x and Y, and dS/dx, dS/dY and dS/dw = S / w are what the way back owes.
Kernels multiply the two factors that are left one after the other,

    dS/dg_{m3} = w sum_{m1} (sum_{m2} C Y_{m2}) x_{m1}
    dS/dx_{m1} = w sum_{m3} (sum_{m2} C Y_{m2}) g_{m3}         S = sum_{m1} x_{m1} dS/dx_{m1}
    dS/dY_{m2} = w sum_{m3} (sum_{m1} C x_{m1}) g_{m3}         or with x and g exchanged

for inference and training on CPUs and GPUs, edge by edge or summed over a centre's edges.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from eqcalc.program.sums import Sum

#: numbers of one factor, with coefficients
Inner = tuple[tuple[int, float], ...]

FACTORS = "x", "y", "g"


@dataclass(frozen=True)
class TrilinearForm:
    """terms: (m1, m2, m3, C), numbers of x, y = Y and g."""

    terms: tuple[tuple[int, int, int, float], ...]

    def gradient(self, of: str, within: str) -> dict[tuple[int, int], Inner]:
        """dS / (w d of) as sums over the factor `within`, each of them times the third factor.

        Returns:
            By the numbers of `of` and of the third factor, those of `within`, with coefficients.
        """
        (other,) = {*FACTORS} - {of, within}
        found = defaultdict(list)
        for *numbers, c in self.terms:
            n = dict(zip(FACTORS, numbers, strict=True))
            found[n[of], n[other]].append((n[within], c))
        return {key: tuple(sorted(terms)) for key, terms in found.items()}

    def sums(self) -> tuple[list[Sum], list[Sum]]:
        """What is made, m = dS/dg, with weight r: sums of harmonics alone, and the others."""
        made = self.gradient("g", within="y")
        couplings = [
            Sum(f"G{m1}_{m3}", tuple((c, (f"y{m2}",)) for m2, c in terms))
            for (m3, m1), terms in made.items()
        ]
        weighted = [
            Sum(f"s{m1}", ((1.0, (f"x{m1}", "r")),)) for m1 in sorted({m1 for _, m1 in made})
        ]
        messages = [
            Sum(f"m{m3}", tuple((1.0, (f"s{m1}", f"G{m1}_{m3}")) for n, m1 in made if n == m3))
            for m3 in sorted({m3 for m3, _ in made})
        ]
        return couplings, [*weighted, *messages]
