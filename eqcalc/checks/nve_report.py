"""What runs at constant energy say: order, drift, float32 and ranks, with what passes and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from eqcalc.checks.report import Report, Table
from eqcalc.checks.traces import Trace, drift_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: window of the order; trajectories at different dt part slowly, so it scatters by about 0.05
#: around 2. Forces that are no gradient give 0 to 1; a step too long for the stiffest vibration
#: leaves the window upwards
ORDER = (1.8, 2.25)

#: meV/atom/ps at the shortest dt, beyond what the run resolves: 1 ns then changes the energy by
#: less than 10 meV/atom, a tenth of the thermal energy at 300 K
MAX_DRIFT = 0.01

#: of |drift| * length / kinetic fluctuation; 1 would be a drift as large as natural fluctuations
MAX_DRIFT_RATIO = 0.1

#: eV/atom, between trajectories on different numbers of ranks over the first 0.2 ps, in which
#: chaos multiplies the rounding of float64 by no more than some thousands
RANKS_TOLERANCE = 1e-8
RANKS_TIME = 200.0  # fs

#: relative change of the fluctuation from float64 to float32 at the shortest dt
FLOAT32_CHANGE = 0.2


def extrapolated(long: Trace, short: Trace) -> tuple[np.ndarray, np.ndarray]:
    """Times [K] fs and total energies [K] eV per atom of a run at dt = 0.

    From one start, as long as chaos has not parted two runs, E(t; dt) = E(t; 0) + dt^2 g(t) + ...,
    with the same g at both time steps (Hairer, Lubich and Wanner, as in `eqcalc.checks.nve`,
    theorem 3.1), so that, for L and s the long and the short step,

        E(t; 0) = (L^2 E(t; s) - s^2 E(t; L)) / (L^2 - s^2)

    What is left of a drift is not the integrator's. Of runs that have parted, it is an unbiased
    estimate still, with the noise of both.
    """
    every = round(long.timestep / short.timestep)
    energy = short.total[::every][: len(long.time)]
    square = (long.timestep / short.timestep) ** 2
    return long.time, (square * energy - long.total) / (square - 1.0)


@dataclass(frozen=True)
class NVEReport(Report):
    """traces: per engine, at the time steps dt, dt / 2, dt / 4.

    single: at the shortest in float32; shared: at the longest on several ranks.
    """

    num_atoms: int
    traces: dict[str, tuple[Trace, ...]]
    single: Trace | None = None
    shared: Trace | None = None
    max_drift: float = MAX_DRIFT

    name: ClassVar[str] = "nve"
    title: ClassVar[str] = "Energy conservation (NVE)"
    method: ClassVar[str] = (
        "Velocity Verlet from one start at three time steps over the same time. With exact forces "
        f"the energy fluctuates in proportion to dt² (powers of {ORDER[0]} to {ORDER[1]} pass) and "
        "does not drift. The fluctuation is the integrator's, the same at every moment but for a "
        "factor dt²: the energies at dt = 0 follow, moment by moment, from those of the two "
        f"shortest time steps. Their drift passes up to {MAX_DRIFT} meV/atom/ps if the run is long "
        "enough to know it as well (twice the standard error); it fails if it is larger by more "
        "than that; else there is no verdict. Over the run it may reach "
        f"{MAX_DRIFT_RATIO} of the standard deviation of the kinetic energy (the drift ratio of "
        "ml-peg and MLIPAudit, where 1 is bad). In float32 the same holds, with a fluctuation "
        f"within {FLOAT32_CHANGE:.0%} of float64's; on several ranks the trajectory stays within "
        f"{RANKS_TOLERANCE:.0e} eV/atom over the first {RANKS_TIME / 1000:g} ps."
    )

    def order(self, engine: str) -> float:
        """p of fluctuation ~ dt^p, least squares in logarithms."""
        steps = np.log([t.timestep for t in self.traces[engine]])
        sizes = np.log([t.fluctuation for t in self.traces[engine]])
        return float(np.polyfit(steps, sizes, 1)[0])

    @property
    def energy_difference(self) -> float | None:
        """|E(ASE) - E(LAMMPS)| of the starting structure, eV per atom."""
        if len(self.traces) < 2:
            return None
        ase, lammps = (self.traces[e][0].potential[0] for e in ("ase", "lammps"))
        return abs(float(ase - lammps))

    @property
    def ranks_difference(self) -> float | None:
        """Largest difference of the potential energy on one and several ranks, eV per atom."""
        if self.shared is None:
            return None
        one = self.traces["lammps"][0]
        early = one.time <= one.time[0] + RANKS_TIME
        return float(np.abs(one.potential - self.shared.potential)[early].max())

    @property
    def float32_change(self) -> float | None:
        """Relative change of the fluctuation at the shortest time step."""
        if self.single is None:
            return None
        double = self.traces[self.single.engine][-1].fluctuation
        return self.single.fluctuation / double - 1.0

    def all_traces(self) -> list[Trace]:
        several = [t for group in self.traces.values() for t in group]
        return several + [t for t in (self.single, self.shared) if t is not None]

    def conserved(self, engine: str) -> tuple[np.ndarray, np.ndarray]:
        """Times [K] fs and total energies [K] eV per atom at dt = 0, see `extrapolated`."""
        return extrapolated(*self.traces[engine][-2:])

    def drift(self, engine: str) -> tuple[float, float]:
        """At dt = 0 and its standard error, meV/atom/ps.

        What is left of the integrator goes with dt^4: a fifteenth of the difference to the
        extrapolation from the two longer steps.
        """
        value, error = drift_of(*self.conserved(engine))
        coarse, _ = drift_of(*extrapolated(*self.traces[engine][:2]))
        return value, float(np.hypot(error, (value - coarse) / 15.0))

    def single_drift(self) -> tuple[float, float]:
        """The same in float32, with the integrator's share as float64 has it."""
        engine = self.single.engine
        time, energy = self.conserved(engine)
        every = round(float(time[1] - time[0]) / self.single.timestep)
        rounding = self.single.total - self.traces[engine][-1].total
        value, error = drift_of(time, energy + rounding[::every][: len(time)])
        return value, float(np.hypot(error, self.drift(engine)[1]))

    def _drifts(self) -> list[tuple[Trace, float, float]]:
        """The finest run of each engine, and that in float32: drift at dt = 0 and its error."""
        found = [(group[-1], *self.drift(engine)) for engine, group in self.traces.items()]
        return found + ([(self.single, *self.single_drift())] if self.single is not None else [])

    def _drifting(self, trace: Trace, drift: float, error: float) -> list[str]:
        said = []
        if self._exceeds(drift, error):
            said.append(
                f"{trace.label}: the total energy drifts by {drift:.3g} ± {error:.1g} "
                f"meV/atom/ps at dt = 0 ({self.max_drift:g} passes)."
            )
        ratio = (abs(drift) - 2 * error) * trace.duration / trace.kinetic_fluctuation
        if not ratio <= MAX_DRIFT_RATIO:
            said.append(
                f"{trace.label}: over {trace.duration:g} ps the energy drifts by "
                f"{ratio:.2g} of the fluctuation of the kinetic energy "
                f"({MAX_DRIFT_RATIO:g} passes)."
            )
        return said

    def _exceeds(self, drift: float, error: float) -> bool:
        return not abs(drift) <= self.max_drift + 2 * error

    @property
    def undecided(self) -> list[str]:
        said = []
        for trace, drift, error in self._drifts():
            if self._exceeds(drift, error):
                continue  # a failure
            # so small an error would decide
            enough = self.max_drift if abs(drift) <= self.max_drift else abs(drift) - self.max_drift
            if 2 * error <= enough and abs(drift) <= self.max_drift:
                continue
            # the error of a slope falls with the length to the power 3/2
            factor = np.clip((2 * error / enough) ** (2 / 3), 1.5, 100.0)
            steps = len(self.traces[trace.engine][0].time) - 1
            said.append(
                f"{trace.label}: a drift of {drift:.2g} ± {2 * error:.1g} meV/atom/ps, of which "
                f"{self.max_drift:g} pass, is not decided: run longer, at least "
                f"{10 * int(np.ceil(0.1 * factor * steps))} steps instead of {steps}."
            )
        return said

    @property
    def failures(self) -> list[str]:
        said = []
        for engine, group in self.traces.items():
            order = self.order(engine)
            if not ORDER[0] <= order <= ORDER[1]:
                said.append(
                    f"{group[0].label}: the energy fluctuation goes with the power {order:.2f} of "
                    f"the time step instead of 2 ({ORDER[0]} to {ORDER[1]} pass)."
                )
        for found in self._drifts():
            said += self._drifting(*found)
        if self.single is not None and not abs(self.float32_change) <= FLOAT32_CHANGE:
            said.append(
                f"float32 changes the energy fluctuation by {self.float32_change:+.0%} "
                f"({FLOAT32_CHANGE:.0%} passes): run this model with dtype='float64'."
            )
        if self.shared is not None and not self.ranks_difference <= RANKS_TOLERANCE:
            said.append(
                f"LAMMPS on {self.shared.ranks} ranks leaves the trajectory of one rank by "
                f"{self.ranks_difference:.1e} eV/atom ({RANKS_TOLERANCE:.0e} passes)."
            )
        return said

    def figures(self) -> dict[str, Any]:
        return {
            "num_atoms": self.num_atoms,
            "max_drift_meV_per_atom_per_ps": self.max_drift,
            "drift_at_zero_timestep_meV_per_atom_per_ps": {
                engine: dict(zip(("value", "standard_error"), self.drift(engine), strict=True))
                for engine in self.traces
            },
            "order": {engine: self.order(engine) for engine in self.traces},
            "runs": [trace.figures() for trace in self.all_traces()],
            "ase_lammps_energy_difference_eV_per_atom": self.energy_difference,
            "ranks_energy_difference_eV_per_atom": self.ranks_difference,
            "float32_relative_change_of_fluctuation": self.float32_change,
        }

    def tables(self) -> list[Table]:
        columns = ["run", "dt, fs", "rms, meV/atom", "drift, meV/atom/ps", "±", "drift ratio"]
        rows = [
            [
                trace.label,
                f"{trace.timestep:g}",
                f"{trace.fluctuation:.5f}",
                f"{trace.drift:+.1e}",
                f"{trace.drift_error:.0e}",
                f"{trace.drift_ratio:.1e}",
            ]
            for trace in self.all_traces()
        ]
        said = [
            f"Power of dt in the fluctuation (exact: 2) in {e}: {self.order(e):.2f}."
            for e in self.traces
        ]
        said += [
            "Drift at dt = 0 in {}: {:+.1e} ± {:.0e} meV/atom/ps.".format(e, *self.drift(e))
            for e in self.traces
        ]
        if self.energy_difference is not None:
            said.append(f"ASE and LAMMPS start {self.energy_difference:.1e} eV/atom apart.")
        if self.shared is not None:
            said.append(
                f"{self.shared.ranks} ranks leave the trajectory of one by "
                f"{self.ranks_difference:.1e} eV/atom in {RANKS_TIME / 1000:g} ps."
            )
        if self.single is not None:
            said.append(f"float32 changes the fluctuation by {self.float32_change:+.1%}.")
        title = f"{self.num_atoms} atoms, {self.all_traces()[0].duration:g} ps"
        return [Table(title, columns, rows, "\n".join(said))]

    def draw_energies(self, axis: Any) -> None:
        """Potential, kinetic and total energy of the finest run, from their start."""
        trace = next(reversed(self.traces.values()))[-1]
        time = trace.time / 1000.0
        for name, colour in (("kinetic", "C1"), ("potential", "C0"), ("total", "k")):
            energy = 1e3 * getattr(trace, name)
            start = energy[0] if name != "kinetic" else 0.0
            axis.plot(time, energy - start, color=colour, lw=1.3, label=name)
        axis.set(xlabel="time (ps)", ylabel="energy (meV/atom, potential and total from start)")
        axis.set_title(
            f"{trace.label}: {self.num_atoms} atoms, dt = {trace.timestep:g} fs", fontsize=10
        )
        axis.legend(frameon=False)

    def draw_conservation(self, axis: Any) -> None:
        """Deviation of the total energy from its mean, all time steps, all engines."""
        styles = {"ase": {"lw": 3.0, "alpha": 0.35}, "lammps": {"lw": 1.0}}
        for engine, group in self.traces.items():
            for trace, colour in zip(group, ("C3", "C2", "C0"), strict=True):
                axis.plot(
                    trace.time / 1000.0,
                    1e3 * (trace.total - trace.total.mean()),
                    color=colour,
                    label=f"{engine.upper()}, dt = {trace.timestep:g} fs: "
                    f"rms {trace.fluctuation:.2g} meV/atom",
                    **styles[engine],
                )
        axis.set(xlabel="time (ps)", ylabel="total energy - mean (meV/atom)")
        powers = ", ".join(f"{self.order(e):.2f} in {e.upper()}" for e in self.traces)
        axis.set_title(f"fluctuation ~ dt^p: p = {powers}\n(exact forces: 2)", fontsize=10)
        axis.legend(frameon=False, fontsize=8, loc="upper right")
        low, high = axis.get_ylim()
        axis.set_ylim(low, high + 0.6 * (high - low))

    def draw(self) -> Figure:
        """Both drawings side by side."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        self.draw_energies(left)
        self.draw_conservation(right)
        for axis in (left, right):
            axis.grid(alpha=0.3)
        return figure
