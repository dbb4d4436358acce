"""Labelled frames from the dynamics of a teacher, for a network to learn before or beside DFT.

Trajectories start from given structures with velocities of a Maxwell-Boltzmann distribution and go
on at that temperature (Langevin, cell fixed, strained if wanted); every so often a frame is
labelled. Where members of a committee disagree on the force of an atom by more than a limit, labels
would be worth nothing: the trajectory ends, as it does where an atom's extrapolation grade is above
a limit, and where the teacher fails. The frame at which the models are at a loss is a candidate for
DFT: it is kept, without labels. Instead of dynamics, parts of molecules may be pulled apart along
their bonds (`eqcalc.sampling.pulled`), each frame anew from a start.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.md.langevin import Langevin

from eqcalc.committee import FORCES_DEVIATION
from eqcalc.errors import InputError, Interrupted
from eqcalc.files import replacing, user_path, write_bytes
from eqcalc.outputs import OutputConfig
from eqcalc.sampling.pulled import pulled
from eqcalc.sampling.teachers import FAILURES, Teacher

#: fs, with and without hydrogen: sampling needs no conserved energy
TIMESTEP_HYDROGEN, TIMESTEP = 1.0, 2.0

#: after so many trajectories, FEWEST of the frames wanted of them must have come
TRIAL, FEWEST = 50, 0.02


@dataclass(frozen=True)
class Sampling:
    """Which frames are taken.

    Attributes:
        frames: how many.
        temperatures: K; trajectories take them in turn.
        length: frames of a trajectory.
        interval: fs between them, and before the first.
        timestep: fs; None: 1 with hydrogen, else 2.
        friction: 1/fs.
        strain: largest component of the strain of a trajectory's cell along periodic directions,
            drawn anew for each: stresses and elastic constants need more than one cell.
        pull: Å by which parts of a molecule are pulled away along bonds, at most; 0: dynamics.
        limit: eV/Å, for the largest forces_deviation of a committee (`eqcalc.committee`).
        grade: largest extrapolation grade of an atom (`eqcalc.uncertainty`), for networks that
            have one; None for any.
        seed: of starts, velocities and thermostat.
    """

    frames: int = 2000
    temperatures: Sequence[float] = field(default=(300.0, 600.0))
    length: int = 20
    interval: float = 10.0
    timestep: float | None = None
    friction: float = 0.02
    strain: float = 0.0
    pull: float = 0.0
    limit: float = 0.5
    grade: float | None = None
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("frames", "length", "interval", "timestep", "friction", "limit", "grade"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} = {value}: it must be positive.")
        if not 0.0 <= self.strain < 0.5:
            raise InputError(f"strain = {self.strain}: it must be 0 .. 0.5.")
        if not self.pull >= 0.0:
            raise InputError(f"pull = {self.pull}: it must not be negative.")
        if self.pull and self.strain:
            raise InputError(f"strain = {self.strain}: bonds are pulled in cells as they are.")
        if not self.temperatures or not min(self.temperatures) > 0:
            raise InputError(f"temperatures = {list(self.temperatures)} K: they must be positive.")


@dataclass
class Tally:
    """What has become of the trajectories.

    Attributes:
        stopped: trajectories that ended beyond the limit of the members' disagreement.
        graded: those that ended beyond the largest grade.
        worst: eV/Å by which the members disagree at most, over the frames taken.
        candidates: the frames at which trajectories were stopped, one each, without labels.
    """

    frames: int = 0
    trajectories: int = 0
    failed: int = 0
    stopped: int = 0
    graded: int = 0
    worst: float = 0.0
    candidates: list[Atoms] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.frames} frames of {self.trajectories} trajectories"
        if self.worst:
            text += f"; members disagree on forces by at most {self.worst:.3g} eV/Å"
        if self.stopped:
            text += f"; {self.stopped} trajectories ended where they disagree by more"
        if self.graded:
            text += f"; {self.graded} trajectories ended where an atom's grade was above the limit"
        if self.failed:
            text += f"; {self.failed} ended where the teacher failed"
        return text


def as_text(frame: Atoms) -> str:
    """A frame in extended XYZ."""
    text = io.StringIO()
    write(text, frame, format="extxyz")
    return text.getvalue()


def write_frames(path: str | os.PathLike, frames: Iterable[Atoms]) -> Path:
    """A whole file in extended XYZ."""
    return write_bytes(path, "".join(map(as_text, frames)).encode())


def _bare(atoms: Atoms) -> Atoms:
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


def _labelled(teacher: Teacher, atoms: Atoms, name: str) -> Atoms:
    """A frame without velocities; `name` is in its config_type."""
    results = teacher.label(atoms)
    frame = _bare(atoms)
    frame.info["config_type"] = f"{teacher.config_type}_{name}"
    if FORCES_DEVIATION in results:
        frame.info["energy_std"] = results["energy_std"]
        frame.info[FORCES_DEVIATION] = float(results[FORCES_DEVIATION].max())
    if "grade" in results:
        frame.info["grade"] = float(np.max(results["grade"]))
    labels = {name: results[name] for name in ("energy", "forces", "stress") if name in results}
    frame.calc = SinglePointCalculator(frame, **labels)
    for output in teacher.outputs:
        if output.name in results:
            _keep(frame, output, results[output.name])
    return frame


def _keep(frame: Atoms, output: OutputConfig, value: Any) -> None:
    """Puts a label of an output where training looks for it."""
    if output.name == "direct_forces" and not output.key:
        return  # the forces are found
    key = output.key or output.name
    if output.per == "atom":
        frame.arrays[key] = np.asarray(value).reshape(len(frame), -1)
    else:
        frame.info[key] = np.asarray(value)


def _candidate(frame: Atoms, name: str) -> Atoms:
    """A frame at which the members disagree: their mean is no label for it."""
    atoms = _bare(frame)
    atoms.info = {**frame.info, "config_type": f"candidate_{name}"}
    return atoms


def _trajectory(
    teacher: Teacher,
    atoms: Atoms,
    temperature: float,
    sampling: Sampling,
    rng: np.random.Generator,
) -> Iterator[Atoms]:
    """Labelled frames without end; atoms have a calculator."""
    usual = TIMESTEP_HYDROGEN if 1 in atoms.numbers else TIMESTEP
    timestep = sampling.timestep or usual
    width = np.sqrt(atoms.get_masses() * units.kB * temperature)  # of Maxwell and Boltzmann
    atoms.set_momenta(width[:, None] * rng.standard_normal((len(atoms), 3)))
    dynamics = Langevin(
        atoms,
        timestep * units.fs,
        temperature_K=temperature,
        friction=sampling.friction / units.fs,
        fixcm=False,
        rng=rng,
    )
    while True:
        dynamics.run(max(1, round(sampling.interval / timestep)))
        yield _labelled(teacher, atoms, f"{temperature:g}K")


def _strain(atoms: Atoms, largest: float, rng: np.random.Generator) -> None:
    """Strains cell and atoms by a symmetric tensor along the periodic directions."""
    strain = rng.uniform(-largest, largest, (3, 3))
    strain = 0.5 * (strain + strain.T)
    vectors = atoms.cell.array[atoms.pbc]
    span = np.linalg.pinv(vectors) @ vectors  # projects on what the periodic vectors span
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + span @ strain @ span), scale_atoms=False)
    atoms.positions += atoms.positions @ span @ strain @ span


def _beyond(frame: Atoms, sampling: Sampling, tally: Tally) -> bool:
    """Whether the models are at a loss; counts why."""
    if not frame.info.get(FORCES_DEVIATION, 0.0) <= sampling.limit:
        tally.stopped += 1
        return True
    if sampling.grade is None or frame.info["grade"] <= sampling.grade:
        return False
    tally.graded += 1
    return True


def _pulled(
    teacher: Teacher, starts: Sequence[Atoms], sampling: Sampling, rng: np.random.Generator
) -> Iterator[tuple[str, Iterator[Atoms]]]:
    """As `_trajectories`, of one frame each."""
    for number, image in enumerate(pulled([*map(_bare, starts)], sampling.pull, rng)):
        image.calc = teacher.drivers[number % len(teacher.drivers)]
        yield "pulled", (_labelled(teacher, image, "pulled") for _ in range(1))


def _trajectories(
    teacher: Teacher, starts: Sequence[Atoms], sampling: Sampling, rng: np.random.Generator
) -> Iterator[tuple[str, Iterator[Atoms]]]:
    """Name and labelled frames of one trajectory after the other, without end."""
    for atoms, temperature in _starts(teacher, starts, sampling, rng):
        frames = _trajectory(teacher, atoms, temperature, sampling, rng)
        yield f"{temperature:g}K", islice(frames, sampling.length)


def _starts(
    teacher: Teacher, starts: Sequence[Atoms], sampling: Sampling, rng: np.random.Generator
) -> Iterator[tuple[Atoms, float]]:
    """Start and temperature of one trajectory after the other, without end."""
    for number in count():
        turn = number % len(starts)
        if turn == 0:
            order = rng.permutation(len(starts))
        atoms = _bare(starts[order[turn]])
        if sampling.strain:
            _strain(atoms, sampling.strain, rng)
        atoms.calc = teacher.drivers[number % len(teacher.drivers)]
        yield atoms, sampling.temperatures[number % len(sampling.temperatures)]


def _check(teacher: Teacher, starts: Sequence[Atoms], sampling: Sampling) -> None:
    """InputError for what would fail in every trajectory."""
    if not starts:
        raise InputError("There are no structures to start from.")
    if sampling.grade is not None and not teacher.graded:
        raise InputError(
            f"grade = {sampling.grade:g}: the teacher has no grades; run 'eqcalc calibrate' for "
            "its models first, or leave the limit out."
        )
    for place, atoms in enumerate(starts):
        try:
            teacher.check(atoms)
        except InputError as error:
            raise InputError(f"Start {place}: {error}") from None


def _refuse_hopeless(tally: Tally, sampling: Sampling, trouble: str) -> None:
    """InputError where hardly any frames have come of many trajectories."""
    length = 1 if sampling.pull else sampling.length
    if tally.frames >= FEWEST * tally.trajectories * length:
        return
    milder = "Pull less" if sampling.pull else "Lower the temperatures"
    graded = f"{tally.graded} where a grade was above the limit, " if tally.graded else ""
    raise InputError(
        f"{tally.frames} frames came of {tally.trajectories} trajectories: "
        f"{tally.stopped} ended where the members disagree by more than "
        f"{sampling.limit:g} eV/Å, {graded}{tally.failed} where the teacher "
        f"failed{trouble}. {milder}, take a better teacher, or label the "
        "frames at which it stopped."
    )


def sample(
    teacher: Teacher, starts: Sequence[Atoms], sampling: Sampling, tally: Tally
) -> Iterator[Atoms]:
    """Labelled frames, one after the other; `tally` is kept up to date.

    Raises:
        InputError: there are no starts; a limit of grades and none; an element that the teacher
            does not know; trajectories hardly ever come as far as to a first frame; no bonds to
            be pulled.
    """
    _check(teacher, starts, sampling)
    rng = np.random.default_rng(sampling.seed)
    trouble = ""
    kind = _pulled if sampling.pull else _trajectories
    for name, frames in kind(teacher, starts, sampling, rng):
        tally.trajectories += 1
        try:
            for frame in frames:
                if _beyond(frame, sampling, tally):
                    tally.candidates.append(_candidate(frame, name))
                    break
                tally.frames += 1
                tally.worst = max(tally.worst, frame.info.get(FORCES_DEVIATION, 0.0))
                yield frame
                if tally.frames == sampling.frames:
                    return
        except FAILURES as error:
            tally.failed += 1
            trouble = f" (the last failure: {error})"
        if tally.trajectories >= TRIAL:
            _refuse_hopeless(tally, sampling, trouble)


def write_sample(
    teacher: Teacher,
    starts: Sequence[Atoms],
    output: str | os.PathLike,
    sampling: Sampling,
    progress: Callable[[], object] = lambda: None,
    *,
    candidates: str | os.PathLike | None = None,
) -> Tally:
    """Writes labelled frames as extended XYZ; `progress` is called after each.

    The file appears when it is complete or, after an error or a ctrl-c, with the frames so far.

    Args:
        candidates: extended XYZ to write the frames to at which trajectories were stopped, also
            after an error; written only if there are some.

    Raises:
        InputError: as in `sample`; another name than *.xyz; one name for both files.
        Interrupted: ctrl-c.
    """
    output = user_path(output)
    for path in (output, candidates and user_path(candidates)):
        if path and path.suffix not in (".xyz", ".extxyz"):
            raise InputError(
                f"'{path}': frames are written as extended XYZ; name the file NAME.xyz."
            )
    if candidates and user_path(candidates).resolve() == output.resolve():
        raise InputError(
            f"'{output}' cannot have labelled frames and candidates: choose two names."
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    tally = Tally()
    try:
        _write_labelled(teacher, starts, output, sampling, tally, progress)
    except InputError as error:
        told = f" They are in {candidates}." if candidates and tally.candidates else ""
        raise InputError(f"{error}{told}") from None
    finally:
        if candidates and tally.candidates:
            write_frames(candidates, tally.candidates)
    return tally


def _write_labelled(
    teacher: Teacher,
    starts: Sequence[Atoms],
    output: Path,
    sampling: Sampling,
    tally: Tally,
    progress: Callable[[], object],
) -> None:
    written = 0
    end: BaseException | None = None
    try:
        with replacing(output) as partial, partial.open("w", encoding="utf-8") as file:
            try:
                for frame in sample(teacher, starts, sampling, tally):
                    file.write(as_text(frame))  # whole frames, whatever interrupts
                    written += 1
                    progress()
            except BaseException as error:
                if not written:
                    raise
                end = error
        if end:
            raise end
    except KeyboardInterrupt:
        kept = f"{written} of {sampling.frames} frames are in {output}" if written else "no frame"
        raise Interrupted(f"Interrupted: {kept}.") from None
