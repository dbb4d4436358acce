"""Frames in: anything ASE reads, with the labels a potential is trained on.

Units and signs of labels: see `eqcalc.data.labels`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Unpack

import numpy as np
from ase import Atoms
from ase.io import iread
from ase.io.formats import filetype, get_ioformat, open_with_compression

from eqcalc.data.labels import (
    LabelKeys,
    Labels,
    check_keys,
    config_type,
    read_labels,
    read_outputs,
    without_energy,
)
from eqcalc.data.spellings import LabelSurvey
from eqcalc.errors import InputError
from eqcalc.files import user_path
from eqcalc.neighbors import check_structure

#: in the metadata of a database: what its structures are called in messages
GIVEN_AS = "eqcalc_given_as"


@dataclass(frozen=True)
class Frame:
    """One labelled structure. forces [N, 3] and stress [3, 3] are None where the data lack them.

    Its loss is multiplied by `weight` in training. outputs: labels beside these by name, as rows
    of their irreps [N or 1, columns] (`eqcalc.outputs`); the energy is NaN where none is needed.
    """

    atoms: Atoms
    energy: float
    forces: np.ndarray | None
    stress: np.ndarray | None
    config_type: str
    source: str
    weight: float = 1.0
    outputs: dict[str, np.ndarray] = field(default_factory=dict)


class FrameHash:
    """SHA-256 over elements, positions, cells, periodicity, labels and weights, frame by frame.

    Periodicity along each vector of the cell, and along no other, adds nothing, so that hashes of
    crystals and of molecules without a cell are those that older runs and stores keep.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, frame: Frame) -> None:
        atoms = frame.atoms
        arrays = (atoms.numbers, atoms.positions, atoms.cell.array, frame.forces, frame.stress)
        for array in arrays:
            if array is not None:
                self._digest.update(np.ascontiguousarray(array).tobytes())
        if not np.array_equal(atoms.pbc, atoms.cell.array.any(axis=1)):
            self._digest.update(atoms.pbc.tobytes())
        self._digest.update(repr(frame.energy).encode())
        for name in sorted(frame.outputs):
            self._digest.update(name.encode())
            self._digest.update(np.ascontiguousarray(frame.outputs[name]).tobytes())
        if frame.weight != 1.0:
            self._digest.update(repr(frame.weight).encode())

    def hexdigest(self) -> str:
        """The first 16 digits."""
        return self._digest.hexdigest()[:16]


def make_frame(atoms: Atoms, labels: Labels, source: str) -> Frame:
    """A structure without anything but elements, places and cell, and its labels."""
    bare = Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    energy = np.nan if labels.energy is None else labels.energy
    return Frame(bare, energy, labels.forces, labels.stress, config_type(atoms), source)


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
    labels = read_labels(atoms, source, keys)
    if keys.get("without_energy", False):
        labels = labels._replace(energy=None)
    elif labels.energy is None:
        raise InputError(without_energy(atoms, source, keys))
    if len(atoms) == 0:
        raise InputError(f"{source} has no atoms.")
    check_structure(atoms.positions, atoms.cell.array, atoms.pbc)
    for name, value in labels._asdict().items():
        if value is not None and not np.isfinite(value).all():
            raise InputError(f"{source}: the {name} is not a finite number; remove this frame.")
    weight = _weight(atoms, source, keys.get("weight_key", ""))
    outputs = read_outputs(atoms, source, keys)
    return replace(make_frame(atoms, labels, source), weight=weight, outputs=outputs)


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
                atoms = row.toatoms(add_additional_information=True)
                del atoms.info["unique_id"]  # of the database, and no label
                yield atoms
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


def choose_structure(path: str | os.PathLike, frame: int | None = None) -> Atoms:
    """One structure of a file: the only one, or the one with this number (from 0, or from -1 back).

    Raises:
        InputError: there are several and none is chosen, or none of that number.
    """
    if frame == -1:
        return read_structure(path)
    found = [atoms for atoms, _ in iter_images(path)]
    if frame is None and len(found) > 1:
        raise InputError(
            f"'{path}' has {len(found)} structures: choose one with --frame 0 to "
            f"{len(found) - 1}, or --frame -1 for the last."
        )
    if not -len(found) <= (frame or 0) < len(found):
        raise InputError(f"'{path}' has {len(found)} structures, none of number {frame}.")
    return found[frame or 0]


def read_structure(path: str | os.PathLike) -> Atoms:
    """The last structure of a file, labels or not."""
    path = _existing(user_path(path))
    try:
        *_, last = _iread(path, -1)
    except Exception as error:  # ASE's readers raise whatever their parsers raise
        raise InputError(f"ASE cannot read '{path}': {error}") from error
    return last


def _given_as(path: Path) -> str:
    """What to call the structures of a database in messages, where it says so itself."""
    if path.suffix != ".db":
        return ""
    from ase.db import connect

    with connect(path, serial=True) as database:
        return str(database.metadata.get(GIVEN_AS, ""))


def iter_images(
    paths: Iterable[str | os.PathLike] | str | os.PathLike,
) -> Iterator[tuple[Atoms, str]]:
    """Structures of one or several files, one at a time, each with what to call it in messages.

    Files of the same name are named with their paths.
    """
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    paths = [_existing(user_path(path)) for path in paths]
    names = Counter(path.name for path in paths)
    for path in paths:
        images = _iread(path)
        name = path.name if names[path.name] == 1 else str(path)
        given = _given_as(path)
        number = 0
        while True:
            try:
                atoms = next(images)
            except StopIteration:
                break
            except Exception as error:  # ASE's readers raise whatever their parsers raise
                raise InputError(f"ASE cannot read '{path}': {error}") from error
            yield atoms, f"frame {number} of {given}" if given else f"{name}, frame {number}"
            number += 1


def iter_frames(
    paths: Iterable[str | os.PathLike] | str | os.PathLike, **keys: Unpack[LabelKeys]
) -> Iterator[Frame]:
    """Frames of one or several files, one at a time, in order, their labels as LabelKeys say.

    At the end a warning says what labels there are under other names.

    Raises:
        InputError: a file is missing or unreadable, a frame is broken, or there is none; or a
            label that was asked for under a name of its own is in no frame.
    """
    check_keys(keys)
    survey = LabelSurvey(keys)
    count = 0
    for count, (atoms, source) in enumerate(iter_images(paths), 1):  # noqa: B007
        frame = to_frame(atoms, source, **keys)
        survey.add(atoms, source)
        yield frame
    if not count:
        raise InputError("The data contain no frames.")
    for sentence in survey.absent():
        raise InputError(sentence)
    for sentence in survey.sentences():
        warnings.warn(sentence, stacklevel=2)


def read_frames(
    paths: Iterable[str | os.PathLike] | str | os.PathLike, **keys: Unpack[LabelKeys]
) -> list[Frame]:
    """All frames of one or several files, in order; see `iter_frames`."""
    return list(iter_frames(paths, **keys))
