"""A run folder: what is in it, how it is read again, and whose run it holds.

RUN/config.json      every option as it was used
RUN/setup.json       elements, reference energies, split and data hash (eqcalc.training.setup)
RUN/history.csv      errors after each epoch; it says which epoch was the best
RUN/last.ckpt        after the newest epoch; training resumes from it
RUN/best.ckpt        of the lowest validation loss (of the last stage); it is what gets exported
RUN/summary.json     errors of the best model by config_type
RUN/learning_curve.png, RUN/parity.png
RUN/model.pth        the export
RUN/tensorboard/     history.csv for TensorBoard, on request
RUN/pretrain/        the run before, with a section [pretrain]: see `eqcalc.training.pretrain`
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import torch

from eqcalc.errors import InputError
from eqcalc.files import user_path
from eqcalc.models.base import Potential
from eqcalc.training.config import from_dict
from eqcalc.training.former import present_state
from eqcalc.training.network import build_model
from eqcalc.training.options import Config
from eqcalc.training.setup import RunSetup

#: options that may change between a run and its resumption: past epochs do not depend on them
FREE = {"threads", "device", "fused", "tensorboard", "patience"}


class StoredRun(NamedTuple):
    """A run as its folder holds it; `epoch` is that of the checkpoint."""

    config: Config
    model: Potential
    setup: RunSetup
    epoch: int


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def check_same_run(out: Path, config: Config, setup: RunSetup, *, extend: bool = True) -> None:
    """A folder may be resumed by the same run only; `extend`: or by one of more epochs.

    Raises:
        InputError: it holds a run of other options or other data.
    """
    # read through the dataclasses, so that options added since then have their defaults
    old = from_dict(read_json(out / "config.json")).to_dict()
    new = config.to_dict()
    changed = [
        f"{section}.{key}"
        for section in ("model", "fine_tune", "pretrain", "training")
        for key, value in new[section].items()
        if old[section][key] != value and key not in FREE
    ]
    if extend and new["training"]["epochs"] > old["training"]["epochs"]:
        changed.remove("training.epochs")
    if not setup.agrees_with(read_json(out / "setup.json")):
        changed.append("the data")
    if changed:
        raise InputError(
            f"{out} holds a run with another setting of {', '.join(changed)}: choose another "
            "folder with --out, or restore the setting to resume. (Only training.epochs can be "
            "raised: that extends the run. To go on from its weights with other settings, train "
            f"into another folder with fine_tune.model = '{out}'.)"
        )


def ends_before(out: Path, config: Config) -> list[int]:
    """Epochs at which the run in this folder was to end before `config` raises them; ascending.

    The same whether or not the folder says already that it is extended.
    """
    asked = from_dict(read_json(out / "config.json")).training.epochs  # before setup.json: see run
    ends = RunSetup.from_dict(read_json(out / "setup.json")).ends
    return sorted({e for e in (*ends, asked) if e < config.training.epochs})


def _fixed(config: Config) -> dict[str, Any]:
    """What may not change."""
    document = config.to_dict()
    for name in FREE:
        del document["training"][name]
    return document


def is_finished(out: Path, config: Config) -> bool:
    """Whether a run of just this config has come to its end."""
    if not all((out / name).is_file() for name in ("config.json", "summary.json")):
        return False
    return _fixed(from_dict(read_json(out / "config.json"))) == _fixed(config)


def not_a_checkpoint(path: Path) -> InputError:
    """Of a file that holds other objects than tensors and numbers, or is no checkpoint at all."""
    return InputError(
        f"{path} is no checkpoint of eqcalc, which holds tensors and numbers alone: it was not "
        "opened, since it could run code; restore the file, or train again."
    )


def load_run(out: str | Path, checkpoint: str = "best.ckpt") -> StoredRun:
    """Config, set-up and model of a checkpoint (averaged weights, where there are) of a run."""
    out = user_path(out)
    for name in ("config.json", "setup.json", checkpoint):
        if not (out / name).is_file():
            raise InputError(
                f"{out} is not a finished training run: {name} is missing; 'eqcalc train' makes it."
            )
    config = from_dict(read_json(out / "config.json"))
    setup = RunSetup.from_dict(read_json(out / "setup.json"))
    model = build_model(config, setup.constants)
    try:
        saved = torch.load(out / checkpoint, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise not_a_checkpoint(out / checkpoint) from None
    # weights in the precision they were trained in; constants stay in float64, so that the export
    # is exactly equivariant in either precision
    state = present_state(saved["state_dict"])
    for name, parameter in model.named_parameters():
        parameter.data = state[f"model.{name}"]
    return StoredRun(config, model.eval(), setup, int(saved["epoch"]))
