"""Equivariant linear maps, with and without a matrix per species.

Features are stored channels innermost: the block of `mul x l` is [2l + 1, mul], flattened, and the
blocks follow each other in the order of the irreps. (e3nn stores [mul, 2l + 1].)
"""

import math

import torch
from e3nn import o3
from torch import Tensor, nn


def block_offsets(irreps: o3.Irreps) -> list[int]:
    """First column of each block of `irreps` in a flat feature row, and the total at the end."""
    offsets = [0]
    for mul, ir in irreps:
        offsets.append(offsets[-1] + mul * ir.dim)
    return offsets


class SpeciesLinear(nn.Module):
    """y^{lp}_c' = sum_c W^{lp}[species]_{cc'} x^{lp}_c / sqrt(number of channels in).

    Args:
        irreps_in, irreps_out: every irrep at most once in each. An irrep of the output that the
            input lacks comes out zero.
        num_species: how many matrices per block; with 1 the species are not looked at.

    forward: features [N, irreps_in.dim], species [N] -> [N, irreps_out.dim].
    """

    # per irrep out: first column in, 2l + 1, channels in, channels out, first weight
    _blocks: list[tuple[int, int, int, int, int]]
    # per irrep out: position of the irrep in the input, -1 where it is not there
    _sources: list[int]
    _widths: list[int]  # columns of each irrep in
    _sizes: list[int]  # weights of each irrep out

    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, num_species: int = 1) -> None:
        super().__init__()
        for irreps in (irreps_in, irreps_out):
            if len({ir for _, ir in irreps}) != len(irreps):
                raise ValueError(f"{irreps}: an irrep appears twice; simplify the irreps first")
        self.num_species = num_species
        offsets = block_offsets(irreps_in)
        position = {ir: n for n, (_, ir) in enumerate(irreps_in)}
        self._widths = [mul * ir.dim for mul, ir in irreps_in]
        self._blocks, self._sources, self._sizes = [], [], []
        numel = 0
        for mul_out, ir in irreps_out:
            source = position.get(ir, -1)
            mul_in, at = (irreps_in[source].mul, offsets[source]) if source >= 0 else (0, 0)
            self._blocks.append((at, ir.dim, mul_in, mul_out, numel))
            self._sources.append(source)
            self._sizes.append(mul_in * mul_out)
            numel += mul_in * mul_out
        self.weight = nn.Parameter(torch.randn(num_species, numel))

    def _apply_matrices(self, x: Tensor, weight: Tensor) -> Tensor:
        """One matrix per irrep. Splits, not slices: their gradients are not padded with zeros."""
        inputs, matrices = x.split(self._widths, 1), weight.split(self._sizes)
        columns: list[Tensor] = []
        for n, (_, dim, mul_in, mul_out, _) in enumerate(self._blocks):
            if mul_in == 0:
                columns.append(x.new_zeros(x.shape[0], dim * mul_out))
            else:
                block = inputs[self._sources[n]].reshape(-1, mul_in)
                y = block @ (matrices[n].view(mul_in, mul_out) / math.sqrt(mul_in))
                columns.append(y.view(x.shape[0], dim * mul_out))
        return torch.cat(columns, dim=1)

    def _apply_stacked(self, x: Tensor, species: Tensor) -> Tensor:
        """All species in one product: features in the place of their species, zeros elsewhere."""
        kinds = torch.arange(self.num_species, device=x.device)
        mine = (species.unsqueeze(1) == kinds).to(x.dtype).view(-1, 1, self.num_species, 1)
        inputs, matrices = x.split(self._widths, 1), self.weight.split(self._sizes, 1)
        columns: list[Tensor] = []
        for n, (_, dim, mul_in, mul_out, _) in enumerate(self._blocks):
            if mul_in == 0:
                columns.append(x.new_zeros(x.shape[0], dim * mul_out))
            else:
                block = inputs[self._sources[n]].view(-1, dim, 1, mul_in) * mine
                matrix = matrices[n].reshape(-1, mul_out) / math.sqrt(mul_in)
                y = block.view(-1, self.num_species * mul_in) @ matrix
                columns.append(y.view(x.shape[0], dim * mul_out))
        return torch.cat(columns, dim=1)

    def forward(self, x: Tensor, species: Tensor) -> Tensor:
        if self.num_species == 1:
            return self._apply_matrices(x, self.weight[0])
        if x.shape[0] * self.num_species <= 2048:  # where few large products beat many small ones
            return self._apply_stacked(x, species)
        rows: list[Tensor] = []
        order: list[Tensor] = []
        for s in range(self.num_species):
            index = torch.nonzero(species == s).squeeze(1)
            order.append(index)
            rows.append(self._apply_matrices(x.index_select(0, index), self.weight[s]))
        back = torch.argsort(torch.cat(order))
        return torch.cat(rows).index_select(0, back)


class ScalarBias(nn.Module):
    """Adds constants, zero at first, to the even scalars: no other irrep can have a bias.

    forward: [N, irreps.dim] -> [N, irreps.dim].
    """

    def __init__(self, irreps: o3.Irreps) -> None:
        super().__init__()
        scalars = [n for n, (_, ir) in enumerate(irreps) if ir == o3.Irrep("0e")]
        offsets = block_offsets(irreps)
        self.at = offsets[scalars[0]] if scalars else 0
        self.bias = nn.Parameter(torch.zeros(irreps[scalars[0]].mul if scalars else 0))
        self.behind = offsets[-1] - self.at - self.bias.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.nn.functional.pad(self.bias, [self.at, self.behind])
