"""Architectures by name: each is a module of this package, or anybody's, with a config."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

import eqcalc.models
from eqcalc.errors import InputError, did_you_mean
from eqcalc.models.assembled import Assembled, WithOutputs
from eqcalc.models.base import Potential
from eqcalc.models.config import ModelConfig
from eqcalc.nn.reference import PairConstants
from eqcalc.objects import named
from eqcalc.sections import section

DEFAULT = "nequip"


@cache
def architectures() -> dict[str, type[ModelConfig]]:
    """The configs of this package by the name of the architecture."""
    found: dict[str, type[ModelConfig]] = {}
    for module in pkgutil.iter_modules(eqcalc.models.__path__):
        for kind in vars(importlib.import_module(f"eqcalc.models.{module.name}")).values():
            if isinstance(kind, type) and issubclass(kind, ModelConfig) and kind.architecture:
                found[kind.architecture] = kind
    return dict(sorted(found.items()))


def config_type(name: str) -> type[ModelConfig]:
    """The config of an architecture: one of `architectures`, or module:Class of another package.

    Raises:
        InputError: there is none of that name.
    """
    known = architectures()
    if name in known:
        return known[name]
    if ":" not in name:
        raise InputError(
            f"model.architecture = {name!r} is none of {', '.join(known)}"
            f"{did_you_mean(name, known)}; one of your own is written module:Config."
        )
    kind = named(name, "model.architecture =")
    if not (isinstance(kind, type) and issubclass(kind, ModelConfig)):
        raise InputError(f"model.architecture = {name!r} is no subclass of ModelConfig.")
    return kind


def model_config(document: dict[str, Any]) -> ModelConfig:
    """Options of the architecture that they name, or else of the default one.

    Raises:
        InputError: an unknown architecture or option, with the nearest one, or a wrong value.
    """
    name = document.get("architecture", DEFAULT) if isinstance(document, dict) else None
    if not isinstance(name, str):
        raise InputError('[model] is a section, and its architecture a name such as "nequip".')
    return section(document, config_type(name), "model.")


def build(
    config: ModelConfig,
    atomic_numbers: list[int],
    avg_num_neighbors: float,
    scale: list[float],
    shift: list[float],
    pair_constants: PairConstants | None = None,
) -> Potential:
    """The untrained network of a config; the arguments are those of `Assembled`."""
    rest = (atomic_numbers, avg_num_neighbors, scale, shift, pair_constants)
    if config.outputs:
        return WithOutputs(config.program(), config, *rest)
    return Assembled(config.program(), config, *rest)
