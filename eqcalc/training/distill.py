"""What a committee knows, as frames for one network to learn.

The mean of several trainings is better than each of them: what they learned from the data is the
same, what chance put in where there were no data is not, and averages out. It costs as many
evaluations. One network that is trained on the frames of the committee's own dynamics, labelled
with its means, of which there can be as many as it takes, is as good at the cost of one (Hinton,
Vinyals and Dean, arXiv:1503.02531).

Trajectories start from given structures with velocities of a Maxwell-Boltzmann distribution and go
on at that temperature (Langevin, cell fixed), each on the forces of one member, in turn. Every so
often a frame is labelled by all. Where members disagree on the force of an atom by more than a
limit, labels would be worth nothing: the trajectory ends.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.md.langevin import Langevin

from eqcalc.calculator import EquivariantCalculator
from eqcalc.errors import InputError, Interrupted

#: the config_type of what is written
GROUP = "distilled"


@dataclass(frozen=True)
class Sampling:
    """Which frames are taken.

    Attributes:
        frames: how many.
        temperatures: K, in turn.
        interval: fs between frames of a trajectory, and before the first.
        timestep: fs; None: 0.5 with hydrogen, else 2.
        friction: 1/fs.
        limit: eV/Å, of `eqcalc.committee.forces_deviation`.
        seed: of the order of the starts, velocities and thermostat.
    """

    frames: int = 2000
    temperatures: Sequence[float] = field(default=(300.0, 600.0))
    interval: float = 20.0
    timestep: float | None = None
    friction: float = 0.02
    limit: float = 0.5
    seed: int = 1

    def __post_init__(self) -> None:
        numbers = {
            "frames": self.frames,
            "interval": self.interval,
            "timestep": self.timestep,
            "friction": self.friction,
            "limit": self.limit,
        }
        for name, value in numbers.items():
            if value is not None and not value > 0:
                raise InputError(f"{name} = {value}: it must be positive.")
        if not self.temperatures or not min(self.temperatures) > 0:
            raise InputError(f"temperatures = {list(self.temperatures)} K: they must be positive.")


@dataclass
class Tally:
    """What has become of the trajectories; `worst` is in eV/Å, over the frames taken."""

    frames: int = 0
    trajectories: int = 0
    stopped: int = 0
    worst: float = 0.0

    def __str__(self) -> str:
        text = f"{self.frames} frames of {self.trajectories} trajectories"
        if self.worst:
            text += f"; members disagree on forces by at most {self.worst:.3g} eV/Å"
        if self.stopped:
            text += f"; {self.stopped} trajectories ended where they disagree by more"
        return text


def _labelled(calc: EquivariantCalculator, atoms: Atoms, temperature: float) -> Atoms:
    """A frame without velocities, labelled."""
    frame = _bare(atoms)
    (results,) = calc.evaluate([frame])
    frame.info["config_type"] = GROUP
    frame.info["temperature"] = temperature
    labels = {name: results[name] for name in ("energy", "forces", "stress") if name in results}
    if "forces_std" in results:
        frame.info["energy_std"] = results["energy_std"]
        frame.info["forces_deviation"] = float(np.linalg.norm(results["forces_std"], axis=1).max())
    frame.calc = SinglePointCalculator(frame, **labels)
    return frame


def _bare(atoms: Atoms) -> Atoms:
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


def sample(
    models: Sequence[str | os.PathLike], starts: Sequence[Atoms], sampling: Sampling, tally: Tally
) -> Iterator[Atoms]:
    """Labelled frames, one after the other; `tally` is kept up to date.

    Args:
        models: of a committee or, where a large network teaches a small one, a single one.
        starts: structures of the elements that the models know.

    Raises:
        InputError: trajectories hardly ever come as far as to a first frame; an element that a
            model lacks.
    """
    committee = EquivariantCalculator(models)
    drivers = [EquivariantCalculator(model) for model in models]
    for place, atoms in enumerate(starts):
        for member in committee.members:
            try:
                member.potential.species_of(atoms.numbers)
            except InputError as error:
                raise InputError(f"Start {place}: {error}") from None
    rng = np.random.default_rng(sampling.seed)
    turns = len(starts) * len(sampling.temperatures)
    length = -(-sampling.frames // turns)
    while True:
        before = tally.frames
        for turn in rng.permutation(turns):
            temperature = sampling.temperatures[turn % len(sampling.temperatures)]
            atoms = _bare(starts[turn // len(sampling.temperatures)])
            atoms.calc = drivers[tally.trajectories % len(drivers)]
            tally.trajectories += 1
            frames = _trajectory(atoms, temperature, sampling, rng)
            for frame in (_labelled(committee, at, temperature) for at in islice(frames, length)):
                deviation = frame.info.get("forces_deviation", 0.0)
                if not deviation <= sampling.limit:
                    tally.stopped += 1
                    break
                tally.frames += 1
                tally.worst = max(tally.worst, deviation)
                yield frame
                if tally.frames == sampling.frames:
                    return
        if tally.frames - before < 0.02 * turns * length:
            raise InputError(
                f"The members disagree by more than {sampling.limit:g} eV/Å nearly everywhere: "
                f"{tally.frames} frames came of {tally.trajectories} trajectories. Train them "
                "longer, lower the temperatures or raise the limit."
            )


def _trajectory(
    atoms: Atoms, temperature: float, sampling: Sampling, rng: np.random.Generator
) -> Iterator[Atoms]:
    """The atoms, again and again, as they move; ends where atoms fly into each other."""
    timestep = sampling.timestep or (0.5 if 1 in atoms.numbers else 2.0)
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
        try:
            dynamics.run(max(1, round(sampling.interval / timestep)))
        except InputError:
            return
        yield atoms


def distill(
    models: Sequence[str | os.PathLike],
    starts: Sequence[Atoms],
    output: str | os.PathLike,
    sampling: Sampling,
    progress: Callable[[], object] = lambda: None,
) -> Tally:
    """Writes labelled frames as extended XYZ; `progress` is called after each.

    The file appears when it is complete or, after an error or a ctrl-c, with the frames so far.

    Raises:
        InputError: as in `sample`; another name than *.xyz.
        Interrupted: ctrl-c.
    """
    output = Path(output)
    if output.suffix not in (".xyz", ".extxyz"):
        raise InputError(f"'{output}': frames are written as extended XYZ; name the file NAME.xyz.")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    tally, written = Tally(), 0
    try:
        try:
            with partial.open("w", encoding="utf-8") as file:
                for frame in sample(models, starts, sampling, tally):
                    text = io.StringIO()
                    write(text, frame, format="extxyz")
                    file.write(text.getvalue())  # whole frames, whatever interrupts
                    written += 1
                    progress()
        finally:
            if written:
                os.replace(partial, output)
    except KeyboardInterrupt:
        kept = f"{written} of {sampling.frames} frames are in {output}" if written else "no frame"
        raise Interrupted(f"Interrupted: {kept}.") from None
    finally:
        partial.unlink(missing_ok=True)
    return tally
