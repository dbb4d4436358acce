"""Files of other packages become exports with the same numbers.

tests/data/sevennet holds networks with random weights as SevenNet 0.13.0 saved them, and what it
said of one structure in float64 (its own constants are rounded to float32). Published weights come
from the registry, once, and are checked by SHA-256.
"""

import hashlib
import io
import json
import lzma
import os
import subprocess
import sys
import zipfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from imported import (
    assert_fewer_elements_change_nothing,
    assert_reference_holds_every_element,
    results,
    structure,
)
from runs import column
from typer.testing import CliRunner

from eqcalc import EquivariantCalculator, export
from eqcalc.cli import app
from eqcalc.errors import InputError
from eqcalc.importers import import_model, published, unpickle
from eqcalc.models.nequip import NequIPConfig
from eqcalc.training.config import from_dict
from eqcalc.training.run import train

DATA = Path(__file__).parent / "data" / "sevennet"
#: how far the package's constants in float32 are from those in float64, in forces
KINDS = {"so3": 3e-10, "parity": 3e-10, "linear": 1e-8}
#: tasks of a network with the options of SevenNet-MF-ompa
TASKS = ("omat24", "mpa")
WHEEL = "sevenn-0.13.0-py3-none-any.whl"


@pytest.fixture
def checkpoint(tmp_path):
    """Content of the file without parity, and a function that saves it and imports that."""
    content = torch.load(DATA / "so3.pth", weights_only=False)

    def imported(**options):
        torch.save(content, tmp_path / "changed.pth")
        import_model(tmp_path / "changed.pth", tmp_path / "out.pth", dtype="float64", **options)
        return tmp_path / "out.pth"

    return content, imported


@pytest.mark.parametrize("engine", ["torch", "fused"])
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_those_of_the_package(kind, engine, tmp_path):
    import_model(DATA / f"{kind}.pth", tmp_path / "m.pth", dtype="float64")
    energy, forces = results(tmp_path / "m.pth", structure(), engine=engine)
    table = 3e-9 if engine == "fused" else 0.0
    expected = json.loads((DATA / "expected.json").read_text())[kind]
    assert energy == pytest.approx(expected["energy"], abs=KINDS[kind] + table)
    assert forces == pytest.approx(np.array(expected["forces"]), abs=KINDS[kind] + table)


@pytest.mark.parametrize(("task", "engine"), list(zip(TASKS, ("torch", "fused"), strict=True)))
def test_numbers_of_a_multi_task_network_with_both_parities(task, engine, tmp_path):
    import_model(DATA / "tasks.pth", tmp_path / "m.pth", dtype="float64", task=task)
    energy, forces = results(tmp_path / "m.pth", structure(), engine=engine)
    expected = json.loads((DATA / "expected.json").read_text())[f"tasks:{task}"]
    assert energy == pytest.approx(expected["energy"], abs=1e-11)
    assert forces == pytest.approx(np.array(expected["forces"]), abs=1e-11)


def test_numbers_of_a_network_with_the_options_of_omni(tmp_path):
    """Twelve layers, thirteen tasks, options of training, a place for Z = 0."""
    content = lzma.decompress((DATA / "omni.pth.xz").read_bytes())
    (tmp_path / "omni.pth").write_bytes(content)
    made = import_model(tmp_path / "omni.pth", tmp_path / "m.pth", dtype="float64", task="pet_mad")
    assert export.read_metadata(made.path)["species"] == ["O", "Si", "Cu", "Og"]
    energy, forces = results(made.path, structure(), engine="torch")
    expected = json.loads((DATA / "expected.json").read_text())["omni:pet_mad"]
    assert energy == pytest.approx(expected["energy"], abs=1e-11)
    assert forces == pytest.approx(np.array(expected["forces"]), abs=1e-11)


def test_fewer_elements(tmp_path):
    assert_fewer_elements_change_nothing(DATA / "so3.pth", tmp_path)


def test_reference_structure_holds_every_element(tmp_path):
    assert_reference_holds_every_element(DATA / "so3.pth", tmp_path)


def test_other_signs_of_wigner_3j(checkpoint):
    """Files of e3nn 0.4 have other signs; the weights that fit them, too."""
    content, imported = checkpoint
    before = results(imported(), structure(), engine="torch")
    state = content["model_state_dict"]
    symbols = [k for k in state if k.startswith("1_") and k.endswith("_w3j_1_2_2")]
    assert len(symbols) == 1
    state[symbols[0]] *= -1.0
    changed = results(imported(), structure(), engine="torch")
    assert np.abs(changed[1] - before[1]).max() > 1e-6
    # columns of that path: sorted by irrep out, then by irrep in and harmonic
    paths = sorted(
        (l3, l1, l2)
        for l1 in range(3)
        for l2 in range(3)
        for l3 in range(abs(l1 - l2), min(2, l1 + l2) + 1)
    )
    at = 4 * paths.index((2, 1, 2))
    state["1_convolution.weight_nn.layer1.weight"][:, at : at + 4] *= -1.0
    after = results(imported(), structure(), engine="torch")
    assert after[1] == pytest.approx(before[1], abs=1e-12)


def test_unknown_options_are_named(checkpoint):
    content, imported = checkpoint
    for name, value in (
        ("something_new", 3),
        ("readout_as_fcn", True),
        ("act_radial", "relu"),
        ("cutoff_function", {"cutoff_function_name": "cosine"}),
    ):
        before = content["config"].get(name)
        content["config"][name] = value
        with pytest.raises(InputError, match=f"its option {name} = "):
            imported()
        if before is None:
            del content["config"][name]
        else:
            content["config"][name] = before


def test_options_of_training_change_nothing(checkpoint):
    content, imported = checkpoint
    before = results(imported(), structure(), engine="torch")
    weights = {"energy": 0.5, "force": 1.0}
    content["config"] |= {"compute_statistics": False, "data_weight": weights, "data_modality": "a"}
    after = results(imported(), structure(), engine="torch")
    assert before[0] == after[0]


def test_solid_harmonics(checkpoint):
    """Of vectors instead of directions, as in SevenNet-0 of 22 May 2024 (`GOLDEN`)."""
    content, imported = checkpoint
    before = results(imported(), structure(), engine="torch")
    del content["config"]["_normalize_sph"]  # checkpoints of before did not say it
    out = imported()
    energy, forces = results(out, structure(), engine="torch")
    assert np.abs(forces - before[1]).max() > 1e-3
    fused = results(out, structure(), engine="fused")
    assert fused[0] == pytest.approx(energy, abs=3e-9)
    assert fused[1] == pytest.approx(forces, abs=3e-9)
    with pytest.raises(InputError, match="radial functions are tables alone"):
        EquivariantCalculator(out, engine="exact")


def test_every_weight_is_used(checkpoint):
    content, imported = checkpoint
    content["model_state_dict"]["2_more.weight"] = torch.ones(3)
    with pytest.raises(InputError, match=r"nothing here uses: 2_more\.weight"):
        imported()
    del content["model_state_dict"]["2_more.weight"]
    del content["model_state_dict"]["1_convolution.denominator"]
    with pytest.raises(InputError, match=r"no weights '1_convolution\.denominator'"):
        imported()


class Evil:
    """Would write a file when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_no_foreign_code_runs(checkpoint, tmp_path, monkeypatch):
    content, imported = checkpoint
    monkeypatch.chdir(tmp_path)
    content["optimizer_state_dict"] = Evil()
    imported()
    assert not (tmp_path / "evil").exists()
    stub = unpickle.load(tmp_path / "changed.pth")["optimizer_state_dict"]
    assert isinstance(stub, unpickle.Stub)


def test_other_files_are_refused(tmp_path, potential_path):
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"a": 1}, tmp_path / "other.pth")
    for path, sentence in (
        (tmp_path / "text.pth", "no file that torch.save has written"),
        (tmp_path / "other.pth", "no file of SevenNet, NequIP, MACE or fairchem-core"),
        (tmp_path / "nothing.pth", "There is no file"),
        (potential_path, "is TorchScript, but not of"),
    ):
        with pytest.raises(InputError, match=sentence):
            import_model(path, tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


def test_command_and_origin(tmp_path):
    out = tmp_path / "m.pth"
    ran = CliRunner().invoke(app, ["import", str(DATA / "so3.pth"), "-o", str(out)])
    assert ran.exit_code == 0, ran.output
    digest = hashlib.sha256((DATA / "so3.pth").read_bytes()).hexdigest()
    origin = export.read_metadata(out)["origin"]
    assert origin["sha256"] == digest
    assert origin["package_version"] == "0.13.0"
    shown = CliRunner().invoke(app, ["info", str(out)]).output
    assert digest in shown
    assert "J. Chem. Theory Comput. 20, 4857" in shown


@pytest.fixture(scope="module")
def weights(request):
    """The wheel of sevenn 0.13.0, kept between runs; its files are only read."""
    folder = request.config.cache.mkdir("sevenn")
    wheel = folder / WHEEL
    if not wheel.is_file():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "sevenn==0.13.0"]
        done = subprocess.run(
            [*pip, "-d", str(folder)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"the registry does not give sevenn: {done.stderr.strip()[-200:]}")
    return zipfile.ZipFile(wheel)


#: by sevenn 0.13.0, of `ethanol` and `strained_silicon`: eV, and eV/Å of the first atom; in
#: float64 those of one task, in float32 the others
GOLDEN = {
    ("7net-0", None): [
        (-45.29233838, [2.57693819, -2.71021343, 0.86968482]),
        (-41.83867076, [-1.94056928, 0.56311169, -0.31483268]),
    ],
    ("7net-0_22May2024", None): [
        (-45.52325830, [3.44012925, -2.96013839, 0.99543966]),
        (-42.18977600, [-1.63508325, 0.32978569, 0.03996884]),
    ],
    ("7net-l3i5", None): [
        (-45.19850004, [3.27591228, -2.69609579, 0.8111563]),
        (-41.80997131, [-2.18311636, 0.37980018, -0.60813249]),
    ],
    ("7net-mf-0", "PBE"): [
        (-45.406971, [2.632375, -2.407948, 0.814283]),
        (-41.708282, [-1.941625, 0.350426, -0.210086]),
    ],
    ("7net-mf-0", "R2SCAN"): [
        (-48.047371, [2.078698, -1.601646, 0.708639]),
        (-68.945572, [-1.217046, 0.18966, -0.121726]),
    ],
}


#: of `rock_salt` and `water`, in float32, as tests/unit_tests/test_pretrained.py of SevenNet (MIT,
#: commit b3d99aa) has them: energies in eV, forces in eV/Å, stress xx yy zz yz xz xy in eV/Å^3
BY_SEVENNET = {
    ("7net-0", None): (
        (-3.779199, [12.666697, 0.04726403, 0.04775861]),
        [-0.6439122, -0.03643947, -0.03643981, 0.00599139, 0.04544507, 0.04543639],
        (-12.782808, [[0, -13.619621, 7.5937047], [0, 9.3918495, -10.17219]]),
    ),
    ("7net-l3i5", None): (
        (-3.6111312, [13.430887, 0.08655541, 0.08754013]),
        [-0.6818918, -0.04104544, -0.04107663, 0.00565416, 0.04793138, 0.04794561],
        (-12.7004814, [[0, -14.547814, 8.1347866], [0, 10.308369, -10.880318]]),
    ),
    ("7net-mf-0", "R2SCAN"): (
        (-11.6075878, [8.512259, 0.07307914, 0.06676716]),
        [-0.4516204, -0.02483013, -0.02485001, 0.00259375, 0.03250402, 0.03247492],
        (-14.1724129, [[0, -13.429364, 6.9344816], [0, 8.9132404, -9.6807365]]),
    ),
}


def rock_salt():
    """NaCl in a cell that is stretched and sheared."""
    cell = [[1.0, 2.815, 2.815], [2.815, 0.0, 2.815], [2.815, 2.815, 0.0]]
    return Atoms("NaCl", positions=[[0.0, 0.0, 0.0], [2.815, 0.0, 0.0]], cell=cell, pbc=True)


def water():
    return Atoms("OH2", positions=[[0.0, 0.2, 0.12], [0.0, 0.76, -0.48], [0.0, -0.76, -0.48]])


def ethanol():
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=6)
    return atoms


def strained_silicon():
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=1)
    strain = np.array([[1.03, 0.01, 0], [0, 0.98, 0.02], [0, 0, 1.01]])
    atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
    return atoms


@pytest.mark.parametrize("case", GOLDEN, ids=str)
def test_published_weights(case, weights, tmp_path):
    name, task = case
    content = weights.read(f"sevenn/pretrained_potentials/{published.SEVENN[name]}")
    (tmp_path / "checkpoint.pth").write_bytes(io.BytesIO(content).getvalue())
    made = import_model(
        tmp_path / "checkpoint.pth",
        tmp_path / "m.pth",
        elements=["H", "C", "O", "Na", "Si", "Cl"],
        task=task,
    )
    assert made.origin["title"].startswith("SevenNet")  # its SHA-256 is known
    for make, (energy, force) in zip((ethanol, strained_silicon), GOLDEN[case], strict=True):
        atoms = make()
        got = results(made.path, atoms, engine="torch", dtype="float64")
        assert got[0] / len(atoms) == pytest.approx(energy / len(atoms), abs=1e-6)
        assert got[1][0] == pytest.approx(force, abs=2e-5 if task else 1e-5)
    if case in BY_SEVENNET:
        (energy, force), stress, (energy_of_water, forces) = BY_SEVENNET[case]
        salt, alone = rock_salt(), water()
        got = results(made.path, salt, engine="torch", dtype="float64")
        assert got[0] == pytest.approx(energy, abs=2e-5)
        assert got[1] == pytest.approx(np.array([force, np.negative(force)]), abs=1e-4)
        salt.calc = EquivariantCalculator(made.path, engine="torch", dtype="float64")
        assert salt.get_stress() == pytest.approx(np.array(stress), abs=1e-5)
        got = results(made.path, alone, engine="torch", dtype="float64")
        assert got[0] == pytest.approx(energy_of_water, abs=2e-5)
        assert got[1][:2] == pytest.approx(np.array(forces), abs=1e-4)


@pytest.mark.slow
def test_training_goes_on_from_published_weights(weights, tmp_path):
    """After as many steps on silicon they are far better than the same network from scratch."""
    content = weights.read(f"sevenn/pretrained_potentials/{published.SEVENN['7net-0']}")
    (tmp_path / "checkpoint.pth").write_bytes(content)
    start = import_model(tmp_path / "checkpoint.pth", tmp_path / "m.pth", elements=["Si"]).path
    frames = []
    for seed in range(6):
        atoms = bulk("Si", cubic=True)
        atoms.rattle(0.15, seed=seed)
        atoms.set_cell(atoms.cell.array * (0.97 + 0.01 * seed), scale_atoms=True)
        atoms.calc = EquivariantCalculator("si", on_domain_exit="ignore")
        labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        frames.append(atoms)
    write(tmp_path / "frames.xyz", frames, format="extxyz")
    hyperparameters = export.read_metadata(start)["hyperparameters"]
    known = {field.name for field in fields(NequIPConfig)}
    model = {key: value for key, value in hyperparameters.items() if key in known}
    errors = []
    for name, begin in (("tuned", {"fine_tune": {"model": str(start)}}), ("new", {"model": model})):
        document = {
            "data": {"train": [str(tmp_path / "frames.xyz")], "val_fraction": 0.34},
            "training": {"epochs": 3, "batch_size": 2, "threads": 1, "device": "cpu"},
        }
        train(from_dict(document | begin), tmp_path / name)
        errors.append(column(tmp_path / name, "val_forces_rmse")[-1])
    assert errors[0] < errors[1] / 5
