"""Potentials of other packages, read without them and written as exports of ours.

Light until one is imported: `eqcalc.names` looks at the names of published weights here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eqcalc.importers.convert import Imported, import_model

__all__ = ["Imported", "import_model"]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(import_module("eqcalc.importers.convert"), name)
    raise AttributeError(f"module 'eqcalc.importers' has no attribute '{name}'")
