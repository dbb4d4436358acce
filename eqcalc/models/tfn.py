"""Tensor field network (Thomas et al., arXiv:1802.08219).

Layer: x' = NL( W_mix s_l sum_j R(r_ij) (W_up x_j (x) Y(r_ij)) + W_own x ); the nonlinearity NL acts
on norms, as in the paper, or gates by scalars.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from e3nn import o3

from eqcalc.models.config import ModelConfig, Problems
from eqcalc.models.outputs import (
    Features,
    last_features,
    needs_both_parities,
    output_operations,
)
from eqcalc.nn.convolution import reached_irreps
from eqcalc.nn.gate import gate_input
from eqcalc.program import (
    Add,
    Convolution,
    Embedding,
    Gate,
    Linear,
    Normalization,
    NormGate,
    Output,
    Program,
    Radial,
    Readout,
)
from eqcalc.program.operations import Operation


@dataclass(frozen=True)
class TFNConfig(ModelConfig):
    """A tensor field network, as in arXiv:1802.08219. Lengths in Å.

    Attributes:
        num_layers: the receptive field is num_layers * cutoff.
        l_max: highest degree of spherical harmonics and features.
        num_channels: channels of the features of degree 0, 1, ..., l_max.
        nonlinearity: of features, by their norm (the paper's) or by gates of their own.
        readout: hidden width of the readout of the last layer's scalars; 0: it is linear.
    """

    architecture: str = "tfn"
    num_layers: int = 3
    l_max: int = 2
    num_channels: list[int] = field(default_factory=lambda: [64, 32, 16])
    nonlinearity: Literal["norm", "gate"] = "norm"
    readout: int = 32

    def problems(self) -> Problems:
        return [
            *super().problems(),
            *self.not_positive("num_layers"),
            *self.negative("readout"),
            *self.not_by_degree(),
        ]

    def program(self) -> Program:
        parities = (1, -1) if needs_both_parities(self.outputs) else (1,)
        every = o3.Irreps(
            [
                (mul, (l, parity * (-1) ** l))
                for l, mul in enumerate(self.num_channels)  # noqa: E741
                for parity in parities
            ]
        )
        operations: list[Operation] = [Embedding("x_0", self.num_channels[0])]
        before = every[:1]
        for k in range(self.num_layers):
            last = k + 1 == self.num_layers
            after = last_features(self.outputs, every) if last else every
            operations += self._layer(k, before, after)
            before = o3.Irreps(operations[-1].irreps)
        x = Features(f"x_{self.num_layers}", before)
        if self.energy:
            operations.append(Readout("energies", x.name, str(before), self.readout))
            operations.append(Output("energy", ("energies",)))
        return Program((*operations, *output_operations(self.outputs, [x], self.readout)))

    def _layer(self, k: int, before: o3.Irreps, target: o3.Irreps) -> list[Operation]:
        made = reached_irreps(before, self.l_max, target)
        reached = {ir for _, ir in made}
        after = o3.Irreps([(mul, ir) for mul, ir in target if ir in reached])
        x, irreps, out, messages = f"x_{k}", str(before), str(after), str(made)
        gated = self.nonlinearity == "gate"
        inner = str(gate_input(after)) if gated else out
        own = k > 0 or not self.exact_isolated_atoms
        terms = (f"mix_{k}", f"own_{k}") if own else (f"mix_{k}",)
        kind = Gate if gated else NormGate
        return [
            Linear(f"up_{k}", x, irreps, irreps),
            Radial(f"r_{k}", tuple(self.radial_mlp)),
            Convolution(f"sum_{k}", f"up_{k}", f"r_{k}", irreps, self.l_max, messages),
            Normalization(f"m_{k}", f"sum_{k}", messages),
            Linear(f"mix_{k}", f"m_{k}", messages, inner),
            *([Linear(f"own_{k}", x, irreps, inner)] if own else []),
            Add(f"sums_{k}", terms, inner),
            kind(f"x_{k + 1}", f"sums_{k}", out),
        ]
