"""Every option of training, with its default, in one place; read from TOML and checked.

Sections of the file are the dataclasses below: [data], [model], [training].
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from eqcalc.errors import InputError, did_you_mean
from eqcalc.models.nequip import NequIPConfig


@dataclass(frozen=True)
class DataConfig:
    """Where the frames come from.

    Attributes:
        train: files that ASE reads; relative paths start at the config file.
        val: validation files; empty holds out `val_fraction` of the training frames.
        val_fraction: share of frames held out, at least one frame.
        energy_key, forces_key, stress_key: names of the labels.
        isolated_atoms: a file of one-atom frames whose energies become the reference energies.
        reference_energies: eV of an isolated atom by symbol, e.g. {Si = -0.1}; over the file.
    """

    train: list[str] = field(default_factory=list)
    val: list[str] = field(default_factory=list)
    val_fraction: float = 0.1
    energy_key: str = "energy"
    forces_key: str = "forces"
    stress_key: str = "stress"
    isolated_atoms: str = ""
    reference_energies: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingConfig:
    """How the weights are found.

    Attributes:
        epochs: upper limit.
        batch_size: structures per step.
        optimizer: "muon" (Muon for matrices, AdamW for the rest) or "adamw". Muon needs a third to
            a fifth of the epochs; AdamW wants half of Muon's learning rate.
        learning_rate: the highest of the schedule.
        schedule: "cosine" to zero over `epochs`, or "plateau" (halved when validation stalls).
        warmup_steps: linear warm-up of the learning rate.
        weight_decay: decoupled, per unit of learning rate.
        gradient_clip: largest norm of the gradient; 0 for none.
        loss: "huber", "mae" or "mse", of energy per atom, force and stress components.
        energy_weight, force_weight, stress_weight: per eV/atom, eV/Å and eV/Å^3 of "huber" and
            "mae"; per square of these for "mse".
        huber_delta: where "huber" turns from quadratic to linear, for the energy per atom in
            eV; ten times that for forces in eV/Å; as it is for stress in eV/Å^3.
        ema_decay: of the averaged weights that are validated and exported; 0 for none.
        patience: epochs without improvement before stopping; 0 for never.
        seed: of weights, split and shuffling.
        precision: "float32" or "float64".
        device: "cpu", "cuda" or "auto".
        threads: torch threads on CPU; 0 leaves torch's own choice.
        fused: compile the convolutions for this machine (CPU only; several times faster, the same
            numbers to rounding); without a C++ compiler training says so and goes on without.
    """

    epochs: int = 200
    batch_size: int = 4
    optimizer: Literal["muon", "adamw"] = "muon"
    learning_rate: float = 1e-2
    schedule: Literal["cosine", "plateau"] = "cosine"
    warmup_steps: int = 100
    weight_decay: float = 1e-6
    gradient_clip: float = 10.0
    loss: Literal["huber", "mae", "mse"] = "huber"
    energy_weight: float = 1.0
    force_weight: float = 1.0
    stress_weight: float = 10.0
    huber_delta: float = 0.002
    ema_decay: float = 0.995
    patience: int = 0
    seed: int = 1
    precision: Literal["float32", "float64"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    fused: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate", "huber_delta"):
            if getattr(self, name) <= 0:
                raise InputError(f"training.{name} must be positive, not {getattr(self, name)}.")
        if not 0.0 <= self.ema_decay < 1.0:
            raise InputError(f"training.ema_decay must be in [0, 1), not {self.ema_decay}.")


@dataclass(frozen=True)
class Config:
    """A training run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: NequIPConfig = field(default_factory=NequIPConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def _check(value: Any, kind: Any, name: str) -> Any:
    """`value` as `kind` (int for float allowed), or an InputError that names the option."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in args:
            raise InputError(f"{name} = {value!r}: it must be one of {', '.join(map(str, args))}.")
        return value
    if origin is list:
        if isinstance(value, str) and args[0] is str:
            value = [value]
        if not isinstance(value, list):
            raise InputError(f"{name} = {value!r}: a list is expected.")
        return [_check(v, args[0], f"{name}[{n}]") for n, v in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise InputError(f"{name} = {value!r}: a table is expected.")
        return {k: _check(v, args[1], f"{name}.{k}") for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"{name} = {value!r}: {kind.__name__} is expected.")
    return value


def from_dict(document: dict[str, Any], kind: type = Config, prefix: str = "") -> Any:
    """A config dataclass from nested dicts; an unknown key is an error with the nearest one."""
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in document.items():
        if key not in hints:
            raise InputError(f"Unknown option '{prefix}{key}'{did_you_mean(key, hints)}.")
        hint = hints[key]
        if dataclasses.is_dataclass(hint) and not isinstance(hint, types.GenericAlias):
            if not isinstance(value, dict):
                raise InputError(f"'{prefix}{key}' is a section: write [{prefix}{key}].")
            values[key] = from_dict(value, hint, f"{prefix}{key}.")
        else:
            values[key] = _check(value, hint, f"{prefix}{key}")
    return kind(**values)


def read_config(path: str | Path) -> Config:
    """A TOML file; its data paths are made absolute, relative to the file."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no file '{path}'.")
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"'{path}' is not valid TOML: {error}.") from None
    config = from_dict(document)
    here = path.resolve().parent
    data = config.data
    absolute = {
        "train": [str(here / p) for p in data.train],
        "val": [str(here / p) for p in data.val],
        "isolated_atoms": str(here / data.isolated_atoms) if data.isolated_atoms else "",
    }
    return dataclasses.replace(config, data=dataclasses.replace(data, **absolute))


def override(config: Config, assignments: list[str]) -> Config:
    """`section.key=value` strings, the value in TOML, on top of a config."""
    document = config.to_dict()
    for text in assignments:
        name, equals, value = text.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (equals and dot):
            raise InputError(f"'{text}': write an override as section.option=value.")
        try:
            parsed = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            parsed = value.strip()
        if section not in document:
            raise InputError(f"Unknown section '{section}'{did_you_mean(section, document)}.")
        document[section][key] = parsed
    return from_dict(document)
