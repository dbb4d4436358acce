"""Forces that are no derivatives of an energy, beside forces that are.

    python examples/direct_forces.py --out direct_forces.png

Two networks of one shape learn the same frames of ethanol, labelled by GFN2-xTB (package tblite).
One learns forces as derivatives of its energy, as every potential here does; the other has an
output `direct_forces` and learns its energy beside it. No gradient has to be computed for the
second, in training and in dynamics, so it is faster. Both then run at constant energy, from the
same start. Prints a table, with what `eqcalc check nve` says of both, and writes the energies of
both runs as a picture. Takes a minute and a half on one core.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from ase import Atoms
from ase.build import molecule
from ase.optimize import BFGS
from matplotlib.figure import Figure

from eqcalc import EquivariantCalculator
from eqcalc.checks.nve import check_nve
from eqcalc.checks.report import Table, png
from eqcalc.checks.traces import Trace, run_ase, with_velocities
from eqcalc.files import write_bytes
from eqcalc.sampling.dynamics import Sampling, write_sample
from eqcalc.sampling.teachers import open_teacher
from eqcalc.training.config import from_dict
from eqcalc.training.run import train

TIMESTEP = 0.5  # fs
MAX_DRIFT = 1.0  # meV/atom/ps that pass in a run as short as this
TEMPERATURE = 600.0  # K, half of it when the velocities have spread

MODEL = {
    "cutoff": 4.0,
    "num_layers": 2,
    "l_max": 1,
    "num_channels": [24, 12],
    "product_channels": 0,
    "radial_mlp": [32],
    "readout": 16,
}
#: what the two learn: forces by differentiation, or by an output of their own
NETWORKS = {
    "conservative": ({}, {}),
    "direct": ({"outputs": ["direct_forces"]}, {"force_weight": 0.0}),
}


def learn(frames: Path, name: str, epochs: int, folder: Path) -> tuple[Path, float, float]:
    """The potential file, CPU seconds of an epoch, MAE of forces of unseen frames in meV/Å."""
    model, weights = NETWORKS[name]
    options = {"epochs": epochs, "batch_size": 4, "threads": 1, "device": "cpu", **weights}
    config = {"data": {"train": [str(frames)]}, "model": MODEL | model, "training": options}
    start = time.process_time()
    summary = train(from_dict(config), folder / name, quiet=True)
    seconds = (time.process_time() - start) / epochs
    errors = summary["errors"]["validation"]["all"]
    mae = 1e3 * errors["direct_forces"]["mae"] if model else errors["forces"]["mae"]
    return folder / name / "model.pth", seconds, mae


def draw(traces: dict[str, Trace]) -> Figure:
    figure = Figure(figsize=(8, 4), layout="constrained")
    axis = figure.subplots()
    for name, trace in traces.items():
        change = 1e3 * (trace.total - trace.total[0])
        axis.plot(trace.time / 1000, change, lw=1.0, label=f"{name} forces")
    kinetic = 1e3 * next(iter(traces.values())).kinetic.std()
    axis.axhspan(-kinetic, kinetic, color="0.9", label="fluctuation of the kinetic energy")
    axis.set(xlabel="time (ps)", ylabel="change of the total energy (meV/atom)")
    axis.legend(frameon=False)
    axis.grid(alpha=0.3)
    return figure


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float | str]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--ps", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path("direct_forces.png"))
    options = parser.parse_args(arguments)

    rows, traces, found = [], {}, {}
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        sampling = Sampling(frames=options.frames, temperatures=(500.0, 800.0))
        start, teacher = molecule("CH3CH2OH"), open_teacher(["gfn2"])
        start.calc = teacher.drivers[0]
        BFGS(start, logfile=None).run(fmax=0.02, steps=200)
        write_sample(teacher, [start], here / "frames.xyz", sampling)
        moving = with_velocities(Atoms(start.numbers, start.positions), TEMPERATURE)
        for name in NETWORKS:
            path, seconds, mae = learn(here / "frames.xyz", name, options.epochs, here)
            direct = name == "direct"
            # both on the engine that knows direct forces, so that times compare
            calc = EquivariantCalculator(
                path,
                dtype="float64",
                engine="torch",
                threads=1,
                on_domain_exit="ignore",
                direct_forces=direct,
            )
            steps = round(1000 * options.ps / TIMESTEP)
            begin = time.process_time()
            trace = traces[name] = run_ase(moving, calc, TIMESTEP, steps)
            step = 1e3 * (time.process_time() - begin) / steps
            report = check_nve(
                moving,
                path,
                timestep=TIMESTEP,
                steps=max(100, steps // 8),
                engines=("ase",),
                single=False,
                max_drift=MAX_DRIFT,
                direct_forces=direct,
            )
            found[name] = {
                "forces, MAE meV/Å": mae,
                "epoch, CPU s": seconds,
                "step of dynamics, CPU ms": step,
                "drift, meV/atom/ps": trace.drift,
            }
            rows.append([name, *(f"{value:.3g}" for value in found[name].values()), report.verdict])
            found[name]["verdict"] = report.verdict
            print(f"{name} forces: {' '.join(report.failures) or report.verdict}")
    write_bytes(options.out, png(draw(traces)))
    columns = ["forces", *list(found["direct"])[:-1], "check nve"]
    print(Table("", columns, rows))
    print(f"written to {options.out}")
    return found


if __name__ == "__main__":
    main()
