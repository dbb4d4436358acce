"""One structure in ASE and in LAMMPS: the same numbers for every property, on any number of ranks.

LAMMPS turns the structure into its lower triangular box, wraps and distributes the atoms and makes
ghosts of its own; energies, forces and virials of every atom must survive that. They are compared
in LAMMPS's frame, so that nothing is lost in turning back.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ase import Atoms

from eqcalc.calculator import EquivariantCalculator
from eqcalc.checks.report import Report, Table
from eqcalc.checks.structures import bare
from eqcalc.errors import InputError

#: fraction of a property's scale that passes: sums in another order and, on several ranks, features
#: of ghosts in another order; LAMMPS prints 16 digits
TOLERANCE = {"float64": 1e-9, "float32": 1e-5}

#: smallest scale of a property in its unit, 1 if not named, so that a crystal at rest is not judged
#: by its zeros
FLOOR = {"pressure": 0.05}
UNITS = {
    "energy": "eV/atom",
    "atomic energies": "eV",
    "forces": "eV/Å",
    "virial": "eV/atom",
    "pressure": "eV/Å³",
    "atomic virials": "eV",
}

EV_PER_BAR_A3 = 1.0 / 1.6021765e6  # LAMMPS's own constant, with its digits
VIRIALS = "c_virial[*]"
COLUMNS = f"id c_energy fx fy fz {VIRIALS}"


@dataclass(frozen=True)
class ParityReport(Report):
    """differences, scales: {run: {property: largest difference, and what it is compared with}}.

    A run is a precision and a number of ranks; differences in eV, eV/Å and eV/Å^3.
    """

    num_atoms: int
    differences: dict[tuple[str, int], dict[str, float]]
    scales: dict[str, float]

    name: ClassVar[str] = "parity"
    title: ClassVar[str] = "ASE against LAMMPS"
    method: ClassVar[str] = (
        "Energy, per-atom energies, forces, pressure tensor and per-atom virials (nine components) "
        "of the same structure from Python and from pair_style equivariant. Differences of "
        f"{TOLERANCE['float64']:.0e} (float64) and {TOLERANCE['float32']:.0e} (float32) of the "
        "largest value pass: sums in another order."
    )

    @property
    def failures(self) -> list[str]:
        return [
            f"{ranks} rank{'s' * (ranks > 1)}, {precision}: {name} differ by {value:.1e} "
            f"{UNITS[name]} ({TOLERANCE[precision] * self.scales[name]:.0e} passes)."
            for (precision, ranks), row in self.differences.items()
            for name, value in row.items()
            if not value <= TOLERANCE[precision] * self.scales[name]
        ]

    def figures(self) -> dict[str, Any]:
        return {
            "num_atoms": self.num_atoms,
            "runs": [
                {
                    "precision": precision,
                    "ranks": ranks,
                    "largest_difference": {f"{k}, {UNITS[k]}": v for k, v in row.items()},
                }
                for (precision, ranks), row in self.differences.items()
            ],
            "scales": {f"{k}, {UNITS[k]}": v for k, v in self.scales.items()},
            "tolerance_relative_to_scale": TOLERANCE,
        }

    def tables(self) -> list[Table]:
        names = list(self.scales)
        rows = [
            [f"{precision}, {ranks} rank{'s' * (ranks > 1)}", *(f"{row[n]:.1e}" for n in names)]
            for (precision, ranks), row in self.differences.items()
        ]
        rows.append(["scale", *(f"{self.scales[n]:.3g}" for n in names)])
        columns = ["largest difference", *(f"{n}, {UNITS[n]}" for n in names)]
        return [Table(f"{self.num_atoms} atoms", columns, rows)]


def by_ase(atoms: Atoms, calc: EquivariantCalculator) -> dict[str, np.ndarray]:
    """The properties in LAMMPS's frame, from the calculator."""
    from eqcalc.lammps import lammps_cell

    turn = lammps_cell(atoms)[2]
    atoms = atoms.copy()
    atoms.calc = calc
    virials = turn.T @ calc.get_atomic_virials(atoms) @ turn
    total = virials.sum(axis=0)
    found = {
        "energy": np.asarray(atoms.get_potential_energy() / len(atoms)),
        "atomic energies": atoms.get_potential_energies(),
        "forces": atoms.get_forces() @ turn,
        "virial": 0.5 * (total + total.T) / len(atoms),
        "atomic virials": virials,
    }
    if atoms.pbc.all():
        found["pressure"] = -turn.T @ atoms.get_stress(voigt=False) @ turn
    return found


def _script(
    atoms: Atoms, model: str | os.PathLike, precision: str, engine: str | None, folder: Path
) -> Path:
    """An input script that prints every property once, on atoms at rest."""
    from eqcalc.lammps import write_input

    script = write_input(atoms, model, folder, temperature=0.0, steps=0, dump_every=0,
                         digits=16, precision=precision)  # fmt: skip
    computes = [
        "compute energy all pe/atom",
        "compute virial all centroid/stress/atom NULL virial",
        f"dump out all custom 1 atoms.out {COLUMNS}",
        "dump_modify out sort id format float %.16g",
    ]
    lines = script.read_text().splitlines()
    where = next(k for k, line in enumerate(lines) if line.startswith("fix integrate"))
    if engine:
        style = next(k for k, line in enumerate(lines) if line.startswith("pair_style"))
        lines[style] += f" engine {engine}"
    script.write_text("\n".join([*lines[:where], *computes, *lines[where:]]) + "\n")
    return script


def by_lammps(
    atoms: Atoms,
    model: str | os.PathLike,
    precision: str,
    ranks: int,
    threads: int = 1,
    engine: str | None = None,
) -> dict[str, np.ndarray]:
    """The properties from the real `lmp`, in eV and Å."""
    from eqcalc.lammps import read_thermo, run_lmp

    with tempfile.TemporaryDirectory(prefix="eqcalc-parity-") as name:
        script = _script(atoms, model, precision, engine, Path(name))
        thermo = read_thermo(run_lmp(script, ranks=ranks, threads=threads))
        frame = (Path(name) / "atoms.out").read_text().rsplit("ITEM: ATOMS", 1)[1]
    rows = np.array([[float(w) for w in line.split()] for line in frame.splitlines()[1:]])
    xx, yy, zz, xy, xz, yz = (thermo[f"P{c}"][0] for c in ("xx", "yy", "zz", "xy", "xz", "yz"))
    pressure = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]) * EV_PER_BAR_A3
    # stress/atom is minus the virial, xx yy zz xy xz yz yx zx zy, in bar Å^3
    virials = -rows[:, 5:14] * EV_PER_BAR_A3
    found = {
        "energy": np.asarray(thermo["PotEng"][0] / len(atoms)),
        "atomic energies": rows[:, 1],
        "forces": rows[:, 2:5],
        "virial": pressure * thermo["Volume"][0] / len(atoms),
        "atomic virials": virials[:, [0, 3, 4, 6, 1, 5, 7, 8, 2]].reshape(-1, 3, 3),
    }
    if atoms.pbc.all():
        found["pressure"] = pressure
    return found


def _scales(values: dict[str, np.ndarray]) -> dict[str, float]:
    """What differences are compared with: the largest value, but at least FLOOR.

    Of energies their spread over the atoms: reference energies are constants.
    """
    sizes = {name: float(np.abs(value).max()) for name, value in values.items()}
    sizes["energy"] = sizes["atomic energies"] = float(np.ptp(values["atomic energies"]))
    return {name: max(size, FLOOR.get(name, 1.0)) for name, size in sizes.items()}


def check_parity(
    atoms: Atoms,
    model: str | os.PathLike,
    *,
    ranks: Sequence[int] = (1, 2),
    precisions: Sequence[str] = ("float64", "float32"),
    threads: int = 1,
) -> ParityReport:
    """Energy, per-atom energies, forces, pressure and per-atom virials in ASE and in LAMMPS.

    Args:
        atoms: any structure that the model knows; displaced atoms say most.
        model: a potential file or the name of a bundled model.
        ranks: numbers of MPI processes.
        precisions: "float64", "float32" or both.
        threads: of each process.

    Raises:
        InputError: no LAMMPS, or what either engine refuses.
    """
    if not ranks or min(ranks) < 1:
        raise InputError("ranks must be positive numbers.")
    atoms = bare(atoms)
    atoms.set_momenta(np.zeros((len(atoms), 3)))
    differences = {}
    for precision in precisions:
        expected = by_ase(atoms, EquivariantCalculator(model, dtype=precision, threads=threads))
        scales = _scales(expected)
        for count in ranks:
            got = by_lammps(atoms, model, precision, count, threads)
            differences[precision, count] = {
                name: float(np.abs(got[name] - value).max()) for name, value in expected.items()
            }
    return ParityReport(len(atoms), differences, scales)
