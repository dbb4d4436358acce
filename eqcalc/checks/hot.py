"""Hot dynamics of a structure, and a quench: does it fall below where it began?

A hole that no scan crosses is found by atoms that are hot enough to get there. The structure is
relaxed, heated, and relaxed again; at its end it must not lie lower by more than rearrangements of
some hundred femtoseconds gain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.md.langevin import Langevin
from ase.optimize import FIRE

from eqcalc.checks.report import Table
from eqcalc.checks.structures import bare
from eqcalc.checks.trained import Trained
from eqcalc.errors import InputError

#: runs, MD steps of each, fs with hydrogen and without, 1/fs of the thermostat
NUM_RUNS, STEPS = 2, 300
#: a molecule's third run, at so many K or more. Bonds hold a picosecond at 1000 K; a hole behind
#: the bonds of acetylacetone was reached within 1.3 ps there, and not within 10 ps at 600 K
STEPS_MOLECULE, KELVIN_MOLECULE = 3000, 1000.0
TIMESTEP_H, TIMESTEP = 0.5, 1.0
FRICTION = 0.01

#: times the training's highest temperature; K where that is unknown
HEAT, UNKNOWN = 2.0, 600.0

#: steps of a relaxation, and eV/Å where it ends
RELAX_STEPS, FORCE = 100, 0.05

#: eV: what a structure may gain, at least; and per atom, of a molecule and of what is periodic. A
#: conformer is within 0.3 eV of the best; a bond that closes in a hole gives an eV and more. A
#: disordered solid may anneal a little; all the difference of amorphous and crystalline silicon is
#: 0.1 eV per atom (Roorda et al., Phys. Rev. B 44, 3702 (1991)). Where the training's lowest energy
#: is known, what is periodic may fall to it: the dimers of a cut silicon surface gain 1.2 eV each
GAIN, GAIN_MOLECULE, GAIN_PERIODIC = 0.3, 0.02, 0.05

#: times the temperature of the thermostat: kinetic energy beyond it comes out of a hole
RUNAWAY = 10.0

#: Å: periodic cells are repeated to be at least as wide
WIDTH = 5.0


@dataclass(frozen=True)
class HotRun:
    """One run.

    Attributes:
        seed: of its velocities and of the thermostat.
        temperature: K, of the thermostat.
        highest: K, the highest of the kinetic energy.
        energy: [n] eV along the run, from the relaxed start; ends early where it runs away.
        quenched: eV from the relaxed start, of the end relaxed.
        allowed: eV by which it may lie lower.
        final: the structure relaxed at the end.
    """

    seed: int
    temperature: float
    highest: float
    energy: np.ndarray
    quenched: float
    allowed: float
    final: Atoms

    @property
    def failure(self) -> str | None:
        name = f"{self.final.get_chemical_formula()} at {self.temperature:.0f} K (run {self.seed})"
        lowest = float(np.min(self.energy, initial=self.quenched))
        if not np.isfinite([lowest, self.highest]).all():
            return f"{name}: energies or velocities are not finite after {len(self.energy)} steps."
        if lowest < -self.allowed:
            return (
                f"{name} falls to {lowest:.3g} eV from its relaxed start within "
                f"{len(self.energy)} steps and a relaxation (-{self.allowed:.2g} passes): a hole."
            )
        if self.highest > RUNAWAY * self.temperature:
            return (
                f"{name} heats itself to {self.highest:.0f} K within {len(self.energy)} steps: "
                "energy out of a hole."
            )
        return None

    def figures(self) -> dict[str, Any]:
        """For a program; what is not finite is null."""
        energies = [("lowest", np.min(self.energy, initial=np.inf)), ("quenched", self.quenched)]
        return {
            "seed": self.seed,
            "temperature_K": self.temperature,
            "highest_temperature_K": self.highest if np.isfinite(self.highest) else None,
            "steps": len(self.energy),
            **{f"{k}_eV": float(e) if np.isfinite(e) else None for k, e in energies},
            "allowed_eV": -self.allowed,
            "passed": self.failure is None,
        }


def table(runs: list[HotRun], *, known: bool) -> Table:
    """One row for each run."""
    rows = [
        [
            f"run {run.seed}",
            f"{run.temperature:.0f}",
            f"{run.highest:.0f}",
            str(len(run.energy)),
            f"{np.min(run.energy, initial=np.inf):.3f}",
            f"{run.quenched:.3f}",
            f"{-run.allowed:.2f}",
        ]
        for run in runs
    ]
    columns = ["run", "K", "highest K", "steps", "lowest, eV", "relaxed end, eV", "passes, eV"]
    source = f"{HEAT:g} times the training's highest temperature."
    if not known:
        source = f"The training's temperature is unknown: {UNKNOWN:g} K."
    source += f" Molecules run once more, longer, at {KELVIN_MOLECULE:g} K or more."
    return Table("Hot dynamics, energies from the relaxed start", columns, rows, source)


def _quench(atoms: Atoms) -> float:
    """eV, after some steps downhill; what cannot be evaluated any more is not a number."""
    try:
        FIRE(atoms, logfile=None, maxstep=0.1).run(fmax=FORCE, steps=RELAX_STEPS)
        return float(atoms.get_potential_energy())
    except (InputError, np.linalg.LinAlgError):
        return float("nan")


def hot_runs(atoms: Atoms, calc: Calculator, trained: Trained, *, seed: int = 0) -> list[HotRun]:
    """Runs at twice the training's highest temperature; of a molecule, one more that is longer.

    Args:
        atoms: where they begin, after a relaxation in its cell.
        calc: ASE calculator.
        trained: its temperature.
        seed: of the first run.
    """
    start = bare(atoms)
    if start.pbc.any():
        lengths = start.cell.lengths()
        many = [
            max(1, int(np.ceil(WIDTH / length - 1e-9))) if p else 1
            for length, p in zip(lengths, start.pbc, strict=True)
        ]
        start = start.repeat(many)
    start.calc = calc
    rest = _quench(start)
    known = trained.temperature
    temperature = HEAT * known if known else UNKNOWN
    share = GAIN_PERIODIC if start.pbc.any() else GAIN_MOLECULE
    allowed = max(GAIN, share * len(start))
    if start.pbc.any() and trained.lowest is not None:
        # a cut surface rebuilds and a glass anneals: theirs is all that the training has seen
        floor = len(start) * (trained.lowest + trained.reference_of(start))
        allowed = max(allowed, rest - floor)
    plans = [(temperature, STEPS)] * NUM_RUNS
    if not start.pbc.any():
        plans.append((max(temperature, KELVIN_MOLECULE), STEPS_MOLECULE))
    return [_run(start, calc, rest, *plan, allowed, seed + k) for k, plan in enumerate(plans)]


def _run(
    start: Atoms,
    calc: Calculator,
    rest: float,
    temperature: float,
    steps: int,
    allowed: float,
    seed: int,
) -> HotRun:
    rng = np.random.default_rng(seed)
    atoms = start.copy()
    atoms.calc = calc
    width = np.sqrt(atoms.get_masses() * units.kB * temperature)  # of Maxwell and Boltzmann
    atoms.set_momenta(width[:, None] * rng.standard_normal((len(atoms), 3)))
    timestep = TIMESTEP_H if "H" in atoms.symbols else TIMESTEP
    dynamics = Langevin(
        atoms,
        timestep * units.fs,
        temperature_K=temperature,
        friction=FRICTION / units.fs,
        fixcm=False,
        rng=rng,
    )
    energy, highest = [], 0.0
    try:
        for _ in dynamics.irun(steps):
            energy.append(atoms.get_potential_energy() - rest)
            highest = max(highest, atoms.get_temperature())
            sound = np.isfinite(energy[-1]) and highest <= RUNAWAY * temperature
            if not sound or energy[-1] < -allowed:
                break
    except InputError:
        highest = float("nan")
    quenched = _quench(atoms) - rest
    atoms.calc = None
    return HotRun(seed, temperature, highest, np.array(energy), quenched, allowed, atoms)
