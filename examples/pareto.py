"""Errors over cost: four architectures of three sizes each, trained equally long on two data sets.

    python examples/pareto.py --data PATH/TO/DATA --runs runs/pareto --out examples [--share 0.2]

Molecules of acetylacetone at 300 K and mlearn silicon. All networks take the same number of steps
on the same frames, with the same cutoff, optimizer and learning rate; the best epoch on validation
frames counts, and test frames are looked at once. Costs are CPU time per atom and step of dynamics
on one thread, list of neighbours included, in the fused engine with float32, all networks by turns.
Runs that are there go on or are left as they are, so that an interrupted script can be started
again; one that is given a larger --share than before trains further. Writes pareto.json and
pareto.png. One core takes two hours for the 24 networks, and a tenth of it with --share 0.1:
beginnings, not final errors, which the picture says.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase import Atoms
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, ScalarFormatter

from eqcalc import EquivariantCalculator
from eqcalc.data.frames import read_frames
from eqcalc.training.config import from_dict
from eqcalc.training.evaluate import evaluate_results
from eqcalc.training.run import train

SIZES = ("small", "medium", "large")
#: options of each architecture that all sizes share, and those of each size
NETWORKS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "nequip": (
        {"num_layers": 3, "l_max": 2, "product_channels": 0},
        [{"num_channels": c} for c in ([16, 8, 8], [32, 16, 16], [64, 32, 32])],
    ),
    "mace": ({"num_layers": 2, "l_max": 2}, [{"num_channels": c} for c in (8, 16, 32)]),
    "esen": (
        {"num_layers": 2, "l_max": 3},
        [
            {"num_channels": c, "hidden_channels": c, "feed_forward_channels": 2 * c}
            for c in (8, 16, 32)
        ],
    ),
    "equiformer": (
        {"num_layers": 2, "l_max": 2},
        [
            {"num_channels": c, "hidden_channels": h, "feed_forward_channels": 2 * c}
            for c, h in ((8, 4), (16, 8), (32, 16))
        ],
    ),
}
REPEATS = 9


@dataclass(frozen=True)
class Set:
    """Frames, and what is trained on them.

    Attributes:
        data: section [data], file names below the folder of the data.
        epochs, batch_size: of every network.
        measure: what its papers quote; energy: of the molecule or by atom, in meV.
    """

    title: str
    folder: str
    test: str
    data: dict[str, Any]
    cutoff: float
    epochs: int
    batch_size: int
    energy: str


SETS = {
    "acac": Set(
        "AcAc, 300 K",
        "acac",
        "test_MD_300K.xyz.gz",
        {"train": "train_300K.xyz.gz", "isolated_atoms": "isolated_atoms.xyz.gz"},
        cutoff=4.0,
        epochs=40,
        batch_size=5,
        energy="energy_total",
    ),
    "si": Set(
        "mlearn Si",
        "mlearn_Si",
        "test.xyz.gz",
        {"train": "train.xyz.gz"},
        cutoff=4.5,
        epochs=20,
        batch_size=4,
        energy="energy",
    ),
}


def networks() -> list[tuple[str, str, dict[str, Any]]]:
    """Architecture, size, options."""
    return [
        (name, size, {"architecture": name, "radial_mlp": [32], **shared, **own})
        for name, (shared, sizes) in NETWORKS.items()
        for size, own in zip(SIZES, sizes, strict=True)
    ]


def trained(entry: Set, model: dict[str, Any], data: Path, out: Path, epochs: int) -> Path:
    """The potential of a run that is finished here if it is not."""
    spent = out / "cost.json"
    before = json.loads(spent.read_text("utf-8")) if spent.is_file() else {"epochs": 0}
    if before["epochs"] >= epochs:
        return out / "model.pth"
    folder = data / entry.folder
    files = {key: str(folder / name) for key, name in entry.data.items()}
    config = from_dict(
        {
            "data": files | {"train": [files["train"]], "val_fraction": 0.1},
            "model": {"cutoff": entry.cutoff, **model},
            "training": {
                "epochs": epochs,
                "batch_size": entry.batch_size,
                "threads": 1,
                "learning_rate": 0.01,
            },
        }
    )
    start = time.process_time()
    train(config, out, quiet=True)
    cost = {"epochs": epochs, "cpu_seconds": round(time.process_time() - start, 1)}
    spent.write_text(json.dumps(cost), encoding="utf-8")
    return out / "model.pth"


def crowd(frame: Atoms, *, apart: float = 15.0) -> Atoms:
    """27 molecules far from each other, or a cell of at least 64 atoms: something to time."""
    if frame.pbc.any():
        return frame.repeat(2) if len(frame) < 64 else frame.copy()
    atoms = frame.copy()
    atoms.set_cell([apart] * 3)
    atoms.set_constraint()
    return atoms.repeat(3)


def seconds_by_turns(models: dict[str, Path], frame: Atoms) -> dict[str, float]:
    """CPU time of a step for each atom."""
    systems = {}
    for name, path in models.items():
        systems[name] = crowd(frame)
        systems[name].calc = EquivariantCalculator(
            path, device="cpu", engine="fused", on_domain_exit="ignore"
        )
        systems[name].get_forces()
    taken: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(REPEATS):
        for name, atoms in systems.items():
            atoms.rattle(1e-3)
            start = time.process_time()
            atoms.get_forces()
            taken[name].append((time.process_time() - start) / len(atoms))
    return {name: statistics.median(values) for name, values in taken.items()}


def errors_of(path: Path, entry: Set, frames: list) -> dict[str, float]:
    """Mean absolute errors of the test frames, in meV and meV/Å."""
    calculator = EquivariantCalculator(path, on_domain_exit="ignore")
    results = calculator.evaluate(frame.atoms for frame in frames)
    found = evaluate_results(frames, results).summary()["all"]
    return {
        "parameters": calculator.potential.metadata["num_parameters"],
        "forces_mae": found["forces"]["mae"],
        "energy_mae": found[entry.energy]["mae"],
    }


def results_of(entry: Set, data: Path, runs: Path, epochs: int) -> dict[str, dict[str, dict]]:
    """By architecture and size: errors, µs per atom."""
    models = {}
    for name, size, options in networks():
        out = runs / f"{name}_{size}"
        models[f"{name} {size}"] = trained(entry, options, data, out, epochs)
        print(entry.title, name, size, (out / "cost.json").read_text("utf-8"), flush=True)
    frames = read_frames(data / entry.folder / entry.test)
    seconds = seconds_by_turns(models, frames[0].atoms)
    found: dict[str, dict[str, dict]] = {name: {} for name in NETWORKS}
    for label, path in models.items():
        name, size = label.split()
        found[name][size] = {
            "us_per_atom": round(1e6 * seconds[label], 1),
            **errors_of(path, entry, frames),
        }
        print(entry.title, label, found[name][size], flush=True)
    return found


def units(entry: Set) -> dict[str, str]:
    """Of the figures of a set; molecules have energies as a whole."""
    energy = "meV" if entry.energy == "energy_total" else "meV/atom"
    return {"us_per_atom": "µs per atom and step", "forces_mae": "meV/Å", "energy_mae": energy}


def draw(results: dict[str, dict], path: Path) -> None:
    """Errors of forces and energies over the time per atom, a column for each set."""
    figure = Figure(figsize=(9, 7.2), layout="constrained")
    axes = figure.subplots(2, len(results), squeeze=False, sharex="col")
    for column, (name, result) in zip(axes.T, results.items(), strict=True):
        entry = SETS[name]
        unit = units(entry)
        labels = [(f"{key}_mae", f"{key} ({unit[f'{key}_mae']})") for key in ("forces", "energy")]
        for axis, (key, label) in zip(column, labels, strict=True):
            for network, sizes in result["networks"].items():
                rows = sizes.values()
                axis.loglog([r["us_per_atom"] for r in rows], [r[key] for r in rows], "o-", ms=5)
                axis.lines[-1].set_label(network)
            axis.set_ylabel(f"test MAE of {label}")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
            axis.yaxis.set_major_formatter(ScalarFormatter())
            axis.minorticks_off()
            axis.grid(alpha=0.3, which="both")
        share = "" if result["share"] == 1 else f", {result['share']:.2g} of a full training"
        column[0].set_title(f"{entry.title}: {result['steps']} steps each{share}", fontsize=10)
        column[-1].set_xlabel("CPU time per atom and step (µs), one thread")
        column[-1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        column[-1].xaxis.set_major_formatter(ScalarFormatter())
    axes[0, 0].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--runs", type=Path, default=Path("runs/pareto"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=Path(), help="where to write")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--share", type=float, default=1.0, help="of the epochs of each set")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "pareto.json"
    results = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    for name in options.sets:
        entry = SETS[name]
        train_frames = len(read_frames(options.data / entry.folder / entry.data["train"]))
        epochs = max(1, round(options.share * entry.epochs))
        steps = epochs * -(-round(0.9 * train_frames) // entry.batch_size)
        found = results_of(entry, options.data, options.runs / name, epochs)
        results[name] = {
            "steps": steps,
            "share": epochs / entry.epochs,
            "units": units(entry),
            "networks": found,
        }
        text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8")
        draw(results, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
