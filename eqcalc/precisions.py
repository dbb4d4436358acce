"""Precisions of numbers: one table of their names."""

from __future__ import annotations

from typing import Any

from eqcalc.errors import InputError, did_you_mean

#: LAMMPS's word by torch's and numpy's name
LAMMPS = {"float32": "single", "float64": "double"}
#: the precision of the file
FILE = "file"
#: by what may be written for them
NAMES = {name: name for name in LAMMPS} | {word: name for name, word in LAMMPS.items()}


def named(precision: Any, option: str) -> str:
    """float32 or float64, by name, by LAMMPS's name, or as a type of torch or numpy.

    Raises:
        InputError: it is neither; the message begins with the name of the option.
    """
    kind = isinstance(precision, type)
    name = precision.__name__ if kind else str(precision).removeprefix("torch.")
    if name not in NAMES:
        hint = did_you_mean(name, NAMES)
        raise InputError(f"{option} '{name}'{hint}: it must be float32 or float64.")
    return NAMES[name]


def named_or_file(precision: Any, option: str) -> str | None:
    """The same; None for the precision of the file, which is None or "file"."""
    own = precision is None or (isinstance(precision, str) and precision == FILE)
    return None if own else named(precision, option)
