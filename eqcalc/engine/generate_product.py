r"""C++ for one product of channels with themselves, with its first and second derivatives.

Products b_r = sum_{i j} C_{r i j} a_i a_j (see eqcalc.nn.product) of rows a [2l + 1 of all irreps,
channels] of an atom. The kernels are

    forward   b
    backward  da = (db/da)^T g
    second    the gradient of <u, da> with respect to g and a

which is all that a loss on forces needs.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from eqcalc.nn.linear import block_offsets
from eqcalc.nn.product import ChannelProduct


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


def _read(array: str, path: list[_Row], channels: int) -> list[str]:
    rows = sorted({row for _, terms in path for i, j, _ in terms for row in (i, j)})
    return [f"const T {array}{row} = {array}e[{row * channels} + c];" for row in rows]


def _read_g(path: list[_Row]) -> list[str]:
    return [f"const T g{m} = ge[{column} + c];" for m, (column, _) in enumerate(path)]


def _add_da(path: list[_Row], factor: str, channels: int) -> list[str]:
    """da_i += sum C g factor_j, and the same with i and j exchanged."""
    sums = defaultdict(list)
    for m, (_, terms) in enumerate(path):
        for i, j, c in terms:
            sums[i].append(f"T({c!r}) * g{m} * {factor}{j}")
            sums[j].append(f"T({c!r}) * g{m} * {factor}{i}")
    return [f"dae[{i * channels} + c] += {' + '.join(terms)};" for i, terms in sums.items()]


def _forward(path: list[_Row], channels: int) -> list[str]:
    made = [
        f"be[{column} + c] = " + " + ".join(f"T({c!r}) * a{i} * a{j}" for i, j, c in terms) + ";"
        for column, terms in path
    ]
    return [*_read("a", path, channels), *made]


def _backward(path: list[_Row], channels: int) -> list[str]:
    return [*_read("a", path, channels), *_read_g(path), *_add_da(path, "a", channels)]


def _second(path: list[_Row], channels: int) -> list[str]:
    made = [
        f"dge[{column} + c] = "
        + " + ".join(f"T({c!r}) * (u{i} * a{j} + a{i} * u{j})" for i, j, c in terms)
        + ";"
        for column, terms in path
    ]
    read = [*_read("a", path, channels), *_read("u", path, channels), *_read_g(path)]
    return [*read, *made, *_add_da(path, "u", channels)]


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
    width_a, width_b = product.irreps_in.dim, product.irreps_out.dim
    paths = _paths(product)
    sources = []
    for name, body, out, arrays in (
        ("forward", _forward, ["b"], {"a": width_a, "b": width_b}),
        ("backward", _backward, ["da"], {"a": width_a, "g": width_b, "da": width_a}),
        (
            "second",
            _second,
            ["dg", "da"],
            {"a": width_a, "u": width_a, "g": width_b, "dg": width_b, "da": width_a},
        ),
    ):
        types = {array: "T *" if array in out else "const T *" for array in arrays}
        loops = [
            f"    #pragma omp simd\n    for (int c = 0; c < {channels}; ++c) {{\n      "
            + "\n      ".join(body(path, channels))
            + "\n    }"
            for path in paths
        ]
        rows = [f"    {types[a]}__restrict {a}e = {a} + n * {w};" for a, w in arrays.items()]
        sources.append(
            _KERNEL.format(
                name=name,
                tag=tag,
                arguments=", ".join(types[a] + a for a in arrays),
                rows="\n".join(rows),
                loops="\n".join(loops),
            )
        )
    return "".join(sources)
