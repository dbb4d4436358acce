"""What a calculator says of itself, and what databases keep of it."""

import hashlib
import shutil

import numpy as np
import pytest
import torch
from ase.db import connect

from eqcalc import EquivariantCalculator, InputError


def test_it_introduces_itself(potential_path):
    calc = EquivariantCalculator(potential_path, engine="torch", dtype="float64")
    assert (calc.engine, calc.dtype) == ("torch", "float64")
    assert sorted(calc.elements) == ["O", "Si"]
    assert calc.cutoff == calc.metadata["cutoff"]
    said = repr(calc)
    for words in ("model.pth", "engine='torch'", "dtype='float64'", f"{calc.cutoff:g} Å", "Si"):
        assert words in said
    calc.metadata["cutoff"] = 1.0
    assert calc.metadata["cutoff"] == calc.cutoff, "what is returned is a copy"
    assert EquivariantCalculator("si", dtype="float64", engine="auto").engine in ("fused", "torch")


def test_a_committee_introduces_its_members(potential_path, parity_path):
    calc = EquivariantCalculator([potential_path, parity_path], engine="torch")
    assert "model.pth" in repr(calc)
    assert "parity.pth" in repr(calc)
    assert calc.cutoff == max(m.potential.cutoff for m in calc.members)
    assert [len(one["sha256"]) for one in calc.todict()["models"]] == [64, 64]


def test_databases_keep_where_numbers_come_from(potential_path, crystal, tmp_path):
    path = shutil.copy(potential_path, tmp_path / "m.pth")
    crystal.calc = EquivariantCalculator(path, engine="torch", on_domain_exit="ignore")
    crystal.get_forces()
    with connect(tmp_path / "a.db") as database:
        database.write(crystal)
    row = connect(tmp_path / "a.db").get(1)
    (model,) = row.calculator_parameters["models"]
    assert model == {"file": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert row.calculator_parameters["engine"] == "torch"
    assert row.calculator_parameters["dtype"] == crystal.calc.dtype
    assert np.array_equal(row.forces, crystal.get_forces())
    path.write_bytes(path.read_bytes() + b"\0")
    assert crystal.calc.todict()["models"][0]["sha256"] is None, "not the file that was opened"


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        (None, {}, "model is NoneType: give a potential file"),
        (3, {}, "model is int"),
        (b"si", {}, "model is bytes"),
        ({"si"}, {}, "model is set"),
        (["si", None], {}, "contains NoneType"),
        ([], {}, "is empty"),
        ("", {}, "name of a model is empty"),
        ("si", {"skin": "0.5"}, "skin = '0.5': it must be a number"),
        ("si", {"threads": "2"}, "threads = '2': it must be a number"),
        ("si", {"dtype": 64}, "dtype '64'"),
        ("si", {"engine": None}, "no engine 'None'"),
        ("si", {"device": 3}, "3"),
    ],
)
def test_wrong_types_get_a_sentence(model, options, sentence):
    with pytest.raises(InputError, match=sentence):
        EquivariantCalculator(model, **options)


@pytest.mark.parametrize("dtype", ["double", np.float64, np.dtype("float64"), torch.float64])
def test_precisions_by_any_usual_name(dtype, potential_path):
    assert EquivariantCalculator(potential_path, engine="torch", dtype=dtype).dtype == "float64"
