"""Does the potential keep the symmetries of physics, to rounding?

E(R x) = E(x), F(R x) = R F(x), stress(R x) = R stress R^T for rotations and reflections R; nothing
changes under translations, under another choice of periodic images or of cell vectors; atoms carry
their values along when they are renumbered; and a supercell repeats the values of its cell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from scipy.spatial.transform import Rotation

from eqcalc.checks.report import Report, Table
from eqcalc.checks.structures import bare
from eqcalc.derivatives import stress_volume

#: deviation that passes, as a fraction of the property's scale, by precision: some 1e5 and 1e2
#: times the rounding of one number, as thousands of them are summed and pass through a network
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}

#: smallest scale of each property, so that a crystal at rest, whose forces are sums of cancelling
#: terms of this size, is not judged by its zeros
FLOOR = {"energies": 1.0, "forces": 1.0, "stress": 0.05}
UNITS = {"energies": "eV", "forces": "eV/Å", "stress": "eV/Å³"}

Change = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class SymmetryReport(Report):
    """Largest deviations under each operation, in one or several precisions.

    values: {precision: {operation: {property: deviation}}}, in eV, eV/Å and eV/Å^3.
    scales: {property: what deviations are compared with}, the largest value (of energies, their
        spread: reference energies are constants), and at least FLOOR.
    """

    values: dict[str, dict[str, dict[str, float]]]
    scales: dict[str, float]

    name: ClassVar[str] = "symmetry"
    title: ClassVar[str] = "Symmetries"
    method: ClassVar[str] = (
        "The structure is rotated, reflected, moved, renumbered, wrapped, described by other cell "
        "vectors and repeated; per-atom energies, forces and stress must follow. Deviations "
        f"up to {TOLERANCE['float64']:.0e} (float64) and {TOLERANCE['float32']:.0e} (float32) of "
        "the scale of the property pass: accumulated rounding, but nothing that a trajectory could "
        "feel."
    )

    @property
    def deviations(self) -> dict[str, dict[str, float]]:
        """Of the first precision, relative to the scales: {operation: {property: deviation}}."""
        rows = next(iter(self.values.values()))
        return {o: {p: v / self.scales[p] for p, v in row.items()} for o, row in rows.items()}

    @property
    def failures(self) -> list[str]:
        return [
            f"{operation} changes the {name} by {value:.1e} {UNITS[name]} in {precision} "
            f"({TOLERANCE[precision] * self.scales[name]:.0e} passes)."
            for precision, rows in self.values.items()
            for operation, row in rows.items()
            for name, value in row.items()
            if not value <= TOLERANCE[precision] * self.scales[name]
        ]

    def figures(self) -> dict:
        return {
            "largest_deviation_eV_and_angstrom": self.values,
            "scales_eV_and_angstrom": self.scales,
            "tolerance_relative_to_scale": {p: TOLERANCE[p] for p in self.values},
        }

    def tables(self) -> list[Table]:
        names = list(self.scales)
        tables = []
        for precision, rows in self.values.items():
            columns = [precision, *(f"{n}, {UNITS[n]}" for n in names)]
            body = [[o, *(f"{row[n]:.1e}" for n in names)] for o, row in rows.items()]
            allowed = [f"{TOLERANCE[precision] * self.scales[n]:.0e}" for n in names]
            tables.append(Table("", columns, [*body, ["allowed", *allowed]]))
        return tables


def _values(atoms: Atoms, calc: Calculator) -> dict[str, np.ndarray]:
    atoms = bare(atoms)
    atoms.calc = calc
    values = {"energies": atoms.get_potential_energies(), "forces": atoms.get_forces()}
    if stress_volume(atoms.cell.array, atoms.pbc) is not None:
        values["stress"] = atoms.get_stress(voigt=False)
    return values


def _turned(atoms: Atoms, matrix: np.ndarray) -> Atoms:
    other = atoms.copy()
    other.set_cell(atoms.cell.array @ matrix.T)
    other.positions = atoms.positions @ matrix.T
    return other


def _unchanged(values: np.ndarray) -> np.ndarray:
    return values


def _turning(m: np.ndarray) -> dict[str, Change]:
    return {
        "energies": _unchanged,
        "forces": lambda v: v @ m.T,
        "stress": lambda v: m @ v @ m.T,
    }


def _per_atom(change: Change) -> dict[str, Change]:
    return {"energies": change, "forces": change, "stress": _unchanged}


def _everywhere(atoms: Atoms, rng: np.random.Generator) -> dict[str, tuple[Atoms, dict]]:
    """Operations that any structure has: the structure afterwards, and what its values do."""
    rotations = Rotation.random(3, random_state=int(rng.integers(1 << 31))).as_matrix()
    mirror = rotations[0] @ np.diag([1.0, 1.0, -1.0])
    order = rng.permutation(len(atoms))
    moved = atoms.copy()
    moved.positions += rng.normal(size=3)
    cases = {f"rotation {k + 1}": (_turned(atoms, m), _turning(m)) for k, m in enumerate(rotations)}
    return cases | {
        "reflection": (_turned(atoms, mirror), _turning(mirror)),
        "inversion": (_turned(atoms, -np.eye(3)), _turning(-np.eye(3))),
        "translation": (moved, _per_atom(_unchanged)),
        "permutation": (atoms[order], _per_atom(lambda v: v[order])),
    }


def _periodic(atoms: Atoms, rng: np.random.Generator) -> dict[str, tuple[Atoms, dict]]:
    """Operations of periodic structures: other images, other cell vectors, a supercell."""
    shifted = atoms.copy()
    images = rng.integers(-2, 3, size=(len(atoms), 3)) * atoms.pbc
    shifted.positions += images @ atoms.cell.array
    cases = {"wrapping": (shifted, _per_atom(_unchanged))}
    first, *others = np.flatnonzero(atoms.pbc)
    if others:
        sheared = atoms.copy()
        cell = atoms.cell.array.copy()
        cell[first] += cell[others[0]]
        sheared.set_cell(cell)
        cases["cell vectors"] = (sheared, _per_atom(_unchanged))
    repeats = np.where(atoms.pbc, [2, 1, 2], 1)
    if np.prod(repeats) == 1:  # periodic along the second vector only
        repeats = np.where(atoms.pbc, 2, 1)
    copies = int(np.prod(repeats))
    tile = _per_atom(lambda v: np.tile(v, (copies,) + (1,) * (v.ndim - 1)))
    return cases | {"supercell": (atoms.repeat(repeats), tile)}


def check_symmetry(
    atoms: Atoms, calc: Calculator | Mapping[str, Calculator], *, seed: int = 0
) -> SymmetryReport:
    """Rotation, reflection, inversion, translation, permutation; if periodic, wrapping, other cell
    vectors and a supercell.

    Args:
        atoms: a structure without symmetry of its own says most; forces should not be zero.
        calc: an EquivariantCalculator (its precision sets the tolerance), or one of any kind per
            precision: {"float64": ..., "float32": ...}.
        seed: of the operations.
    """
    calculators = calc
    if not isinstance(calc, Mapping):
        calculators = {str(calc.potential.dtype).removeprefix("torch."): calc}
    rng = np.random.default_rng(seed)
    cases = _everywhere(atoms, rng)
    if atoms.pbc.any():
        cases |= _periodic(atoms, rng)
    values, scales = {}, {}
    for precision, one in calculators.items():
        here = _values(atoms, one)
        values[precision] = rows = {}
        for operation, (other, expected) in cases.items():
            there = _values(other, one)
            rows[operation] = {
                name: float(np.abs(there[name] - expected[name](value)).max())
                for name, value in here.items()
            }
        for name, value in here.items():
            size = np.ptp(value) if name == "energies" else np.abs(value).max()
            scales[name] = max(float(size), FLOOR[name])
    return SymmetryReport(values, scales)
