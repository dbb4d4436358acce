"""What equivariance buys: errors over the number of training frames, with and without it.

    python examples/data_efficiency.py --data PATH/acac --out examples

Trains on 25, 50, 100 and 200 frames of acetylacetone at 300 K, evenly taken from the 500, with
features up to l_max 2 and with scalars alone (l_max 0; more channels, so that the number of weights
is the same), the same number of steps each, and tests on frames of another run. Writes
data_efficiency.json and data_efficiency.png; some ten minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from ase.io import read, write
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, ScalarFormatter

from eqcalc.data.dataset import FrameDataset
from eqcalc.data.frames import read_frames
from eqcalc.export import load
from eqcalc.training.config import from_dict
from eqcalc.training.evaluate import evaluate
from eqcalc.training.run import train

NETWORKS = {
    "equivariant (l_max 2)": {"l_max": 2, "num_channels": [32, 16, 16]},
    "invariant (l_max 0)": {"l_max": 0, "num_channels": [52]},
}
FRAMES = (25, 50, 100, 200)
BATCH = 5


def run(network: dict, frames: list, data: Path, steps: int, folder: Path) -> dict:
    """Errors of one network on the test frames."""
    folder.mkdir()
    write(folder / "train.xyz", frames)
    held_out = max(2, len(frames) // 10)
    config = from_dict(
        {
            "data": {
                "train": [str(folder / "train.xyz")],
                "isolated_atoms": str(data / "isolated_atoms.xyz.gz"),
                "val_fraction": held_out / len(frames),
            },
            "model": {"num_layers": 3, "product_channels": 0, "radial_mlp": [32], **network},
            "training": {
                "epochs": round(steps / -(-(len(frames) - held_out) // BATCH)),
                "batch_size": BATCH,
                "learning_rate": 0.03,
                "threads": 1,
            },
        }
    )
    train(config, folder / "run", quiet=True)
    potential = load(folder / "run" / "model.pth")
    test = read_frames(data / "test_MD_300K.xyz.gz")[::3]
    dataset = FrameDataset(test, potential.atomic_numbers, potential.cutoff)
    errors = evaluate(potential.module, dataset).summary()["all"]
    return {
        "parameters": potential.metadata["num_parameters"],
        "forces_mae": errors["forces"]["mae"],
        "energy_mae": errors["energy_total"]["mae"],
    }


def draw(results: dict[str, dict[str, dict]], path: Path) -> None:
    """Two panels of errors over frames, both axes logarithmic."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, key, label in zip(
        axes, ("forces_mae", "energy_mae"), ("forces (meV/Å)", "energy (meV)"), strict=True
    ):
        for name, rows in results.items():
            size = next(iter(rows.values()))["parameters"]
            values = [row[key] for row in rows.values()]
            axis.loglog(
                [int(n) for n in rows], values, "o-", label=f"{name}, {size / 1e3:.0f} k weights"
            )
        axis.set(xlabel="training frames", ylabel=f"test MAE of {label}")
        axis.set_xticks(FRAMES, [str(n) for n in FRAMES])
        axis.minorticks_off()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.grid(alpha=0.3, which="both")
    axes[0].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the AcAc frames")
    parser.add_argument("--out", type=Path, default=Path(), help="where to write")
    parser.add_argument("--steps", type=int, default=1200, help="optimiser steps of each run")
    options = parser.parse_args()
    images = read(options.data / "train_300K.xyz.gz", ":")
    results: dict[str, dict[str, dict]] = {name: {} for name in NETWORKS}
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for count in FRAMES:
            frames = [images[k * len(images) // count] for k in range(count)]
            for number, (name, network) in enumerate(NETWORKS.items()):
                folder = Path(scratch) / f"{count}_{number}"
                results[name][str(count)] = run(
                    network, frames, options.data, options.steps, folder
                )
                print(count, name, results[name][str(count)], flush=True)
    units = {"forces_mae": "meV/Å", "energy_mae": "meV"}
    text = json.dumps({"units": units, **results}, indent=1, ensure_ascii=False) + "\n"
    (options.out / "data_efficiency.json").write_text(text, encoding="utf-8")
    draw(results, options.out / "data_efficiency.png")


if __name__ == "__main__":
    main()
