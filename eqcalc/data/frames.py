"""Frames in: anything ASE reads, with the labels a potential is trained on.

Units: energy eV (of the whole structure), forces eV/Å, stress eV/Å^3 with ASE's sign (compression
negative, tension positive; i.e. dE/d(strain) / V).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypedDict, Unpack

import numpy as np
from ase import Atoms
from ase.io import iread
from ase.io.formats import filetype, get_ioformat, open_with_compression
from ase.units import GPa

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


def add_pressure(stress: np.ndarray | None, pressure: float) -> np.ndarray | None:
    """stress [3, 3] eV/Å^3 with `pressure` GPa more compression; None stays so."""
    return None if stress is None else stress - pressure * GPa * np.eye(3)


class FrameHash:
    """SHA-256 over elements, positions, cells, labels and weights of frames, one after another."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, frame: Frame) -> None:
        atoms = frame.atoms
        arrays = (atoms.numbers, atoms.positions, atoms.cell.array, frame.forces, frame.stress)
        for array in arrays:
            if array is not None:
                self._digest.update(np.ascontiguousarray(array).tobytes())
        self._digest.update(repr(frame.energy).encode())
        if frame.weight != 1.0:
            self._digest.update(repr(frame.weight).encode())

    def hexdigest(self) -> str:
        """The first 16 digits."""
        return self._digest.hexdigest()[:16]


class LabelKeys(TypedDict, total=False):
    """How labels are read.

    Attributes:
        energy_key, forces_key, stress_key: the labels' names. VASP's forces belong to
            energy_key="free_energy"; "energy" is extrapolated to no smearing.
        weight_key: name of the frame's weight in the loss, in `info`; empty for 1.
        pulay_pressure: GPa, constant, that the stress of the data lacks beside the derivative of
            its energies (Francis and Payne, J. Phys. Condens. Matter 2, 4395 (1990)); added.
    """

    energy_key: str
    forces_key: str
    stress_key: str
    weight_key: str
    pulay_pressure: float


class Labels(NamedTuple):
    """As they stand in the data, finite or not: eV, eV/Å [N, 3], eV/Å^3 [3, 3]; None if absent."""

    energy: float | None
    forces: np.ndarray | None
    stress: np.ndarray | None


def _places(atoms: Atoms) -> list[dict]:
    """Where labels may be: a calculator's results, info, arrays, and what an ASE database adds."""
    results = atoms.calc.results if atoms.calc is not None else {}
    extra = (atoms.info.get("key_value_pairs"), atoms.info.get("data"))
    return [results, atoms.info, atoms.arrays, *(place for place in extra if place)]


def _label(atoms: Atoms, key: str) -> np.ndarray | float | str | None:
    """A label by name, from the first of the places that has it."""
    found = (place[key] for place in _places(atoms) if place.get(key) is not None)
    return next(found, None)


def stress_matrix(value: np.ndarray, source: str) -> np.ndarray:
    """[3, 3] of a stress as [6] in ASE's order xx yy zz yz xz xy, [9] or [3, 3]."""
    value = np.asarray(value, dtype=np.float64)
    if value.shape == (6,):
        xx, yy, zz, yz, xz, xy = value
        return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    if value.size == 9:
        return value.reshape(3, 3)
    raise InputError(f"{source}: the stress has shape {value.shape}; 6 (Voigt) or 3x3 is expected.")


def read_labels(
    atoms: Atoms,
    source: str,
    *,
    energy_key: str = "energy",
    forces_key: str = "forces",
    stress_key: str = "stress",
    pulay_pressure: float = 0.0,
) -> Labels:
    """What a structure carries under these names (see LabelKeys); InputError if a shape is wrong.

    The stress of a structure that is not periodic in three directions has no meaning: None.
    """
    energy = _label(atoms, energy_key)
    forces = _label(atoms, forces_key)
    stress = _label(atoms, stress_key) if atoms.pbc.all() else None
    if energy is not None:
        try:
            energy = float(energy)
        except (TypeError, ValueError):
            raise InputError(
                f"{source}: '{energy_key}' is {energy!r}, not one number: name the key of the "
                "energy with data.energy_key."
            ) from None
    if forces is not None:
        forces = np.asarray(forces, dtype=np.float64)
        if forces.shape != (len(atoms), 3):
            raise InputError(f"{source}: the forces have shape {forces.shape}, not (atoms, 3).")
    if stress is not None:
        stress = stress_matrix(stress, source)
    return Labels(energy, forces, add_pressure(stress, pulay_pressure))


def without_energy(atoms: Atoms, source: str, energy_key: str) -> str:
    """One sentence about a structure without an energy."""
    names = {name for place in _places(atoms) for name in place} - {"numbers", "positions"}
    known = ", ".join(sorted(names))
    return (
        f"{source} has no energy under the key '{energy_key}' (it has: {known}): "
        "name the right key with data.energy_key or --energy-key."
    )


def make_frame(atoms: Atoms, labels: Labels, source: str) -> Frame:
    """A structure without anything but elements, places and cell, and its labels."""
    bare = Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    group = _label(atoms, "config_type")
    energy = np.nan if labels.energy is None else labels.energy
    group = "all" if group is None else str(group)
    return Frame(bare, energy, labels.forces, labels.stress, group, source)


def _weight(atoms: Atoms, source: str, key: str) -> float:
    """Of a frame in the loss: 1 where `key` is empty or not there."""
    weight = atoms.info.get(key, 1.0)
    if not (isinstance(weight, (int, float, np.number)) and 0.0 <= weight < float("inf")):
        raise InputError(f"{source}: its {key} is {weight}, not a weight of 0 or more.")
    return float(weight)


def to_frame(atoms: Atoms, source: str, **keys: Unpack[LabelKeys]) -> Frame:
    """One structure with its labels; InputError says which label is missing or broken.

    Args:
        atoms: as ASE reads it: labels under `energy`, `forces` and `stress` are in its calculator;
            others, such as REF_energy, in `info`, `arrays` or the columns of a database.
        source: how to call the structure in messages.
        keys: see LabelKeys.
    """
    weight_key = keys.pop("weight_key", "")
    labels = read_labels(atoms, source, **keys)
    if labels.energy is None:
        raise InputError(without_energy(atoms, source, keys.get("energy_key", "energy")))
    if len(atoms) == 0:
        raise InputError(f"{source} has no atoms.")
    check_structure(atoms.positions, atoms.cell.array, atoms.pbc)
    for name, value in labels._asdict().items():
        if value is not None and not np.isfinite(value).all():
            raise InputError(f"{source}: the {name} is not a finite number; remove this frame.")
    return replace(make_frame(atoms, labels, source), weight=_weight(atoms, source, weight_key))


def _existing(path: Path) -> Path:
    if path.is_dir():
        raise InputError(
            f"'{path}' is a folder, not a file of frames; a data store holds no positions: give "
            "the files it was packed from."
        )
    if not path.is_file():
        raise InputError(f"There is no file '{path}'.")
    return path


def _iread(path: Path, index: str | int = ":") -> Iterator[Atoms]:
    """ASE's reader; databases whole, with all their columns, compressed files unpacked aside first.

    The readers step back after each frame, for which a compressed stream starts from its beginning.
    """
    if path.suffix == ".db":
        from ase.db import connect

        with connect(path, serial=True) as database:
            for row in database.select():
                yield row.toatoms(add_additional_information=True)
        return
    if path.suffix not in {".gz", ".bz2", ".xz"}:
        yield from iread(path, index=index)
        return
    form = filetype(str(path))
    if not get_ioformat(form).acceptsfd:
        yield from iread(path, index=index, format=form)
        return
    mode = "b" if get_ioformat(form).isbinary else ""
    with tempfile.NamedTemporaryFile(f"w+{mode}") as named:
        plain = named.file  # itself an iterator of lines; some readers ask for its name
        with open_with_compression(str(path), f"r{mode}") as packed:
            shutil.copyfileobj(packed, plain, 1 << 20)
        plain.seek(0)
        yield from iread(plain, index=index, format=form)


def read_structure(path: str | os.PathLike) -> Atoms:
    """The last structure of a file, labels or not."""
    path = _existing(Path(path))
    try:
        *_, last = _iread(path, -1)
    except Exception as error:  # ASE's readers raise whatever their parsers raise
        raise InputError(f"ASE cannot read '{path}': {error}") from error
    return last


def iter_images(
    paths: Iterable[str | os.PathLike] | str | os.PathLike,
) -> Iterator[tuple[Atoms, str]]:
    """Structures of one or several files, one at a time, each with what to call it in messages.

    Files of one name are told apart by their paths.
    """
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    paths = [_existing(Path(path)) for path in paths]
    names = Counter(path.name for path in paths)
    for path in paths:
        images = _iread(path)
        name = path.name if names[path.name] == 1 else str(path)
        number = 0
        while True:
            try:
                atoms = next(images)
            except StopIteration:
                break
            except Exception as error:  # ASE's readers raise whatever their parsers raise
                raise InputError(f"ASE cannot read '{path}': {error}") from error
            yield atoms, f"{name}, frame {number}"
            number += 1


def iter_frames(
    paths: Iterable[str | os.PathLike] | str | os.PathLike, **keys: Unpack[LabelKeys]
) -> Iterator[Frame]:
    """Frames of one or several files, one at a time, in order, their labels as LabelKeys say.

    Raises:
        InputError: a file is missing or unreadable, a frame is broken, or there is none; or a
            label that was asked for under a name of its own is in no frame.
    """
    named = {label: keys.get(f"{label}_key", label) for label in ("forces", "stress")}
    absent = {label for label, key in named.items() if key != label}
    count = 0
    for count, (atoms, source) in enumerate(iter_images(paths), 1):  # noqa: B007
        frame = to_frame(atoms, source, **keys)
        absent -= {label for label in absent if _label(atoms, named[label]) is not None}
        yield frame
    if not count:
        raise InputError("The data contain no frames.")
    for label in sorted(absent):
        raise InputError(
            f"No frame has {label} under the key '{named[label]}': correct data.{label}_key."
        )


def read_frames(
    paths: Iterable[str | os.PathLike] | str | os.PathLike, **keys: Unpack[LabelKeys]
) -> list[Frame]:
    """All frames of one or several files, in order; see `iter_frames`."""
    return list(iter_frames(paths, **keys))
