"""Properties of a crystal: equation of state, elastic constants, vacancy, phonons.

Everything is measured from energies, forces and stresses of a calculator, which should work in
float64. Units: eV, Å, GPa, THz.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.eos import EquationOfState
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from ase.phonons import Phonons

from eqcalc.checks.structures import heights, supercell
from eqcalc.errors import InputError

#: eV/Å, of relaxations whose result is differentiated again
TIGHT = 1e-5

THZ = 1.0 / (units._hplanck * 1e12 / units._e)  # per eV

#: Å, height of the supercells for phonons: force constants of a few hundredths of the first ones
#: lie beyond half of it; and the atoms it may have
PHONON_HEIGHT = 12.0
PHONON_ATOMS = 400


def relax(atoms: Atoms, calc: Calculator, *, cell: bool, fmax: float = 1e-4) -> Atoms:
    """A relaxed copy, with the cell or at a fixed one. fmax in eV/Å.

    Raises:
        InputError: it does not come to rest.
    """
    atoms = atoms.copy()
    atoms.calc = calc
    optimizer = BFGS(FrechetCellFilter(atoms) if cell else atoms, logfile=None)
    if not optimizer.run(fmax=fmax, steps=500):
        largest = np.abs(atoms.get_forces()).max()
        raise InputError(
            f"The structure does not relax below {fmax:g} eV/Å in 500 steps (forces are still "
            f"{largest:.2g} eV/Å): start nearer to a minimum of this model."
        )
    return atoms


@dataclass(frozen=True)
class EnergyVolume:
    """E(V) of a crystal scaled evenly, and its equation of state.

    ratio: V / V0; volume (Å^3/atom) and energy (eV/atom) of the scan; equilibrium, in the same
    units, and bulk_modulus (GPa) from a fit between 0.94 and 1.06 V0 (Birch, Phys. Rev. 71, 809
    (1947)).
    """

    ratio: np.ndarray
    energy: np.ndarray
    equilibrium_volume: float
    equilibrium_energy: float
    bulk_modulus: float

    @property
    def minima(self) -> int:
        """Number of minima in the scan: more than 1 is a spurious phase."""
        slopes = np.sign(np.diff(self.energy))
        return int(((slopes[:-1] < 0) & (slopes[1:] > 0)).sum())


def energy_volume(atoms: Atoms, calc: Calculator) -> EnergyVolume:
    """The scan from 0.8 to 1.3 V0; ions are relaxed where symmetry does not hold them.

    Args:
        atoms: relaxed.
    """

    def energy(ratio: float, *, relaxed: bool) -> float:
        scaled = atoms.copy()
        scaled.set_cell(atoms.cell.array * ratio ** (1 / 3), scale_atoms=True)
        scaled.calc = calc
        if relaxed and np.abs(scaled.get_forces()).max() > TIGHT:
            scaled = relax(scaled, calc, cell=False, fmax=TIGHT)
        return scaled.get_potential_energy() / len(scaled)

    wide = np.linspace(0.8, 1.3, 51)
    near = np.linspace(0.94, 1.06, 13)
    volume = atoms.get_volume() / len(atoms)
    fitted = EquationOfState(
        near * volume, [energy(r, relaxed=True) for r in near], eos="birchmurnaghan"
    )
    v0, e0, modulus = fitted.fit(warn=False)
    scan = np.array([energy(r, relaxed=False) for r in wide])
    return EnergyVolume(wide, scan, float(v0), float(e0), float(modulus / units.GPa))


def vacancy_energy(atoms: Atoms, calc: Calculator, min_height: float = 10.0) -> tuple[float, int]:
    """Formation energy (eV) of a vacancy at constant volume, and the atoms of the full supercell.

    E(N - 1) - (N - 1) / N E(N), ions relaxed from slightly displaced positions so that they can
    reconstruct.

    Args:
        atoms: a relaxed crystal of one element.
        min_height: Å, of the supercell: what keeps the vacancy from its images.
    """
    crystal = supercell(atoms, lambda c: heights(c.cell.array).min() >= min_height)
    crystal.calc = calc
    per_atom = crystal.get_potential_energy() / len(crystal)
    vacant = crystal.copy()
    vacant.rattle(0.01, seed=1)
    del vacant[0]
    vacant = relax(vacant, calc, cell=False, fmax=0.01)
    return vacant.get_potential_energy() - per_atom * len(vacant), len(crystal)


@dataclass(frozen=True)
class Bands:
    """Phonon bands along the path of the lattice.

    x [K] along the path; frequency [K, 3N] in THz, negative for imaginary; ticks: where special
    points lie, and their names; repeats of the supercell.
    """

    x: np.ndarray
    frequency: np.ndarray
    ticks: list[tuple[float, str]]
    repeats: tuple[int, int, int]


def phonon_bands(atoms: Atoms, calc: Calculator, num_points: int = 150) -> Bands:
    """From central differences of forces in a supercell, with the acoustic sum rule.

    Args:
        atoms: a relaxed primitive cell.
    """
    # odd: ase.phonons counts atoms half-way between two images on one side only
    low = heights(atoms.cell.array)
    repeats = 2 * np.ceil((PHONON_HEIGHT / low - 1.0) / 2.0 - 1e-6).astype(int).clip(0) + 1
    while np.prod(repeats) * len(atoms) > PHONON_ATOMS and repeats.max() > 1:
        repeats[np.where(repeats > 1, repeats * low, 0.0).argmax()] -= 2
    with tempfile.TemporaryDirectory(prefix="eqcalc-phonons-") as folder:
        bare = atoms.copy()
        phonons = Phonons(bare, calc, supercell=tuple(repeats), delta=0.01, name=f"{folder}/cache")
        phonons.run()
        phonons.read(acoustic=True)
        path = bare.cell.bandpath(npoints=num_points)
        energies = phonons.get_band_structure(path, verbose=False).energies[0]
    x, ticks, labels = path.get_linear_kpoint_axis()
    frequency = np.real(energies) * THZ
    return Bands(
        x,
        frequency,
        [(float(t), name) for t, name in zip(ticks, labels, strict=True)],
        tuple(int(r) for r in repeats),
    )
