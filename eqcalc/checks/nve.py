r"""Is energy conserved in dynamics, in ASE and in LAMMPS?

Velocity Verlet with exact forces conserves a shadow energy, so the total energy fluctuates around
it with an amplitude that goes with dt^2 and does not drift (Hairer, Lubich and Wanner, Acta
Numerica 12, 399 (2003), theorem 4.1). The check runs both engines from one start at dt and dt / 2
over the same time and reports

    drift         slope of a straight line through the total energy (meV/atom/ps) at dt / 2
    relative      |drift| * 1 ps / standard deviation of the kinetic energy per atom
    fluctuation   rms of the total energy around that line (meV/atom)
    ratio         fluctuation(dt) / fluctuation(dt / 2), 4 for exact forces
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase import Atoms, units
from ase.md.velocitydistribution import Stationary, ZeroRotation, force_temperature
from ase.md.verlet import VelocityVerlet

from eqcalc.calculator import EquivariantCalculator
from eqcalc.errors import InputError

Engine = Literal["ase", "lammps"]

#: what passes. The ratio is measured on a finite stretch of two trajectories that part slowly, so
#: it scatters around 4; forces that are no gradient, or a step too long, leave this window.
RATIO = (3.3, 4.8)
RELATIVE_DRIFT = 0.02  # of the kinetic fluctuation per ps


@dataclass(frozen=True)
class Trace:
    """Energies along one run. time [fs]; potential, kinetic, total [eV per atom]."""

    engine: str
    timestep: float
    time: np.ndarray
    potential: np.ndarray
    kinetic: np.ndarray

    @property
    def total(self) -> np.ndarray:
        return self.potential + self.kinetic

    def line(self) -> tuple[float, float]:
        """Slope (eV/atom/fs) and offset (eV/atom) of the total energy."""
        slope, offset = np.polyfit(self.time, self.total, 1)
        return float(slope), float(offset)

    @property
    def drift(self) -> float:
        """meV/atom/ps."""
        return self.line()[0] * 1e6

    @property
    def fluctuation(self) -> float:
        """meV/atom, rms around the straight line."""
        slope, offset = self.line()
        return float(np.std(self.total - slope * self.time - offset)) * 1e3

    @property
    def relative_drift(self) -> float:
        """|drift| over one ps, relative to the fluctuation of the kinetic energy."""
        return abs(self.drift) / (float(np.std(self.kinetic)) * 1e3)


@dataclass(frozen=True)
class NVEReport:
    """Two traces (dt, dt / 2) per engine, and what follows from them."""

    num_atoms: int
    traces: dict[str, tuple[Trace, Trace]]

    def ratio(self, engine: str) -> float:
        """Fluctuation at dt over that at dt / 2."""
        coarse, fine = self.traces[engine]
        return coarse.fluctuation / fine.fluctuation

    @property
    def energy_difference(self) -> float | None:
        """|E(ASE) - E(LAMMPS)| of the starting structure, eV per atom."""
        if len(self.traces) < 2:
            return None
        ase, lammps = (self.traces[e][0].potential[0] for e in ("ase", "lammps"))
        return abs(float(ase - lammps))

    @property
    def failures(self) -> list[str]:
        """Why the check did not pass, one sentence each."""
        said = []
        for engine, (_, fine) in self.traces.items():
            ratio = self.ratio(engine)
            if not RATIO[0] <= ratio <= RATIO[1]:
                said.append(
                    f"{engine}: halving the time step divides the energy fluctuation by "
                    f"{ratio:.2f} instead of 4 ({RATIO[0]} to {RATIO[1]} pass)."
                )
            if not fine.relative_drift <= RELATIVE_DRIFT:
                said.append(
                    f"{engine}: the total energy drifts by {fine.drift:.3g} meV/atom/ps, "
                    f"{100 * fine.relative_drift:.2g} % of the kinetic fluctuation per ps "
                    f"({100 * RELATIVE_DRIFT:.0f} % pass)."
                )
        return said

    @property
    def passed(self) -> bool:
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Figures without the traces, for JSON."""
        engines = {
            engine: {
                "timesteps_fs": [coarse.timestep, fine.timestep],
                "duration_ps": float(fine.time[-1]) / 1000.0,
                "fluctuation_meV_per_atom": [coarse.fluctuation, fine.fluctuation],
                "ratio": self.ratio(engine),
                "drift_meV_per_atom_per_ps": fine.drift,
                "relative_drift_per_ps": fine.relative_drift,
            }
            for engine, (coarse, fine) in self.traces.items()
        }
        return {
            "num_atoms": self.num_atoms,
            "engines": engines,
            "ase_lammps_energy_difference_eV_per_atom": self.energy_difference,
            "passed": self.passed,
            "failures": self.failures,
        }

    def __str__(self) -> str:
        heads = ("dt fs", "rms at dt", "at dt/2", "ratio", "drift", "of kinetic")
        units_ = ("", "meV/atom", "meV/atom", "", "meV/atom/ps", "per ps")
        widths = (12, 12, 10, 8, 13, 12)
        rows = [
            label + "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True))
            for label, cells in ((f"{'engine':<8}", heads), (" " * 8, units_))
        ]
        for engine, (coarse, fine) in self.traces.items():
            rows.append(
                f"{engine:<8}{f'{coarse.timestep:g}, {fine.timestep:g}':>12}"
                f"{coarse.fluctuation:12.4f}{fine.fluctuation:10.4f}{self.ratio(engine):8.2f}"
                f"{fine.drift:13.4f}{fine.relative_drift:12.2%}"
            )
        if self.energy_difference is not None:
            rows.append(f"ASE and LAMMPS start {self.energy_difference:.1e} eV/atom apart")
        rows += ["PASS"] if self.passed else ["FAIL", *self.failures]
        return "\n".join(rows)

    def draw_energies(self, axis: Any) -> None:
        """Potential, kinetic and total energy of the finer run, from their start."""
        engine, (_, fine) = next(reversed(self.traces.items()))
        time = fine.time / 1000.0
        for name, colour in (("kinetic", "C1"), ("potential", "C0"), ("total", "k")):
            energy = 1e3 * getattr(fine, name)
            start = energy[0] if name != "kinetic" else 0.0
            axis.plot(time, energy - start, color=colour, lw=1.3, label=name)
        axis.set(xlabel="time (ps)", ylabel="energy (meV/atom, potential and total from start)")
        axis.set_title(f"{engine.upper()}, {self.num_atoms} atoms, dt = {fine.timestep:g} fs")
        axis.legend(frameon=False)

    def draw_conservation(self, axis: Any) -> None:
        """Deviation of the total energy from its mean, both steps, both engines."""
        styles = {"ase": {"lw": 3.0, "alpha": 0.35}, "lammps": {"lw": 1.0}}
        for engine, pair in self.traces.items():
            for trace, colour in zip(pair, ("C3", "C2"), strict=True):
                axis.plot(
                    trace.time / 1000.0,
                    1e3 * (trace.total - trace.total.mean()),
                    color=colour,
                    label=f"{engine.upper()}, dt = {trace.timestep:g} fs: "
                    f"rms {trace.fluctuation:.3g} meV/atom",
                    **styles[engine],
                )
        axis.set(xlabel="time (ps)", ylabel="total energy - mean (meV/atom)")
        ratios = ", ".join(f"{self.ratio(e):.2f} in {e.upper()}" for e in self.traces)
        axis.set_title(f"halving dt divides the rms by {ratios}\n(exact forces: 4)", fontsize=10)
        axis.legend(frameon=False, fontsize=8, loc="upper right")
        low, high = axis.get_ylim()
        axis.set_ylim(low, high + 0.45 * (high - low))

    def plot(self, path: str | Path) -> None:
        """Both drawings side by side, as PNG."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        self.draw_energies(left)
        self.draw_conservation(right)
        for axis in (left, right):
            axis.grid(alpha=0.3)
        figure.savefig(path, dpi=130)


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
    atoms: Atoms, calc: EquivariantCalculator, timestep: float, steps: int, tick: Callable[[], None]
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
    return Trace("ase", timestep, time, np.array(potential), np.array(kinetic))


def run_lammps(
    atoms: Atoms,
    model: str | Path,
    timestep: float,
    steps: int,
    precision: str,
    threads: int,
    folder: Path,
) -> Trace:
    """NVE in the real `lmp`; timestep in fs, energies at every step."""
    from eqcalc.lammps import read_thermo, run_lmp, write_input

    script = write_input(
        atoms,
        model,
        folder,
        "nve",
        timestep_fs=timestep,
        steps=steps,
        thermo_every=1,
        dump_every=0,
        precision={"float64": "double", "float32": "single"}[precision],
    )
    thermo = read_thermo(run_lmp(script, threads=threads))
    n = len(atoms)
    return Trace(
        "lammps",
        timestep,
        timestep * (thermo["Step"] - thermo["Step"][0]),
        thermo["PotEng"] / n,
        thermo["KinEng"] / n,
    )


def check_nve(
    atoms: Atoms,
    model: str | Path,
    *,
    timestep: float = 2.0,
    steps: int = 300,
    temperature: float = 600.0,
    engines: Sequence[Engine] = ("ase", "lammps"),
    precision: Literal["float64", "float32"] = "float64",
    seed: int = 1,
    threads: int = 1,
    progress: bool = False,
) -> NVEReport:
    """NVE at `timestep` and half of it, in each engine, from one start.

    Args:
        atoms: the structure, best relaxed; its velocities are used if it has any.
        model: a potential file or the name of a bundled model.
        timestep: fs; `steps` of it, and twice as many of its half.
        temperature: K, of the starting velocities if `atoms` has none (see `with_velocities`).
        engines: "ase", "lammps" or both.
        threads: torch threads of either; more than one pays from some hundred atoms on, on cores
            that nothing else uses.
        progress: show a bar.

    Raises:
        InputError: too few steps to fit a line, or what the engines refuse.
    """
    from tqdm import tqdm

    if steps < 20:
        raise InputError(f"{steps} steps are too few to measure a drift: take at least 20.")
    if not np.any(atoms.get_momenta()):
        atoms = with_velocities(atoms, temperature, seed)
    runs = [(e, timestep / k, steps * k) for e in engines for k in (1, 2)]
    bar = tqdm(total=sum(n + 1 for _, _, n in runs), unit="step", disable=not progress)
    calc = EquivariantCalculator(model, dtype=precision, threads=threads)
    traces: dict[str, list[Trace]] = {engine: [] for engine in engines}
    with bar, tempfile.TemporaryDirectory(prefix="eqcalc-nve-") as folder:
        for engine, dt, n in runs:
            bar.set_description(f"NVE, {engine.upper()}, dt = {dt:g} fs")
            if engine == "ase":
                trace = run_ase(atoms, calc, dt, n, bar.update)
            else:
                place = Path(folder) / f"{dt:g}"
                trace = run_lammps(atoms, calc.potential.path, dt, n, precision, threads, place)
                bar.update(n + 1)
            if not np.isfinite(trace.total).all():
                raise InputError(
                    f"The total energy became {trace.total[~np.isfinite(trace.total)][0]} in "
                    f"{engine}: start from a relaxed structure, or take a shorter time step."
                )
            traces[engine].append(trace)
    return NVEReport(len(atoms), {e: (t[0], t[1]) for e, t in traces.items()})
