"""MACE: many-body messages (Batatia et al., arXiv:2206.07697).

Layer, eqs. 8 to 11 and 13: A = W_mix s_l sum_j R(r_ij) (W_up x_j (x) Y(r_ij)); products B of A
with itself up to the correlation, weighted by species; x' = W_out B + W_own[species] x. Every layer
has a readout, linear but for the last one. Two layers of high correlation do what many layers of
pair messages do, with a receptive field that stays small.
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
from eqcalc.nn.contraction import symmetric_basis
from eqcalc.nn.convolution import reached_irreps
from eqcalc.program import (
    Add,
    Contraction,
    Convolution,
    Density,
    Embedding,
    Linear,
    Normalization,
    Output,
    Program,
    Radial,
    Readout,
)
from eqcalc.program.operations import Operation


@dataclass(frozen=True)
class MACEConfig(ModelConfig):
    """MACE, as in arXiv:2206.07697. Lengths in Å.

    Attributes:
        num_layers: the receptive field is num_layers * cutoff.
        num_channels: of every irrep.
        l_max: highest degree of the spherical harmonics and of what is multiplied.
        feature_l_max: highest degree of the features between layers.
        correlation: how many neighbours a product knows of at once; 3 are four-body terms.
        readout: hidden width of the last layer's readout; 0: it is linear.
        self_connections: for each layer, whether an atom's own features, through a matrix of its
            species, are added to the products; otherwise a matrix of its species acts on what is
            multiplied. Empty: in all layers, but with exact_isolated_atoms not in the first.
        density_normalization: divide messages by one plus a learned number of neighbours (MACE-MP
            since 0b), for structures of very different density.
        distance_transform: "agnesi": Bessel functions see distances in units of bonds
            (`eqcalc.nn.transform`); "": in Å.
    """

    architecture: str = "mace"
    num_layers: int = 2
    num_channels: int = 64
    l_max: int = 3
    feature_l_max: int = 1
    correlation: int = 3
    readout: int = 16
    self_connections: list[bool] = field(default_factory=list)
    density_normalization: bool = False
    distance_transform: Literal["", "agnesi"] = ""

    def problems(self) -> Problems:
        return [
            *super().problems(),
            *self.not_positive("num_layers", "num_channels", "correlation"),
            *self.negative("l_max", "feature_l_max", "readout"),
            (
                self.feature_l_max > self.l_max,
                f"feature_l_max = {self.feature_l_max}: it must be at most l_max = {self.l_max}.",
            ),
            (
                len(self.self_connections) not in (0, self.num_layers),
                (
                    f"self_connections has {len(self.self_connections)} entries, but num_layers = "
                    f"{self.num_layers}: one for each."
                ),
            ),
            (
                self.correlation > 4,
                f"correlation = {self.correlation}: it must be 1 .. 4.",
            ),
        ]

    def _irreps(self, l_max: int) -> o3.Irreps:
        """All channels, natural parity; for outputs that are no products of vectors, both."""
        parities = (1, -1) if l_max and needs_both_parities(self.outputs) else (1,)
        return o3.Irreps(
            [
                (self.num_channels, (l, parity * (-1) ** l))
                for l in range(l_max + 1)  # noqa: E741
                for parity in parities
            ]
        )

    def program(self) -> Program:
        operations: list[Operation] = [Embedding("x_0", self.num_channels)]
        before = self._irreps(0)
        layers = []
        for k in range(self.num_layers):
            last = k + 1 == self.num_layers
            target = self._irreps(self.feature_l_max)
            if last:
                target = last_features(self.outputs, self._irreps(self.l_max))
            operations += self._layer(k, before, target, self.readout if last else 0)
            before = o3.Irreps(next(op.irreps for op in operations if op.name == f"x_{k + 1}"))
            layers.append(Features(f"x_{k + 1}", before))
        if self.energy:
            energies = tuple(f"energies_{k}" for k in range(self.num_layers))
            operations.append(Output("energy", energies))
        return Program((*operations, *output_operations(self.outputs, layers, self.readout)))

    def _reached(self, factors: o3.Irreps, target: o3.Irreps) -> o3.Irreps:
        """Of the target what products of the factors lead to."""
        wanted = tuple(ir for _, ir in target)
        if set(wanted) <= {ir for _, ir in factors}:
            return target
        degrees = range(1, self.correlation + 1)
        bases = [symmetric_basis(factors, degree, wanted) for degree in degrees]
        return o3.Irreps([(mul, ir) for mul, ir in target if any(ir in basis for basis in bases)])

    def _layer(self, k: int, before: o3.Irreps, target: o3.Irreps, readout: int) -> list[Operation]:
        made = reached_irreps(before, self.l_max, self._irreps(self.l_max))
        # what products start from: only irreps that messages reach
        factors = o3.Irreps([(self.num_channels, ir) for _, ir in made])
        after = self._reached(factors, target)
        x, irreps, out = f"x_{k}", str(before), str(after)
        messages, factors = str(made), str(factors)
        own = k > 0 or not self.exact_isolated_atoms
        if self.self_connections:
            own = self.self_connections[k]
        terms = (f"out_{k}", f"own_{k}") if own else (f"out_{k}",)
        density = f"density_{k}" if self.density_normalization else ""
        a = f"a_{k}" if own else f"a_{k}_of_species"
        return [
            Linear(f"up_{k}", x, irreps, irreps),
            Radial(f"r_{k}", tuple(self.radial_mlp), self.distance_transform),
            *([Density(density, self.distance_transform)] if density else []),
            Convolution(f"sum_{k}", f"up_{k}", f"r_{k}", irreps, self.l_max, messages),
            Normalization(f"m_{k}", f"sum_{k}", messages, density),
            Linear(f"a_{k}", f"m_{k}", messages, factors),
            *([] if own else [Linear(a, f"a_{k}", factors, factors, by_species=True)]),
            Contraction(f"b_{k}", a, factors, out, self.correlation),
            Linear(f"out_{k}", f"b_{k}", out, out),
            *([Linear(f"own_{k}", x, irreps, out, by_species=True)] if own else []),
            Add(f"x_{k + 1}", terms, out),
            *([Readout(f"energies_{k}", f"x_{k + 1}", out, readout)] if self.energy else []),
        ]
