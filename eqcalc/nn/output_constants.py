"""What outputs beside the energy are measured in, as scale and shift are of the energy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class OutputConstants:
    """Measured on the training's labels, in their units.

    Attributes:
        scale: of each column of the rows of all outputs: the network's numbers are multiplied by
            it.
        shift: [species][columns], what an atom has by its element alone; zero but for 0e.
        rms: of each output's labels, less the shifts; errors are divided by it in the loss.
    """

    scale: list[float]
    shift: list[list[float]]
    rms: list[float]

    @classmethod
    def blank(cls, num_species: int, num_columns: int, num_outputs: int) -> OutputConstants:
        """Of an untrained network."""
        shift = [[0.0] * num_columns for _ in range(num_species)]
        return cls([1.0] * num_columns, shift, [1.0] * num_outputs)


class ReferenceOutputs(nn.Module):
    """rows * scale + shift[species], in float64.

    forward: species [N], rows [N, columns] -> [N, columns].
    """

    def __init__(self, constants: OutputConstants) -> None:
        super().__init__()
        for name, value in vars(constants).items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64))

    def constants(self) -> OutputConstants:
        """As they were given."""
        return OutputConstants(self.scale.tolist(), self.shift.tolist(), self.rms.tolist())

    def forward(self, species: Tensor, rows: Tensor) -> Tensor:
        return rows * self.scale + self.shift.index_select(0, species)
