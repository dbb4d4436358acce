"""Is a data set fit to train on? All checks of frames, and the report of what they found."""

from __future__ import annotations

import os
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from eqcalc.data import check_geometry, check_labels
from eqcalc.data.check_copies import Twins, copies, find_twins
from eqcalc.data.check_geometry import Geometry, measure
from eqcalc.data.check_magnitude import frame_row, magnitude
from eqcalc.data.check_physics import Slope, physical_tests
from eqcalc.data.check_units import component_order, judge
from eqcalc.data.findings import LEVELS, Finding, count, sources, such_as
from eqcalc.data.frames import Frame, iter_images, make_frame
from eqcalc.data.isolated import chosen_atoms, named_atoms
from eqcalc.data.labels import LabelKeys, Labels, check_keys, read_labels, without_energy
from eqcalc.data.spellings import LabelSurvey
from eqcalc.data.statistics import gather, left_over
from eqcalc.data.tables import FrameList
from eqcalc.errors import InputError
from eqcalc.neighbors import check_structure

Paths = Sequence[str | os.PathLike]


@dataclass(frozen=True)
class Survey:
    """What was found, and what a figure needs of it.

    Attributes:
        frames: the readable training frames, then the readable test frames. A label that is
            missing or not finite is NaN (energy) or None.
        num_train: how many are training frames.
        cutoff: Å.
        shapes: distances of each frame.
        twins: pairs of (almost) equal frames.
        tests: energies over works, by label.
        residual: [frames] eV/atom left by least-squares reference energies; NaN without energy
            and for free atoms.
        findings: errors first.
    """

    frames: list[Frame]
    num_train: int
    cutoff: float
    shapes: list[Geometry]
    twins: list[Twins]
    tests: dict[str, Slope]
    residual: np.ndarray
    findings: list[Finding]

    @property
    def passed(self) -> bool:
        """No errors."""
        return all(finding.level != "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """For a program: counts, slopes (energy over work), findings."""
        return {
            "passed": self.passed,
            "cutoff": self.cutoff,
            "units": {"cutoff": "Å", "slope": "1"},
            "train_frames": self.num_train,
            "test_frames": len(self.frames) - self.num_train,
            "slopes": {
                label: {"slope": t.slope, "pairs": len(t.work), "spread": t.spread}
                for label, t in self.tests.items()
                if np.isfinite(t.slope)
            },
            "findings": [finding.to_dict() for finding in self.findings],
        }

    def __str__(self) -> str:
        lines = [_overview(self), ""]
        for level in LEVELS:
            found = [f for f in self.findings if f.level == level]
            lines += [
                textwrap.fill(f"{level.upper():<8} {f.sentence}", 100, subsequent_indent=" " * 9)
                for f in found
            ]
        number = Counter(f.level for f in self.findings)
        verdict = "PASS" if self.passed else "FAIL"
        totals = ", ".join(count(number[level], level) for level in LEVELS)
        return "\n".join([*lines, "", f"{verdict}: {totals}"])


def _range(values: np.ndarray, form: str) -> str:
    values = values[np.isfinite(values)]
    if not len(values):
        return "-"
    low, high = format(values.min(), form), format(values.max(), form)
    return low if low == high else f"{low} .. {high}"


def _overview(survey: Survey) -> str:
    """One row for each config_type of the training and of the test frames."""
    rows = [("config_type", "frames", "atoms", "energy eV/atom", "largest force eV/Å", "nearest Å")]
    for part, chosen in (
        ("", range(survey.num_train)),
        ("test: ", range(survey.num_train, len(survey.frames))),
    ):
        groups: dict[str, list[int]] = {}
        for n in chosen:
            groups.setdefault(survey.frames[n].config_type, []).append(n)
        for name, members in sorted(groups.items()):
            frames = [survey.frames[n] for n in members]
            sizes = np.array([len(f.atoms) for f in frames])
            energy = np.array([f.energy for f in frames]) / sizes
            largest = np.array(
                [
                    np.nan if f.forces is None else np.linalg.norm(f.forces, axis=1).max()
                    for f in frames
                ]
            )
            nearest = np.array([survey.shapes[n].nearest.min() for n in members])
            rows.append(
                (
                    part + name,
                    str(len(members)),
                    _range(sizes, "d"),
                    _range(energy, ".4f"),
                    _range(largest, ".2f"),
                    _range(nearest, ".2f"),
                )
            )
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join(
        (
            f"{row[0]:<{widths[0]}}"
            + "".join(f"   {c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True))
        ).rstrip()
        for row in rows
    )


def read_leniently(paths: Paths, **keys: Unpack[LabelKeys]) -> tuple[list[Frame], list[Finding]]:
    """Frames that training would refuse are findings; labels that are not finite are dropped.

    Args:
        paths: files that ASE reads.
        keys: see LabelKeys.

    Raises:
        InputError: a file is missing or no structures can be read from it.
    """
    check_keys(keys)
    survey = LabelSurvey(keys)
    frames: list[Frame] = []
    broken: dict[str, str] = {}
    bare: dict[str, str] = {}
    not_finite: dict[str, list[str]] = {}
    for atoms, source in iter_images(paths):
        try:
            labels = _labels(atoms, source, keys)
        except InputError as error:
            message = str(error)
            broken[source] = message if source in message else f"{source}: {message}"
            continue
        survey.add(atoms, source)
        if labels.energy is None:
            bare[source] = without_energy(atoms, source, keys)
        bad = {k for k, v in labels._asdict().items() if v is not None and not np.isfinite(v).all()}
        for name in bad:
            not_finite.setdefault(name, []).append(source)
        frames.append(make_frame(atoms, labels._replace(**dict.fromkeys(bad)), source))
    findings = []
    for name, found in (("broken", broken), ("missing", bare)):
        if found:
            more = f" ({len(found)} such frames)" if len(found) > 1 else ""
            sentence = next(iter(found.values())) + more
            findings.append(Finding("error", name, sentence, tuple(found)))
    for name, found in not_finite.items():
        sentence = (
            f"{count(len(found), 'frame')} with {name} that {'is' if name != 'forces' else 'are'} "
            f"not a finite number ({such_as(found)}): remove them."
        )
        findings.append(Finding("error", "not_finite", sentence, tuple(found)))
    findings += [Finding("error", "labels", sentence) for sentence in survey.absent()]
    findings += [Finding("warning", "labels", sentence) for sentence in survey.sentences()]
    if not frames and not findings:
        raise InputError("The data contain no frames.")
    return frames, findings


def _labels(atoms: Atoms, source: str, keys: LabelKeys) -> Labels:
    """Labels of a structure that can be used at all; InputError for others."""
    if len(atoms) == 0:
        raise InputError(f"{source} has no atoms.")
    check_structure(atoms.positions, atoms.cell.array, atoms.pbc)
    return read_labels(atoms, source, keys)


def _apart(frames: list[Frame]) -> tuple[list[Frame], list[Finding]]:
    """Frames without those that are called isolated atoms, and what is to be said of these."""
    try:
        atoms, others = named_atoms(FrameList(frames))
        _, sentence = chosen_atoms(atoms, [], {})
    except InputError as error:
        return frames, [Finding("error", "isolated_atoms", str(error))]
    findings = [Finding("note", "isolated_atoms", sentence, sources(atoms))] if atoms else []
    return [frames[n] for n in others], findings


def new_elements(train: Sequence[Frame], test: Sequence[Frame]) -> list[Finding]:
    """Elements of test frames that a model trained on the others will not know."""
    known = {z for f in train for z in f.atoms.numbers.tolist()}
    strange = [f for f in test if not known.issuperset(f.atoms.numbers.tolist())]
    if not strange:
        return []
    symbols = {chemical_symbols[z] for f in strange for z in f.atoms.numbers.tolist()}
    new = ", ".join(sorted(symbols - {chemical_symbols[z] for z in known}))
    sentence = f"{count(len(strange), 'test frame')} with elements in no training frame: {new}."
    return [Finding("error", "elements", sentence, sources(strange))]


def check(
    train: Paths, test: Paths = (), *, cutoff: float = 5.0, **keys: Unpack[LabelKeys]
) -> Survey:
    """All checks of a data set.

    Args:
        train: files of training frames.
        test: files of frames that models are to be judged by.
        cutoff: Å, of the model that will be trained.
        keys: see LabelKeys.

    Raises:
        InputError: a file is missing or cannot be read, or the cutoff is not positive.
    """
    if not cutoff > 0.0:
        raise InputError(f"The cutoff is {cutoff} Å: it must be positive.")
    frames, findings = read_leniently(train, **keys)
    frames, more = _apart(frames)
    findings += more
    num_train = len(frames)
    if test:
        held_out, more = read_leniently(test, **keys)
        findings += more
        held_out, more = _apart(held_out)
        frames, findings = frames + held_out, findings + more
    shapes = [measure(frame, cutoff) for frame in frames]
    twins = find_twins(frames, shapes, cutoff, num_train)
    tests = physical_tests(frames)
    findings += check_labels.missing(frames)
    if test:
        findings += new_elements(frames[:num_train], frames[num_train:])
    residual = np.full(len(frames), np.nan)
    known = [
        n
        for n, (frame, shape) in enumerate(zip(frames, shapes, strict=True))
        if np.isfinite(frame.energy) and not shape.free_atom
    ]
    if known:
        labelled = [frames[n] for n in known]
        statistics = gather(labelled)
        residual[known] = left_over(labelled, statistics)
        findings += check_labels.implausible(labelled, statistics)
        findings += check_labels.outliers(labelled, statistics)
        findings += check_labels.quantised(labelled)
    findings += check_labels.net_forces(frames)
    for label, slope in tests.items():
        findings += judge(slope, frames, label)
    findings += component_order(tests["stress"], frames)
    if all((f.level, f.check) != ("error", "stress") for f in findings):  # that says more
        findings += magnitude(frame_row(frame) for frame in frames)
    if frames:
        findings += copies(frames, num_train, twins)
        findings += check_geometry.overlaps(frames, shapes)
        findings += check_geometry.lone_atoms(frames, shapes, cutoff)
        findings += check_geometry.few_neighbors(frames, shapes, cutoff)
        findings += check_geometry.cells(frames, cutoff)
    findings.sort(key=lambda finding: LEVELS.index(finding.level))
    return Survey(frames, num_train, cutoff, shapes, twins, tests, residual, findings)
