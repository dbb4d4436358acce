"""Potentials of other packages, read without them and written as exports of ours."""

from eqcalc.importers.convert import Imported, import_model

__all__ = ["Imported", "import_model"]
