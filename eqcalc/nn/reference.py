r"""What is added to the network's atomic energies, always in float64.

    E_i = scale[z_i] * e_i + shift[z_i] + 1/2 sum_j V_ZBL(r_ij) + 1/2 sum_j V_pair(r_ij)

V_ZBL: Ziegler, Biersack and Littmark, The Stopping and Range of Ions in Matter (1985): screened
Coulomb repulsion of bare nuclei, cut smoothly at the sum of the covalent radii or at one distance
for all, so that it closes the hole that any network has at short distance.

V_pair: fitted to the labels before the network is trained (eqcalc.training.pairs), so that the
network learns only what pairs cannot explain. A Morse potential has the first two of its terms.
"""

from dataclasses import dataclass

import torch
from ase import units
from ase.data import covalent_radii
from torch import Tensor, nn

from eqcalc.nn.radial import polynomial_envelope

COULOMB = units.Hartree * units.Bohr  # e^2 / (4 pi eps_0), eV Å


#: phi of Ziegler, Biersack and Littmark: amplitudes, and decays in units of the screening length
AMPLITUDES = (0.18175, 0.50986, 0.28022, 0.02817)
DECAYS = (3.19980, 0.94229, 0.40290, 0.20162)


def screening_function(x: Tensor) -> Tensor:
    """phi of Ziegler, Biersack and Littmark, at distances in units of the screening length."""
    terms = [a * torch.exp(-d * x) for a, d in zip(AMPLITUDES, DECAYS, strict=True)]
    return terms[0] + terms[1] + terms[2] + terms[3]


def zbl_slope(r: Tensor, a: int, b: int) -> Tensor:
    """dV_ZBL/dr [n] eV/Å of elements Z = a, b at r [n] Å float64, without any cutoff."""
    r = r.detach().requires_grad_()
    energy = COULOMB * a * b / r * screening_function(r * (a**0.23 + b**0.23) / 0.46850)
    return torch.autograd.grad(energy.sum(), r)[0]


class CoreRepulsion(nn.Module):
    """V_ZBL, half to each atom of the pair.

    Args:
        atomic_numbers: Z of each species.
        cutoff: Å, where it ends; 0: at the sum of the covalent radii.
        power: p of its envelope (eqcalc.nn.radial).

    forward: species [M], edge_src, edge_dst [E], length [E] Å float64 -> per edge [E] eV.
    """

    power: int
    amplitudes: list[float]
    decays: list[float]

    def __init__(self, atomic_numbers: list[int], cutoff: float = 0.0, power: int = 6) -> None:
        super().__init__()
        self.power = int(power)
        self.amplitudes, self.decays = list(AMPLITUDES), list(DECAYS)
        z = torch.tensor(atomic_numbers, dtype=torch.float64)
        radii = torch.tensor([covalent_radii[n] for n in atomic_numbers], dtype=torch.float64)
        screening = 0.46850 / (z.pow(0.23).unsqueeze(0) + z.pow(0.23).unsqueeze(1))
        self.register_buffer("charges", COULOMB * z.unsqueeze(0) * z.unsqueeze(1))
        self.register_buffer("screening", screening)
        self.register_buffer("pair_cutoff", radii.unsqueeze(0) + radii.unsqueeze(1))
        if cutoff:
            self.pair_cutoff.fill_(cutoff)

    def limit(self, cutoffs: list[list[float]]) -> None:
        """Lets the repulsion end at these distances [species, species] Å."""
        self.pair_cutoff.copy_(torch.tensor(cutoffs, dtype=torch.float64))

    def forward(
        self, species: Tensor, edge_src: Tensor, edge_dst: Tensor, length: Tensor
    ) -> Tensor:
        a, b = species.index_select(0, edge_dst), species.index_select(0, edge_src)
        x = length / self.screening[a, b]
        phi = torch.zeros_like(x)
        for amplitude, decay in zip(self.amplitudes, self.decays):  # noqa: B905 - TorchScript
            phi = phi + amplitude * torch.exp(-decay * x)
        envelope = polynomial_envelope(length / self.pair_cutoff[a, b], self.power)
        return 0.5 * self.charges[a, b] / length * phi * envelope


@dataclass(frozen=True)
class PairConstants:
    """What a fit to labels finds for `PairEnergy`, and what follows from the shortest distances.

    Attributes:
        coefficients: [species, species, terms] eV, symmetric.
        core_cutoffs: where the core repulsion ends, [species, species] Å.
        inner_limits: below which `eqcalc.nn.radial.InnerLimit` acts, [species, species] Å.
    """

    coefficients: list[list[list[float]]]
    core_cutoffs: list[list[float]]
    inner_limits: list[list[float]]


def no_pairs(atomic_numbers: list[int]) -> PairConstants:
    """No pair potential, no inner limits, and the core repulsion as it is without them."""
    count = len(atomic_numbers)
    return PairConstants(
        [[[0.0] * PairEnergy.TERMS for _ in range(count)] for _ in range(count)],
        CoreRepulsion(atomic_numbers).pair_cutoff.tolist(),
        [[0.0] * count for _ in range(count)],
    )


class PairEnergy(nn.Module):
    """V_pair(r) = u(r / r_c) sum_k c_k exp(-k RATE r), k = 1 .. TERMS; half to each atom of a pair.

    Args:
        coefficients: c [species, species, TERMS] eV.
        cutoff: r_c in Å.

    forward: species [M], edge_src, edge_dst [E], length [E] Å float64 -> per edge [E] eV.
    """

    RATE = 0.8  # 1/Å
    TERMS = 6

    cutoff: float
    rate: float

    def __init__(self, coefficients: list[list[list[float]]], cutoff: float) -> None:
        super().__init__()
        self.cutoff, self.rate = float(cutoff), self.RATE
        self.register_buffer("coefficients", torch.tensor(coefficients, dtype=torch.float64))
        self.register_buffer("orders", torch.arange(1, self.TERMS + 1, dtype=torch.float64))

    def forward(
        self, species: Tensor, edge_src: Tensor, edge_dst: Tensor, length: Tensor
    ) -> Tensor:
        a, b = species.index_select(0, edge_dst), species.index_select(0, edge_src)
        terms = torch.exp(length.unsqueeze(1) * (-self.rate * self.orders))
        sums = (self.coefficients[a, b] * terms).sum(dim=1)
        return 0.5 * sums * polynomial_envelope(length / self.cutoff, 6)


class ReferenceEnergy(nn.Module):
    """Per-species scale and shift, optionally the core repulsion and a pair potential.

    Args:
        scale, shift: eV, one per species.
        core_repulsion: add V_ZBL.
        pair_constants: add V_pair, which ends at `cutoff`, and let V_ZBL end where they say.
        cutoff: Å.
        core_cutoff, core_power: of V_ZBL, see `CoreRepulsion`.
    """

    def __init__(
        self,
        atomic_numbers: list[int],
        scale: list[float],
        shift: list[float],
        *,
        core_repulsion: bool,
        pair_constants: PairConstants | None = None,
        cutoff: float = 0.0,
        core_cutoff: float = 0.0,
        core_power: int = 6,
    ) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float64))
        self.register_buffer("shift", torch.tensor(shift, dtype=torch.float64))
        self.core_repulsion = core_repulsion
        self.repulsion = CoreRepulsion(atomic_numbers, core_cutoff, core_power)
        self.pair: PairEnergy | None = None
        if pair_constants is not None:
            self.repulsion.limit(pair_constants.core_cutoffs)
            self.pair = PairEnergy(pair_constants.coefficients, cutoff)

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
            core = self.repulsion(species, edge_src, edge_dst, length.to(torch.float64))
            total = total.index_add(0, edge_dst, core)
        if self.pair is not None:
            pair = self.pair(species, edge_src, edge_dst, length.to(torch.float64))
            total = total.index_add(0, edge_dst, pair)
        return total
