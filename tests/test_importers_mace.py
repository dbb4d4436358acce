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
from ase import Atoms

from eqcalc import EquivariantCalculator, export
from eqcalc.errors import InputError
from eqcalc.importers import import_model

DATA = Path(__file__).parent / "data" / "mace"
EXPECTED = json.loads((DATA / "expected.json").read_text())


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The files, by name."""
    folder = tmp_path_factory.mktemp("mace")
    for path in DATA.glob("*.model.xz"):
        (folder / path.stem).write_bytes(lzma.decompress(path.read_bytes()))
    return {path.stem: path for path in folder.glob("*.model")}


def structure():
    return Atoms(
        "OSi2AlO",
        positions=[[0, 0, 0], [1.6, 0.1, 0], [-0.3, 1.7, 0.2], [0.1, -0.4, 2.1], [2.2, 1.5, -0.4]],
        cell=[[4.5, 0.2, 0], [0, 5.0, 0.3], [0.4, 0, 5.5]],
        pbc=True,
    )


@pytest.mark.parametrize("case", EXPECTED)
def test_values_of_the_original(case, models, tmp_path):
    name, _, head = case.partition(":")
    made = import_model(models[name], tmp_path / "out.pth", dtype="float64", task=head or None)
    assert "mace" not in sys.modules
    atoms, expected = structure(), EXPECTED[case]
    atoms.calc = EquivariantCalculator(made.path, engine="torch")
    assert abs(atoms.get_potential_energy() - expected["energy"]) < 1e-10 * len(atoms)
    assert np.abs(expected["forces"]).max() > 1e-3
    assert np.abs(atoms.get_forces() - expected["forces"]).max() < 1e-10
    assert np.abs(atoms.get_stress() - expected["stress"]).max() < 1e-10
    document = export.read_metadata(made.path)
    assert document["architecture"] == "MACE"
    assert document["origin"]["package"] == "MACE"


@pytest.mark.parametrize(
    ("name", "task"), [("residual", None), ("repulsion", None), ("heads", "scan")]
)
def test_engines_say_the_same(name, task, models, tmp_path):
    """Two atoms are so near that their core repulsion counts."""
    made = import_model(models[name], tmp_path / "out.pth", dtype="float64", task=task)
    atoms = structure()
    atoms.positions[1] = [1.0, 0.1, 0.0]
    results = {}
    for engine in ("torch", "fused", "exact"):
        atoms.calc = EquivariantCalculator(made.path, engine=engine)
        results[engine] = atoms.get_potential_energy(), atoms.get_forces()
    for engine in ("fused", "exact"):
        assert results[engine][0] == pytest.approx(results["torch"][0], abs=1e-10)
        assert np.abs(results[engine][1] - results["torch"][1]).max() < 1e-9


def test_fewer_elements_are_a_smaller_file(models, tmp_path):
    whole = import_model(models["density"], tmp_path / "all.pth", dtype="float64")
    fewer = import_model(
        models["density"], tmp_path / "two.pth", elements=["O", "Si"], dtype="float64"
    )
    atoms = structure()
    atoms.symbols[3] = "Si"
    energies = []
    for made in (whole, fewer):
        atoms.calc = EquivariantCalculator(made.path, engine="torch")
        energies.append(atoms.get_potential_energy())
    assert energies[0] == pytest.approx(energies[1], abs=1e-11)
    assert export.read_metadata(fewer.path)["species"] == ["O", "Si"]
    assert fewer.path.stat().st_size < whole.path.stat().st_size


def test_what_is_not_covered_is_named(models, tmp_path):
    out = tmp_path / "out.pth"
    with pytest.raises(InputError, match="heads pbe, scan: choose one with --task"):
        import_model(models["heads"], out)
    with pytest.raises(InputError, match=r"no head 'scn' \(did you mean 'scan'"):
        import_model(models["heads"], out, task="scn")
    with pytest.raises(InputError, match="does not know Cu"):
        import_model(models["density"], out, elements=["Cu"])
    assert not out.exists()
