r"""C++ of the fused engine: the convolutions of a plan, unrolled, for inference.

For the edges e = (i <- j) of one centre i, and all paths p, channels c

    forward   m_{m3 c}  = sum_e R_pc(r_e) sum_{m1} G_{m1 m3}(e) x_{m1 c}[j]
              G_{m1 m3} = sum_{m2} C_{m1 m2 m3} Y_{m2}
    backward  given g = dE/dm_i:
              dE/dx_{m1 c}[j] += R_pc u_{m1 c},  u_{m1 c} = sum_{m3} G_{m1 m3} g_{m3 c}
              dE/dr_e         += sum_{p c} R'_pc sum_{m1} x_{m1 c} u_{m1 c}
              dE/dY_{m2}      += sum_{p c} sum_{m1 m3} C_{m1 m2 m3} R_pc x_{m1 c} g_{m3 c}

A vector holds channels, and m_i stays in the first-level cache. What does not depend on channels
(G) is computed for as many edges at once as a vector has lanes.
"""

from __future__ import annotations

from eqcalc.engine.build import header, machine
from eqcalc.engine.description import DESCRIPTION_VERSION
from eqcalc.engine.harmonics import harmonics_source
from eqcalc.engine.message_kernels import message_source
from eqcalc.engine.plan import ConvolutionPlan, Path, Plan
from eqcalc.engine.step_kernels import step_source
from eqcalc.engine.terms import (
    backward_terms,
    blocks_of,
    number,
    products,
    total,
    weight_place,
)
from eqcalc.program.trilinear import Inner

#: products in a convolution from which on it takes long to compile
LARGE = 300

#: sums over edges that registers hold beside what makes them: of 32 registers, and of the 16 of AVX
MOST_SUMS, FEW_SUMS = 16, 8


class _Couplings:
    """The different G of a convolution, computed once per group of edges."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._known: dict[Inner, int] = {}

    def scalar(self, terms: Inner) -> str:
        """What stands for sum_{m2} C Y_{m2} of one edge: a factor, "1" or "-1" left as they are."""
        if terms[0][0] == 0:
            value = terms[0][1]
            return {1.0: "1", -1.0: "-1"}.get(round(value, 14), number(value))
        if len(terms) == 1 and abs(abs(terms[0][1]) - 1.0) < 1e-12:
            sign = "-" if terms[0][1] < 0 else ""
            return f"{sign}ye[{terms[0][0] - 1} * L]"
        sign = "-" if terms[0][1] < 0 else ""
        key = tuple((m2, -c if sign else c) for m2, c in terms)
        if key not in self._known:
            index = self._known[key] = len(self._known)
            value = total([f"{number(c)} * load(y + {m2 - 1} * L)" for m2, c in key])
            self.lines.append(f"store(couplings + {index} * L, {value});")
        return f"{sign}ce[{self._known[key]} * L]"

    @property
    def count(self) -> int:
        return max(1, len(self._known))


def _forward_groups(block: list[Path]) -> list[list[Path]]:
    """Paths whose sums are made together, so that they stay in registers."""
    most = FEW_SUMS if " avx" in machine() and "avx512f" not in machine() else MOST_SUMS
    groups: list[list[Path]] = [[]]
    for path in block:
        if groups[-1] and sum(p.d3 for p in groups[-1]) + path.d3 > most:
            groups.append([])
        groups[-1].append(path)
    return groups


def _forward_path(path: Path, number: int, couplings: _Couplings) -> list[str]:
    """What one edge adds to the sums a{number}_{m3} of a vector of channels."""
    sums = {key: couplings.scalar(y) for key, y in path.form.gradient("g", within="y").items()}
    lines = [f"{{ const V w = radial.value({weight_place(path)});"]
    first = path.d1 <= path.d3  # multiply by the radial weight where there are fewer rows
    if first:
        lines += [f"const V z{m} = w * x{m};" for m in range(path.d1)]
    for m3 in range(path.d3):
        terms = products(sums, m3, "z" if first else "x")
        if first:
            lines += [f"a{number}_{m3} += {term};" for term in terms]
        elif terms:
            lines.append(f"a{number}_{m3} += w * ({total(terms)});")
    return [*lines, "}"]


def _forward_loop(paths: list[Path], couplings: _Couplings) -> str:
    """Over the channels of some paths of one block of features: sums over edges."""
    x, d1, mul = paths[0].x, paths[0].d1, paths[0].mul
    places = {
        f"a{n}_{m}": f"out + {path.out + m * path.stride} + c"
        for n, path in enumerate(paths)
        for m in range(path.d3)
    }
    start = [f"V {a} = set ? V{{}} : load({at});" for a, at in places.items()]
    read = [f"const V x{m} = load(xs[e] + {x + m * mul} + c);" for m in range(d1)]
    body = [line for n, path in enumerate(paths) for line in _forward_path(path, n, couplings)]
    keep = [f"store({at}, {a});" for a, at in places.items()]
    before, inside, after = ("\n        ".join(x) for x in (start, [*read, *body], keep))
    return f"""    for (int c = 0; c < {mul}; c += L) {{
        {before}
        for (int e = 0; e < edges; e++) {{
        const Radial::Cursor &radial = cursors[e];
        [[maybe_unused]] const T *ye = every_y + e / L * NUM_Y * L + e % L;
        [[maybe_unused]] const T *ce = memory + e / L * COUPLINGS * L + e % L;
        {inside}
        }}
        {after}
    }}"""


def _backward_path(
    path: Path, couplings: _Couplings, *, features: bool, product: bool
) -> list[str]:
    sums = {key: couplings.scalar(y) for key, y in path.form.gradient("x", within="y").items()}

    def to_features(m1: int) -> list[str]:
        at = f"dxj + {path.x + m1 * path.mul} + c"
        return [f"store({at}, load({at}) + w * u{m1});"] if features else []

    return backward_terms(path, sums, to_features, product=product)


def _loop(block: list[Path], body: list[str]) -> str:
    """Over the channels of one block of features."""
    x, d1, mul = block[0].x, block[0].d1, block[0].mul
    read = [f"const V x{m} = load(xj + {x + m * mul} + c);" for m in range(d1)]
    lines = "\n        ".join([*read, *body])
    return f"      for (int c = 0; c < {mul}; c += L) {{\n        {lines}\n      }}"


_FORWARD = """
void forward_{name}(const Radial &radials, const Centre &centre, const int *rows, const T *x,
                    T *out)
{{
  constexpr int COUPLINGS = {couplings};
  alignas(64) T memory[EDGES * COUPLINGS];
  const T *xs[EDGES];
  Radial::Cursor cursors[EDGES];
  if (centre.count == 0) std::fill_n(out, {width_out}, T(0));
  for (int first = 0; first < centre.count; first += EDGES) {{
    const bool set = first == 0;
    const int edges = std::min(EDGES, centre.count - first);
    const T *const every_y = centre.y + first * NUM_Y;
    const I slot = centre.slot + first;
    for (int e = 0; e < edges; e++) {{
      xs[e] = x + static_cast<I>(rows[slot + e]) * {width};
      cursors[e] = radials.at(slot + e);
    }}
    for (int e = 0; e < edges; e += L) {{
      [[maybe_unused]] const T *y = every_y + e * NUM_Y;
      [[maybe_unused]] T *couplings = memory + e * COUPLINGS;
      {prepare}
    }}
{loops}
  }}
}}
"""

_BACKWARD = """
T backward_{name}(const Radial &radials, const Centre &centre, const int *rows, const T *x,
                     const T *__restrict g, T *dx, const EdgeGradient &gradient)
{{
  alignas(64) T couplings[{couplings} * L], sums[(NUM_Y + 1) * L * L];
  [[maybe_unused]] V product = {{}};
  for (int first = 0; first < centre.count; first += L) {{
    const T *y = centre.y + first * NUM_Y;
    {prepare}
    const int lanes = std::min(L, centre.count - first);
    const I slot = centre.slot + first;
    for (int lane = 0; lane < lanes; lane++) {{
      const T *__restrict xj = x + static_cast<I>(rows[slot + lane]) * {width};
      {dx}
      const Radial::Cursor radial = radials.at(slot + lane);
      [[maybe_unused]] const T *ye = y + lane, *ce = couplings + lane;
      V sr = {{}}{declare};
{loops}
      {keep}
    }}
    for (int lane = lanes; lane < L; lane++)
      for (int m = 0; m <= NUM_Y; m++) store(sums + (m * L + lane) * L, V{{}});
    T *dy = gradient.y + slot * NUM_Y;
    for (int m = 0; m < NUM_Y; m++)
      store(dy + m * L, load(dy + m * L) + row_sums(sums + m * L * L));
    store(gradient.r + slot, load(gradient.r + slot) + row_sums(sums + NUM_Y * L * L));
  }}
  return {product};
}}
"""


def _kernels(plan: ConvolutionPlan, name: str, num_y: int, *, features: bool, product: bool) -> str:
    """features: whether their gradients are wanted; product: that of messages and gradients."""
    forward, backward = _Couplings(), _Couplings()
    forward_loops, backward_loops = [], []
    for block in blocks_of(plan):
        forward_loops += [_forward_loop(paths, forward) for paths in _forward_groups(block)]
        body = [
            line
            for path in block
            for line in _backward_path(path, backward, features=features, product=product)
        ]
        backward_loops.append(_loop(block, body))
    keep = [f"store(sums + ({m} * L + lane) * L, s{m + 1});" for m in range(num_y)]
    keep.append(f"store(sums + ({num_y} * L + lane) * L, sr * radial.scale);")
    dx = f"T *__restrict dxj = dx + static_cast<I>(rows[slot + lane]) * {plan.width_in};"
    return _FORWARD.format(
        name=name,
        couplings=forward.count,
        prepare="\n    ".join(forward.lines),
        width=plan.width_in,
        width_out=plan.width_out,
        loops="\n".join(forward_loops),
    ) + _BACKWARD.format(
        name=name,
        couplings=backward.count,
        prepare="\n    ".join(backward.lines),
        width=plan.width_in,
        dx=dx if features else "",
        declare="".join(f", s{m} = {{}}" for m in range(1, num_y + 1)),
        loops="\n".join(backward_loops),
        keep="\n      ".join(keep),
        product="lane_sum(product)" if product else "T(0)",
    )


def compiler_flags(plan: Plan) -> list[str]:
    """Beside the usual ones. GCC's choice of loop counters takes minutes over kernels of high
    degree, and gains 2 % in small ones. Sums are made in the order in which they are written, of
    fused products: where GCC may choose the order, it separates products from sums.
    """
    convolutions = [layer.convolution for layer in plan.layers if layer.convolution]
    most = max((sum(len(p.terms) for p in c.paths) for c in convolutions), default=0)
    return ["-fno-associative-math", *(["-fno-ivopts"] if most > LARGE else [])]


def library_source(plan: Plan, radial: str, degree: int) -> tuple[str, list[int | None]]:
    """The engine's translation unit, and the numbers of the kernels of each layer.

    Steps of contractions note the number of their kernel in the plan.

    Args:
        plan: of the network.
        radial: "table" or "network".
        degree: of the table's polynomials.
    """
    num_y = (plan.l_max + 1) ** 2 - 1
    different: dict[tuple[ConvolutionPlan, bool, bool], int] = {}
    kernels = [
        None
        if layer.density or layer.message
        else different.setdefault(
            (layer.convolution, k > 0, layer.count is not None), len(different)
        )
        for k, layer in enumerate(plan.layers)
    ]
    code = [
        _kernels(convolution, str(n), num_y, features=features, product=product)
        for (convolution, features, product), n in different.items()
    ]
    table = ", ".join(f"{{forward_{n}, backward_{n}}}" for n in different.values())
    counts = str(plan.counts is not None).lower()
    parts = [
        f"using T = {plan.scalar};\n",
        header("interface.h"),
        *map(header, ("callee.h", "threads.h", "simd.h", "gemm.h")),
        f"namespace {{\nconstexpr int NUM_Y = {num_y}, DEGREE = {degree};\n"
        "constexpr int EDGES = L > 32 ? L : 32;     // worked on at once, whole vectors\n"
        f"constexpr I DESCRIPTION_VERSION = {DESCRIPTION_VERSION};\n"
        f"constexpr bool COUNTS = {counts};     // of neighbours, which messages are divided by\n"
        + harmonics_source(plan)
        + "}\n",
        header("edges.h"),
        *map(header, ("description.h", "envelope.h", f"radial_{radial}.h")),
        "namespace {\nstruct Kernels {\n"
        "  void (*forward)(const Radial &, const Centre &, const int *, const T *, T *);\n"
        "  T (*backward)(const Radial &, const Centre &, const int *, const T *, const T *,\n"
        "                T *, const EdgeGradient &);\n};\n"
        + "".join(code)
        + f"const Kernels KERNELS[] = {{{table or '{}'}}};\n}}\n",
        *map(header, ("pair_formulas.h", "pair_terms.h", "counts.h", "density.h")),
        step_source(plan),
        message_source(plan),
        *map(header, ("uncertainty.h", "graph.h", "network.h", "pairs.h")),
        header("engine.h"),
    ]
    return "\n".join(parts), kernels
