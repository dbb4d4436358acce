"""Energies along a run at constant energy, in ASE and in LAMMPS, and what follows from them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.md.velocitydistribution import Stationary, ZeroRotation, force_temperature
from ase.md.verlet import VelocityVerlet

from eqcalc.errors import InputError

#: what LAMMPS calls the precisions

#: blocks whose means give the standard error of a drift
NUM_BLOCKS = 20

#: correlation of neighbouring blocks that is believed: as much as can be told from 20 of them
MOST_ALIKE = 0.9


def drift_of(time: np.ndarray, energy: np.ndarray) -> tuple[float, float]:
    """Slope of a straight line, and its standard error, meV/atom/ps.

    The error comes from the residuals of a line through the means of blocks. In a short run these
    still depend on each other: with a correlation c of neighbours, n of them are worth
    n (1 - c) / (1 + c) (Sokal, Monte Carlo methods in statistical mechanics, 1997, eq. 3.18).

    Args:
        time: [K] fs.
        energy: [K] eV per atom.
    """
    slope = float(np.polyfit(time, energy, 1)[0])
    count = min(NUM_BLOCKS, len(time) // 4)
    centres = np.array([b.mean() for b in np.array_split(time, count)])
    means = np.array([b.mean() for b in np.array_split(energy, count)])
    line, covariance = np.polyfit(centres, means, 1, cov=True)
    rest = means - np.polyval(line, centres)
    square = float(rest @ rest)
    alike = float(np.clip(rest[1:] @ rest[:-1] / square, 0.0, MOST_ALIKE)) if square else 0.0
    error = np.sqrt(covariance[0, 0] * (1.0 + alike) / (1.0 - alike))
    return slope * 1e6, float(error) * 1e6


@dataclass(frozen=True)
class Trace:
    """Energies along one run of K samples.

    timestep, time [K] in fs; potential [K], kinetic [K] in eV per atom.
    """

    engine: str
    timestep: float
    time: np.ndarray
    potential: np.ndarray
    kinetic: np.ndarray
    precision: str = "float64"
    ranks: int = 1

    @property
    def label(self) -> str:
        name = {"ase": "ASE", "lammps": "LAMMPS"}.get(self.engine, self.engine)
        several = f", {self.ranks} ranks" if self.ranks > 1 else ""
        return f"{name}, {self.precision}{several}"

    @property
    def total(self) -> np.ndarray:
        return self.potential + self.kinetic

    @property
    def duration(self) -> float:
        """ps."""
        return float(self.time[-1] - self.time[0]) / 1000.0

    def line(self) -> tuple[float, float]:
        """Slope (eV/atom/fs) and offset (eV/atom) of the total energy."""
        slope, offset = np.polyfit(self.time, self.total, 1)
        return float(slope), float(offset)

    @property
    def drift(self) -> float:
        """meV/atom/ps, of a straight line through the total energy."""
        return self.line()[0] * 1e6

    @property
    def drift_error(self) -> float:
        """Standard error of the drift, meV/atom/ps: what this run cannot resolve."""
        return drift_of(self.time, self.total)[1]

    @property
    def fluctuation(self) -> float:
        """meV/atom, rms of the total energy around the straight line."""
        slope, offset = self.line()
        return float(np.std(self.total - slope * self.time - offset)) * 1e3

    @property
    def kinetic_fluctuation(self) -> float:
        """meV/atom, standard deviation of the kinetic energy."""
        return float(np.std(self.kinetic)) * 1e3

    @property
    def drift_ratio(self) -> float:
        """|drift| times the length of the run, over the fluctuation of the kinetic energy.

        The measure of the ml-peg and MLIPAudit benchmarks: 1 means that the energy has moved as far
        as the kinetic energy fluctuates by itself.
        """
        return abs(self.drift) * self.duration / self.kinetic_fluctuation

    def figures(self) -> dict[str, Any]:
        return {
            "engine": self.engine,
            "precision": self.precision,
            "ranks": self.ranks,
            "timestep_fs": self.timestep,
            "duration_ps": self.duration,
            "fluctuation_meV_per_atom": self.fluctuation,
            "drift_meV_per_atom_per_ps": self.drift,
            "drift_standard_error_meV_per_atom_per_ps": self.drift_error,
            "drift_over_kinetic_fluctuation": self.drift_ratio,
        }


def with_velocities(atoms: Atoms, temperature: float, seed: int = 1) -> Atoms:
    """A copy with velocities of exactly `temperature` (K), no net momentum, no net rotation.

    Of a relaxed structure, half of the kinetic energy goes into the potential within a few
    vibrations: start at twice the temperature that is wanted.
    """
    atoms = atoms.copy()
    rng = np.random.default_rng(seed)
    width = np.sqrt(atoms.get_masses() * units.kB * temperature)
    atoms.set_momenta(width[:, None] * rng.standard_normal((len(atoms), 3)))
    Stationary(atoms)
    if not atoms.pbc.any():
        ZeroRotation(atoms)
    force_temperature(atoms, temperature)
    return atoms


def run_ase(
    atoms: Atoms,
    calc: Calculator,
    timestep: float,
    steps: int,
    *,
    precision: str = "float64",
    tick: Callable[[], Any] = lambda: None,
) -> Trace:
    """NVE in ASE; timestep in fs, energies at every step."""
    atoms = atoms.copy()
    atoms.calc = calc
    dynamics = VelocityVerlet(atoms, timestep * units.fs)
    potential, kinetic = [], []

    def sample() -> None:
        potential.append(atoms.get_potential_energy() / len(atoms))
        kinetic.append(atoms.get_kinetic_energy() / len(atoms))
        tick()

    dynamics.attach(sample)
    dynamics.run(steps)
    time = timestep * np.arange(len(potential))
    return finite(
        Trace("ase", timestep, time, np.array(potential), np.array(kinetic), precision=precision)
    )


def run_lammps(
    atoms: Atoms,
    model: str | os.PathLike,
    timestep: float,
    steps: int,
    folder: Path,
    *,
    precision: str = "float64",
    threads: int = 1,
    ranks: int = 1,
    every: int = 1,
) -> Trace:
    """NVE in the real `lmp`; timestep in fs, energies at every `every` steps."""
    from eqcalc.lammps import run_lmp, write_input

    script = write_input(
        atoms,
        model,
        folder,
        "nve",
        timestep_fs=timestep,
        steps=steps,
        thermo_every=every,
        dump_every=0,
        digits=15,
        precision=precision,
    )
    output = run_lmp(script, threads=threads, ranks=ranks)
    return trace_of(output, len(atoms), timestep, precision=precision, ranks=ranks)


def trace_of(output: str, num_atoms: int, timestep: float, **about: Any) -> Trace:
    """The trace in what LAMMPS prints; timestep in fs."""
    from eqcalc.lammps import read_thermo

    thermo = read_thermo(output)
    return finite(
        Trace(
            about.pop("engine", "lammps"),
            timestep,
            timestep * (thermo["Step"] - thermo["Step"][0]),
            thermo["PotEng"] / num_atoms,
            thermo["KinEng"] / num_atoms,
            **about,
        )
    )


def finite(trace: Trace) -> Trace:
    """The trace, unless its energies have exploded."""
    bad = ~np.isfinite(trace.total)
    if bad.any():
        raise InputError(
            f"The total energy became {trace.total[bad][0]} in {trace.label}: start from a relaxed "
            "structure, or take a shorter time step."
        )
    return trace
