"""Energy conservation over tens of picoseconds in LAMMPS, beside Stillinger-Weber silicon.

    python examples/long_nve.py --ps 20

Both potentials run 512 atoms of diamond silicon, each at its own lattice constant, from the same
velocities of 600 K (300 K once they have spread), with the same time step in the same `lmp`.
Prints a table; writes `long_nve.json` and `long_nve.png`. At 20 ps it takes some 15 minutes.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

from ase.build import bulk
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from matplotlib.figure import Figure

from eqcalc import EquivariantCalculator, InputError
from eqcalc.checks.report import Table, png, write_json
from eqcalc.checks.traces import Trace, run_lammps, trace_of, with_velocities
from eqcalc.files import write_bytes
from eqcalc.lammps import run_lmp, write_input

#: Stillinger and Weber, Phys. Rev. B 31, 5262 (1985): epsilon eV (from the cohesive energy, as is
#: usual), sigma Å, a, lambda, gamma, cos(theta0), A, B, p, q and LAMMPS's own last column
STILLINGER_WEBER = (
    "Si Si Si 2.1683 2.0951 1.80 21.0 1.20 -0.333333333333 7.049556277 0.6022245584 4.0 0.0 0.0\n"
)
STILLINGER_WEBER_A0 = 5.43095  # Å, its diamond lattice constant

MAX_DRIFT = 0.01  # meV/atom/ps
EVERY = 5  # steps between samples


def by_stillinger_weber(atoms, timestep, steps, folder):
    """The same input script with another pair style."""
    script = write_input(
        atoms, "si", folder, "nve", timestep_fs=timestep, steps=steps, thermo_every=EVERY,
        dump_every=0, digits=15,
    )  # fmt: skip
    (folder / "Si.sw").write_text(STILLINGER_WEBER)
    text = re.sub(r"pair_style .*", "pair_style sw", script.read_text())
    script.write_text(re.sub(r"pair_coeff .*", "pair_coeff * * Si.sw Si", text))
    output = run_lmp(script)
    return trace_of(output, len(atoms), timestep, engine="Stillinger-Weber")


def draw(traces: list[Trace]) -> Figure:
    figure = Figure(figsize=(9, 2.2 * len(traces)), layout="constrained")
    axes = figure.subplots(len(traces), 1, sharex=True, sharey=True)
    for axis, trace in zip(axes, traces, strict=True):
        slope, offset = trace.line()
        line = 1e3 * (slope * trace.time + offset - trace.total.mean())
        axis.plot(trace.time / 1000, 1e3 * (trace.total - trace.total.mean()), lw=0.3, color="C0")
        axis.plot(trace.time / 1000, line, color="k", lw=1.2)
        axis.set_title(
            f"{trace.label}: drift {trace.drift:+.1e} ± {trace.drift_error:.0e} meV/atom/ps",
            fontsize=10,
        )
        axis.set_ylabel("E - mean\n(meV/atom)")
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("time (ps)")
    return figure


def judge(trace: Trace, reference: Trace) -> list[str]:
    """Against the fixed limit, and against twice the reference as far as both are resolved."""
    said = []
    if abs(trace.drift) > MAX_DRIFT:
        said.append(f"{trace.label}: the drift exceeds {MAX_DRIFT} meV/atom/ps.")
    allowed = (
        2 * abs(reference.drift) + 2 * (trace.drift_error**2 + 4 * reference.drift_error**2) ** 0.5
    )
    if abs(trace.drift) > allowed:
        said.append(f"{trace.label}: more than twice the drift of Stillinger-Weber silicon.")
    return said


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="si", help="a potential file for silicon")
    parser.add_argument("--ps", type=float, default=20.0)
    parser.add_argument("--timestep", type=float, default=1.0, help="fs")
    parser.add_argument("--repeat", type=int, default=4, help="n^3 cubic cells of 8 atoms")
    parser.add_argument("--precision", nargs="+", default=["float32", "float64"])
    parser.add_argument("--out", type=Path, default=Path())
    options = parser.parse_args(arguments)

    crystal = bulk("Si", cubic=True, a=5.43)
    crystal.calc = EquivariantCalculator(options.model, dtype="float64", threads=1)
    BFGS(FrechetCellFilter(crystal), logfile=None).run(fmax=1e-4)
    steps = round(1000 * options.ps / options.timestep)

    def start(a0: float):
        atoms = bulk("Si", cubic=True, a=a0).repeat(options.repeat)
        return with_velocities(atoms, 600.0, seed=1)

    with tempfile.TemporaryDirectory() as name:
        print("Stillinger-Weber...", flush=True)
        folder = Path(name) / "sw"
        traces = [by_stillinger_weber(start(STILLINGER_WEBER_A0), options.timestep, steps, folder)]
        for precision in options.precision:
            print(f"{options.model}, {precision}...", flush=True)
            traces.append(
                run_lammps(
                    start(crystal.cell.lengths()[0]), options.model, options.timestep, steps,
                    Path(name) / precision, precision=precision, every=EVERY,
                )
            )  # fmt: skip
    failures = [reason for trace in traces[1:] for reason in judge(trace, traces[0])]
    rows = [
        [t.label, f"{t.drift:+.2e}", f"{t.drift_error:.0e}", f"{t.drift_ratio:.1e}",
         f"{t.fluctuation:.4f}", f"{2 / 3 * t.kinetic.mean() / 8.617333e-5:.0f}"]
        for t in traces
    ]  # fmt: skip
    columns = ["", "drift, meV/atom/ps", "±", "drift/kinetic", "rms, meV/atom", "mean T, K"]
    num_atoms = 8 * options.repeat**3
    title = f"{num_atoms} atoms, {options.ps:g} ps, dt = {options.timestep:g} fs"
    print(Table(title, columns, rows))
    print("PASS" if not failures else "\n".join(["FAIL", *failures]))
    document = {
        "num_atoms": num_atoms,
        "max_drift_meV_per_atom_per_ps": MAX_DRIFT,
        "runs": [trace.figures() for trace in traces],
        "passed": not failures,
        "failures": failures,
    }
    write_json(options.out / "long_nve.json", document)
    write_bytes(options.out / "long_nve.png", png(draw(traces)))
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(f"Error: {error}")
