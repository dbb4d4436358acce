"""Input scripts for `lmp` that run as they are written.

Units: eV, Å, fs, K, GPa here; LAMMPS's metal units (ps, bar) in the files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from eqcalc import precisions
from eqcalc.errors import InputError, did_you_mean
from eqcalc.files import user_path
from eqcalc.lammps.box import write_data

if TYPE_CHECKING:
    from ase import Atoms

Ensemble = Literal["nve", "nvt", "npt", "minimize"]
Coupling = Literal["iso", "aniso", "tri"]

DATA_FILE = "structure.data"
SCRIPT_FILE = "in.lammps"
FINAL_FILE = "final.data"
DUMP_FILE = "trajectory.lammpstrj"
DUMP_COLUMNS = "id type element x y z vx vy vz fx fy fz"
BAR_PER_GPA = 1.0e4


@dataclass(frozen=True)
class _Box:
    """How the cell moves: pressure (bar), which lengths together, which vectors are periodic."""

    pressure: float
    coupling: str
    pbc: list[bool]

    def __post_init__(self) -> None:
        if self.coupling not in get_args(Coupling):
            raise InputError(
                f"coupling '{self.coupling}'{did_you_mean(self.coupling, get_args(Coupling))}: it "
                "must be iso, aniso or tri."
            )
        if not any(self.pbc):
            raise InputError(
                "A cell that changes needs a structure that is periodic somewhere: take 'nvt' for "
                "a molecule."
            )
        if self.coupling == "tri" and not all(self.pbc):
            raise InputError(
                "coupling 'tri' needs a structure that is periodic in three directions: take "
                "'aniso', which leaves out the directions that are not periodic."
            )

    def words(self, damping: str) -> str:
        """As fix npt and fix box/relax take it."""
        push = f"{self.pressure:g}{damping and f' {self.pressure:g} {damping}'}"
        if all(self.pbc):
            return f"{self.coupling} {push}"
        axes = [axis for axis, periodic in zip("xyz", self.pbc, strict=True) if periodic]
        words = " ".join(f"{axis} {push}" for axis in axes)
        together = self.coupling == "iso" and len(axes) > 1
        return f"{words} couple {''.join(axes)}" if together else words


def _quoted(text: str) -> str:
    if any(c in text for c in "\"'$\n"):
        raise InputError(f"LAMMPS cannot read a path with quotes or dollar signs: {text}")
    return f'"{text}"'


def _motion(ensemble: str, box: _Box | None, temperature: float, timestep: float) -> str:
    """The fix that makes the ensemble; timestep in ps."""
    heat = f"temp {temperature:g} {temperature:g} {100 * timestep:g}"
    if box:
        return f"fix integrate all npt {heat} {box.words(f'{1000 * timestep:g}')}"
    return f"fix integrate all {'nvt ' + heat if ensemble == 'nvt' else 'nve'}"


def _minimization(box: _Box | None, max_force: float, steps: int) -> list[str]:
    """Twice where the cell moves: LAMMPS fixes the reference cell when a minimisation starts."""
    run = f"minimize 0.0 {max_force:g} {steps} {10 * steps}"
    if box is None:
        return ["min_style cg", run]
    move = f"fix cell all box/relax {box.words('')} vmax 0.001"
    return ["min_style cg", move, run, "unfix cell", move, run]


def _log(box: _Box | None, ensemble: str, every: int, digits: int | None) -> list[str]:
    """What is printed: columns for people, or all components with so many digits."""
    if digits is not None:
        columns = "step time temp pe ke etotal press pxx pyy pzz pxy pxz pyz vol"
        form = [f"thermo_modify format float %.{digits}g"]
    else:
        columns = "step pe fmax press" if ensemble == "minimize" else "step temp pe etotal press"
        if box:
            columns += " vol lx ly lz" + " xy xz yz" * (box.coupling == "tri")
        form = ["thermo_modify format float %14.6f"]
    return [f"thermo_style custom {columns}", *form, f"thermo {every}"]


def write_input(
    atoms: Atoms,
    model_path: str | os.PathLike | Sequence[str | os.PathLike],
    folder: str | os.PathLike,
    ensemble: str = "nve",
    temperature: float = 300.0,
    timestep_fs: float = 1.0,
    steps: int = 1000,
    *,
    pressure_gpa: float = 0.0,
    coupling: str = "iso",
    relax_cell: bool = False,
    max_force: float = 1e-3,
    thermo_every: int = 10,
    dump_every: int = 100,
    digits: int | None = None,
    skin: float = 1.0,
    precision: str | None = None,
    seed: int = 1,
) -> Path:
    """Writes a data file and an input script for `lmp`, and returns the script.

    Run it in its folder: `lmp -in in.lammps`, `mpirun -n 4 lmp -in in.lammps`, or `run_lmp`. The
    last structure is written to final.data, with velocities.

    Args:
        atoms: the structure; its velocities are kept if it has any.
        model_path: a potential file, the name of a model (`eqcalc.names`), or the folder of a
            committee; several of these run as their mean.
        folder: made if need be.
        ensemble: "nve", "nvt", "npt" or "minimize".
        temperature: K; of the thermostat, and of new velocities where atoms have none.
        timestep_fs: fs.
        steps: MD steps, or at most so many iterations of the minimiser.
        pressure_gpa: GPa, for "npt" and for a cell that is relaxed.
        coupling: how such a cell changes: "iso", all lengths by one factor; "aniso", each by its
            own; "tri", angles too. Directions that are not periodic stay as they are.
        relax_cell: minimise over the cell, too.
        max_force: eV/Å, where the minimiser stops.
        thermo_every, dump_every: steps between lines of the log, and frames; 0 for none.
        digits: significant ones of all quantities in the log, with all components of the pressure;
            None: fewer columns, in line, with six decimals.
        skin: Å, of the neighbour list.
        precision: "float32" or "float64" (or, as LAMMPS has it, "single" or "double"); None, or
            "file", takes the file's own.
        seed: of new velocities.

    Raises:
        InputError: no such file, an element that the model does not know, or options that do not
            fit the structure.
    """
    from eqcalc import export, names

    _check(ensemble, temperature, timestep_fs, steps, seed)
    dtype = precisions.named_or_file(precision, "precision")
    if relax_cell and ensemble != "minimize":
        raise InputError("relax_cell belongs to ensemble 'minimize'; in dynamics take 'npt'.")
    if len(atoms) == 0:
        raise InputError("The structure has no atoms.")
    present = set(atoms.get_chemical_symbols())
    paths = [model_path] if isinstance(model_path, str | os.PathLike) else list(model_path)
    for file in names.member_files(paths):
        model = names.find(file)
        species = export.read_metadata(model)["species"]
        if not present <= set(species):
            raise InputError(
                f"{model.name} knows {', '.join(species)}, but the structure contains "
                f"{', '.join(sorted(present - set(species)))}: use a model trained on these "
                "elements."
            )
    potentials = " ".join(_quoted(names.lasting(path)) for path in paths)
    elements = [symbol for symbol in species if symbol in present]
    pbc = [bool(p) for p in atoms.pbc]
    moves = ensemble == "npt" or relax_cell
    box = _Box(pressure_gpa * BAR_PER_GPA, coupling, pbc) if moves else None
    folder = user_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    triclinic = box is not None and box.coupling == "tri"
    write_data(atoms, elements, folder / DATA_FILE, triclinic=triclinic)

    style = f" precision {precisions.LAMMPS[dtype]}" if dtype else ""
    lines = [
        "# written by eqcalc; types: " + ", ".join(f"{k + 1} {e}" for k, e in enumerate(elements)),
        "units metal",
        "atom_style atomic",
        "boundary " + " ".join("p" if p else "m" for p in pbc),
        f"read_data {DATA_FILE}",
        "",
        f"pair_style equivariant{style}",
        f"pair_coeff * * {potentials} {' '.join(elements)}",
        f"neighbor {skin:g} bin",
        "neigh_modify every 1 delay 0 check yes",
        "",
        *_log(box, ensemble, thermo_every, digits),
    ]
    if dump_every:
        lines += [
            f"dump frames all custom {dump_every} {DUMP_FILE} {DUMP_COLUMNS}",
            f"dump_modify frames sort id element {' '.join(elements)} format float %.15g",
        ]
    lines.append("")
    if ensemble == "minimize":
        lines += _minimization(box, max_force, steps)
    else:
        timestep = timestep_fs / 1000.0
        if temperature > 0 and not atoms.get_momenta().any():
            lines.append(f"velocity all create {temperature} {seed} mom yes rot no dist gaussian")
        motion = _motion(ensemble, box, temperature, timestep)
        lines += [motion, f"timestep {timestep!r}", f"run {steps}"]
    lines.append(f"write_data {FINAL_FILE} nocoeff")
    script = folder / SCRIPT_FILE
    script.write_text("\n".join(lines) + "\n")
    return script


def _check(
    ensemble: str,
    temperature: float,
    timestep_fs: float,
    steps: int,
    seed: int,
) -> None:
    """InputError for options that no structure could make right."""
    if ensemble not in get_args(Ensemble):
        raise InputError(f"ensemble '{ensemble}'{did_you_mean(ensemble, get_args(Ensemble))}.")
    if timestep_fs <= 0 or temperature < 0:
        raise InputError("timestep_fs must be positive and temperature not negative.")
    if steps < 0:
        raise InputError(f"steps = {steps}: it must not be negative.")
    if seed < 1:
        raise InputError(f"seed = {seed}: LAMMPS takes whole numbers from 1 on.")
