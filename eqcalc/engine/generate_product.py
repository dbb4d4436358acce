r"""C++ for one product of channels with themselves, with its first and second derivatives.

Products b_r = sum_{i j} C_{r i j} a_i a_j (see eqcalc.nn.product) of rows a [2l + 1 of all irreps,
channels] of an atom. The kernels are

    forward   b
    backward  da = (db/da)^T g
    second    the gradient of <u, da> with respect to g and a

which is all that a loss on forces needs; the latter two are derived from the first
(`eqcalc.program.sums`).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from eqcalc.engine.channel_kernels import ChannelLoop, Signature, index, letters
from eqcalc.nn.linear import block_offsets
from eqcalc.nn.product import ChannelProduct
from eqcalc.program.sums import Sum


class _Row(NamedTuple):
    """A row of products: its first column, and (i, j, C) of its terms."""

    column: int
    terms: list[tuple[int, int, float]]


def _paths(product: ChannelProduct) -> list[list[_Row]]:
    """The rows of every path, in the order of `product.coupling`."""
    first, second = product.first.tolist(), product.second.tolist()
    couplings = iter(product.coupling.tolist())
    paths = []
    offsets = block_offsets(product.irreps_out)
    for at, (count, dim) in zip(offsets, product._pieces, strict=False):
        for path in range(count):
            columns = [at + (m * count + path) * product.num_channels for m in range(dim)]
            rows = zip(columns, couplings, strict=False)
            paths.append(
                [
                    _Row(
                        column,
                        [
                            (i, j, c)
                            for i, j, c in zip(first, second, coupling, strict=True)
                            if abs(c) > 1e-12
                        ],
                    )
                    for column, coupling in rows
                ]
            )
    return paths


def _loop(path: list[_Row]) -> ChannelLoop:
    return ChannelLoop(
        [
            Sum(f"b{m}", tuple((c, (f"a{i}", f"a{j}")) for i, j, c in terms))
            for m, (_, terms) in enumerate(path)
        ]
    )


def _place(path: list[_Row], channels: int, arrays: dict[str, str], name: str) -> str:
    """Of a channel of a value; `arrays` as in KERNELS."""
    kind, n = letters(name), index(name)
    column = n * channels if kind[-1] == "a" else path[n].column
    return f"{arrays[kind]}e[{column} + c]"


#: arguments of C++ for the values of each kernel, what is written, and of that what is set
KERNELS: dict[str, tuple[dict[str, str], tuple[str, ...], str]] = {
    "forward": ({"a": "a", "b": "b"}, ("b",), "b"),
    "backward": ({"a": "a", "db": "g", "da": "da"}, ("da",), ""),
    "second": (
        {"a": "a", "ta": "u", "db": "g", "tb": "dg", "tda": "da"},
        ("tb", "tda"),
        "tb",
    ),
}

_KERNEL = """
extern "C" int product_{name}_{tag}(I atoms, {arguments})
{{
  return guarded([&] {{ in_ranges(atoms, most_threads(), [=](I begin, I end) {{
  for (I n = begin; n < end; ++n) {{
{rows}
{loops}
  }}
  }}); }});
}}
"""


def product_source(product: ChannelProduct, tag: str) -> str:
    """The three kernels: `product_forward_tag`, ..."""
    channels = product.num_channels
    rows = {"a": f"n * {product.irreps_in.dim}", "b": f"n * {product.irreps_out.dim}"}
    paths = [(path, _loop(path)) for path in _paths(product)]
    sources = []
    for name, (arrays, wanted, sets) in KERNELS.items():
        signature = Signature(arrays, wanted)
        sources.append(
            _KERNEL.format(
                name=name,
                tag=tag,
                arguments=signature.arguments,
                rows=signature.rows(rows),
                loops="\n".join(
                    loop.source(wanted, partial(_place, path, channels, arrays), channels, sets)
                    for path, loop in paths
                ),
            )
        )
    return "".join(sources)
