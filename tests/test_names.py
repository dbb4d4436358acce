"""Potentials by name: bundled, or imported from weights that another package brings."""

import pickle

import numpy as np
import pytest
from potentials import installed_sevenn
from test_importers import DATA, structure
from typer.testing import CliRunner

from eqcalc import EquivariantCalculator, InputError, export, names
from eqcalc.cli import app
from eqcalc.importers import convert, import_model
from eqcalc.lammps import write_input


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The package is there, and the cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(installed_sevenn(tmp_path / "packages"))
    return tmp_path


def energy_of(model):
    atoms = structure()
    atoms.calc = EquivariantCalculator(model, dtype="float64", engine="torch")
    return atoms.get_potential_energy()


def test_bundled_models_and_files():
    path = names.find("si")
    assert path.name == "si.pth"
    assert names.find(path) == names.find(str(path)) == path
    assert names.lasting("si") == "si"
    assert names.lasting(path) == str(path)


@pytest.mark.slow
def test_weights_are_imported_once(installed, monkeypatch):
    made = import_model(DATA / "so3.pth", installed / "m.pth").path
    expected = energy_of(made)
    assert energy_of("7net-0") == expected
    found = names.find("7net-0")
    assert found.is_relative_to(installed / "cache")
    monkeypatch.setattr(convert, "import_model", None)
    assert names.find("7net-0") == found
    calculator = pickle.loads(pickle.dumps(EquivariantCalculator("7net-0")))
    assert calculator.potential.path == found


@pytest.mark.usefixtures("installed")
def test_elements_that_are_wanted():
    whole, part = names.find("7net-0"), names.find("7net-0", ["Si", "O", "Si"])
    assert part == names.find("7net-0", ["O", "Si"]) != whole
    assert export.read_metadata(part)["species"] == ["O", "Si"]
    assert export.read_metadata(whole)["species"] == ["O", "Si", "Cu"]
    with pytest.raises(InputError, match="does not know Fe"):
        names.find("7net-0", ["Fe"])


@pytest.mark.usefixtures("installed")
def test_other_weights_are_imported_anew():
    before = names.find("7net-0")
    weights = convert.published.find("7net-0")[0]
    weights.write_bytes((DATA / "parity.pth").read_bytes())
    assert names.find("7net-0") != before


@pytest.mark.usefixtures("installed")
def test_tasks_stand_behind_the_name():
    energies = [energy_of(f"7net-mf-0:{task}") for task in ("omat24", "mpa")]
    assert np.allclose(energies, [-6.6368402, -8.2048345], atol=1e-5)  # weights in float32
    assert export.read_metadata(names.find("7net-mf-0:mpa"))["origin"]["task"] == "mpa"
    with pytest.raises(InputError, match=r"tasks omat24, mpa: .* --task omat24, or .*NAME:omat24"):
        names.find("7net-mf-0")
    with pytest.raises(InputError, match="there is no PBE"):
        names.find("7net-mf-0:PBE")
    with pytest.raises(InputError, match="has one task: leave out --task PBE"):
        names.find("7net-0:PBE")


def test_what_is_missing_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with pytest.raises(InputError, match=r"pip install --no-deps sevenn==0\.13\.0"):
        EquivariantCalculator("7net-0")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(
        InputError, match=r"asked for '7net-omni': .* checkpoint_sevennet_omni\.pth"
    ):
        EquivariantCalculator("7net-omni:mpa")
    weights = tmp_path / ".cache/sevennet/SevenNet_omni/checkpoint_sevennet_omni.pth"
    weights.parent.mkdir(parents=True)
    weights.touch()
    assert convert.published.find("7net-omni:mpa") == (weights, "mpa")
    with pytest.raises(InputError, match=r"no model file '7net-1', .*bundled: si; .*7net-l3i5"):
        EquivariantCalculator("7net-1")


def test_commands_take_names(installed):
    shown = CliRunner().invoke(app, ["info", "7net-mf-0:mpa"]).output
    (line,) = [line for line in shown.splitlines() if line.startswith("origin")]
    for part in ("checkpoint_sevennet_mf_0.pth, task mpa", "SevenNet 0.13.0", "doi:10.1021"):
        assert part in line
    ran = CliRunner().invoke(app, ["import", "7net-mf-0:mpa", "-o", str(installed / "m.pth")])
    assert ran.exit_code == 0, ran.output
    assert "task mpa" in ran.output
    script = write_input(structure(), "7net-0", installed / "run").read_text()
    assert "pair_coeff * * 7net-0 O Si Cu\n" in script.replace('"', "")
