r"""Distances in units of bonds (Agnesi transform).

Witt et al., J. Chem. Phys. 159, 164101 (2023), eq. 13, as in MACE-MP-0b:

    r' = 1 / (1 + a x^q / (1 + x^(q - p))),   x = r / r_0

with r_0 half of the sum of the covalent radii, so that a bond of any two elements is at about the
same r', which is 1 at r = 0 and falls towards 0.
"""

import torch
from ase.data import covalent_radii
from torch import Tensor, nn


class AgnesiTransform(nn.Module):
    """forward: species [M], edge_src, edge_dst [E], length [E] Å -> [E].

    Args:
        atomic_numbers: Z of each species.
        constants: a, q, p.
    """

    constants: list[float]

    def __init__(
        self,
        atomic_numbers: list[int],
        constants: tuple[float, float, float] = (1.0805, 0.9183, 4.5791),
    ) -> None:
        super().__init__()
        self.constants = [float(c) for c in constants]
        radii = torch.tensor([covalent_radii[z] for z in atomic_numbers], dtype=torch.float64)
        self.register_buffer("bonds", 0.5 * (radii.unsqueeze(0) + radii.unsqueeze(1)))

    def forward(
        self, species: Tensor, edge_src: Tensor, edge_dst: Tensor, length: Tensor
    ) -> Tensor:
        a, q, p = self.constants[0], self.constants[1], self.constants[2]
        ends = species.index_select(0, edge_dst), species.index_select(0, edge_src)
        x = length / self.bonds[ends[0], ends[1]].to(length.dtype)
        return 1.0 / (1.0 + a * x.pow(q) / (1.0 + x.pow(q - p)))
