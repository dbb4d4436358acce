r"""C++ for one Clebsch-Gordan convolution, with its first and second derivatives.

The convolution is the gradient with respect to g of the form, linear in each of its arguments,

    S(g, x, Y, R)  = sum_e sum_p sum_c R^p_c[e] sum_{m1 m3} G^p_{m1 m3}[e] x_{m1 c}[j] g_{m3 c}[i]
    G^p_{m1 m3}[e] = sum_{m2} C^p_{m1 m2 m3} Y_{m2}[e],   e = (i <- j)

so the kernels are

    forward   m  = dS/dg
    backward  (dS/dx, dS/dY, dS/dR) for a given g
    second    the gradient of <u_x, dS/dx> + <u_Y, dS/dY> + <u_R, dS/dR> with respect to g, x, Y, R

which is all that a loss on forces needs. R is stored once for the two edges of a pair, r_ij and
r_ji: its row of edge e is pair[e]. No message of an edge is ever stored. Loops over
channels are left to the compiler's vectoriser; everything else is unrolled.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import torch
from e3nn import o3

from eqcalc.engine.build import header
from eqcalc.engine.generate_contraction import SHARED, contraction_source
from eqcalc.engine.generate_product import product_source
from eqcalc.nn.contraction import Contraction
from eqcalc.nn.convolution import Convolution
from eqcalc.nn.linear import block_offsets
from eqcalc.nn.product import ChannelProduct


@dataclass(frozen=True)
class KernelPath:
    """One path with its places in the flat rows.

    x, d1: first column and 2 l1 + 1 of the input; r: first radial weight; g: first column of the
    output; stride: channels of the output's irrep; mul: channels; terms: (m1, m2, m3, C).
    """

    x: int
    d1: int
    r: int
    g: int
    d3: int
    stride: int
    mul: int
    terms: tuple[tuple[int, int, int, float], ...]

    def pairs(self) -> dict[tuple[int, int], list[tuple[int, float]]]:
        """{(m1, m3): [(m2, C)]}."""
        pairs = defaultdict(list)
        for m1, m2, m3, c in self.terms:
            pairs[m1, m3].append((m2, c))
        return pairs


def kernel_paths(convolution: Convolution) -> list[KernelPath]:
    """The paths of a convolution in the order of their radial weights."""
    x_at = block_offsets(convolution.irreps_in)
    g_at = dict(
        zip(
            [ir for _, ir in convolution.irreps_out],
            block_offsets(convolution.irreps_out),
            strict=False,
        )
    )
    stride = {ir: mul for mul, ir in convolution.irreps_out}
    used: dict[o3.Irrep, int] = defaultdict(int)
    paths = []
    r = 0
    for block, l2, ir_out, mul in convolution.paths:
        ir_in = convolution.irreps_in[block].ir
        w3j = o3.wigner_3j(ir_in.l, l2, ir_out.l, dtype=torch.float64) * math.sqrt(ir_out.dim)
        terms = tuple(
            (int(m1), l2 * l2 + int(m2), int(m3), float(w3j[m1, m2, m3]))
            for m1, m2, m3 in (w3j.abs() > 1e-12).nonzero()
        )
        paths.append(
            KernelPath(
                x_at[block],
                ir_in.dim,
                r,
                g_at[ir_out] + used[ir_out],
                ir_out.dim,
                stride[ir_out],
                mul,
                terms,
            )
        )
        used[ir_out] += mul
        r += mul
    return paths


def _couplings(path: KernelPath, y: str, name: str) -> str:
    lines = []
    for (m1, m3), terms in path.pairs().items():
        value = " + ".join(f"T({c!r}) * {y}[{m2}]" for m2, c in terms)
        lines.append(f"const T {name}{m1}{m3} = {value};")
    return " ".join(lines)


def _load(path: KernelPath, array: str, name: str) -> str:
    """Reads one channel: of an input row (x-like) or of an output row (g-like)."""
    if array in ("x", "ux"):
        return " ".join(
            f"const T {name}{m} = {array}e[{path.x + m * path.mul} + c];" for m in range(path.d1)
        )
    return " ".join(
        f"const T {name}{m} = {array}e[{path.g + m * path.stride} + c];" for m in range(path.d3)
    )


def _sum(terms: list[str]) -> str:
    return " + ".join(terms)


def _forward(path: KernelPath) -> str:
    pairs = path.pairs()
    body = [_load(path, "x", "x"), f"const T r = re[{path.r} + c];"]
    for m3 in range(path.d3):
        terms = [f"G{m1}{n3} * x{m1}" for m1, n3 in pairs if n3 == m3]
        if terms:
            body.append(f"oe[{path.g + m3 * path.stride} + c] += r * ({_sum(terms)});")
    return _loop(path, _couplings(path, "ye", "G"), body, [])


def _backward(path: KernelPath) -> str:
    pairs = path.pairs()
    body = [_load(path, "x", "x"), _load(path, "g", "g"), f"const T r = re[{path.r} + c];"]
    for m1 in range(path.d1):
        terms = [f"G{n1}{m3} * g{m3}" for n1, m3 in pairs if n1 == m1]
        body.append(f"const T t{m1} = {_sum(terms)};")
        body.append(f"dxe[{path.x + m1 * path.mul} + c] += r * t{m1}; const T s{m1} = r * x{m1};")
    body.append(f"dre[{path.r} + c] += {_sum([f'x{m} * t{m}' for m in range(path.d1)])};")
    body += [f"H{m1}{m3} += s{m1} * g{m3};" for m1, m3 in pairs]
    return _loop(path, _couplings(path, "ye", "G"), body, _contract(path))


def _second(path: KernelPath) -> str:
    pairs = path.pairs()
    body = [
        _load(path, "x", "x"),
        _load(path, "ux", "v"),
        _load(path, "g", "g"),
        f"const T r = re[{path.r} + c]; const T q = ure[{path.r} + c];",
    ]
    for m1 in range(path.d1):
        body.append(f"const T a{m1} = r * v{m1} + q * x{m1}; const T b{m1} = r * x{m1};")
        plain = [f"G{n1}{m3} * g{m3}" for n1, m3 in pairs if n1 == m1]
        primed = [f"K{n1}{m3} * g{m3}" for n1, m3 in pairs if n1 == m1]
        body.append(f"const T t{m1} = {_sum(plain)}; const T k{m1} = {_sum(primed)};")
        body.append(f"dxe[{path.x + m1 * path.mul} + c] += r * k{m1} + q * t{m1};")
    for m3 in range(path.d3):
        terms = [f"G{m1}{n3} * a{m1} + K{m1}{n3} * b{m1}" for m1, n3 in pairs if n3 == m3]
        if terms:
            body.append(f"dge[{path.g + m3 * path.stride} + c] += {_sum(terms)};")
    terms = [f"v{m} * t{m} + x{m} * k{m}" for m in range(path.d1)]
    body.append(f"dre[{path.r} + c] += {_sum(terms)};")
    body += [f"H{m1}{m3} += a{m1} * g{m3};" for m1, m3 in pairs]
    couplings = _couplings(path, "ye", "G") + "\n    " + _couplings(path, "uye", "K")
    return _loop(path, couplings, body, _contract(path))


def _contract(path: KernelPath) -> list[str]:
    return [f"dye[{m2}] += T({c!r}) * H{m1}{m3};" for m1, m2, m3, c in path.terms]


def _loop(path: KernelPath, before: str, body: list[str], after: list[str]) -> str:
    sums = [f"H{m1}{m3}" for m1, m3 in path.pairs()] if after else []
    declare = f"T {', '.join(f'{s} = 0' for s in sums)};" if sums else ""
    reduction = f" reduction(+ : {', '.join(sums)})" if sums else ""
    inside = "\n      ".join(body)
    return f"""  {{
    {before} {declare}
    #pragma omp simd{reduction}
    for (int c = 0; c < {path.mul}; ++c) {{
      {inside}
    }}
    {" ".join(after)}
  }}"""


_KERNEL = """
// Edges are sorted by centre. No edge leaves its island (a structure), so islands run in parallel
// without conflicts, and each sum always has the same order.
extern "C" int {name}_{tag}(I islands, const I *first, const I *src, const I *dst,
    const I *pair, {arguments})
{{
  return guarded([&] {{ in_parallel(islands, most_threads(), [=](I k) {{
    for (I e = first[k]; e < first[k + 1]; ++e) {{
{rows}
{paths}
    }}
  }}); }});
}}
"""


def source(convolution: Convolution, tag: str) -> str:
    """The three kernels of one convolution."""
    paths = kernel_paths(convolution)
    nx, ng = convolution.irreps_in.dim, convolution.irreps_out.dim
    nr, ny = convolution.num_weights, (convolution.l_max + 1) ** 2

    def rows(node: dict[str, tuple[str, int]], edge: dict[str, int], out: set[str]) -> str:
        places = {n: f"{at}[e] * {width}" for n, (at, width) in node.items()}
        places |= {n: f"e * {width}" for n, width in edge.items()}
        return "\n".join(
            f"      {'' if n in out else 'const '}T *__restrict {n}e = {n} + {place};"
            for n, place in places.items()
        )

    def kernel(name: str, node: dict, edge: dict, out: list[str], body: list[str]) -> str:
        arguments = ", ".join(f"{'' if n in out else 'const '}T *{n}" for n in (*node, *edge))
        return _KERNEL.format(
            name=name,
            tag=tag,
            arguments=arguments,
            rows=rows(node, edge, set(out)),
            paths="\n".join(body),
        )

    src, dst, pair = ("src", nx), ("dst", ng), ("pair", nr)
    return "".join(
        [
            kernel(
                "forward",
                {"x": src, "o": dst, "r": pair},
                {"y": ny},
                ["o"],
                [_forward(p) for p in paths],
            ),
            kernel(
                "backward",
                {"x": src, "g": dst, "dx": src, "r": pair, "dr": pair},
                {"y": ny, "dy": ny},
                ["dx", "dy", "dr"],
                [_backward(p) for p in paths],
            ),
            kernel(
                "second",
                {"x": src, "ux": src, "g": dst, "dg": dst, "dx": src}
                | {"r": pair, "ur": pair, "dr": pair},
                {"y": ny, "uy": ny, "dy": ny},
                ["dg", "dx", "dy", "dr"],
                [_second(p) for p in paths],
            ),
        ]
    )


def library_source(
    convolutions: list[Convolution],
    products: list[ChannelProduct],
    contractions: list[Contraction],
    scalar: str,
) -> str:
    """One translation unit for a whole model: kernels `forward_0`, ..., `product_forward_0`, ...,
    `contraction_forward_0`, ...
    """
    parts = [f"using T = {scalar};\n", header("threads.h")]
    if contractions:
        parts += [header("simd.h"), SHARED]
    parts += [source(c, str(k)) for k, c in enumerate(convolutions)]
    parts += [product_source(p, str(k)) for k, p in enumerate(products)]
    parts += [contraction_source(c, str(k)) for k, c in enumerate(contractions)]
    return "".join(parts)
