"""Files of MACE become exports with the same numbers.

tests/data/mace holds networks with random weights in float64 as mace-torch 0.3.16 wrote them,
without compiled code, and what it said of one structure (`tests/peers/mace_random.py`).
"""

import json
import lzma
import sys
from pathlib import Path

import numpy as np
import pytest
from imported import (
    assert_fewer_elements_change_nothing,
    assert_reference_holds_every_element,
    structure,
)

from eqcalc import EquivariantCalculator, export
from eqcalc.errors import InputError
from eqcalc.importers import import_model
from eqcalc.training.finetune import read_source

DATA = Path(__file__).parent / "data" / "mace"
EXPECTED = json.loads((DATA / "expected.json").read_text())


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The files, by name."""
    folder = tmp_path_factory.mktemp("mace")
    for path in DATA.glob("*.model.xz"):
        (folder / path.stem).write_bytes(lzma.decompress(path.read_bytes()))
    return {path.stem: path for path in folder.glob("*.model")}


@pytest.mark.parametrize("case", EXPECTED)
def test_values_of_the_original(case, models, tmp_path):
    name, _, head = case.partition(":")
    made = import_model(models[name], tmp_path / "out.pth", dtype="float64", task=head or None)
    assert "mace" not in sys.modules
    atoms, expected = structure("Al"), EXPECTED[case]
    atoms.calc = EquivariantCalculator(made.path, engine="torch")
    assert abs(atoms.get_potential_energy() - expected["energy"]) < 1e-10 * len(atoms)
    assert np.abs(expected["forces"]).max() > 1e-3
    assert np.abs(atoms.get_forces() - expected["forces"]).max() < 1e-10
    assert np.abs(atoms.get_stress() - expected["stress"]).max() < 1e-10
    document = export.read_metadata(made.path)
    assert document["architecture"] == "MACE"
    assert document["origin"]["package"] == "MACE"


@pytest.mark.parametrize(
    ("name", "task"),
    [("residual", None), ("repulsion", None), ("density", None), ("heads", "scan")],
)
def test_engines_say_the_same(name, task, models, tmp_path):
    """Two atoms are so near that their core repulsion counts."""
    made = import_model(models[name], tmp_path / "out.pth", dtype="float64", task=task)
    atoms = structure("Al")
    atoms.positions[1] = [1.0, 0.1, 0.0]
    results = {}
    for engine in ("torch", "fused", "exact"):
        atoms.calc = EquivariantCalculator(made.path, engine=engine)
        results[engine] = atoms.get_potential_energy(), atoms.get_forces()
    for engine in ("fused", "exact"):
        assert results[engine][0] == pytest.approx(results["torch"][0], abs=1e-10)
        assert np.abs(results[engine][1] - results["torch"][1]).max() < 1e-9


def test_fewer_elements(models, tmp_path):
    assert_fewer_elements_change_nothing(models["density"], tmp_path)


def test_reference_structure_holds_every_element(models, tmp_path):
    assert_reference_holds_every_element(models["residual"], tmp_path)


def test_what_is_not_covered_is_named(models, tmp_path):
    out = tmp_path / "out.pth"
    with pytest.raises(InputError, match="heads pbe, scan: choose one with --task"):
        import_model(models["heads"], out)
    with pytest.raises(InputError, match=r"no head 'scn' \(did you mean 'scan'"):
        import_model(models["heads"], out, task="scn")
    with pytest.raises(InputError, match="does not know Cu"):
        import_model(models["density"], out, elements=["Cu"])
    assert not out.exists()


def test_training_begins_where_the_import_is(models, tmp_path):
    """The network that is built anew is the file's; one that cannot be built is refused."""
    made = import_model(models["residual"], tmp_path / "residual.pth", dtype="float64")
    source = read_source(str(made.path))
    assert source.model.architecture == "mace"
    assert source.constants.message_scales[0] == pytest.approx([1 / 9.0] * 3)
    other = import_model(models["repulsion"], tmp_path / "repulsion.pth", dtype="float64")
    with pytest.raises(InputError, match="core repulsion, for one"):
        read_source(str(other.path))
