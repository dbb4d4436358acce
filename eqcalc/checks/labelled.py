"""Frames with labels that a report was given: errors, and where predicted deviations are wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eqcalc.checks.provenance import coverage_tables, errors_table
from eqcalc.checks.report import Table, png
from eqcalc.uncertainty.coverage import draw


@dataclass(frozen=True)
class Labelled:
    """What they say of a model.

    Attributes:
        title: for people.
        tables: of errors and, if the model knows them, of deviations.
        picture: of real errors over predicted deviations (PNG), or nothing.
        document: for JSON: names of the files, errors, uncertainty.
    """

    title: str
    tables: list[Table]
    picture: bytes
    document: dict[str, Any]


def labelled(names: list[str], errors: dict[str, Any], uncertainty: dict[str, Any]) -> Labelled:
    """Of errors by config_type, and `eqcalc.uncertainty.Coverage.document` or an empty table."""
    tables, picture = [errors_table("these frames", errors)], b""
    if uncertainty:
        tables += coverage_tables("these frames", uncertainty)
        picture = png(draw(uncertainty))
    document = {"files": names, "errors": errors, "uncertainty": uncertainty}
    return Labelled(f"Labelled frames: {', '.join(names)}", tables, picture, document)
