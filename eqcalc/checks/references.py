"""Reference values that properties are compared with, from a small TOML or JSON file.

source = "PBE, the strained cells of Zuo et al. 2020"
a = 5.469                                  # compared and reported
C44 = { value = 76.0, tolerance = 8.0 }    # must also agree within 8
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from eqcalc.errors import InputError, did_you_mean
from eqcalc.files import user_path


@dataclass(frozen=True)
class Reference:
    """A value in the unit of its property, and how far from it passes; None: any distance."""

    value: float
    tolerance: float | None = None


@dataclass(frozen=True)
class References:
    """values: {property: Reference}; source: where they come from."""

    values: dict[str, Reference]
    source: str = ""

    def require_known(self, names: Iterable[str]) -> None:
        """InputError for a reference of something that was not measured."""
        names = list(names)
        for name in self.values:
            if name not in names:
                raise InputError(
                    f"There is a reference for '{name}', but no such property of this structure"
                    f"{did_you_mean(name, names)}."
                )


def _number(name: str, value: object, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{path}: '{name}' is {value!r}, but it must be a number.")
    return float(value)


def read_references(path: str | os.PathLike) -> References:
    """A TOML or JSON file of numbers, or of {value, tolerance}, and optionally their `source`."""
    path = user_path(path)
    if not path.is_file():
        raise InputError(f"There is no file '{path}'.")
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, UnicodeDecodeError) as error:  # both decoders' errors are ValueErrors
        raise InputError(f"{path} is neither valid TOML nor JSON: {error}.") from None
    if not isinstance(document, dict):
        raise InputError(f"{path} must hold names and values.")
    source = str(document.pop("source", ""))
    values = {}
    for name, entry in document.items():
        if not isinstance(entry, dict):
            values[name] = Reference(_number(name, entry, path))
            continue
        unknown = set(entry) - {"value", "tolerance"}
        if unknown or "value" not in entry:
            raise InputError(
                f"{path}: '{name}' must be a number, or have a value and perhaps a tolerance."
            )
        tolerance = entry.get("tolerance")
        values[name] = Reference(
            _number(name, entry["value"], path),
            None if tolerance is None else _number(f"{name}.tolerance", tolerance, path),
        )
    return References(values, source)
