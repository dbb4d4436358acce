"""Several models of one config that differ in their seeds, and how much they disagree."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from eqcalc.data.dataset import GraphDataset
from eqcalc.errors import InputError
from eqcalc.files import user_path, write_json
from eqcalc.models.base import Potential
from eqcalc.names import member_files
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
    sources = _members(config.fine_tune.model) or [config.fine_tune.model]
    return [
        dataclasses.replace(
            config,
            training=dataclasses.replace(config.training, seed=first + k),
            fine_tune=dataclasses.replace(config.fine_tune, model=sources[k % len(sources)]),
        )
        for k in range(size)
    ]


def _members(folder: str) -> list[str]:
    """The potential files of a committee's folder; none of anything else."""
    if not folder or not (user_path(folder) / "committee.json").is_file():
        return []
    return [str(path) for path in member_files([folder])]


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
    write_json(out / "committee.json", summary)
    return summary


def assess(models: Sequence[Potential], sets: Sequence[GraphDataset]) -> dict[str, Any]:
    """Errors of the mean prediction, and the members' spread around it.

    The spread of a frame's energy per atom is its standard deviation over the members, that of an
    atom's force sqrt(<|F - <F>|^2>), as in `eqcalc.committee.forces_deviation`; given are the root
    mean square and the largest one in the units of `UNITS`.
    """
    errors = Errors()
    spread: dict[str, list[torch.Tensor]] = {"energy": [], "forces": []}
    for item in (item for frames in sets for item in frames):
        predictions = [predict(model, item) for model in models]
        energy, forces, stress = (
            torch.stack([getattr(p, name) for p in predictions])
            for name in ("energy", "forces", "stress")
        )
        mean = Prediction(energy.mean(0), forces.mean(0), stress.mean(0))
        errors.add(residuals(mean, item))
        spread["energy"].append((energy - mean.energy).square().mean(0).sqrt() / item.num_atoms)
        deviation = (forces - mean.forces).square().sum(-1).mean(0).sqrt()
        spread["forces"].append(deviation)
    disagreement = {}
    for name, parts in spread.items():
        values = torch.cat(parts) * UNITS[name][1]
        disagreement[name] = {
            "rms": float(values.square().mean().sqrt()),
            "max": float(values.max()),
            "unit": UNITS[name][0],
        }
    return {"errors": errors.summary(), "disagreement": disagreement}


def format_committee(summary: dict[str, Any]) -> str:
    """The disagreement in words."""
    parts = [
        f"{name} {d['rms']:.2f} (at most {d['max']:.2f}) {d['unit']}"
        for name, d in summary["disagreement"].items()
    ]
    return f"Members disagree on validation frames by, root mean square: {'; '.join(parts)}."
