r"""Atoms that are more crowded than any of the training are no business of a network.

A network is free to do anything where it has no data. In dense structures it sums over many more
neighbours than it knows, and products in several layers are high powers of that: silicon trained on
diamond, its melt and its surfaces had -99.8 eV/atom as bcc at a = 1.7 Å and collapsed under
pressure; five layers with products reach 1e30 eV. So messages to an atom fade where it is crowded,

    m_i <- s(c_i) m_i,   c_i = sum_j (d_ij / r_ij)^8 u(r_ij / r_c),

    s(c) = 1 for c <= c_0,  0 for c >= 2 c_0,  1 - t^3 (10 - 15 t + 6 t^2) between, t = c / c_0 - 1,

with c_0 of the atom's species twice the largest c of all training frames, where s is therefore
exactly 1. What is left of a crowded structure are reference energies, constants and the
repulsion of pairs (`eqcalc.nn.reference`). The eighth power makes near neighbours count most: c
doubles when all distances shrink by 8 %.

| symbol | variable    |                                                              |
|--------|-------------|--------------------------------------------------------------|
| d      | `distances` | about the shortest distance of the training, a unit          |
| u, r_c | `cutoff`    | `polynomial_envelope`, so that c is smooth at the cutoff     |
| c_0    | `onset`     |                                                              |
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eqcalc.nn.radial import polynomial_envelope


@dataclass(frozen=True)
class CrowdingConstants:
    """distances: [species, species] Å, symmetric; onset: [species]."""

    distances: list[list[float]]
    onset: list[float]


class Crowding(nn.Module):
    """s(c_i) of all atoms.

    Args:
        constants: measured on training frames.
        cutoff: Å.

    forward: species [M], edge_src, edge_dst [E], length [E] Å -> [M], or [0] where all are 1.
    """

    cutoff: float

    def __init__(self, constants: CrowdingConstants, cutoff: float) -> None:
        super().__init__()
        self.cutoff = float(cutoff)
        self.register_buffer("distances", torch.tensor(constants.distances, dtype=torch.float64))
        self.register_buffer("onset", torch.tensor(constants.onset, dtype=torch.float64))

    def crowd(self, species: Tensor, edge_src: Tensor, edge_dst: Tensor, length: Tensor) -> Tensor:
        """c_i [M]."""
        a, b = species.index_select(0, edge_dst), species.index_select(0, edge_src)
        near = (self.distances[a, b].to(length.dtype) / length).pow(8)
        terms = near * polynomial_envelope(length / self.cutoff, 6)
        zero = torch.zeros(species.shape[0], dtype=length.dtype, device=length.device)
        return zero.index_add(0, edge_dst, terms)

    def forward(
        self, species: Tensor, edge_src: Tensor, edge_dst: Tensor, length: Tensor
    ) -> Tensor:
        onset = self.onset.to(length.dtype).index_select(0, species)
        t = self.crowd(species, edge_src, edge_dst, length) / onset - 1.0
        if not bool((t > 0.0).any()):
            return t[:0]
        t = t.clamp(0.0, 1.0)
        return 1.0 - t.pow(3) * (10.0 + t * (6.0 * t - 15.0))
