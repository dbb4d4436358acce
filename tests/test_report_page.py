"""The report: names of crystals, where it comes from, and that a browser of any width reads it."""

import numpy as np
import pytest
from ase.build import bulk

from eqcalc import EquivariantCalculator
from eqcalc.checks import provenance
from eqcalc.checks.naming import crystal_name
from eqcalc.checks.page import render
from eqcalc.checks.structures import primitive_cell
from eqcalc.checks.suite import CheckOutcome, Suite


@pytest.mark.parametrize(
    ("atoms", "name"),
    [
        (bulk("Si"), "diamond"),
        (bulk("Si", cubic=True), "diamond"),
        (bulk("Cu"), "face-centred cubic"),
        (bulk("Fe"), "body-centred cubic"),
        (bulk("Mg"), "hexagonal close-packed"),
        (bulk("NaCl", "rocksalt", a=5.64), "rock salt"),
        (bulk("GaAs", "zincblende", a=5.65), "zinc blende"),
        (bulk("CsCl", "cesiumchloride", a=4.12), "caesium chloride"),
        (bulk("ZnO", "wurtzite", a=3.25, c=5.2), "primitive hexagonal lattice, 4 atoms"),
    ],
)
def test_crystals_are_called_by_their_structure(atoms, name):
    """Not by their lattice: diamond is not face-centred cubic."""
    turned = primitive_cell(atoms)
    turned.rotate(37.0, (1, 2, 3), rotate_cell=True)
    found = crystal_name(turned).replace("centered", "centred")
    assert found.startswith(name)
    moved = turned.copy()
    if len(moved) == 2:
        moved.positions[1] += 0.2 * np.linalg.norm(moved.positions[1] - moved.positions[0])
        assert "lattice" in crystal_name(moved)


def test_what_the_page_says_of_its_origin():
    calc = EquivariantCalculator("si", engine="torch")
    document = calc.metadata
    suite = Suite(
        model=provenance.describe_model(calc),
        structure="Si2, diamond",
        outcomes=[CheckOutcome("a", "A", skipped="nothing")],
        run=provenance.describe_run(),
        errors=provenance.stored_errors(document),
        domain=provenance.training_domain(document),
    )
    page = render(suite)
    validation = document["training"]["errors"]["validation"]["all"]["forces"]
    for words in (
        *("date", "command", "host", "versions", "shortest distance", "Si-Si", "GPa"),
        f"{validation['mae']:.3g} / {validation['rmse']:.3g}",
        "prefers-color-scheme: dark",
        "@media print",
        "max-width: 600px",
    ):
        assert words in page
    assert page.count('class="hash"') == 1, "only the SHA-256 is broken anywhere"
    assert suite.to_dict()["run"]["date"].endswith("UTC")
    bare = render(Suite({"file": "a.pth"}, "x", []))
    assert "Training, as the file says" not in bare
