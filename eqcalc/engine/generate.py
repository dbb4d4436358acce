r"""C++ for one Clebsch-Gordan convolution, with its first and second derivatives.

The convolution is the gradient with respect to g of the form, linear in each of its arguments,

    S(g, x, Y, R)  = sum_e sum_p sum_c R^p_c[e] sum_{m1 m3} G^p_{m1 m3}[e] x_{m1 c}[j] g_{m3 c}[i]
    G^p_{m1 m3}[e] = sum_{m2} C^p_{m1 m2 m3} Y_{m2}[e],   e = (i <- j)

so the kernels are

    forward   m  = dS/dg
    backward  (dS/dx, dS/dY, dS/dR) for a given g
    second    the gradient of <u_x, dS/dx> + <u_Y, dS/dY> + <u_R, dS/dR> with respect to g, x, Y, R

which is all that a loss on forces needs; the latter two are derived from the first
(`eqcalc.program.trilinear`, `eqcalc.program.sums`). R is stored once for the two edges of a pair,
r_ij and r_ji: its row of edge e is pair[e]. No message of an edge is ever stored.
"""

from __future__ import annotations

import math
from collections import defaultdict
from functools import partial

import torch
from e3nn import o3

from eqcalc.engine.build import header
from eqcalc.engine.channel_kernels import ChannelLoop, Signature, index, letters
from eqcalc.engine.generate_contraction import SHARED, contraction_source
from eqcalc.engine.generate_product import product_source
from eqcalc.engine.plan import Path
from eqcalc.nn.contraction import Contraction
from eqcalc.nn.convolution import Convolution
from eqcalc.nn.linear import block_offsets
from eqcalc.nn.product import ChannelProduct


def kernel_paths(convolution: Convolution) -> list[Path]:
    """The paths of a convolution in the order of their radial weights; rows as the module has them,
    without padding.
    """
    x_at = block_offsets(convolution.irreps_in)
    g_at = dict(
        zip(
            [ir for _, ir in convolution.irreps_out],
            block_offsets(convolution.irreps_out),
            strict=False,
        )
    )
    strides = {ir: mul for mul, ir in convolution.irreps_out}
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
        out, stride = g_at[ir_out] + used[ir_out], strides[ir_out]
        paths.append(Path(x_at[block], ir_in.dim, out, ir_out.dim, stride, r, 0, mul, terms))
        used[ir_out] += mul
        r += mul
    return paths


def _loop(path: Path) -> ChannelLoop:
    couplings, messages = path.form.sums()
    return ChannelLoop(messages, couplings)


def _place(path: Path, arrays: dict[str, str], name: str) -> str:
    """Of a channel of a value; `arrays` as in KERNELS."""
    kind, n = letters(name), index(name)
    at = {
        "x": f"{path.x + n * path.mul} + c",
        "m": f"{path.out + n * path.stride} + c",
        "r": f"{path.weight} + c",
        "y": f"{n}",
    }[kind[-1]]
    return f"{arrays[kind]}e[{at}]"


#: arguments of C++ for the values of each kernel, and what is written
KERNELS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "forward": ({"x": "x", "m": "o", "r": "r", "y": "y"}, ("m",)),
    "backward": (
        {"x": "x", "dm": "g", "dx": "dx", "r": "r", "dr": "dr", "y": "y", "dy": "dy"},
        ("dx", "dr", "dy"),
    ),
    "second": (
        {"x": "x", "tx": "ux", "dm": "g", "tm": "dg", "tdx": "dx", "r": "r", "tr": "ur"}
        | {"tdr": "dr", "y": "y", "ty": "uy", "tdy": "dy"},
        ("tm", "tdx", "tdr", "tdy"),
    ),
}

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
    paths = [(path, _loop(path)) for path in kernel_paths(convolution)]
    rows = {
        "x": f"src[e] * {convolution.irreps_in.dim}",
        "m": f"dst[e] * {convolution.irreps_out.dim}",
        "r": f"pair[e] * {convolution.num_weights}",
        "y": f"e * {(convolution.l_max + 1) ** 2}",
    }
    kernels = []
    for name, (arrays, wanted) in KERNELS.items():
        signature = Signature(arrays, wanted)
        kernels.append(
            _KERNEL.format(
                name=name,
                tag=tag,
                arguments=signature.arguments,
                rows=signature.rows(rows),
                paths="\n".join(
                    loop.source(wanted, partial(_place, path, arrays), path.mul)
                    for path, loop in paths
                ),
            )
        )
    return "".join(kernels)


def library_source(
    convolutions: list[Convolution],
    products: list[ChannelProduct],
    contractions: list[Contraction],
    scalar: str,
) -> str:
    """One translation unit for a whole model: kernels `forward_0`, ..., `product_forward_0`, ...,
    `contraction_forward_0`, ...
    """
    parts = [f"using T = {scalar};\n", header("callee.h"), header("threads.h")]
    if contractions:
        parts += [header("simd.h"), SHARED]
    parts += [source(c, str(k)) for k, c in enumerate(convolutions)]
    parts += [product_source(p, str(k)) for k, p in enumerate(products)]
    parts += [contraction_source(c, str(k)) for k, c in enumerate(contractions)]
    return "".join(parts)
