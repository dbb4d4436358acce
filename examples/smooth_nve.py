"""Energy over ten picoseconds: eSEN, attention with the cutoff's envelope, and attention without.

    python examples/smooth_nve.py --data PATH/TO/DATA --runs runs/smooth --out examples

Trains a narrow `esen` and a narrow `equiformer_v2` on mlearn silicon, two minutes each (runs that
are there are taken as they are), and takes the envelope out of the softmax of the second: a
neighbour that crosses the cutoff then takes its whole share of the weight with it, or brings it.
Eight atoms of silicon, whose third shell of neighbours lies at the cutoff, begin at 600 K and keep
their energy as far as the surface lets them: 10 ps at 1 fs, and 1 ps at 2, 1 and 0.5 fs from one
start. Writes smooth_nve.json and smooth_nve.png; some ten minutes of CPU time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from ase import Atoms
from ase.build import bulk
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from matplotlib.figure import Figure
from torch import Tensor

from eqcalc import EquivariantCalculator, export
from eqcalc.checks.report import Table, png, write_json
from eqcalc.checks.traces import Trace, run_ase, with_velocities
from eqcalc.contract import set_precision
from eqcalc.files import write_bytes
from eqcalc.neighbors import neighbor_list
from eqcalc.nn.attention import Attention
from eqcalc.training.config import from_dict
from eqcalc.training.folder import load_run
from eqcalc.training.run import train

CUTOFF = 4.5  # Å; the third shell of silicon is at 4.50 Å
NETWORKS = {
    "esen": {
        "radial_mlp": [32],
        "num_layers": 2,
        "l_max": 3,
        "num_channels": 16,
        "hidden_channels": 16,
        "feed_forward_channels": 32,
    },
    "equiformer_v2": {
        "radial_mlp": [16],
        "num_layers": 2,
        "l_max": 2,
        "num_channels": 8,
        "hidden_channels": 4,
        "feed_forward_channels": 16,
        "num_heads": 2,
    },
}
TIMESTEPS = (2.0, 1.0, 0.5)  # fs
SHORT = 1.0  # ps


class WithoutEnvelope(torch.nn.Module):
    """The usual softmax over the neighbours within the cutoff, and nobody."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self, scalars: Tensor, envelope: Tensor, edge_dst: Tensor, num_local: int
    ) -> Tensor:
        inside = (envelope > 0.0).to(envelope.dtype)
        return self.attention(scalars, inside, edge_dst, num_local)


def trained(name: str, data: Path, out: Path) -> Path:
    """The run's folder."""
    if not (out / "model.pth").is_file():
        files = {"train": [str(data / "mlearn_Si/train.xyz.gz")], "val_fraction": 0.1}
        model = {"architecture": name, "cutoff": CUTOFF, **NETWORKS[name]}
        training = {"epochs": 4, "batch_size": 4, "threads": 1, "learning_rate": 0.01}
        train(from_dict({"data": files, "model": model, "training": training}), out, quiet=True)
    return out


def without_envelope(run: Path, path: Path) -> Path:
    """A file of the same weights whose attention has no envelope; for the torch engine."""
    model = set_precision(load_run(run, "best.ckpt").model, torch.float64)
    for name, module in list(model.named_modules()):
        if isinstance(module, Attention):
            model.set_submodule(name, WithoutEnvelope(module))
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=1)
    pairs = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF)
    vectors = torch.from_numpy(pairs.vectors(atoms.positions, atoms.cell.array))
    edges = torch.from_numpy(pairs.edge_src), torch.from_numpy(pairs.edge_dst)
    species = torch.zeros(len(atoms), dtype=torch.int64)
    model.reference_structure = export.reference_structure(model, species, vectors, *edges)
    return export.save(model, path, {"architecture": "equiformer_v2 without envelope"})


def relaxed(calculator: EquivariantCalculator) -> Atoms:
    crystal = bulk("Si", cubic=True, a=5.43)
    crystal.calc = calculator
    BFGS(FrechetCellFilter(crystal), logfile=None).run(fmax=1e-3, steps=50)
    crystal.calc = None
    return with_velocities(crystal, 600.0, seed=1)


def figures_of(short: list[Trace], long: Trace) -> dict:
    return {
        "engine": long.engine,
        "timesteps_fs": [t.timestep for t in short],
        "fluctuations_meV_per_atom": [t.fluctuation for t in short],
        "ten_ps": long.figures(),
    }


def draw(traces: dict[str, Trace]) -> Figure:
    figure = Figure(figsize=(8, 2.1 * len(traces)), layout="constrained")
    axes = figure.subplots(len(traces), 1, sharex=True)
    for axis, (name, trace) in zip(axes, traces.items(), strict=True):
        axis.plot(trace.time / 1000, 1e3 * (trace.total - trace.total[0]), lw=0.4)
        axis.set_title(
            f"{name}: {trace.drift:+.1e} ± {trace.drift_error:.0e} meV/atom/ps", fontsize=10
        )
        axis.set_ylabel("E - E(0)\n(meV/atom)")
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("time (ps)")
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--runs", type=Path, default=Path("runs/smooth"))
    parser.add_argument("--ps", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=Path())
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    runs = {name: trained(name, options.data, options.runs / name) for name in NETWORKS}
    variants = {
        "esen": (runs["esen"] / "model.pth", "fused"),
        "equiformer_v2": (runs["equiformer_v2"] / "model.pth", "fused"),
        "equiformer_v2 without envelope": (
            without_envelope(runs["equiformer_v2"], options.runs / "without_envelope.pth"),
            "torch",
        ),
    }
    long: dict[str, Trace] = {}
    results, rows = {}, []
    for name, (path, engine) in variants.items():
        calculator = EquivariantCalculator(
            path, engine=engine, dtype="float64", threads=1, on_domain_exit="ignore"
        )
        start = relaxed(calculator)
        short = [run_ase(start, calculator, dt, round(1000 * SHORT / dt)) for dt in TIMESTEPS]
        long[name] = run_ase(start, calculator, 1.0, round(1000 * options.ps))
        results[name] = figures_of(short, long[name]) | {"calculator": engine}
        trace = long[name]
        rows.append(
            [name, *(f"{t.fluctuation:.5f}" for t in short), f"{trace.fluctuation:.4f}",
             f"{trace.drift:+.1e}", f"{trace.drift_error:.0e}"]
        )  # fmt: skip
        print(rows[-1], flush=True)
    columns = ["", *(f"rms at {dt:g} fs" for dt in TIMESTEPS), "rms, 10 ps", "drift", "±"]
    note = "rms in meV/atom around a line, drift in meV/atom/ps."
    print(Table("8 atoms of silicon", columns, rows, note))
    write_json(options.out / "smooth_nve.json", {"num_atoms": 8, "runs": results})
    write_bytes(options.out / "smooth_nve.png", png(draw(long)))


if __name__ == "__main__":
    main()
