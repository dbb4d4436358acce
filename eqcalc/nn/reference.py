r"""What is added to the network's atomic energies, always in float64.

    E_i = scale[z_i] * e_i + shift[z_i] + 1/2 sum_j V_ZBL(r_ij)

V_ZBL: Ziegler, Biersack and Littmark, The Stopping and Range of Ions in Matter (1985): screened
Coulomb repulsion of bare nuclei, cut smoothly at the sum of the covalent radii, so that it does not
touch equilibrium structures but closes the hole that any network has at short distance.
"""

import torch
from ase import units
from ase.data import covalent_radii
from torch import Tensor, nn

from eqcalc.nn.radial import polynomial_envelope

COULOMB = units.Hartree * units.Bohr  # e^2 / (4 pi eps_0), eV Å


class CoreRepulsion(nn.Module):
    """V_ZBL, half to each atom of the pair.

    forward: species [M], edge_src, edge_dst [E], length [E] Å float64 -> per edge [E] eV.
    """

    def __init__(self, atomic_numbers: list[int]) -> None:
        super().__init__()
        z = torch.tensor(atomic_numbers, dtype=torch.float64)
        radii = torch.tensor([covalent_radii[n] for n in atomic_numbers], dtype=torch.float64)
        screening = 0.46850 / (z.pow(0.23).unsqueeze(0) + z.pow(0.23).unsqueeze(1))
        self.register_buffer("charges", COULOMB * z.unsqueeze(0) * z.unsqueeze(1))
        self.register_buffer("screening", screening)
        self.register_buffer("pair_cutoff", radii.unsqueeze(0) + radii.unsqueeze(1))

    def forward(
        self, species: Tensor, edge_src: Tensor, edge_dst: Tensor, length: Tensor
    ) -> Tensor:
        a, b = species.index_select(0, edge_dst), species.index_select(0, edge_src)
        x = length / self.screening[a, b]
        phi = (
            0.18175 * torch.exp(-3.19980 * x)
            + 0.50986 * torch.exp(-0.94229 * x)
            + 0.28022 * torch.exp(-0.40290 * x)
            + 0.02817 * torch.exp(-0.20162 * x)
        )
        envelope = polynomial_envelope(length / self.pair_cutoff[a, b], 6)
        return 0.5 * self.charges[a, b] / length * phi * envelope


class ReferenceEnergy(nn.Module):
    """Per-species scale and shift, and optionally the core repulsion.

    Args:
        scale, shift: eV, one per species.
        core_repulsion: add V_ZBL.
    """

    def __init__(
        self,
        atomic_numbers: list[int],
        scale: list[float],
        shift: list[float],
        *,
        core_repulsion: bool,
    ) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float64))
        self.register_buffer("shift", torch.tensor(shift, dtype=torch.float64))
        self.core_repulsion = core_repulsion
        self.repulsion = CoreRepulsion(atomic_numbers)

    def forward(
        self,
        species: Tensor,
        edge_src: Tensor,
        edge_dst: Tensor,
        length: Tensor,
        energies: Tensor,
    ) -> Tensor:
        local = species[: energies.shape[0]]
        total = energies.to(torch.float64) * self.scale[local] + self.shift[local]
        if self.core_repulsion:
            pair = self.repulsion(species, edge_src, edge_dst, length.to(torch.float64))
            total = total.index_add(0, edge_dst, pair)
        return total
