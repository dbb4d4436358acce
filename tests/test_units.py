"""Whoever reads a JSON file of ours finds the unit of each quantity in it."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("examples/*.json"), *ROOT.glob("tests/benchmarks/*.json")])

#: what has a unit
QUANTITY = re.compile(
    r"(.*_)?(mae|rmse)|energ(y|ies)|forces?|stress(es)?|virials?|pressure|volume|lattice|cutoff|"
    r"slope|where|distance|timestep|temperature|duration|seconds?|time|memory"
)
#: a unit in the name
UNIT = re.compile(
    r"(.*[_, ])?(m?eV|GPa|K|ps|fs|[µu]s|ms|MB|mb|Å|angstrom|seconds|microseconds)\b.*"
)


def is_number(value) -> bool:
    if isinstance(value, list):
        return bool(value) and all(map(is_number, value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def without_unit(document, known=frozenset(), path="") -> set[str]:
    """Places of quantities whose unit stands neither in their name nor above them, nor in a
    "unit" beside them or a table "units" there or above."""
    if isinstance(document, list):
        return {place for each in document for place in without_unit(each, known, path)}
    if not isinstance(document, dict) or "unit" in document:
        return set()
    known |= document.get("units", {}).keys()
    found = set()
    for name, value in document.items():
        if name == "units" or name in known or UNIT.fullmatch(name.replace("_", " ")):
            continue
        if not is_number(value):
            found |= without_unit(value, known, f"{path}/{name}")
        elif QUANTITY.fullmatch(name):
            found.add(f"{path}/{name}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_quantities_have_units(path):
    assert not without_unit(json.loads(path.read_text(encoding="utf-8")))


def test_a_missing_unit_is_noticed():
    document = {
        "units": {"energy": "eV"},
        "rows": [{"energy": 1.0, "forces": [0.1, 0.2]}],
        "errors": {"stress": {"mae": 2.0, "unit": "GPa"}, "forces": {"mae": 3.0}},
        "energy_meV": 1.0,
        "count": 3,
    }
    assert without_unit(document) == {"/rows/forces", "/errors/forces/mae"}
