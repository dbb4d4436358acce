"""C++ of the polynomials of an atom's rows, unrolled, for one vector of channels.

    forward   y_o = sum_l u_l S_ol,   S_ol = sum_t c_t u_right(t) over the terms of out o and left l
    backward  dE/du_l += sum_o g_o S_ol,   dE/du_r += sum_t c_t Q_ol over the terms of right r,
              Q_ol = g_o u_l,   g = dE/dy

so that a term costs a product and an addition on the way there and two of each on the way back, and
no sum is stored before it is done. Coefficients are [terms, L] numbers of these channels.
"""

from __future__ import annotations

from collections import defaultdict

from eqcalc.engine.plan import ContractionStep, Plan

#: terms up to which a polynomial is unrolled; larger ones are worked through as tables
#: (csrc/contraction.h), since compilers take long
MOST_TERMS = 1500


def unrolled(step: ContractionStep) -> bool:
    """Whether a step has kernels of its own: coefficients by channel, and not too many."""
    return step.coefficients.shape[1] > 1 and len(step.out) <= MOST_TERMS


def _key(step: ContractionStep) -> tuple[tuple[int, ...], ...]:
    """Steps of equal keys share kernels."""
    names = ("rows_in", "rows_out", "first", "second", "out", "left", "right")
    return tuple(tuple(map(int, getattr(step, name))) for name in names)


def contraction_kernels(plan: Plan) -> str:
    """Their code; the contractions of a plan are told which of the kernels they take."""
    different: dict[tuple[tuple[int, ...], ...], int] = {}
    code: list[str] = []
    for step in (s for layer in plan.layers for s in layer.steps):
        if not isinstance(step, ContractionStep) or not unrolled(step):
            continue
        known = len(different)
        step.kernels = different.setdefault(_key(step), known)
        if step.kernels == known:
            polynomial = _Polynomial(step)
            code += [polynomial.forward(known), polynomial.backward(known)]
    table = [f"{{contract_{n}, contract_back_{n}}}" for n in different.values()]
    return _LIBRARY.format(code="".join(code), table=", ".join(table) or "{}")


_LIBRARY = """
struct ContractionKernels {{
  void (*forward)(const T *c, const T *x, T *y);
  void (*backward)(const T *c, const T *x, const T *g, T *dx);
}};
{code}
const ContractionKernels CONTRACTIONS[] = {{{table}}};
"""

_FORWARD = """
void contract_{name}(const T *__restrict c, const T *__restrict x, T *__restrict y)
{{
  {lines}
}}
"""

_BACKWARD = """
void contract_back_{name}(const T *__restrict c, const T *__restrict x, const T *__restrict g,
                          T *__restrict dx)
{{
  {lines}
}}
"""


class _Polynomial:
    """The terms of a step by their factors u: its rows, products of two, and 1 (None)."""

    def __init__(self, step: ContractionStep) -> None:
        self.rows_in, self.rows_out = list(map(int, step.rows_in)), list(map(int, step.rows_out))
        self.products = list(zip(map(int, step.first), map(int, step.second), strict=True))
        self.groups: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for t, (out, left, right) in enumerate(zip(step.out, step.left, step.right, strict=True)):
            self.groups[int(out), int(left)].append((t, int(right)))

    def is_one(self, factor: int) -> bool:
        return factor == len(self.rows_in) + len(self.products)

    def factors(self) -> list[str]:
        """Values of all u but 1."""
        rows = [f"const V u{n} = load(x + {at});" for n, at in enumerate(self.rows_in)]
        first = len(rows)
        products = [
            f"const V u{first + n} = u{i} * u{j};" for n, (i, j) in enumerate(self.products)
        ]
        return rows + products

    def inner(self) -> list[str]:
        """The S."""
        return [
            f"const V s{out}_{left} = "
            + " + ".join(
                f"load(c + {t} * L)" + ("" if self.is_one(right) else f" * u{right}")
                for t, right in terms
            )
            + ";"
            for (out, left), terms in self.groups.items()
        ]

    def forward(self, name: int) -> str:
        lines = [*self.factors(), *self.inner()]
        for out, at in enumerate(self.rows_out):
            terms = [f"s{o}_{left} * u{left}" for o, left in self.groups if o == out]
            lines.append(f"store(y + {at}, {' + '.join(terms) or 'V{}'});")
        return _FORWARD.format(name=name, lines="\n  ".join(lines))

    def backward(self, name: int) -> str:
        """Gradients of products go on to those of their rows, which come last."""
        slopes: dict[int, list[str]] = defaultdict(list)
        lines = [*self.factors(), *self.inner()]
        lines += [f"const V g{out} = load(g + {at});" for out, at in enumerate(self.rows_out)]
        for (out, left), terms in self.groups.items():
            lines.append(f"const V q{out}_{left} = g{out} * u{left};")
            slopes[left].append(f"g{out} * s{out}_{left}")
            for t, right in terms:
                if not self.is_one(right):
                    slopes[right].append(f"load(c + {t} * L) * q{out}_{left}")
        first = len(self.rows_in)
        for n, (i, j) in enumerate(self.products, start=first):
            lines.append(f"const V d{n} = {' + '.join(slopes[n])};")
            slopes[i].append(f"d{n} * u{j}")
            slopes[j].append(f"d{n} * u{i}")
        for n, at in enumerate(self.rows_in):
            if slopes[n]:
                lines.append(f"store(dx + {at}, load(dx + {at}) + {' + '.join(slopes[n])});")
        return _BACKWARD.format(name=name, lines="\n  ".join(lines))
