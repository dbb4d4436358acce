"""Several files of frames as one: labels under one name and in one unit, each structure once.

A file whose energies belong to other forces (units, signs), or lie far from those of the others at
equal composition (another method or code), spoils a training that nobody would look at again; so
it is refused. Of copies, turned or reordered or not, one stays: that with the most labels, the
first of equals. Where their labels differ by more than settings explain, somebody must choose.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from eqcalc.data.check_copies import SAME, Twins, contradiction, find_twins
from eqcalc.data.check_geometry import measure
from eqcalc.data.check_physics import physical_tests
from eqcalc.data.check_units import judge
from eqcalc.data.findings import count
from eqcalc.data.frames import Frame, iter_images, to_frame
from eqcalc.data.isolated import SAME as SAME_ATOM
from eqcalc.data.labels import LabelKeys, check_keys, is_isolated_atom, key_of
from eqcalc.data.spellings import LabelSurvey
from eqcalc.data.statistics import gather, left_over
from eqcalc.errors import InputError

#: eV/atom between the medians of two files, after reference energies of all, and how many times it
#: the frames of the second must scatter less: another method shifts all frames alike, and heat
#: does not
FAR, ALIKE = 1.0, 5.0

#: conflicts that a sentence lists
LISTED = 5

#: which frame of a conflict may stay
KEEP = ("first", "last")


@dataclass
class _File:
    """One file as it was read."""

    path: Path
    frames: list[Frame]
    images: list[Atoms]


@dataclass(frozen=True)
class Merged:
    """What came together.

    Attributes:
        frames: structures with their labels, in the order of the files.
        files: frames of each file, and how many of them stayed.
        copies: pairs: what was left out, and what it repeats.
        conflicts: sentences about copies whose labels differ, one of which was left out.
        notes: other sentences worth reading.
    """

    frames: list[Atoms]
    files: dict[str, tuple[int, int]]
    copies: list[tuple[str, str]]
    conflicts: list[str]
    notes: list[str]

    def __str__(self) -> str:
        parts = [f"{kept} of {number} of {name}" for name, (number, kept) in self.files.items()]
        text = f"{count(len(self.frames), 'frame')} ({', '.join(parts)})"
        if self.copies:
            first = "; ".join(f"{a} = {b}" for a, b in self.copies[:3])
            more = len(self.copies) - 3
            what = "copy" if len(self.copies) == 1 else "copies"
            text += f"; {len(self.copies)} {what} left out: {first}"
            text += f"; and {more} more" if more > 0 else ""
        return "\n".join([f"{text}.", *self.conflicts, *self.notes])


def merge(
    paths: Sequence[str | os.PathLike],
    *,
    keep: str = "",
    check_units: bool = True,
    cutoff: float = 5.0,
    **keys: Unpack[LabelKeys],
) -> Merged:
    """Frames of several files without copies.

    Args:
        paths: files that ASE reads.
        keep: "first" or "last" of two copies with different labels; "" refuses them.
        check_units: refuse files whose energies do not fit their forces or the other files.
        cutoff: Å, as far as two environments are compared.
        keys: see LabelKeys.

    Raises:
        InputError: a file or label is missing or broken; labels are there under other names; units
            differ; copies with different labels, and no `keep`.
    """
    if keep and keep not in KEEP:
        raise InputError(f"--keep {keep}: it must be one of {', '.join(KEEP)}.")
    check_keys(keys)
    files = _read(paths, keys)
    if check_units:
        _refuse_units(files)
    frames = [frame for file in files for frame in file.frames]
    images = [atoms for file in files for atoms in file.images]
    conflicts, dropped = _repeated(frames, keep, cutoff)
    kept = [n for n in range(len(frames)) if n not in dropped]
    ends = np.cumsum([len(file.frames) for file in files])
    share = np.histogram(kept, [0, *ends])[0] if len(ends) else []
    return Merged(
        frames=[_labelled(images[n], frames[n], keys) for n in kept],
        files={
            file.path.name if _alone(file, files) else str(file.path): (len(file.frames), int(s))
            for file, s in zip(files, share, strict=True)
        },
        copies=[(frames[n].source, frames[dropped[n]].source) for n in sorted(dropped)],
        conflicts=conflicts,
        notes=_lacking(files),
    )


def _alone(file: _File, files: Sequence[_File]) -> bool:
    return sum(other.path.name == file.path.name for other in files) == 1


def _read(paths: Sequence[str | os.PathLike], keys: LabelKeys) -> list[_File]:
    """InputError, too, if labels are there under other names than in the other files."""
    files: dict[str, _File] = {}
    survey = LabelSurvey(keys)
    unique = list(dict.fromkeys(Path(path) for path in paths))
    owner = [path for path in unique for _ in iter_images(path)]
    for path, (atoms, source) in zip(owner, iter_images(unique), strict=True):
        file = files.setdefault(str(path), _File(path, [], []))
        frame = to_frame(atoms, source, **keys)
        survey.add(atoms, source)
        file.frames.append(frame)
        file.images.append(atoms)
    if not files:
        raise InputError("The data contain no frames.")
    for sentence in (*survey.absent(), *survey.missing()):
        raise InputError(sentence)
    return list(files.values())


def _ordinary(file: _File) -> list[Frame]:
    """Without isolated atoms."""
    return [frame for frame in file.frames if not is_isolated_atom(frame.config_type)]


def _refuse_units(files: Sequence[_File]) -> None:
    """InputError for a file whose labels do not belong together, or not to the other files."""
    advice = "correct it, or leave the check out with --unchecked."
    for file in files:
        frames = _ordinary(file)
        for label, slope in physical_tests(frames).items():
            for finding in judge(slope, frames, label):
                if finding.level == "error":
                    sentence = finding.sentence.rstrip(".")
                    raise InputError(f"'{file.path}': {sentence}; {advice}")
    known = [(file, frames) for file in files if (frames := _ordinary(file))]
    if len(known) < 2:
        return
    everything = [frame for _, frames in known for frame in frames]
    rest = left_over(everything, gather(everything))
    first, *others = np.split(rest, np.cumsum([len(frames) for _, frames in known])[:-1])
    for (file, _), values in zip(known[1:], others, strict=True):
        apart = float(np.median(values) - np.median(first))
        scatter = float(np.median(np.abs(values - np.median(values))))
        if abs(apart) > max(FAR, ALIKE * scatter):
            raise InputError(
                f"Energies of '{file.path}' lie {apart:+.3g} eV/atom from those of "
                f"'{known[0][0].path}' beside reference energies that fit both: another method, "
                f"code or unit; {advice}"
            )


def _number_of_labels(frame: Frame) -> int:
    return (frame.forces is not None) + (frame.stress is not None)


def _twins(frames: Sequence[Frame], cutoff: float) -> tuple[list[Twins], dict[Twins, str]]:
    """Pairs of copies, and how the labels of some differ; isolated atoms are copies by element."""
    ordinary = [n for n, f in enumerate(frames) if not is_isolated_atom(f.config_type)]
    chosen = [frames[n] for n in ordinary]
    found = find_twins(chosen, [measure(f, cutoff) for f in chosen], cutoff, len(chosen), SAME)
    twins = [Twins(ordinary[t.first], ordinary[t.second], t.difference) for t in found]
    clashes = {t: c for t in twins if (c := contradiction(frames[t.first], frames[t.second]))}
    first: dict[int, int] = {}
    for n in sorted(set(range(len(frames))) - set(ordinary)):
        known = first.setdefault(int(frames[n].atoms.numbers[0]), n)
        if known == n:
            continue
        twin = Twins(known, n, 0.0)
        twins.append(twin)
        apart = abs(frames[n].energy - frames[known].energy)
        if apart > SAME_ATOM:
            clashes[twin] = f"energies differ by {1e3 * apart:.3g} meV/atom"
    return sorted(twins), clashes


def _repeated(
    frames: Sequence[Frame], keep: str, cutoff: float
) -> tuple[list[str], dict[int, int]]:
    """Sentences about conflicts, and which frame each frame that is left out repeats.

    Raises:
        InputError: conflicts, and `keep` is empty.
    """
    twins, clashes = _twins(frames, cutoff)
    told = [
        f"{frames[t.second].source} = {frames[t.first].source}, but {c}" for t, c in clashes.items()
    ]
    if told and not keep:
        more = f"; and {len(told) - LISTED} more" if len(told) > LISTED else ""
        raise InputError(
            f"{count(len(told), 'pair')} of frames are one structure with different labels: "
            f"{'; '.join(told[:LISTED])}{more}; remove the wrong ones, or take --keep first or "
            "--keep last."
        )
    dropped: dict[int, int] = {}
    for twin in twins:
        first, second = twin.first, twin.second
        if first in dropped or second in dropped:
            continue
        more_labels = _number_of_labels(frames[second]) > _number_of_labels(frames[first])
        if (keep == "last") if twin in clashes else more_labels:
            first, second = second, first
        dropped[second] = first
    sentences = [f"Kept the {keep} of different labels: {sentence}." for sentence in told]
    return sentences, dropped


def _lacking(files: Sequence[_File]) -> list[str]:
    """A sentence for each file that lacks a label which others have."""
    notes = []
    for label in ("forces", "stress"):
        having = {}
        for file in files:
            able = [f for f in _ordinary(file) if label == "forces" or f.atoms.pbc.all()]
            if able:
                having[str(file.path)] = sum(getattr(f, label) is not None for f in able), len(able)
        if any(number for number, _ in having.values()):
            notes += [
                f"{total - number} of {total} frames of '{path}' have no {label}, others have."
                for path, (number, total) in having.items()
                if number < total
            ]
    return notes


def _labelled(atoms: Atoms, frame: Frame, keys: LabelKeys) -> Atoms:
    """A structure with what it carries, its labels under their usual names."""
    result = atoms.copy()
    result.set_constraint()
    for label in ("energy", "forces", "stress", "virial"):
        result.info.pop(key_of(label, keys), None)
        result.arrays.pop(key_of(label, keys), None)
    labels = {"energy": frame.energy, "forces": frame.forces}
    if frame.stress is not None:
        labels["stress"] = frame.stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    labels = {name: value for name, value in labels.items() if value is not None}
    result.calc = SinglePointCalculator(result, **labels)
    return result
