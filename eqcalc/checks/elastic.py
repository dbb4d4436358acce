"""Elastic constants from stresses, in GPa and Voigt order xx yy zz yz xz xy."""

from __future__ import annotations

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator

from eqcalc.checks.crystal import TIGHT, relax

#: strain of elastic constants: second order in the strain is then some 1e-4 of the constants
STRAIN = 2e-3


def elastic_constants(atoms: Atoms, calc: Calculator, *, relaxed: bool) -> np.ndarray:
    """C [6, 6] in GPa, Voigt order xx yy zz yz xz xy, from central differences of the stress.

    C_ij = d stress_i / d strain_j, with the engineering shear strains gamma = 2 strain (Nye,
    Physical Properties of Crystals, chapter 8).

    Args:
        atoms: relaxed with its cell.
        relaxed: ions find their places in the strained cell; False clamps them to it.
    """

    def stress(strain: np.ndarray) -> np.ndarray:
        strained = atoms.copy()
        strained.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        strained.calc = calc
        if relaxed and np.abs(strained.get_forces()).max() > TIGHT:
            strained = relax(strained, calc, cell=False, fmax=TIGHT)
        return strained.get_stress() / units.GPa

    columns = []
    for i, j in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):
        strain = np.zeros((3, 3))
        strain[i, j] += STRAIN / 2
        strain[j, i] += STRAIN / 2
        columns.append((stress(strain) - stress(-strain)) / (2 * STRAIN))
    constants = np.array(columns)
    return 0.5 * (constants + constants.T)


def is_cubic(constants: np.ndarray, tolerance: float = 0.02) -> bool:
    """Do the elastic constants [6, 6] have the form of a cubic crystal along its axes?"""
    c11, c12, c44 = cubic_constants(constants)
    ideal = np.zeros((6, 6))
    ideal[:3, :3] = c12
    ideal[range(6), range(6)] = [c11] * 3 + [c44] * 3
    return bool(np.abs(constants - ideal).max() < tolerance * np.abs(constants).max())


def cubic_constants(constants: np.ndarray) -> tuple[float, float, float]:
    """C11, C12, C44: means over equivalent entries."""
    d = np.diag(constants)
    return (
        float(d[:3].mean()),
        float((constants[0, 1] + constants[0, 2] + constants[1, 2]) / 3),
        float(d[3:].mean()),
    )


def hill_shear(c: np.ndarray) -> float:
    """Shear modulus (GPa) of a polycrystal: the mean of Voigt's and Reuss's.

    R. Hill, Proc. Phys. Soc. A 65, 349 (1952); C [6, 6] in GPa, S its inverse:
        15 G_V     = d(C) + 3 (C44 + C55 + C66)
        15 / G_R   = 4 d(S) + 3 (S44 + S55 + S66)
        d(M)       = M11 + M22 + M33 - M12 - M13 - M23
    """

    def d(m: np.ndarray) -> float:
        return np.trace(m[:3, :3]) - (m[0, 1] + m[0, 2] + m[1, 2])

    s = np.linalg.pinv(c)
    voigt = (d(c) + 3.0 * np.trace(c[3:, 3:])) / 15.0
    reuss = 15.0 / (4.0 * d(s) + 3.0 * np.trace(s[3:, 3:]))
    return float(0.5 * (voigt + reuss))
