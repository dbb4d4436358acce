"""Structures as LAMMPS takes them: a lower triangular box, types in order, a data file.

Units: eV, Å, fs here; LAMMPS's metal units (Å/ps) in the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from eqcalc.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from ase import Atoms

#: Å around the atoms where a structure is not periodic; LAMMPS dislikes boxes of no width
MARGIN = 5.0

#: below this fraction of a vector's length LAMMPS's box is written without tilt
TILT_TOLERANCE = 1e-12


def lammps_cell(atoms: Atoms) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The structure turned into LAMMPS's lower triangular box.

    Vectors of the cell that are not periodic are replaced by normals to the others that hold all
    atoms, so that molecules without a cell and slabs have a box too; LAMMPS widens it as needed.

    Returns:
        box [3, 3] Å, rows; origin [3] Å of the box; rotation R [3, 3] with v_lammps = v_ase @ R
        for positions, velocities and forces (a reflection too if the cell is left-handed).
    """
    import numpy as np
    from ase.geometry import complete_cell

    from eqcalc.neighbors import check_structure

    pbc = np.array(atoms.pbc, dtype=bool)
    check_structure(atoms.positions, atoms.cell.array, pbc)
    cell = complete_cell(np.where(pbc[:, None], atoms.cell.array, 0.0))

    # cell = L Q with L lower triangular with a positive diagonal, Q orthogonal
    q, r = np.linalg.qr(cell.T)
    sign = np.sign(np.diag(r))
    box, rotation = (r * sign[:, None]).T, q * sign
    box[np.abs(box) < TILT_TOLERANCE * np.linalg.norm(box, axis=1)[:, None]] = 0.0

    origin = np.zeros(3)
    if len(atoms):
        turned = atoms.positions @ rotation
        for axis in np.flatnonzero(~pbc):  # such a vector lies along x, y or z alone
            low, high = turned[:, axis].min(), turned[:, axis].max()
            origin[axis], box[axis, axis] = low - MARGIN, high - low + 2.0 * MARGIN
    return box, origin, rotation


def _masses(atoms: Atoms, elements: list[str]) -> list[float]:
    import numpy as np

    symbols = np.array(atoms.get_chemical_symbols())
    masses = []
    for element in elements:
        each = atoms.get_masses()[symbols == element]
        if np.ptp(each) > 0.0:
            raise InputError(
                f"The {element} atoms have different masses ({each.min()} to {each.max()}), but "
                "LAMMPS takes one for each type: give all the same."
            )
        masses.append(float(each[0]))
    return masses


def write_data(atoms: Atoms, elements: list[str], path: Path, *, triclinic: bool = False) -> None:
    """A LAMMPS data file, atom_style atomic, units metal; type k is elements[k - 1].

    Velocities are written if the atoms have any. Numbers keep all their digits. `triclinic` writes
    the tilt of a box that has none, so that LAMMPS lets it change.
    """
    from ase import units

    box, origin, rotation = lammps_cell(atoms)
    types = [elements.index(symbol) + 1 for symbol in atoms.get_chemical_symbols()]
    lines = ["written by eqcalc", "", f"{len(atoms)} atoms", f"{len(elements)} atom types", ""]
    for axis, name in enumerate("xyz"):
        low, high = float(origin[axis]), float(origin[axis] + box[axis, axis])
        lines.append(f"{low!r} {high!r} {name}lo {name}hi")
    xy, xz, yz = float(box[1, 0]), float(box[2, 0]), float(box[2, 1])
    if xy or xz or yz or triclinic:
        lines.append(f"{xy!r} {xz!r} {yz!r} xy xz yz")
    lines += ["", "Masses", ""]
    masses = _masses(atoms, elements)
    lines += [
        f"{k + 1} {m!r}  # {e}" for k, (e, m) in enumerate(zip(elements, masses, strict=True))
    ]
    lines += ["", "Atoms  # atomic", ""]
    for k, (kind, x) in enumerate(zip(types, (atoms.positions @ rotation).tolist(), strict=True)):
        lines.append(f"{k + 1} {kind} {x[0]!r} {x[1]!r} {x[2]!r}")
    if atoms.get_momenta().any():
        lines += ["", "Velocities", ""]
        velocities = atoms.get_velocities() @ rotation * (1000.0 * units.fs)  # Å/ps
        lines += [f"{k + 1} {v[0]!r} {v[1]!r} {v[2]!r}" for k, v in enumerate(velocities.tolist())]
    path.write_text("\n".join(lines) + "\n")
