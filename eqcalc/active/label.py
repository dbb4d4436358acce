"""Labels for given structures, from any calculator of ASE, kept one by one as they come.

Each label is a line of a journal beside the output, on the disk before the next structure begins,
so that a run that is killed loses the structure it was at and nothing else; the same command goes
on. A structure that the calculator fails for is set aside. The output appears when all have been
tried. A label belongs to a structure and a calculator by a hash of both, its key, which its frame
keeps: a file is never continued with other labels, and whole files are not computed again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from eqcalc.data.frames import iter_images
from eqcalc.data.spellings import drop_labels
from eqcalc.errors import InputError, Interrupted
from eqcalc.files import user_path, write_bytes
from eqcalc.names import member_files
from eqcalc.sampling.dynamics import as_text
from eqcalc.sampling.teachers import Teacher

#: in the info of a labelled frame: of its structure and its calculator
KEY = "label_key"

#: in the info of a frame that has none: why
REASON = "failure"

LABELS = ("energy", "forces", "stress")

#: so many failures, and no label before them, are the calculator's fault
HOPELESS = 10

#: what else a calculator may make of a structure
_SETTINGS = ("initial_magmoms", "initial_charges", "tags")


@dataclass
class LabelTally:
    """What a run has made.

    Attributes:
        labelled: frames in the output.
        before: of them, those that earlier runs had labelled.
        failed: what each failed frame is called, and why it failed.
        failures: the file of the failed frames; None if there are none.
    """

    labelled: int = 0
    before: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    failures: Path | None = None

    def __str__(self) -> str:
        text = f"{self.labelled} labelled frames"
        if self.before:
            text += f", {self.before} of them from before"
        if not self.failures:
            return f"{text}."
        text += f"; {len(self.failed)} failed and are in {self.failures} (run it again to retry):"
        reasons = (f"  {source}: {reason}" for source, reason in self.failed.items())
        return "\n".join([text, *reasons])


def identity(name: str, options: Mapping[str, Any]) -> str:
    """What stands for a calculator and its options: potential files by what is in them."""
    path = user_path(name)
    files = member_files([path]) if path.exists() else []
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return json.dumps({"calculator": hashes or name, "options": options}, sort_keys=True)


def key_of(atoms: Atoms, calculator: str) -> str:
    """16 digits that stand for a structure, what is set of its electrons, and its calculator."""
    digest = hashlib.sha256(calculator.encode())
    for array in (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc):
        digest.update(np.ascontiguousarray(array).tobytes())
    for name in _SETTINGS:
        if name in atoms.arrays:
            digest.update(name.encode() + np.ascontiguousarray(atoms.arrays[name]).tobytes())
    for name in ("charge", "spin"):
        if name in atoms.info:
            digest.update(f"{name}={atoms.info[name]}".encode())
    return digest.hexdigest()[:16]


def _prepared(atoms: Atoms) -> Atoms:
    """A structure without its labels, among them forces of atoms that a constraint holds."""
    copy = atoms.copy()
    copy.set_constraint()
    drop_labels(copy)
    for name in ("momenta", "forces_deviation", "energy_std", "forces_std", KEY, REASON):
        copy.info.pop(name, None)
        copy.arrays.pop(name, None)
    return copy


def _compute(teacher: Teacher, atoms: Atoms) -> dict[str, list | float]:
    """Labels as they stand in a journal; whatever goes wrong is raised."""
    copy = atoms.copy()
    copy.calc = teacher.drivers[0]
    results = teacher.label(copy)
    found = {name: np.asarray(results[name], float) for name in LABELS if name in results}
    for name, value in found.items():
        if not np.isfinite(value).all():
            raise InputError(f"its {name} is not finite")
    return {name: value.tolist() for name, value in found.items()}


def _labelled(atoms: Atoms, key: str, labels: Mapping[str, Any]) -> Atoms:
    frame = atoms.copy()
    frame.info[KEY] = key
    values = {name: np.array(value) for name, value in labels.items()}
    frame.calc = SinglePointCalculator(frame, **{**values, "energy": labels["energy"]})
    return frame


class _Journal:
    """Lines {"key": ..., labels} at the end of a file; a line that was cut off is forgotten."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.labels: dict[str, dict[str, Any]] = {}
        whole = 0
        for line in file:
            if not line.endswith("\n"):
                break
            whole += len(line.encode())
            entry = json.loads(line)
            self.labels[entry.pop("key")] = entry
        file.seek(whole)
        file.truncate()

    def add(self, key: str, labels: dict[str, Any]) -> None:
        self.labels[key] = labels
        self._file.write(json.dumps({"key": key, **labels}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


@contextmanager
def _journal(path: Path) -> Iterator[_Journal]:
    """A file for one process; it stays until it is removed."""
    with path.open("a+", encoding="utf-8", newline="\n") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"'{path}' is in use: another process labels these frames; wait for its end."
            ) from None
        file.seek(0)
        yield _Journal(file)


def _known(output: Path, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Labels by key from the output of an earlier run.

    Raises:
        InputError: some of its frames are not among those that are to be labelled.
    """
    if not output.exists():
        return {}
    found, wanted = {}, set(keys)
    for atoms, source in iter_images(output):
        key = str(atoms.info.get(KEY))
        if key not in wanted:
            raise InputError(
                f"{source} was not labelled by this calculator with these options, or it is none "
                f"of these frames: name another file than '{output}' to write to."
            )
        results = atoms.calc.results
        found[key] = {name: results[name] for name in LABELS if name in results}
    return found


def label_frames(
    teacher: Teacher,
    calculator: str,
    images: Sequence[tuple[Atoms, str]],
    output: str | os.PathLike,
    progress: Callable[[], object] = lambda: None,
) -> LabelTally:
    """Writes frames with labels as extended XYZ, in order; what failed goes to NAME_failed.xyz.

    Args:
        teacher: see `eqcalc.sampling.teachers`.
        calculator: what stands for it and its options in keys.
        images: structures, each with what to call it.
        output: file of labelled frames; NAME.xyz.journal beside it holds what there is so far.
        progress: called after each structure that is tried.

    Raises:
        InputError: there are no structures; the output has frames of something else; nothing but
            failures.
        Interrupted: ctrl-c.
    """
    if not images:
        raise InputError("There are no frames to label.")
    output = user_path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    structures = [_prepared(atoms) for atoms, _ in images]
    keys = [key_of(atoms, calculator) for atoms in structures]
    known = _known(output, keys)
    path = output.with_name(f"{output.name}.journal")
    failed: dict[str, str] = {}
    with _journal(path) as journal:
        if journal.labels.keys() - set(keys):
            raise InputError(
                f"'{path}' holds labels of another calculator, of other options or of other frames "
                "that a run which did not end has computed: name another file to write to, or "
                "remove it."
            )
        known = {**journal.labels, **known}
        before = len(known.keys() & set(keys))
        try:
            for atoms, key in zip(structures, keys, strict=True):
                if key not in known and key not in failed:
                    _try(teacher, atoms, key, journal, failed)
                    known.update(journal.labels)
                    if len(failed) >= HOPELESS and not known:
                        break
                progress()
        except KeyboardInterrupt:
            raise Interrupted(
                f"Interrupted: {len(known.keys() & set(keys))} of {len(set(keys))} frames have "
                "labels; the same command goes on."
            ) from None
        if not known.keys() & set(keys):
            path.unlink()
            reason = next(iter(failed.values()))
            raise InputError(
                f"The first {len(failed)} frames could not be labelled, and none before: {reason}."
            )
        done = _finish(images, structures, keys, known, failed, output)
        path.unlink()
    done.before = before
    return done


def _try(
    teacher: Teacher, atoms: Atoms, key: str, journal: _Journal, failed: dict[str, str]
) -> None:
    """One structure; a calculator of somebody else raises whatever it likes."""
    try:
        labels = _compute(teacher, atoms)
    except Exception as error:
        failed[key] = str(error) or type(error).__name__
    else:
        journal.add(key, labels)


def _finish(
    images: Sequence[tuple[Atoms, str]],
    structures: Sequence[Atoms],
    keys: Sequence[str],
    known: Mapping[str, Mapping[str, Any]],
    failed: Mapping[str, str],
    output: Path,
) -> LabelTally:
    """Writes both files whole."""
    outcome = LabelTally()
    texts, refused = [], []
    for (_, source), atoms, key in zip(images, structures, keys, strict=True):
        if key in known:
            texts.append(as_text(_labelled(atoms, key, known[key])))
            continue
        outcome.failed[source] = failed[key]
        frame = atoms.copy()
        frame.info[REASON] = failed[key]
        refused.append(as_text(frame))
    outcome.labelled = len(texts)
    failures = output.with_name(f"{output.stem}_failed{output.suffix}")
    if refused:
        outcome.failures = write_bytes(failures, "".join(refused).encode())
    write_bytes(output, "".join(texts).encode())
    if not refused:
        failures.unlink(missing_ok=True)
    return outcome
