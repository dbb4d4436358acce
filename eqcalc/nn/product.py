r"""Products of messages with themselves: three-body terms within a layer.

Sums over neighbours know of pairs; their products know of two neighbours at once (atomic cluster
expansion, Drautz, Phys. Rev. B 99, 014104 (2019); MACE, arXiv:2206.07697, eq. 10, correlation 2):

    B_i^{p c m3} = sum_{m1 m2} C^p_{m1 m2 m3} A_i^{l1 c m1} A_i^{l2 c m2},   A_i = W_in m_i

for every path p = (l1 <= l2 -> l3), with C = sqrt(2 l3 + 1) times the Wigner 3j symbol; what the
layer takes is W_out B_i. The product of an irrep with itself is symmetric, and paths that it lacks
are left out. With l3 = 0 alone, B holds the power spectrum of the neighbourhood.
"""

import math

import torch
from e3nn import o3
from torch import Tensor, nn


def _couplings(
    irreps_in: o3.Irreps, irreps_target: o3.Irreps
) -> list[tuple[o3.Irrep, list[tuple[int, int]]]]:
    """By irrep out that is reached: the positions of the irreps whose products make it."""
    found = []
    for _, ir in irreps_target:
        pairs = [
            (a, b)
            for a, (_, ir_a) in enumerate(irreps_in)
            for b, (_, ir_b) in enumerate(irreps_in[a:], start=a)
            if ir in ir_a * ir_b and not (a == b and ir.l % 2 == 1)  # antisymmetric
        ]
        if pairs:
            found.append((ir, pairs))
    return found


def product_irreps(irreps_in: o3.Irreps, irreps_target: o3.Irreps) -> o3.Irreps:
    """Of a `ChannelProduct`: each target irrep that is reached, with the channels of all paths."""
    mul = irreps_in[0].mul
    return o3.Irreps([(mul * len(p), ir) for ir, p in _couplings(irreps_in, irreps_target)])


class ChannelProduct(nn.Module):
    """Every channel times itself: [N, irreps_in.dim] -> [N, irreps_out.dim].

    Args:
        irreps_in: each irrep once, all with the same number of channels.
        irreps_target: only products in one of these irreps are made.

    `irreps_out` has each target irrep that is reached once, its channels path after path. With
    rows a of [2l + 1 of every irrep, channels], row r of the products is
    sum_k coupling[r, k] a[first[k]] a[second[k]].
    """

    _pieces: list[tuple[int, int]]  # per irrep out: number of paths, 2 l3 + 1

    def __init__(self, irreps_in: o3.Irreps, irreps_target: o3.Irreps) -> None:
        super().__init__()
        self.num_channels = irreps_in[0].mul
        if any(mul != self.num_channels for mul, _ in irreps_in):
            raise ValueError(f"{irreps_in}: the irreps must have equally many channels")
        starts = [0]
        for _, ir in irreps_in:
            starts.append(starts[-1] + ir.dim)
        self.num_rows = starts[-1]
        place = torch.full((starts[-1], starts[-1]), -1)
        pairs = torch.triu_indices(starts[-1], starts[-1])
        place[pairs[0], pairs[1]] = place[pairs[1], pairs[0]] = torch.arange(pairs.shape[1])

        rows = []
        self._pieces = []
        for ir, couplings in _couplings(irreps_in, irreps_target):
            for a, b in couplings:
                w3j = o3.wigner_3j(irreps_in[a].ir.l, irreps_in[b].ir.l, ir.l, dtype=torch.float64)
                w3j = w3j.permute(2, 0, 1).flatten(1) * math.sqrt(ir.dim)
                at = place[starts[a] : starts[a + 1], starts[b] : starts[b + 1]].flatten()
                row = torch.zeros(ir.dim, pairs.shape[1], dtype=torch.float64)
                rows.append(row.index_add_(1, at, w3j))
            self._pieces.append((len(couplings), ir.dim))
        self.irreps_in, self.irreps_out = irreps_in, product_irreps(irreps_in, irreps_target)
        coupling = torch.cat(rows)
        used = coupling.abs().amax(0) > 1e-12
        self.register_buffer("first", pairs[0, used])
        self.register_buffer("second", pairs[1, used])
        self.register_buffer("coupling", coupling[:, used])

    def forward(self, a: Tensor) -> Tensor:
        a = a.view(-1, self.num_rows, self.num_channels)
        squares = a.index_select(1, self.first) * a.index_select(1, self.second)
        products = torch.matmul(self.coupling.to(a.dtype), squares)
        columns: list[Tensor] = []
        at = 0
        for paths, dim in self._pieces:
            block = products[:, at : at + paths * dim]
            block = block.reshape(-1, paths, dim, self.num_channels).transpose(1, 2)
            columns.append(block.flatten(1))
            at += paths * dim
        return torch.cat(columns, dim=1)
