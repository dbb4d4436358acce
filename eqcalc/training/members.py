"""Trains the members of a committee: models of one config that differ in their seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eqcalc.committee import FORCES_DEVIATION, consensus
from eqcalc.data.dataset import GraphDataset
from eqcalc.errors import InputError
from eqcalc.files import user_path, write_json
from eqcalc.models.base import Potential
from eqcalc.names import COMMITTEE, is_committee, member_files
from eqcalc.training.distributed import World
from eqcalc.training.folder import load_run
from eqcalc.training.loss import UNITS, Prediction, residuals
from eqcalc.training.options import Config
from eqcalc.training.prepare import prepare
from eqcalc.training.run import train
from eqcalc.training.task import Errors, predict


def members_of(config: Config, size: int, *, resplit: bool = False) -> list[Config]:
    """Configs of the members: seeds training.seed, training.seed + 1, ...

    All hold out the same validation frames, unless `resplit` is set. Where fine_tune.model is the
    folder of a committee, each begins as the member of its place there.
    """
    if size < 2:
        raise InputError(f"--committee {size}: a committee has at least two members.")
    first = config.training.seed
    if config.data.split_seed is None and not resplit:
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, split_seed=first)
        )
    source = config.fine_tune.model
    several = bool(source) and is_committee(source)
    sources = [str(path) for path in member_files([source])] if several else [source]
    return [
        dataclasses.replace(
            config,
            training=dataclasses.replace(config.training, seed=first + k),
            fine_tune=dataclasses.replace(config.fine_tune, model=sources[k % len(sources)]),
        )
        for k in range(size)
    ]


def train_committee(
    config: Config, out: str | Path, size: int, *, resplit: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """Trains members one after another into out/1, out/2, ...; goes on where it was broken off.

    Returns what is also written to `out/committee.json`: errors of the mean of the members and
    their disagreement on the validation frames of the first one. An empty dict on processes other
    than the first.

    Raises:
        InputError, Interrupted: as in `train`.
    """
    out = user_path(out)
    if not config.model.energy:
        raise InputError("Members of a committee disagree on energies: train without --committee.")
    configs = members_of(config, size, resplit=resplit)
    folders = [out / str(k + 1) for k in range(size)]
    for member, folder in zip(configs, folders, strict=True):
        train(member, folder, quiet=quiet)
    if World.from_environment().rank:
        return {}
    frames = list(prepare(configs[0]).val.values())
    models = [load_run(folder)[1] for folder in folders]
    summary = {
        "members": [str(Path(folder.name) / "model.pth") for folder in folders],
        "seeds": [member.training.seed for member in configs],
        **assess(models, frames),
    }
    write_json(out / COMMITTEE, summary)
    return summary


def assess(models: Sequence[Potential], sets: Sequence[GraphDataset]) -> dict[str, Any]:
    """Errors of the mean prediction, and the members' spread around it.

    The spread of a frame's energy per atom and of an atom's force are the deviations of
    `eqcalc.committee`; given are the root mean square and the largest one in the units of `UNITS`.
    """
    errors = Errors()
    spread: dict[str, list[np.ndarray]] = {"energy": [], "forces": []}
    for item in (item for frames in sets for item in frames):
        found = consensus([_results(predict(model, item)) for model in models])
        mean = (torch.from_numpy(found[name]) for name in ("energy", "forces", "stress"))
        errors.add(residuals(Prediction(*mean), item))
        spread["energy"].append(found["energy_std"] / item.num_atoms.numpy())
        spread["forces"].append(found[FORCES_DEVIATION])
    disagreement = {}
    for name, parts in spread.items():
        values = np.concatenate(parts) * UNITS[name][1]
        disagreement[name] = {
            "rms": float(np.sqrt(np.square(values).mean())),
            "max": float(values.max()),
            "unit": UNITS[name][0],
        }
    return {"errors": errors.summary(), "disagreement": disagreement}


def _results(prediction: Prediction) -> dict[str, np.ndarray]:
    """energy [B], forces [N, 3] and stress [B, 3, 3] of a batch under a calculator's names."""
    parts = {"energy": prediction.energy, "forces": prediction.forces, "stress": prediction.stress}
    return {name: part.numpy() for name, part in parts.items() if part is not None}


def format_committee(summary: dict[str, Any]) -> str:
    """The disagreement in words."""
    parts = [
        f"{name} {d['rms']:.2f} (at most {d['max']:.2f}) {d['unit']}"
        for name, d in summary["disagreement"].items()
    ]
    return f"Members disagree on validation frames by, root mean square: {'; '.join(parts)}."
