"""Data files and input scripts with the right type order, and the real `lmp` to run them.

Units: eV, Å, fs, K, GPa here; LAMMPS's metal units (ps, bar) in the files.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from eqcalc.errors import InputError, did_you_mean
from eqcalc.files import user_path
from eqcalc.lammps.plugin import INSTALL_LAMMPS, find_tool

if TYPE_CHECKING:
    import numpy as np
    from ase import Atoms

Ensemble = Literal["nve", "nvt", "npt", "minimize"]

DATA_FILE = "structure.data"
SCRIPT_FILE = "in.lammps"
LOG_FILE = "log.lammps"
DUMP_FILE = "trajectory.lammpstrj"
DUMP_COLUMNS = "id type element x y z vx vy vz fx fy fz"
BAR_PER_GPA = 1.0e4

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


def write_data(atoms: Atoms, elements: list[str], path: Path) -> None:
    """A LAMMPS data file, atom_style atomic, units metal; type k is elements[k - 1].

    Velocities are written if the atoms have any. Numbers keep all their digits.
    """
    from ase import units

    box, origin, rotation = lammps_cell(atoms)
    types = [elements.index(symbol) + 1 for symbol in atoms.get_chemical_symbols()]
    lines = ["written by eqcalc", "", f"{len(atoms)} atoms", f"{len(elements)} atom types", ""]
    for axis, name in enumerate("xyz"):
        low, high = float(origin[axis]), float(origin[axis] + box[axis, axis])
        lines.append(f"{low!r} {high!r} {name}lo {name}hi")
    xy, xz, yz = float(box[1, 0]), float(box[2, 0]), float(box[2, 1])
    if xy or xz or yz:
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


def _quoted(text: str) -> str:
    if any(c in text for c in "\"'$\n"):
        raise InputError(f"LAMMPS cannot read a path with quotes or dollar signs: {text}")
    return f'"{text}"'


def _integration(
    ensemble: Ensemble, pbc: list[bool], temperature: float, pressure: float, timestep: float
) -> list[str]:
    """The commands that make the ensemble; pressure in bar, timestep in ps."""
    heat = f"temp {temperature} {temperature} {100 * timestep:g}"
    if ensemble == "nve":
        return ["fix integrate all nve"]
    if ensemble == "nvt":
        return [f"fix integrate all nvt {heat}"]
    if not any(pbc):
        raise InputError("ensemble 'npt' needs a structure that is periodic somewhere.")
    push = f"{pressure:g} {pressure:g} {1000 * timestep:g}"
    axes = (
        "iso " + push
        if all(pbc)
        else " ".join(f"{a} {push}" for a, p in zip("xyz", pbc, strict=True) if p)
    )
    return [f"fix integrate all npt {heat} {axes}"]


def write_input(
    atoms: Atoms,
    model_path: str | os.PathLike,
    folder: str | os.PathLike,
    ensemble: Ensemble = "nve",
    temperature: float = 300.0,
    timestep_fs: float = 1.0,
    steps: int = 1000,
    *,
    pressure_gpa: float = 0.0,
    max_force: float = 1e-3,
    thermo_every: int = 10,
    dump_every: int = 100,
    skin: float = 1.0,
    precision: Literal["single", "double"] | None = None,
    seed: int = 1,
) -> Path:
    """Writes a data file and an input script for `lmp`, and returns the script.

    Run it in its folder: `lmp -in in.lammps`, `mpirun -n 4 lmp -in in.lammps`, or `run_lmp`.

    Args:
        atoms: the structure; its velocities are kept if it has any.
        model_path: a potential file, or the name of a model (`eqcalc.names`).
        folder: made if need be.
        ensemble: "nve", "nvt", "npt" (all axes alike) or "minimize".
        temperature: K; of the thermostat, and of new velocities where atoms have none.
        timestep_fs: fs.
        steps: MD steps, or at most so many iterations of the minimiser.
        pressure_gpa: GPa, for "npt".
        max_force: eV/Å, where the minimiser stops.
        thermo_every, dump_every: steps between lines of the log, and frames; 0 for none.
        skin: Å, of the neighbour list.
        precision: None takes the file's own.
        seed: of new velocities.

    Raises:
        InputError: no such file, or an element that the model does not know.
    """
    from eqcalc import export, names

    if ensemble not in get_args(Ensemble):
        raise InputError(f"ensemble '{ensemble}'{did_you_mean(ensemble, get_args(Ensemble))}.")
    if len(atoms) == 0:
        raise InputError("The structure has no atoms.")
    if timestep_fs <= 0 or temperature < 0:
        raise InputError("timestep_fs must be positive and temperature not negative.")
    model = names.find(model_path)
    species = export.read_metadata(model)["species"]
    present = set(atoms.get_chemical_symbols())
    if not present <= set(species):
        raise InputError(
            f"{model.name} knows {', '.join(species)}, but the structure contains "
            f"{', '.join(sorted(present - set(species)))}: use a model trained on these elements."
        )
    elements = [symbol for symbol in species if symbol in present]
    folder = user_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_data(atoms, elements, folder / DATA_FILE)

    pbc = [bool(p) for p in atoms.pbc]
    style = (
        f"pair_style equivariant precision {precision}" if precision else "pair_style equivariant"
    )
    lines = [
        "# written by eqcalc; types: " + ", ".join(f"{k + 1} {e}" for k, e in enumerate(elements)),
        "units metal",
        "atom_style atomic",
        "boundary " + " ".join("p" if p else "m" for p in pbc),
        "box tilt large",
        f"read_data {DATA_FILE}",
        "",
        style,
        f"pair_coeff * * {_quoted(names.lasting(model_path))} {' '.join(elements)}",
        f"neighbor {skin:g} bin",
        "neigh_modify every 1 delay 0 check yes",
        "",
        "thermo_style custom step time temp pe ke etotal press pxx pyy pzz pxy pxz pyz vol",
        "thermo_modify format float %.15g",
        f"thermo {thermo_every}",
    ]
    if dump_every:
        lines += [
            f"dump frames all custom {dump_every} {DUMP_FILE} {DUMP_COLUMNS}",
            f"dump_modify frames sort id element {' '.join(elements)} format float %.15g",
        ]
    if ensemble == "minimize":
        lines += ["", "min_style cg", f"minimize 0.0 {max_force:g} {steps} {10 * steps}"]
    else:
        timestep = timestep_fs / 1000.0
        if temperature > 0 and not atoms.get_momenta().any():
            lines.append(f"velocity all create {temperature} {seed} mom yes rot no dist gaussian")
        lines += [
            *_integration(ensemble, pbc, temperature, pressure_gpa * BAR_PER_GPA, timestep),
            f"timestep {timestep!r}",
            f"run {steps}",
        ]
    script = folder / SCRIPT_FILE
    script.write_text("\n".join(lines) + "\n")
    return script


def run_lmp(
    script: str | os.PathLike,
    cwd: str | os.PathLike | None = None,
    ranks: int = 1,
    threads: int = 1,
    *,
    timeout: float | None = None,
) -> str:
    """Runs the `lmp` that is installed beside this Python, and returns what it prints.

    Args:
        script: input script.
        cwd: where to run; None is the script's folder.
        ranks: MPI processes.
        threads: of each.
        timeout: s.

    Raises:
        InputError: no LAMMPS, or LAMMPS stopped with an error: its own sentence.
    """
    script = user_path(script).resolve()
    lmp, mpirun = find_tool("lmp"), find_tool("mpirun")
    if lmp is None or (ranks > 1 and mpirun is None):
        missing = "LAMMPS" if lmp is None else "mpirun"
        raise InputError(f"{missing} is not installed for this Python: {INSTALL_LAMMPS}")
    command = [lmp, "-nocite", "-log", LOG_FILE, "-in", str(script)]
    if ranks > 1:
        command = [mpirun, "-n", str(ranks), *command]
    try:
        done = subprocess.run(
            command,
            cwd=script.parent if cwd is None else cwd,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"LAMMPS did not finish {script} within {timeout:g} s.") from None
    error = re.search(
        r"^ERROR(?: on proc \d+)?: (.*?)(?: \(\S+:\d+\))?$", done.stdout, re.MULTILINE
    )
    if done.returncode or error:
        said = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
        reason = error[1] if error else f"exit status {done.returncode}: {said[-1]}"
        raise InputError(f"LAMMPS stopped in {script}: {reason}")
    return done.stdout


def read_thermo(output: str) -> dict[str, np.ndarray]:
    """The last thermo table in what LAMMPS prints, or in its log: column name -> values."""
    import numpy as np

    names, rows = [], []
    inside = False
    for line in output.splitlines():
        words = line.split()
        if words[:1] == ["Step"]:
            names, rows, inside = words, [], True
        elif line.startswith("Loop time"):
            inside = False
        elif inside and len(words) == len(names) and re.match(r"^-?\d+$", words[0]):
            rows.append([float(word) for word in words])
    if not rows:
        raise InputError("There is no thermo table in LAMMPS's output.")
    return dict(zip(names, np.array(rows).T, strict=True))
