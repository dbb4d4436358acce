"""An invariant network: it knows distances and nothing else (SchNet, arXiv:1706.08566).

Layer: x' = x + W_2 silu(W_1 s sum_j R(r_ij) W_up x_j). The control for every other network: what
directions add is what it lacks.
"""

from __future__ import annotations

from dataclasses import dataclass

from e3nn import o3

from eqcalc.models.config import ModelConfig, Problems
from eqcalc.models.outputs import Features, output_operations
from eqcalc.program import (
    Add,
    Convolution,
    Embedding,
    Gate,
    Linear,
    Normalization,
    Output,
    Program,
    Radial,
    Readout,
)
from eqcalc.program.operations import Operation


@dataclass(frozen=True)
class InvariantConfig(ModelConfig):
    """A network of distances alone, as SchNet (arXiv:1706.08566). Lengths in Å.

    Attributes:
        num_layers: the receptive field is num_layers * cutoff.
        num_channels: of the features, all scalars.
        readout: hidden width of the readout; 0: it is linear.
    """

    architecture: str = "invariant"
    num_layers: int = 3
    num_channels: int = 128
    readout: int = 32

    def problems(self) -> Problems:
        return [
            *super().problems(),
            *self.not_positive("num_layers", "num_channels"),
            *self.negative("readout"),
        ]

    def program(self) -> Program:
        operations: list[Operation] = [Embedding("x_0", self.num_channels)]
        irreps = f"{self.num_channels}x0e"
        for k in range(self.num_layers):
            own = k > 0 or not self.exact_isolated_atoms
            terms = (f"out_{k}", f"x_{k}") if own else (f"out_{k}",)
            operations += [
                Linear(f"up_{k}", f"x_{k}", irreps, irreps),
                Radial(f"r_{k}", tuple(self.radial_mlp)),
                Convolution(f"sum_{k}", f"up_{k}", f"r_{k}", irreps, 0, irreps),
                Normalization(f"m_{k}", f"sum_{k}", irreps),
                Linear(f"inner_{k}", f"m_{k}", irreps, irreps),
                Gate(f"active_{k}", f"inner_{k}", irreps),
                Linear(f"out_{k}", f"active_{k}", irreps, irreps),
                Add(f"x_{k + 1}", terms, irreps),
            ]
        x = Features(f"x_{self.num_layers}", o3.Irreps(irreps))
        if self.energy:
            operations.append(Readout("energies", x.name, irreps, self.readout))
            operations.append(Output("energy", ("energies",)))
        return Program((*operations, *output_operations(self.outputs, [x], self.readout)))
