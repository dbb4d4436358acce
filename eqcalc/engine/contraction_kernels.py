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
    """The code of all contractions' kernels; each step of the plan notes the number of its own."""
    different: dict[tuple[tuple[int, ...], ...], int] = {}
    code: list[str] = []
    for step in (s for layer in plan.layers for s in layer.steps):
        if not isinstance(step, ContractionStep) or not unrolled(step):
            continue
        known = len(different)
        step.kernels = different.setdefault(_key(step), known)
        if step.kernels == known:
            polynomial = Polynomial(step)
            forward, backward = polynomial.forward(), polynomial.backward()
            code.append(_FORWARD.format(name=known, lines="\n  ".join(forward)))
            code.append(_BACKWARD.format(name=known, lines="\n  ".join(backward)))
    table = [f"{{contract_{n}, contract_back_{n}}}" for n in different.values()]
    return _LIBRARY.format(code="".join(code), table=", ".join(table) or "{}")


_LIBRARY = """
namespace {{
struct ContractionKernels {{
  void (*forward)(const T *c, const T *x, T *y);
  void (*backward)(const T *c, const T *x, const T *g, T *dx);
}};
{code}
const ContractionKernels CONTRACTIONS[] = {{{table}}};
}}
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


class Polynomial:
    """The terms of a step by their factors u: its rows, products of two, and 1.

    Args:
        step: its terms and columns.
        coefficient_step: from term to term in memory, as C++.
        read, write: functions of C++ that read and write the channels of a row.
    """

    def __init__(
        self,
        step: ContractionStep,
        coefficient_step: str = "L",
        read: str = "load",
        write: str = "store",
    ) -> None:
        self.rows_in, self.rows_out = list(map(int, step.rows_in)), list(map(int, step.rows_out))
        self.products = list(zip(map(int, step.first), map(int, step.second), strict=True))
        self.groups: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for t, (out, left, right) in enumerate(zip(step.out, step.left, step.right, strict=True)):
            self.groups[int(out), int(left)].append((t, int(right)))
        self.coefficient_step, self.read, self.write = coefficient_step, read, write

    def is_one(self, factor: int) -> bool:
        return factor == len(self.rows_in) + len(self.products)

    def place(self, array: str, term: int) -> str:
        return f"{array} + {term} * {self.coefficient_step}"

    def coefficient(self, term: int) -> str:
        return f"load({self.place('c', term)})"

    def factors(self) -> list[str]:
        """Values of all u but 1."""
        rows = [f"const V u{n} = {self.read}(x + {at});" for n, at in enumerate(self.rows_in)]
        products = [
            f"const V u{n} = u{i} * u{j};" for n, (i, j) in enumerate(self.products, len(rows))
        ]
        return rows + products

    def inner(self, name: str = "s", factor: str = "u") -> list[str]:
        """The S, or the same of other factors."""
        lines = []
        for (out, left), terms in self.groups.items():
            parts = [
                self.coefficient(t) + ("" if self.is_one(right) else f" * {factor}{right}")
                for t, right in terms
                if factor == "u" or not self.is_one(right)
            ]
            lines.append(f"const V {name}{out}_{left} = {' + '.join(parts) or 'V{}'};")
        return lines

    def gradients(self) -> list[str]:
        return [f"const V g{o} = {self.read}(g + {at});" for o, at in enumerate(self.rows_out)]

    def forward(self) -> list[str]:
        lines = [*self.factors(), *self.inner()]
        for out, at in enumerate(self.rows_out):
            terms = [f"s{o}_{left} * u{left}" for o, left in self.groups if o == out]
            lines.append(f"{self.write}(y + {at}, {' + '.join(terms) or 'V{}'});")
        return lines

    def backward(self, *, add: bool = True) -> list[str]:
        """Gradients of products go on to those of their rows, which come last.

        add: to what is in dx.
        """
        slopes: dict[int, list[str]] = defaultdict(list)
        lines = [*self.factors(), *self.inner(), *self.gradients()]
        for (out, left), terms in self.groups.items():
            lines.append(f"const V q{out}_{left} = g{out} * u{left};")
            slopes[left].append(f"g{out} * s{out}_{left}")
            for t, right in terms:
                slopes[right].append(f"{self.coefficient(t)} * q{out}_{left}")
        for n, (i, j) in enumerate(self.products, start=len(self.rows_in)):
            lines.append(f"const V d{n} = {' + '.join(slopes[n])};")
            slopes[i].append(f"d{n} * u{j}")
            slopes[j].append(f"d{n} * u{i}")
        for n, at in enumerate(self.rows_in):
            before = [f"{self.read}(dx + {at})"] if add else []
            value = " + ".join([*before, *slopes[n]]) or "V{}"
            lines.append(f"{self.write}(dx + {at}, {value});")
        return lines

    def weights(self) -> list[str]:
        """dE/dc_t += Q_ol u_r."""
        lines = [*self.factors(), *self.gradients()]
        for (out, left), terms in self.groups.items():
            lines.append(f"const V q{out}_{left} = g{out} * u{left};")
            for t, right in terms:
                at = self.place("dc", t)
                value = f"q{out}_{left}" + ("" if self.is_one(right) else f" * u{right}")
                lines.append(f"store({at}, load({at}) + {value});")
        return lines

    def second(self) -> list[str]:
        """The derivative of forward, backward and weights as x moves along t: dg, dx, dc."""
        first = len(self.rows_in)
        lines = [*self.factors(), *self.inner(), *self.gradients()]
        lines += [f"const V t{n} = {self.read}(t + {at});" for n, at in enumerate(self.rows_in)]
        lines += [
            f"const V t{n} = t{i} * u{j} + u{i} * t{j};"
            for n, (i, j) in enumerate(self.products, start=first)
        ]
        lines += self.inner("z", "t")
        for out, at in enumerate(self.rows_out):
            terms = [
                f"s{o}_{left} * t{left} + z{o}_{left} * u{left}"
                for o, left in self.groups
                if o == out
            ]
            lines.append(f"{self.write}(dg + {at}, {' + '.join(terms) or 'V{}'});")
        slopes: dict[int, list[str]] = defaultdict(list)
        moved: dict[int, list[str]] = defaultdict(list)
        for (out, left), terms in self.groups.items():
            lines.append(f"const V q{out}_{left} = g{out} * u{left};")
            lines.append(f"const V k{out}_{left} = g{out} * t{left};")
            slopes[left].append(f"g{out} * s{out}_{left}")
            moved[left].append(f"g{out} * z{out}_{left}")
            for t, right in terms:
                slopes[right].append(f"{self.coefficient(t)} * q{out}_{left}")
                moved[right].append(f"{self.coefficient(t)} * k{out}_{left}")
                value = f"k{out}_{left}"
                if not self.is_one(right):
                    value += f" * u{right} + q{out}_{left} * t{right}"
                at = self.place("dc", t)
                lines.append(f"store({at}, load({at}) + {value});")
        for n, (i, j) in enumerate(self.products, start=first):
            lines.append(f"const V d{n} = {' + '.join(slopes[n])};")
            lines.append(f"const V e{n} = {' + '.join(moved[n])};")
            for one, other in ((i, j), (j, i)):
                moved[one].append(f"e{n} * u{other} + d{n} * t{other}")
        for n, at in enumerate(self.rows_in):
            lines.append(f"{self.write}(dx + {at}, {' + '.join(moved[n]) or 'V{}'});")
        return lines
