"""Tiny training runs: options, data with labels from a formula, and what a run ends with."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.morse import MorsePotential
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from eqcalc.training.callbacks import Checkpoints
from eqcalc.training.config import from_dict
from eqcalc.training.options import Config
from eqcalc.training.run import train

MODEL = {
    "cutoff": 4.0,
    "num_layers": 2,
    "l_max": 1,
    "num_channels": [6, 4],
    "product_channels": 0,
    "radial_mlp": [8],
    "readout": 4,
}


def write_frames(path, count, *, symbols="LiH", config_type="molecule", seed=0, **info) -> str:
    """Molecules of four to six atoms, elements by turns, with energies of a Morse potential."""
    generator = np.random.default_rng(seed)
    frames = []
    elements = Atoms(symbols).get_chemical_symbols()
    for n in range(count):
        size = 4 + n % 3
        grid = np.array([[i % 2, i // 2 % 2, i // 4] for i in range(size)]) * 1.7
        atoms = Atoms(
            [elements[(i + n) % len(elements)] for i in range(size)],
            positions=grid + 0.15 * generator.normal(size=(size, 3)),
        )
        atoms.calc = MorsePotential(epsilon=1.0, r0=1.6, rho0=3.0, rcut1=3.0, rcut2=4.0)
        labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        labels["energy"] += sum(-2.0 - 0.1 * z for z in atoms.numbers)
        atoms.calc = SinglePointCalculator(atoms, **labels)
        atoms.info.update(config_type=config_type, **info)
        frames.append(atoms)
    write(path, frames, format="extxyz")
    return str(path)


def tiny(train: str, *, data=None, fine_tune=None, model=None, **training) -> Config:
    """Four epochs of a network of a few hundred parameters."""
    document = {
        "data": {"train": [train], "val_fraction": 0.25, **(data or {})},
        "fine_tune": fine_tune or {},
        "training": {
            "epochs": 4,
            "batch_size": 4,
            "warmup_steps": 2,
            "threads": 1,
            "ema_decay": 0.9,
            "device": "cpu",
            "fused": False,
            **training,
        },
    }
    if not fine_tune or model:
        document["model"] = MODEL | (model or {})
    return from_dict(document)


def checkpoint(out: Path, name: str = "last.ckpt") -> dict:
    return torch.load(Path(out) / name, weights_only=True)


def weights(out: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    """Those that are trained, not their average."""
    saved = checkpoint(out, name)
    return saved.get("current_model_state", saved["state_dict"])


def history(out: Path) -> list[list[str]]:
    """Rows without the seconds."""
    rows = [line.split(",") for line in (Path(out) / "history.csv").read_text().splitlines()]
    return [[v for v, name in zip(row, rows[0], strict=False) if name != "seconds"] for row in rows]


def column(out: Path, name: str) -> list[float]:
    header, *rows = history(out)
    return [float(row[header.index(name)]) for row in rows]


class Killed(BaseException):
    """Nobody catches it, as nobody catches SIGKILL."""


def train_and_kill(
    config: Config, out: Path, monkeypatch, *, kill_in: int = 2, part: str = ""
) -> None:
    """Breaks a run off after the history of an epoch is written, before its checkpoint is.

    part: the folder of the run that is broken off, in `out`.
    """
    plain = Checkpoints.on_train_epoch_end

    def killing(self, trainer, task):
        if trainer.current_epoch == kill_in:
            raise Killed
        plain(self, trainer, task)

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "on_train_epoch_end", killing)
        with pytest.raises(Killed):
            train(config, out, quiet=True)
    assert checkpoint(out / part)["epoch"] == kill_in - 1


def train_in_pieces(config: Config, out: Path, monkeypatch) -> None:
    """Killed once, resumed once."""
    train_and_kill(config, out, monkeypatch)
    train(config, out, quiet=True)
