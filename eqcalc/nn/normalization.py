"""Constants that bring messages to the size that the next layer wants."""

import torch
from e3nn import o3
from torch import Tensor, nn


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
