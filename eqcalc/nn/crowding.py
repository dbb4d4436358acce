r"""Atoms that are more crowded than any of the training are no business of a network.

A network is free to do anything where it has no data. In dense structures it sums over many more
neighbours than it knows, and products in several layers are high powers of that: silicon trained on
diamond, its melt and its surfaces had -99.8 eV/atom as bcc at a = 1.7 Å and collapsed under
pressure; a network of five layers with products, trained on one molecule, gave carbon with six
neighbours at ordinary bond lengths -1e11 eV. So messages to an atom fade where it has more
neighbours than in the training, or one that is nearer,

    m_i <- s_i m_i,   E_i <- E_i + (1 - s_i) P,   s_i = S(n_i; 1.25 N, 1.6 N) S(p_i; 0, 1),

    n_i = sum_j S(r_ij / d_ij; 1.25, 1.8),   p_i = sum_j S(r_ij / b_ij; 0.7, 0.88),

    S(x; a, b) = 1 for x <= a,  0 for x >= b,  1 - t^3 (10 - 15 t + 6 t^2) between,
    t = (x - a) / (b - a).

d are the shortest distances of all training frames, b these or the length of a bond, if shorter
(two hydrogen atoms of a molecule come nowhere near theirs), and N their largest coordination once
all distances are made 8 % shorter; so s is exactly 1 there. What is left of a crowded structure are
the repulsion of pairs (`eqcalc.nn.reference`) and constants: reference energies, what the network
makes of a lone atom, which is arbitrary where no training fixes it, and P = 10 eV, more than matter
is bound by. What dynamics meets is untouched: bonds of a molecule at 600 K get 4 % shorter than at
300 K, in 10 ps at 1000 K once 11 %, and p needs 12 %, to be felt 15 %, where a bond has cost
1.7 eV; matter may be compressed by a quarter of its volume, and carbon may have a fifth neighbour,
but hardly a sixth.

| symbol | variable       |                                                                    |
|--------|----------------|--------------------------------------------------------------------|
| d      | `distances`    | shortest distance of the training, at most the cutoff / 1.8        |
| P      | `cost`         | eV                                                                 |
| b      | `closest`      | the same, at most the sum of the covalent radii                    |
| N      | `coordination` | largest n_i of an atom of the species in the training, 8 % denser  |
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

#: r / d within which a neighbour counts fully, and from where on it does not
COUNTED = (1.25, 1.8)
#: of the training's distances, where its coordination is taken
COMPRESSED = 0.92
#: r / b of close pairs: messages to both atoms are gone, and untouched
CLOSE = (0.7, 0.88)
#: n / N up to which messages are untouched, and from where on they are gone
CROWDED = (1.25, 1.6)
#: eV: tungsten, which is bound most strongly of all matter, has 8.9
COST = 10.0
#: neighbours that no atom has: for networks whose training counted none
UNLIMITED = 1e6


@dataclass(frozen=True)
class CrowdingConstants:
    """distances, closest: [species, species] Å, symmetric; coordination: [species]."""

    distances: list[list[float]]
    closest: list[list[float]]
    coordination: list[float]

    @classmethod
    def read(cls, document: dict[str, list]) -> "CrowdingConstants":
        """As a run's folder has them; older ones have another measure than the coordination."""
        distances = document["distances"]
        coordination = document.get("coordination", [UNLIMITED] * len(distances))
        return cls(distances, document.get("closest", distances), coordination)


def fall(x: Tensor, begin: float, end: float) -> Tensor:
    """S(x; begin, end): from 1 to 0, with two continuous derivatives."""
    t = ((x - begin) / (end - begin)).clamp(0.0, 1.0)
    return 1.0 - t.pow(3) * (10.0 + t * (6.0 * t - 15.0))


class Crowding(nn.Module):
    """s_i of all atoms.

    Args:
        constants: measured on training frames.

    forward: species [M], edge_src, edge_dst [E], length [E] Å -> [M], or [0] where all are 1.
    """

    cost: float

    def __init__(self, constants: CrowdingConstants) -> None:
        super().__init__()
        self.counted_from, self.counted_to = COUNTED
        self.close_from, self.close_to = CLOSE
        self.crowded_from, self.crowded_to = CROWDED
        self.cost = COST
        self.register_buffer("distances", torch.tensor(constants.distances, dtype=torch.float64))
        self.register_buffer("closest", torch.tensor(constants.closest, dtype=torch.float64))
        coordination = torch.tensor(constants.coordination, dtype=torch.float64)
        self.register_buffer("coordination", coordination)

    def neighbours(
        self, species: Tensor, edge_src: Tensor, edge_dst: Tensor, length: Tensor
    ) -> Tensor:
        """n_i [M]."""
        a, b = species.index_select(0, edge_dst), species.index_select(0, edge_src)
        x = length / self.distances[a, b].to(length.dtype)
        zero = torch.zeros(species.shape[0], dtype=length.dtype, device=length.device)
        return zero.index_add(0, edge_dst, fall(x, self.counted_from, self.counted_to))

    def forward(
        self, species: Tensor, edge_src: Tensor, edge_dst: Tensor, length: Tensor
    ) -> Tensor:
        largest = self.coordination.to(length.dtype).index_select(0, species)
        n = self.neighbours(species, edge_src, edge_dst, length) / largest
        a, b = species.index_select(0, edge_dst), species.index_select(0, edge_src)
        x = length / self.closest[a, b].to(length.dtype)
        if not bool((n > self.crowded_from).any()) and not bool((x < self.close_to).any()):
            return n[:0]
        near = fall(x, self.close_from, self.close_to)
        p = torch.zeros_like(n).index_add(0, edge_dst, near)
        return fall(n, self.crowded_from, self.crowded_to) * fall(p, 0.0, 1.0)
