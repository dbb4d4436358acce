"""Does the potential keep the symmetries of physics, to rounding?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from scipy.spatial.transform import Rotation

#: relative deviation that passes, by precision
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}


@dataclass(frozen=True)
class SymmetryReport:
    """Largest deviations under each operation, relative to the largest value of the property.

    deviations: {operation: {"energies" | "forces" | "stress": deviation}}.
    """

    precision: str
    tolerance: float
    deviations: dict[str, dict[str, float]]

    @property
    def passed(self) -> bool:
        return all(v <= self.tolerance for row in self.deviations.values() for v in row.values())

    def to_dict(self) -> dict:
        return asdict(self) | {"passed": self.passed}

    def __str__(self) -> str:
        names = ("energies", "forces", "stress")
        rows = [f"{self.precision:<14}" + "".join(f"{n:>12}" for n in names)]
        for operation, row in self.deviations.items():
            cells = "".join(f"{row[n]:12.1e}" if n in row else f"{'-':>12}" for n in names)
            rows.append(f"{operation:<14}{cells}")
        verdict = "PASS" if self.passed else "FAIL"
        return "\n".join([*rows, f"{verdict}: relative deviations up to {self.tolerance:.0e} pass"])


def _values(atoms: Atoms, calc: Calculator) -> dict[str, np.ndarray]:
    atoms = atoms.copy()
    atoms.calc = calc
    values = {"energies": atoms.get_potential_energies(), "forces": atoms.get_forces()}
    if atoms.pbc.all():
        values["stress"] = atoms.get_stress(voigt=False)
    return values


def _turned(atoms: Atoms, matrix: np.ndarray) -> Atoms:
    other = atoms.copy()
    other.set_cell(atoms.cell.array @ matrix.T)
    other.positions = atoms.positions @ matrix.T
    return other


def check_symmetry(atoms: Atoms, calc: Calculator, *, seed: int = 0) -> SymmetryReport:
    """Rotation, reflection, inversion, translation, wrapping, permutation and supercell.

    Args:
        atoms: a structure without symmetry of its own says most; forces should not be zero.
        calc: an EquivariantCalculator (its precision sets the tolerance).
    """
    rng = np.random.default_rng(seed)
    rotation = Rotation.random(random_state=seed).as_matrix()
    mirror = rotation @ np.diag([1.0, 1.0, -1.0])
    order = rng.permutation(len(atoms))
    same = {"energies": lambda v: v, "forces": lambda v: v, "stress": lambda v: v}

    def turned(m: np.ndarray) -> dict[str, Callable]:
        return same | {"forces": lambda v: v @ m.T, "stress": lambda v: m @ v @ m.T}

    permuted = same | {"energies": lambda v: v[order], "forces": lambda v: v[order]}
    moved = atoms.copy()
    moved.positions += rng.normal(size=3)
    cases = {
        "rotation": (_turned(atoms, rotation), turned(rotation)),
        "reflection": (_turned(atoms, mirror), turned(mirror)),
        "inversion": (_turned(atoms, -np.eye(3)), turned(-np.eye(3))),
        "translation": (moved, same),
        "permutation": (atoms[order], permuted),
    }
    if atoms.pbc.any():
        shifted = atoms.copy()
        images = rng.integers(-2, 3, size=(len(atoms), 3)) * atoms.pbc
        shifted.positions += images @ atoms.cell.array
        cases["wrapping"] = (shifted, same)
        repeats = np.where(atoms.pbc, [2, 1, 2], 1)
        copies = int(np.prod(repeats))
        tiled = same | {
            "energies": lambda v: np.tile(v, copies),
            "forces": lambda v: np.tile(v, (copies, 1)),
        }
        cases["supercell"] = (atoms.repeat(repeats), tiled)

    here = _values(atoms, calc)
    deviations = {}
    for operation, (other, expected) in cases.items():
        there = _values(other, calc)
        deviations[operation] = {
            name: float(
                np.abs(there[name] - expected[name](value)).max() / max(np.abs(value).max(), 1e-12)
            )
            for name, value in here.items()
        }
    precision = str(calc.potential.dtype).removeprefix("torch.")
    return SymmetryReport(precision, TOLERANCE[precision], deviations)
