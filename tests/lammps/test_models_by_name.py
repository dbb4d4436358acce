"""`pair_coeff` takes the name of a model; the log says where an imported one comes from."""

from __future__ import annotations

import os

import numpy as np
import pytest
from parity import by_lammps, by_python, pair, script, silica_like
from potentials import installed_sevenn

from eqcalc import names
from eqcalc.errors import InputError
from eqcalc.lammps import run_lmp


@pytest.fixture
def installed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(installed_sevenn(tmp_path / "packages"))
    paths = [str(tmp_path / "packages"), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    return tmp_path


@pytest.mark.parametrize(("ranks", "engine"), [(1, "fused"), (2, "torch")])
def test_published_weights(ranks, engine, installed):
    path = script(silica_like(1), installed, pair("7net-0", f"precision double engine {engine}"))
    got, _, output = by_lammps(path, ranks=ranks)
    expected = by_python(names.find("7net-0", ["O", "Si"]), silica_like(1))
    assert got.energies == pytest.approx(expected.energies, abs=1e-8)
    assert np.abs(got.forces - expected.forces).max() < 1e-8
    said = " ".join(output.split())
    assert "7net-0.pth (O, Si), cutoff" in said
    assert "imported from checkpoint_sevennet_0.pth, SevenNet 0.13.0 (licence not known)" in said
    assert "J. Chem. Theory Comput. 20, 4857 (2024)" in said


def test_names_that_mean_nothing(installed):
    for name, sentence in (
        ("7net-1", "no model file '7net-1', nor a bundled model of that name (bundled: si"),
        ("7net-mf-0", "has the tasks omat24, mpa: choose one"),
    ):
        path = script(silica_like(1), installed, pair(name))
        with pytest.raises(InputError) as error:
            run_lmp(path, ranks=2, timeout=120)
        assert sentence in str(error.value)


def test_the_bundled_model(tmp_path):
    atoms = silica_like(1)
    atoms.numbers[:] = 14
    path = script(atoms, tmp_path, pair("si", "precision double", "Si"), elements=["Si"])
    got, _, output = by_lammps(path)
    expected = by_python(names.find("si"), atoms)
    assert got.energies == pytest.approx(expected.energies, abs=1e-8)
    assert "imported from" not in output
