"""What brings messages to the size that the next layer wants."""

import torch
from e3nn import o3
from torch import Tensor, nn

from eqcalc.nn.radial import EdgeRadialNetwork


class Normalization(nn.Module):
    """One constant for each irrep, 1 / sqrt(average number of neighbours) until it is measured.

    forward: messages [N, irreps.dim], what crowded atoms' messages are multiplied by [N] or [0]
    (`eqcalc.nn.crowding`) -> [N, irreps.dim].
    """

    def __init__(self, irreps: o3.Irreps, avg_num_neighbors: float) -> None:
        super().__init__()
        self.widths = [mul * ir.dim for mul, ir in irreps]
        norm = torch.ones(irreps.dim, dtype=torch.float64)
        self.register_buffer("norm", norm / avg_num_neighbors**0.5)

    def scales(self) -> list[float]:
        """By irrep."""
        return [float(part[0]) for part in self.norm.split(self.widths)]

    def set_scales(self, scales: list[float]) -> None:
        norm = torch.tensor(scales, dtype=self.norm.dtype)
        self.norm.copy_(norm.repeat_interleave(torch.tensor(self.widths)))

    def forward(self, messages: Tensor, calm: Tensor) -> Tensor:
        messages = messages * self.norm.to(messages.dtype)
        if calm.shape[0] > 0:
            messages = messages * calm[: messages.shape[0]].unsqueeze(1)
        return messages


class DensityNormalization(Normalization):
    """Divided by one plus a number of neighbours as well (see `Density`).

    forward: messages [N, irreps.dim], calm [N] or [0], density [N, 1] -> [N, irreps.dim].
    """

    def forward(self, messages: Tensor, calm: Tensor, density: Tensor) -> Tensor:
        messages = messages * self.norm.to(messages.dtype) / (1.0 + density)
        if calm.shape[0] > 0:
            messages = messages * calm[: messages.shape[0]].unsqueeze(1)
        return messages


class Density(nn.Module):
    """sum_j tanh((w b(r_ij))^2) of each atom, b being the radial basis.

    forward: basis [E, num_radial], edge_dst [E], num_local -> [num_local, 1].
    """

    def __init__(self, num_radial: int) -> None:
        super().__init__()
        self.network = EdgeRadialNetwork([num_radial, 1])

    def forward(self, basis: Tensor, edge_dst: Tensor, num_local: int) -> Tensor:
        terms = torch.tanh(self.network(basis).square())
        total = torch.zeros(num_local, 1, dtype=basis.dtype, device=basis.device)
        return total.index_add(0, edge_dst, terms)
