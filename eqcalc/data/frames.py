"""Frames in: anything ASE reads, with the labels a potential is trained on.

Units: energy eV (of the whole structure), forces eV/Å, stress eV/Å^3 with ASE's sign (compression
negative, tension positive; i.e. dE/d(strain) / V).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read

from eqcalc.errors import InputError
from eqcalc.neighbors import check_structure


@dataclass(frozen=True)
class Frame:
    """One labelled structure. forces [N, 3] and stress [3, 3] are None where the data lack them.

    Its loss is multiplied by `weight` in training.
    """

    atoms: Atoms
    energy: float
    forces: np.ndarray | None
    stress: np.ndarray | None
    config_type: str
    source: str
    weight: float = 1.0


def _label(atoms: Atoms, key: str) -> np.ndarray | float | None:
    """A label by name: from the attached calculator's results, else info, else per-atom arrays."""
    results = atoms.calc.results if atoms.calc is not None else {}
    for place in (results, atoms.info, atoms.arrays):
        if place.get(key) is not None:
            return place[key]
    return None


def _stress_matrix(value: np.ndarray, source: str) -> np.ndarray:
    value = np.asarray(value, dtype=np.float64)
    if value.shape == (6,):
        xx, yy, zz, yz, xz, xy = value
        return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    if value.size == 9:
        return value.reshape(3, 3)
    raise InputError(f"{source}: the stress has shape {value.shape}; 6 (Voigt) or 3x3 is expected.")


def to_frame(
    atoms: Atoms,
    source: str,
    *,
    energy_key: str = "energy",
    forces_key: str = "forces",
    stress_key: str = "stress",
    weight_key: str = "",
) -> Frame:
    """One structure with its labels; InputError says which label is missing or broken."""
    energy = _label(atoms, energy_key)
    if energy is None:
        known = sorted({*atoms.info, *(atoms.calc.results if atoms.calc else {})})
        raise InputError(
            f"{source} has no energy under the key '{energy_key}' (it has: {', '.join(known)}): "
            "name the right key with data.energy_key."
        )
    if len(atoms) == 0:
        raise InputError(f"{source} has no atoms.")
    check_structure(atoms.positions, atoms.cell.array, atoms.pbc)
    forces = _label(atoms, forces_key)
    stress = _label(atoms, stress_key) if atoms.pbc.all() else None
    if forces is not None:
        forces = np.asarray(forces, dtype=np.float64)
        if forces.shape != (len(atoms), 3):
            raise InputError(f"{source}: the forces have shape {forces.shape}, not (atoms, 3).")
    if stress is not None:
        stress = _stress_matrix(stress, source)
    for name, value in (("energy", energy), ("forces", forces), ("stress", stress)):
        if value is not None and not np.isfinite(value).all():
            raise InputError(f"{source}: the {name} is not a finite number; remove this frame.")
    weight = atoms.info.get(weight_key, 1.0)
    if not (isinstance(weight, (int, float, np.number)) and 0.0 <= weight < float("inf")):
        raise InputError(f"{source}: its {weight_key} is {weight}, not a weight of 0 or more.")
    bare = Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    group = str(atoms.info.get("config_type", "all"))
    return Frame(bare, float(energy), forces, stress, group, source, float(weight))


def _read_images(path: Path, index: str | int) -> list[Atoms] | Atoms:
    if not path.is_file():
        raise InputError(f"There is no file '{path}'.")
    try:
        return read(path, index=index)
    except Exception as error:  # ASE's readers raise whatever their parsers raise
        raise InputError(f"ASE cannot read '{path}': {error}") from error


def read_structure(path: str | os.PathLike) -> Atoms:
    """The last structure of a file, labels or not."""
    return _read_images(Path(path), -1)


def read_frames(paths: Iterable[str | os.PathLike] | str | os.PathLike, **keys: str) -> list[Frame]:
    """All frames of one or several files, in order. `keys` are those of `to_frame`."""
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    frames = []
    for path in map(Path, paths):
        images = _read_images(path, ":")
        frames += [to_frame(a, f"{path.name}, frame {n}", **keys) for n, a in enumerate(images)]
    if not frames:
        raise InputError("The data contain no frames.")
    return frames
