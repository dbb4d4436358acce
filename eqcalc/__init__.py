"""eqcalc: from DFT data to molecular dynamics with an E(3)-equivariant interatomic potential.

Importing this package is cheap: LAMMPS does it on every rank to find its plugin. What needs torch
is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eqcalc.calculator import EquivariantCalculator
    from eqcalc.errors import InputError
    from eqcalc.observers import DisagreementStop
    from eqcalc.training.api import train

__all__ = ["DisagreementStop", "EquivariantCalculator", "InputError", "train"]

_HOME = {
    "DisagreementStop": "eqcalc.observers",
    "EquivariantCalculator": "eqcalc.calculator",
    "InputError": "eqcalc.errors",
    "train": "eqcalc.training.api",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("eqcalc")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'eqcalc' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
