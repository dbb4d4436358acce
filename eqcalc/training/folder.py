"""A run folder: what is in it, how it is read again, and whose run it holds.

RUN/config.json      every option as it was used
RUN/setup.json       elements, reference energies, split and data hash: what a resume needs
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
import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eqcalc.errors import InputError
from eqcalc.files import user_path
from eqcalc.models.assembled import WithOutputs
from eqcalc.models.base import Potential
from eqcalc.models.registry import build
from eqcalc.nn.crowding import CrowdingConstants
from eqcalc.nn.output_constants import OutputConstants
from eqcalc.nn.reference import PairConstants
from eqcalc.training.config import from_dict
from eqcalc.training.options import Config

#: options that may change between a run and its resumption: past epochs do not depend on them
FREE = {"threads", "device", "fused", "tensorboard", "patience"}


@dataclass(frozen=True)
class Constants:
    """What a network needs besides options and weights.

    Attributes:
        atomic_numbers: Z of each species, ascending.
        avg_num_neighbors: of the training frames.
        scale, shift: eV, one per species.
        message_scales: by layer and irrep, once they are measured (`Potential.calibrate`).
        pair_constants: of the pair potential, where the network has one.
        crowding: where messages begin to fade, once it is measured.
        outputs: of outputs beside the energy, where the network has any.
    """

    atomic_numbers: list[int]
    avg_num_neighbors: float
    scale: list[float]
    shift: list[float]
    message_scales: list[list[float]] | None = None
    pair_constants: PairConstants | None = None
    crowding: CrowdingConstants | None = None
    outputs: OutputConstants | None = None

    @classmethod
    def from_setup(cls, setup: dict[str, Any]) -> Constants:
        """From a setup.json."""
        numbers = setup["atomic_numbers"]
        scale = setup.get("scale", [setup["force_rms"]] * len(numbers))
        shift, scales = setup["reference_energies"], setup["message_scales"]
        pairs = PairConstants(**setup["pair_potential"]) if "pair_potential" in setup else None
        crowding = CrowdingConstants.read(setup["crowding"]) if "crowding" in setup else None
        outputs = OutputConstants(**setup["outputs"]) if "outputs" in setup else None
        neighbors = setup["avg_num_neighbors"]
        return cls(numbers, neighbors, scale, shift, scales, pairs, crowding, outputs)


def build_model(config: Config, constants: Constants) -> Potential:
    """The untrained network, weights drawn from the config's seed, constants in float64."""
    state = torch.random.get_rng_state()
    try:
        torch.manual_seed(config.training.seed)
        model = build(
            config.model,
            constants.atomic_numbers,
            constants.avg_num_neighbors,
            constants.scale,
            constants.shift,
            constants.pair_constants,
        )
    finally:
        torch.random.set_rng_state(state)
    if constants.message_scales:
        model.set_message_scales(constants.message_scales)
    model.limit_crowding(constants.crowding)
    if constants.outputs:
        assert isinstance(model, WithOutputs)  # what outputs are built as
        model.set_output_constants(constants.outputs)
    return model


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _alike(a: Any, b: Any) -> bool:
    """Equal, numbers up to what another way of summing them changes."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-9)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(a[name], b[name]) for name in a)
    return bool(a == b)


def check_same_run(
    out: Path, config: Config, setup: dict[str, Any], *, extend: bool = True
) -> None:
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
    before = read_json(out / "setup.json")  # perhaps of a version that did not measure so much
    skipped = {"ends", *({"domain"} - before.keys())}
    if before.get("crowding", {}).keys() != setup.get("crowding", {}).keys():
        skipped.add("crowding")
    known, new = ({k: v for k, v in s.items() if k not in skipped} for s in (before, setup))
    if not _alike(known, new):
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
    ends = read_json(out / "setup.json").get("ends", [])
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


def load_run(
    out: str | Path, checkpoint: str = "best.ckpt"
) -> tuple[Config, Potential, dict[str, Any]]:
    """Config, model of a checkpoint (averaged weights, where there are) and set-up of a run."""
    out = user_path(out)
    for name in ("config.json", "setup.json", checkpoint):
        if not (out / name).is_file():
            raise InputError(
                f"{out} is not a finished training run: {name} is missing; 'eqcalc train' makes it."
            )
    config = from_dict(read_json(out / "config.json"))
    setup = read_json(out / "setup.json")
    model = build_model(config, Constants.from_setup(setup))
    try:
        saved = torch.load(out / checkpoint, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise not_a_checkpoint(out / checkpoint) from None
    # weights in the precision they were trained in; constants stay in float64, so that the export
    # is exactly equivariant in either precision
    for name, parameter in model.named_parameters():
        parameter.data = saved["state_dict"][f"model.{name}"]
    setup["epoch"] = int(saved["epoch"])
    return config, model.eval(), setup
