r"""C++ of Clebsch-Gordan products edge by edge (see `eqcalc.nn.edge_product`), unrolled.

For an edge, all paths p and channels c

    forward   t_{m3 c}  = R_pc sum_{m1} G_{m1 m3} x_{m1 c}
              G_{m1 m3} = sum_{m2} C_{m1 m2 m3} Y_{m2}
    backward  given g = dE/dt, u_{m1 c} = sum_{m3} G_{m1 m3} g_{m3 c}:
              dE/dx_{m1 c} = sum_p R_pc u_{m1 c}
              dE/dr       += sum_{p c} R'_pc sum_{m1} x_{m1 c} u_{m1 c}
              dE/dY_{m2}  += sum_{p c} sum_{m1 m3} C_{m1 m2 m3} R_pc x_{m1 c} g_{m3 c}
"""

from __future__ import annotations

from eqcalc.engine.plan import ConvolutionPlan, Path
from eqcalc.engine.terms import (
    backward_terms,
    blocks_of,
    number,
    products,
    total,
    unit,
    weight_place,
)


def _couplings(path: Path, n: int, of: str) -> tuple[dict[tuple[int, int], str], list[str]]:
    """What stands for each sum over harmonics in a gradient of path n, and the lines that make it.

    of: what the gradient is with respect to, "x" or "g".
    """
    names, lines = {}, []
    for key, terms in path.form.gradient(of, within="y").items():
        if terms[0][0] == 0:
            names[key] = unit(terms[0][1])
            continue
        m1, m3 = key if of == "x" else key[::-1]
        names[key] = f"G{n}_{m1}_{m3}"
        value = total([f"{number(c)} * y[{m2 - 1} * L]" for m2, c in terms])
        lines.append(f"const T {names[key]} = {value};")
    return names, lines


def _forward(path: Path, couplings: dict[tuple[int, int], str]) -> list[str]:
    lines = [f"{{ const V w = radial.value({weight_place(path)});"]
    for m3 in range(path.d3):
        terms = products(couplings, m3, "x")
        value = f"w * ({total(terms)})" if terms else "V{}"
        lines.append(f"store(out + {path.out + m3 * path.stride} + c, {value});")
    return [*lines, "}"]


def _backward(path: Path, couplings: dict[tuple[int, int], str]) -> list[str]:
    return backward_terms(path, couplings, lambda m1: [f"d{m1} += w * u{m1};"])


def _loops(plan: ConvolutionPlan, *, back: bool) -> str:
    """Over the channels of each block of features."""
    every, n = [], 0
    for block in blocks_of(plan):
        x, d1, mul = block[0].x, block[0].d1, block[0].mul
        before, body = [], [f"const V x{m} = load(x + {x + m * mul} + c);" for m in range(d1)]
        if back:
            body += [f"V d{m} = {{}};" for m in range(d1)]
        for path in block:
            couplings, lines = _couplings(path, n, "x" if back else "g")
            before += lines
            body += (_backward if back else _forward)(path, couplings)
            n += 1
        if back:
            body += [f"store(dx + {x + m * mul} + c, d{m});" for m in range(d1)]
        inside = "\n      ".join(body)
        every.append(
            f"  {{\n    {' '.join(before)}\n    for (int c = 0; c < {mul}; c += L) {{\n"
            f"      {inside}\n    }}\n  }}"
        )
    return "\n".join(every)


_KERNELS = """struct ProductKernels {
  void (*forward)(const Radial::Cursor &, const T *y, const T *x, T *out);
  void (*backward)(const Radial::Cursor &, const T *y, const T *x, const T *g, T *dx, V *owed);
};
"""


def product_source(plans: list[ConvolutionPlan], num_y: int) -> str:
    """Functions product_n and product_back_n, and the table PRODUCTS of both.

    y: harmonics of an edge, L numbers apart, without Y_0. owed: to the harmonics, and the length.
    """
    code = [_KERNELS]
    declare = "".join(f", s{m} = {{}}" for m in range(1, num_y + 1))
    keep = "\n  ".join([f"owed[{m}] = s{m + 1};" for m in range(num_y)])
    for n, plan in enumerate(plans):
        code.append(
            f"void product_{n}(const Radial::Cursor &radial, [[maybe_unused]] const T *y, "
            f"const T *__restrict x, T *__restrict out)\n{{\n{_loops(plan, back=False)}\n}}\n"
            f"void product_back_{n}(const Radial::Cursor &radial, [[maybe_unused]] const T *y, "
            "const T *__restrict x, const T *__restrict g, T *__restrict dx, V *owed)\n"
            f"{{\n  V sr = {{}}{declare};\n{_loops(plan, back=True)}\n  {keep}\n"
            f"  owed[{num_y}] = sr * radial.scale;\n}}\n"
        )
    table = ", ".join(f"{{product_{n}, product_back_{n}}}" for n in range(len(plans)))
    return "".join(code) + f"const ProductKernels PRODUCTS[] = {{{table or '{}'}}};\n"
