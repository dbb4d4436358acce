"""A network of one's own in a file of one's own: what a user writes for a new architecture."""

from dataclasses import dataclass

from eqcalc.models.config import ModelConfig
from eqcalc.program import (
    Add,
    Convolution,
    Embedding,
    Linear,
    Normalization,
    NormGate,
    Output,
    Program,
    Radial,
    Readout,
)


@dataclass(frozen=True)
class ToyConfig(ModelConfig):
    """Vectors go out and come back.

    Attributes:
        channels: of scalars and vectors.
    """

    channels: int = 4

    def program(self) -> Program:
        scalars, both = f"{self.channels}x0e", f"{self.channels}x0e+{self.channels}x1o"
        hidden = tuple(self.radial_mlp)
        return Program(
            (
                Embedding("a", self.channels),
                Radial("r", hidden),
                Convolution("sums", "a", "r", scalars, 1, both),
                Normalization("m", "sums", both),
                NormGate("b", "m", both),
                Radial("s", hidden),
                Convolution("back", "b", "s", both, 1, f"{2 * self.channels}x0e"),
                Normalization("n", "back", f"{2 * self.channels}x0e"),
                Linear("c", "n", f"{2 * self.channels}x0e", scalars),
                Linear("own", "b", both, scalars),
                Add("d", ("c", "own"), scalars),
                Readout("energies", "d", scalars, hidden=5),
                Output("energy", ("energies",)),
            )
        )
