r"""Clebsch-Gordan convolution (Thomas et al., arXiv:1802.08219, eq. 3; NequIP, eq. 6).

For every path p = (l1, l2 -> l3) and channel c

    m_i^{p c m3} = sum_j R^p_c(r_ij) sum_{m1 m2} C^p_{m1 m2 m3} x_j^{l1 c m1} Y_{l2 m2}(r_ij)

with C = sqrt(2 l3 + 1) times the Wigner 3j symbol. Channels are not mixed here.

| symbol | variable   | shape                                   |
|--------|------------|-----------------------------------------|
| x      | node_feats | [M, irreps_in.dim], channels innermost  |
| Y      | edge_attrs | [E, (l_max + 1)^2]                      |
| R      | weights    | [E, num_weights], path after path       |
| m      |            | [N, irreps_out.dim], channels innermost |
"""

import math
from typing import NamedTuple

import torch
from e3nn import o3
from torch import Tensor, nn

from eqcalc.nn.linear import block_offsets


class Coupling(NamedTuple):
    """One coupling: block of the input, degree of the harmonic, irrep out, channels."""

    block: int
    l2: int
    ir_out: o3.Irrep
    mul: int


def allowed_paths(
    irreps_in: o3.Irreps, l_max: int, irreps_target: o3.Irreps, *, so3: bool = False
) -> list[Coupling]:
    """Every path from `irreps_in` and Y_0..Y_l_max (natural parity) into `irreps_target`.

    so3: parity is ignored: harmonics count as even, like all features.
    """
    wanted = {ir for _, ir in irreps_target}
    return [
        Coupling(block, l2, ir_out, mul)
        for block, (mul, ir_in) in enumerate(irreps_in)
        for l2 in range(l_max + 1)
        for ir_out in ir_in * o3.Irrep(l2, 1 if so3 else (-1) ** l2)
        if ir_out in wanted
    ]


def reached_irreps(
    irreps_in: o3.Irreps, l_max: int, irreps_target: o3.Irreps, *, so3: bool = False
) -> o3.Irreps:
    """Of a convolution's messages: each irrep that paths reach, with the channels of all paths."""
    paths = allowed_paths(irreps_in, l_max, irreps_target, so3=so3)
    counts = [(sum(p.mul for p in paths if p.ir_out == ir), ir) for _, ir in irreps_target]
    return o3.Irreps([(mul, ir) for mul, ir in counts if mul])


class Convolution(nn.Module):
    """Sum over neighbours of radial weight x features x spherical harmonics.

    Args:
        irreps_in: of the neighbours' features, each irrep once.
        l_max: of the spherical harmonics.
        irreps_target: only paths that end in one of these irreps are kept.
        so3: parity is ignored (see `allowed_paths`).

    `irreps_out` has each reachable target irrep once; its channels are those of the paths that end
    in it, in the order of `paths`. `num_weights` is the number of radial functions.

    Raises:
        ValueError: if no path leads from `irreps_in` into `irreps_target`.
    """

    # per input block: first column, 2 l1 + 1, channels, first weight, number of paths, rows out
    _blocks: list[tuple[int, int, int, int, int, int]]
    # per path, in the order of the output: input block, first row there, 2 l3 + 1, channels
    _pieces: list[list[tuple[int, int, int]]]

    def __init__(
        self, irreps_in: o3.Irreps, l_max: int, irreps_target: o3.Irreps, *, so3: bool = False
    ) -> None:
        super().__init__()
        self.paths = allowed_paths(irreps_in, l_max, irreps_target, so3=so3)
        if not self.paths:
            raise ValueError(f"no path from {irreps_in} with l_max {l_max} into {irreps_target}")
        self.irreps_in = irreps_in
        self.l_max = l_max
        self.num_weights = sum(path.mul for path in self.paths)

        offsets = block_offsets(irreps_in)
        self._blocks = []
        where: dict[int, tuple[int, int]] = {}  # path -> (block in the list below, first row)
        num_weights = 0
        for block, (mul, ir_in) in enumerate(irreps_in):
            mine = [k for k, path in enumerate(self.paths) if path.block == block]
            if not mine:
                continue
            rows = sum(self.paths[k].ir_out.dim for k in mine)
            coupling = torch.zeros((l_max + 1) ** 2, rows, ir_in.dim, dtype=torch.float64)
            weight_of_row: list[int] = []
            row = 0
            for n, k in enumerate(mine):
                _, l2, ir_out, _ = self.paths[k]
                c = o3.wigner_3j(ir_in.l, l2, ir_out.l, dtype=torch.float64)
                c = c * math.sqrt(ir_out.dim)
                coupling[l2**2 : (l2 + 1) ** 2, row : row + ir_out.dim] = c.permute(1, 2, 0)
                where[k] = (len(self._blocks), row)
                weight_of_row += [n] * ir_out.dim
                row += ir_out.dim
            index = len(self._blocks)
            self.register_buffer(f"coupling_{index}", coupling.flatten(1))
            self.register_buffer(f"weight_of_row_{index}", torch.tensor(weight_of_row))
            self._blocks.append((offsets[block], ir_in.dim, mul, num_weights, len(mine), rows))
            num_weights += mul * len(mine)

        self.irreps_out = reached_irreps(irreps_in, l_max, irreps_target, so3=so3)
        self._pieces = []
        for _, ir in self.irreps_out:
            into = [k for k, path in enumerate(self.paths) if path.ir_out == ir]
            self._pieces.append([(*where[k], ir.dim) for k in into])

    def _constants(self) -> tuple[list[Tensor], list[Tensor]]:
        couplings: list[Tensor] = []
        rows: list[Tensor] = []
        for name, buffer in self.named_buffers():
            if name.startswith("coupling_"):
                couplings.append(buffer)
            else:
                rows.append(buffer)
        return couplings, rows

    def _joined(self, blocks: list[Tensor]) -> Tensor:
        """Rows of all paths, by input block, in the order of the output."""
        columns: list[Tensor] = []
        for pieces in self._pieces:
            parts: list[Tensor] = []
            for block, row, dim in pieces:
                parts.append(blocks[block][:, row : row + dim])
            columns.append(torch.cat(parts, dim=2).flatten(1))
        return torch.cat(columns, dim=1)

    def on_edges(self, feats: Tensor, edge_attrs: Tensor, weights: Tensor) -> Tensor:
        """Products of features that edges have [E, irreps_in.dim], not summed: [E, dim out]."""
        couplings, weight_of_row = self._constants()
        products: list[Tensor] = []
        for k, (at, dim, mul, first, num_paths, rows) in enumerate(self._blocks):
            x = feats[:, at : at + dim * mul].reshape(-1, dim, mul)
            coupled = (edge_attrs @ couplings[k].to(edge_attrs.dtype)).view(-1, rows, dim)
            w = weights[:, first : first + num_paths * mul].reshape(-1, num_paths, mul)
            products.append(torch.bmm(coupled, x) * w.index_select(1, weight_of_row[k]))
        return self._joined(products)

    def forward(
        self,
        node_feats: Tensor,
        edge_attrs: Tensor,
        weights: Tensor,
        edge_src: Tensor,
        edge_dst: Tensor,
        num_local: int,
    ) -> Tensor:
        couplings, weight_of_row = self._constants()
        sums: list[Tensor] = []
        for k, (at, dim, mul, first, num_paths, rows) in enumerate(self._blocks):
            x = node_feats[:, at : at + dim * mul].reshape(-1, dim, mul).index_select(0, edge_src)
            coupled = (edge_attrs @ couplings[k].to(edge_attrs.dtype)).view(-1, rows, dim)
            w = weights[:, first : first + num_paths * mul].reshape(-1, num_paths, mul)
            message = torch.bmm(coupled, x) * w.index_select(1, weight_of_row[k])
            total = torch.zeros(num_local, rows, mul, dtype=x.dtype, device=x.device)
            sums.append(total.index_add(0, edge_dst, message))
        return self._joined(sums)
