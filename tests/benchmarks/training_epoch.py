"""Time of a training epoch against NequIP: the same network, frames and batch, one thread.

    python tests/benchmarks/training_epoch.py [--repeats 3] [--environments FOLDER]
        [--out training.json]

Energies, forces and stress in the loss, AdamW, averaged weights, float32; 4 layers of 64 channels
per degree. `nequip-train`, eager and compiled, and `eqcalc train`, with AdamW and with its default
Muon, take turns, each for EPOCHS epochs, of which the first (compilation, caches) is left out;
medians over epochs and turns. Ratios are of CPU time, as in inference.py. Labels are made up, which
changes no speed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from cases import CUTOFF
from environments import python_of
from report import machine

HERE = Path(__file__).parent
EPOCHS = 4
CHANNELS = [64, 64, 64]
LAYERS = 4
RADIAL_MLP = [64, 64]
SETS = {  # name: (frames, batch size)
    "silicon": (24, 2),
    "ethanol": (120, 5),
}


def frames_of(name: str) -> list[Atoms]:
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(SETS[name][0]):
        if name.startswith("silicon"):
            atoms = bulk("Si", cubic=True).repeat(2)
        else:
            atoms = molecule("CH3CH2OH", vacuum=6.0, pbc=True)
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
        atoms.calc = SinglePointCalculator(
            atoms,
            energy=float(rng.normal()),
            forces=rng.normal(size=atoms.positions.shape),
            stress=0.001 * rng.normal(size=6),
        )
        frames.append(atoms)
    return frames


def eqcalc_config(data: Path, batch: int, optimizer: str, epochs: int = EPOCHS) -> str:
    """Our config in TOML."""
    return f"""[data]
train = ["{data}"]
val = ["{data.with_name("val.xyz")}"]
[model]
cutoff = {CUTOFF}
num_layers = {LAYERS}
num_channels = {CHANNELS}
radial_mlp = {RADIAL_MLP}
product_channels = 0
[training]
epochs = {epochs}
batch_size = {batch}
optimizer = "{optimizer}"
learning_rate = 0.005
threads = 1
device = "cpu"
"""


def eqcalc_command(data: Path, batch: int, optimizer: str, work: Path, times: Path) -> list[str]:
    config = work / f"eqcalc-{optimizer}.toml"
    config.write_text(eqcalc_config(data, batch, optimizer), encoding="utf-8")
    return [sys.executable, str(HERE / "epoch_timer.py"), str(config), str(work), str(times)]


def nequip_command(
    python: Path, mode: str, data: Path, symbols: list[str], batch: int, work: Path, times: Path
) -> list[str]:
    transforms = [
        {
            "_target_": "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper",
            "model_type_names": symbols,
        },
        {"_target_": "nequip.data.transforms.NeighborListTransform", "r_max": CUTOFF},
    ]
    loader = {"_target_": "torch.utils.data.DataLoader", "batch_size": batch}
    coefficients = {"total_energy": 1.0, "forces": 1.0, "stress": 1.0}
    config = {
        "run": ["train"],
        "data": {
            "_target_": "nequip.data.datamodule.ASEDataModule",
            "seed": 1,
            "train_file_path": str(data),
            "val_file_path": str(data.with_name("val.xyz")),
            "transforms": transforms,
            "train_dataloader": loader | {"shuffle": True},
            "val_dataloader": loader,
        },
        "trainer": {
            "_target_": "lightning.Trainer",
            "accelerator": "cpu",
            "max_epochs": EPOCHS,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "callbacks": [{"_target_": "epoch_timer.EpochTimer", "path": str(times)}],
        },
        "training_module": {
            "_target_": "nequip.train.EMALightningModule",
            "ema_decay": 0.995,
            "loss": {
                "_target_": "nequip.train.EnergyForceStressLoss",
                "per_atom_energy": True,
                "coeffs": coefficients,
            },
            "val_metrics": {
                "_target_": "nequip.train.EnergyForceStressMetrics",
                "coeffs": {"total_energy_mae": 1.0, "forces_mae": 1.0, "stress_mae": 1.0},
            },
            "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.005},
            "model": {
                "_target_": "nequip.model.NequIPGNNModel",
                "compile_mode": mode,
                "seed": 1,
                "model_dtype": "float32",
                "type_names": symbols,
                "r_max": CUTOFF,
                "num_layers": LAYERS,
                "l_max": len(CHANNELS) - 1,
                "parity": False,
                "num_features": CHANNELS,
                "radial_mlp_depth": len(RADIAL_MLP),
                "radial_mlp_width": RADIAL_MLP[0],
                "num_bessels": 8,
                "avg_num_neighbors": 20.0,
                "per_type_energy_scales": 1.0,
                "per_type_energy_shifts": 0.0,
            },
        },
    }
    (work / "nequip.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    tool = python.with_name("nequip-train")
    out = tempfile.mkdtemp(dir=work)
    return [str(tool), "-cp", str(work), "-cn", "nequip", f"hydra.run.dir={out}"]


def epochs(command: list[str], times: Path) -> list[dict[str, float]]:
    """Seconds of the epochs of one turn but the first."""
    times.unlink(missing_ok=True)
    one = {f"{k}_NUM_THREADS": "1" for k in ("OMP", "MKL", "OPENBLAS")}
    environment = os.environ | one | {"PYTHONPATH": str(HERE)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-800:]}\n{done.stderr[-2000:]}")
    lines = times.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines][1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--environments", type=Path, default=Path("build/peers"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    python = python_of("nequip", options.environments)
    results = {}
    for name in options.sets:
        batch = SETS[name][1]
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            frames = frames_of(name)
            data, times = work / "train.xyz", work / "times.jsonl"
            write(data, frames)
            write(data.with_name("val.xyz"), frames[:2])
            symbols = sorted(set(frames[0].symbols))
            commands = {
                "eqcalc": eqcalc_command(data, batch, "adamw", work, times),
                "eqcalc, Muon": eqcalc_command(data, batch, "muon", work, times),
                **{
                    f"NequIP {mode}": nequip_command(
                        python, mode, data, symbols, batch, work, times
                    )
                    for mode in ("eager", "compile")
                },
            }
            seconds: dict[str, list[dict[str, float]]] = {label: [] for label in commands}
            for _ in range(options.repeats):
                for label, command in commands.items():
                    seconds[label] += epochs(command, times)
        medians = {
            label: {k: float(np.median([t[k] for t in taken])) for k in ("wall", "cpu")}
            for label, taken in seconds.items()
        }
        size = f"{len(frames)} frames of {len(frames[0])} atoms, batch {batch}"
        print(f"\n{name}, {size}: s per epoch (CPU, clock), ratio")
        for label, took in medians.items():
            ratio = took["cpu"] / medians["eqcalc"]["cpu"]
            print(f"  {label:<16}{took['cpu']:8.2f}{took['wall']:8.2f}{ratio:8.2f}", flush=True)
        results[name] = medians
        if options.out:
            document = {"machine": machine(), "seconds_per_epoch": results}
            options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
