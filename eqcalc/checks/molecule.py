"""Properties of a molecule: relaxed geometry and vibrations."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.data import covalent_radii
from ase.vibrations import Vibrations

#: bonds are shorter than this multiple of the sum of covalent radii
BOND = 1.25


def bonds(atoms: Atoms) -> dict[str, list[float]]:
    """Lengths (Å) of bonds by pair of elements, short first: {"H-O": [0.97, 0.97]}."""
    distances = atoms.get_all_distances()
    found: dict[str, list[float]] = {}
    for i in range(len(atoms)):
        for j in range(i):
            radii = covalent_radii[atoms.numbers[i]] + covalent_radii[atoms.numbers[j]]
            if distances[i, j] < BOND * radii:
                name = "-".join(sorted((atoms.symbols[i], atoms.symbols[j])))
                found.setdefault(name, []).append(float(distances[i, j]))
    return {name: sorted(lengths) for name, lengths in sorted(found.items())}


def num_rigid(atoms: Atoms) -> int:
    """Motions without any restoring force: 6, or 5 of a line, or 3 of an atom."""
    moments = atoms.get_moments_of_inertia()
    if len(atoms) == 1:
        return 3
    return 5 if moments.min() < 1e-3 * moments.max() else 6


@dataclass(frozen=True)
class Modes:
    """Frequencies in 1/cm, negative for imaginary: of rigid motions (0 in theory), and the rest."""

    rigid: np.ndarray
    vibrations: np.ndarray


def vibrations(atoms: Atoms, calc: Calculator) -> Modes:
    """Harmonic frequencies from central differences of forces.

    Args:
        atoms: relaxed, without periodicity.
    """
    atoms = atoms.copy()
    atoms.calc = calc
    with tempfile.TemporaryDirectory(prefix="eqcalc-vibrations-") as folder:
        found = Vibrations(atoms, name=f"{folder}/cache", delta=0.005, nfree=4)
        found.run()
        energies = found.get_energies()
    frequency = (np.real(energies) - np.abs(np.imag(energies))) / units.invcm
    order = np.argsort(np.abs(frequency))
    count = num_rigid(atoms)
    return Modes(np.sort(frequency[order[:count]]), np.sort(frequency[order[count:]]))
