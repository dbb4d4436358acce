r"""Is energy conserved in dynamics, in ASE and in LAMMPS?

Velocity Verlet with exact forces conserves a shadow energy, so the total energy fluctuates around
it with an amplitude that goes with dt^2 and does not drift (Hairer, Lubich and Wanner, Acta
Numerica 12, 399 (2003), theorem 4.1). From one start, over one length of time, the check runs

    dt, dt / 2, dt / 4       in each engine, in float64
    dt / 4, in float32       in one engine: rounding of forces is the one thing that may differ
    dt, on several ranks     in LAMMPS: a trajectory must not depend on how it is shared out

and reports, in meV per atom,

    fluctuation   rms of the total energy around a straight line
    order         p of fluctuation ~ dt^p, 2 for exact forces
    drift         slope of that line (per ps), with its standard error
    drift ratio   |drift| * length of the run / standard deviation of the kinetic energy, as the
                  ml-peg and MLIPAudit benchmarks define it
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from ase import Atoms

from eqcalc.calculator import EquivariantCalculator
from eqcalc.checks.nve_report import MAX_DRIFT, NVEReport
from eqcalc.checks.structures import bare
from eqcalc.checks.traces import Trace, run_ase, run_lammps, with_velocities
from eqcalc.errors import InputError
from eqcalc.progress import Progress

Engine = Literal["ase", "lammps"]

#: dt is divided by these
DIVISORS = (1, 2, 4)

#: fs, of the longest step: a twelfth of the fastest vibration's period or less, without and with
#: hydrogen
TIMESTEP, TIMESTEP_HYDROGEN = 2.0, 0.5


@dataclass(frozen=True)
class _Run:
    engine: str
    timestep: float
    steps: int
    precision: str = "float64"
    ranks: int = 1


def _plan(
    engines: Sequence[Engine], timestep: float, steps: int, ranks: int, *, single: bool
) -> list[_Run]:
    """The runs in order: time steps per engine, then float32, then several ranks."""
    runs = [_Run(e, timestep / k, steps * k) for e in engines for k in DIVISORS]
    if single:
        runs.append(_Run(engines[-1], timestep / 4, steps * 4, "float32"))
    if ranks > 1 and "lammps" in engines:
        runs.append(_Run("lammps", timestep, steps, ranks=ranks))
    return runs


def check_nve(
    atoms: Atoms,
    model: str | os.PathLike,
    *,
    timestep: float | None = None,
    steps: int = 300,
    temperature: float = 600.0,
    engines: Sequence[Engine] = ("ase", "lammps"),
    single: bool = True,
    ranks: int = 2,
    max_drift: float = MAX_DRIFT,
    seed: int = 1,
    threads: int = 1,
    progress: bool = False,
    direct_forces: bool = False,
) -> NVEReport:
    """NVE at `timestep`, its half and its quarter, in each engine, from one start.

    Args:
        atoms: the structure, best relaxed; its velocities are used if it has any.
        model: a potential file or the name of a bundled model.
        timestep: fs; `steps` of it, twice as many of its half, four times of its quarter. None
            takes TIMESTEP, or TIMESTEP_HYDROGEN.
        temperature: K, of the starting velocities if `atoms` has none (see `with_velocities`).
        engines: "ase", "lammps" or both.
        single: also in float32, at the shortest time step, in the last engine.
        ranks: if more than 1, also on so many in LAMMPS, at the longest time step.
        max_drift: meV/atom/ps that pass.
        threads: torch threads of either; more than one pays from some hundred atoms on, on cores
            that nothing else uses.
        progress: show a bar, or off a terminal a line at every tenth.
        direct_forces: those of the network's output of that name, in ASE alone.

    Raises:
        InputError: too few steps to fit a line, or what the engines refuse.
    """
    if steps < 20:
        raise InputError(f"{steps} steps are too few to measure a drift: take at least 20.")
    if direct_forces and "lammps" in engines:
        raise InputError("LAMMPS knows no direct forces: give --code ase with --direct-forces.")
    atoms = bare(atoms)
    if not np.any(atoms.get_momenta()):
        atoms = with_velocities(atoms, temperature, seed)
    if timestep is None:
        timestep = TIMESTEP_HYDROGEN if 1 in atoms.numbers else TIMESTEP
    runs = _plan(engines, timestep, steps, ranks, single=single)
    calculators: dict[str, EquivariantCalculator] = {}
    traces: list[Trace] = []
    bar = Progress(sum(r.steps + 1 for r in runs), "NVE steps", quiet=not progress)
    with bar, tempfile.TemporaryDirectory(prefix="eqcalc-nve-") as folder:
        for k, run in enumerate(runs):
            bar.describe(f"NVE, {run.engine}, {run.precision}, dt = {run.timestep:g} fs")
            options = {"precision": run.precision}
            if run.engine == "ase":
                calc = calculators.setdefault(
                    run.precision,
                    EquivariantCalculator(
                        model,
                        dtype=run.precision,
                        threads=threads,
                        on_domain_exit="ignore",
                        direct_forces=direct_forces,
                    ),
                )
                trace = run_ase(atoms, calc, run.timestep, run.steps, tick=bar.update, **options)
            else:
                options |= {"threads": threads, "ranks": run.ranks}
                place = Path(folder) / str(k)
                trace = run_lammps(atoms, model, run.timestep, run.steps, place, **options)
                bar.update(run.steps + 1)
            traces.append(trace)
    count = len(DIVISORS)
    special = {
        "shared" if run.ranks > 1 else "single": trace
        for run, trace in list(zip(runs, traces, strict=True))[count * len(engines) :]
    }
    groups = {e: tuple(traces[k * count : (k + 1) * count]) for k, e in enumerate(engines)}
    return NVEReport(len(atoms), groups, **special, max_drift=max_drift)
