"""The examples run, and say what is so; ASE's and other packages' ways to use the calculator."""

import copy
import importlib.util
import json
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.socketio import SocketClient, SocketIOCalculator
from ase.constraints import FixAtoms, FixSymmetry
from ase.filters import FrechetCellFilter
from ase.io import read, write
from ase.neighborlist import neighbor_list
from ase.optimize import BFGS
from ase.phonons import Phonons

from eqcalc import EquivariantCalculator
from eqcalc.data.frames import read_frames
from eqcalc.export import read_metadata
from eqcalc.models.registry import model_config
from eqcalc.training.config import read_config

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tour_of_ase(tmp_path, capsys):
    example("ase_tour").main(["--out", str(tmp_path / "tour.png")])
    said = capsys.readouterr().out
    assert (tmp_path / "tour.png").stat().st_size > 20_000
    assert float(re.search(r"lattice constant +(\S+) Å", said)[1]) == pytest.approx(5.469, abs=2e-3)
    exact, finite = (float(x) for x in re.findall(r"(\S+) THz", said))
    assert exact == pytest.approx(finite, abs=0.03)
    assert 250.0 < float(re.search(r"mean temperature +(\d+) K", said)[1]) < 350.0
    assert float(re.search(r"dftd3\) +(\S+) eV", said)[1]) < -0.1
    assert float(re.search(r"LAMMPS\) +(\S+) eV", said)[1]) > 0.1


def test_mace_of_silicon(tmp_path):
    out = ["--out", str(tmp_path), "--run", str(tmp_path / "run")]
    found = example("mace_silicon").main([*out, "--frames", "8", "--epochs", "4"])
    history = np.genfromtxt(tmp_path / "run/training/history.csv", delimiter=",", names=True)
    assert history["val_loss"][-1] < history["val_loss"][0]  # a few seconds of training
    assert found["fused"] < 1e-7
    assert found["exact"] < 1e-10
    assert found["a of teacher"] == pytest.approx(5.475, abs=0.03)
    assert (tmp_path / "mace_silicon.png").stat().st_size > 10_000


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.pth")), ids=lambda p: p.stem)
def test_trained_files_run_on_the_fused_engine(path, dtype):
    """Long training makes radial functions steep at short distances; tables must keep up."""
    calc = EquivariantCalculator(path, dtype=dtype, engine="fused")
    assert calc.backend.name == "fused"


def test_metals_trained_alone_mix_like_similar_metals(tmp_path):
    """Independent weights gave up to 471 meV/atom and 0.06 Å off Vegard's rule (README)."""
    compounds = example("alloys").main(["--out", str(tmp_path / "alloys.png")])
    assert len(compounds) == 6
    for name, found in compounds.items():
        assert found["a"] == pytest.approx(found["vegard"], abs=0.01), name
        assert -50.0 < found["formation"] < 60.0, name
    assert (tmp_path / "alloys.png").stat().st_size > 20_000


def test_mixtures_that_a_teacher_labels():
    """examples/teacher_alloys.py: ordered compounds first, then disordered cells."""
    cells = example("teacher_alloys").mixtures(20, np.random.default_rng(1))
    assert len(cells) == 20
    for n, atoms in enumerate(cells):
        assert len(set(atoms.symbols)) > 1
        assert atoms.get_volume() / 16 == pytest.approx(17.0, abs=1.5)  # of Mo 15.9, of Nb 18.3
        first, second = neighbor_list("ij", atoms, 0.93 * atoms.cell.lengths()[0] / 2)
        assert np.bincount(first).tolist() == [8] * 16
        like = atoms.numbers[first] == atoms.numbers[second]
        assert n >= 6 or not like.any()  # each atom of a compound AB has eight others around it
    assert len({frozenset(cell.symbols) for cell in cells[:6]}) == 6


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("train_*.toml")), ids=lambda p: p.stem)
def test_recipes_are_valid(path):
    config = read_config(path)
    assert config.data.train
    assert config.training.second_stage.start
    assert bool(config.pretrain.teacher) == path.stem.endswith("_from_xtb")
    if config.pretrain.teacher:  # the same data as without
        plain = read_config(path.with_name(path.name.replace("_from_xtb", "")))
        assert config.data.train == plain.data.train


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.pth")), ids=lambda p: p.stem)
def test_files_are_of_the_recipes_beside_them(path):
    config = read_config(path.with_name(f"train_{path.stem}.toml"))
    # isolated atoms among the data would otherwise decide
    assert not config.data.isolated_atoms or "model.exact_isolated_atoms" in config.given
    recipe = config.model
    options = read_metadata(path)["hyperparameters"]
    options.pop("avg_num_neighbors")
    # what has been added since the file was written has its default
    assert model_config(options) == recipe


def test_the_bundled_model_is_of_its_recipe():
    options = read_metadata(EXAMPLES.parent / "eqcalc" / "pretrained" / "si.pth")["hyperparameters"]
    options.pop("avg_num_neighbors")
    assert model_config(options) == read_config(EXAMPLES / "train_silicon.toml").model


@pytest.mark.parametrize("name", ["acac", "acac_from_xtb"])
def test_acetylacetone_as_in_the_table(name):
    """On frames that it was trained on, the file beside the recipe beats its own test error."""
    results = json.loads((EXAMPLES / "accuracy.json").read_text(encoding="utf-8"))
    rmse = results[name]["errors"]["all"]["forces"]["rmse"]
    frames = read_frames(Path(__file__).parent / "data" / "acac.xyz")
    calc = EquivariantCalculator(EXAMPLES / f"{name}.pth")
    found = calc.evaluate([frame.atoms for frame in frames])
    errors = [r["forces"] - f.forces for r, f in zip(found, frames, strict=True)]
    assert 1e3 * np.sqrt(np.square(errors).mean()) < rmse


def test_a_teacher_without_download(tmp_path):
    """examples/teacher_lifepo4.py in miniature: the bundled model teaches silicon."""
    module = example("teacher_lifepo4")
    olivine = module.lithium_iron_phosphate()
    assert olivine.get_chemical_formula() == "Fe4Li4O16P4"
    bonds = neighbor_list("d", olivine, {("P", "O"): 1.8})
    assert len(bonds) == 2 * 16
    assert (bonds.min(), bonds.max()) == pytest.approx((1.52, 1.56), abs=0.02)
    module.MODEL = {"cutoff": 4.0, "num_layers": 1, "num_channels": [4, 4, 4], "radial_mlp": [4]}
    module.TRAINING = {"batch_size": 2, "fused": False, "threads": 1}
    write(tmp_path / "si.xyz", bulk("Si", cubic=True))
    options = [
        "--structure",
        str(tmp_path / "si.xyz"),
        "--teacher",
        "si",
        "--repeat",
        "1",
        "1",
        "1",
    ]
    options += ["--frames", "8", "--epochs", "2", "--steps", "6", "--work", str(tmp_path / "work")]
    found = module.main([*options, "--out", str(tmp_path)])
    assert found["lattice"]["teacher"] == pytest.approx([5.468] * 3, abs=2e-3)
    frames = read(tmp_path / "work" / "train.xyz", ":")
    assert len(frames) == 8
    assert {f.info["config_type"] for f in frames} == {"network_300K"}
    assert frames[0].get_stress().shape == (6,)
    assert 0.0 < found["errors"]["forces"]["mae"] < 1e4
    assert list(found["largest_difference_of_g"]) == ["Si-Si"]
    assert set(found["microseconds_per_atom_and_step"]) == {"teacher", "network"}
    assert (tmp_path / "teacher_lifepo4.png").stat().st_size > 20_000
    assert json.loads((tmp_path / "teacher_lifepo4.json").read_text()) == found


def test_main_job(tmp_path):
    """examples/relax_and_nve.py in a short form."""
    picture = tmp_path / "nve.png"
    result = subprocess.run(
        [sys.executable, EXAMPLES / "relax_and_nve.py", "--steps", "25", "--out", picture],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "formation energy" in result.stdout, result.stdout + result.stderr
    assert "lammps" in result.stdout
    assert picture.stat().st_size > 50_000


def test_phonons_of_ase_equal_the_hessian(tmp_path):
    """At the Gamma point of one cell, finite displacements give the exact Hessian's frequencies."""
    crystal = bulk("Si", cubic=True, a=5.4695)
    calc = EquivariantCalculator("si", dtype="float64")
    phonons = Phonons(crystal, calc, supercell=(1, 1, 1), delta=0.005, name=str(tmp_path / "ph"))
    phonons.run()
    phonons.read(acoustic=True)
    energies = np.sort(np.asarray(phonons.band_structure([[0, 0, 0]])).ravel())
    hessian = calc.get_hessian(crystal)
    assert energies[-1] * 241.799 == pytest.approx(
        example("ase_tour").gamma_frequencies(crystal, calc)[-1], abs=0.02
    )
    assert hessian.shape == (24, 24)


def test_constraints_and_symmetry():
    crystal = bulk("Si", cubic=True, a=5.5)
    crystal.rattle(0.05, seed=0)
    fixed = crystal.positions[0].copy()
    crystal.set_constraint(FixAtoms([0]))
    crystal.calc = EquivariantCalculator("si", dtype="float64")
    BFGS(crystal, logfile=None).run(fmax=0.01)
    assert np.array_equal(crystal.positions[0], fixed)
    assert not crystal.get_forces()[0].any()

    symmetric = bulk("Si", a=5.3)
    symmetric.set_constraint(FixSymmetry(symmetric))
    symmetric.calc = copy.copy(crystal.calc)
    BFGS(FrechetCellFilter(symmetric), logfile=None).run(fmax=1e-3)
    assert symmetric.cell.lengths() * np.sqrt(2.0) == pytest.approx([5.4695] * 3, abs=2e-3)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def test_serves_i_pi(tmp_path):
    """Over the i-PI protocol, as a driver of i-PI would be: forces and virial come back exactly."""
    crystal = bulk("Si", cubic=True)
    crystal.rattle(0.1, seed=0)
    calc = EquivariantCalculator("si", dtype="float64")
    (expected,) = calc.evaluate([crystal])
    port = free_port()
    with SocketIOCalculator(port=port, log=str(tmp_path / "socket.log")) as server:
        served = crystal.copy()
        served.calc = copy.copy(calc)

        def drive():
            SocketClient(host="localhost", port=port).run(served, use_stress=True)

        client = threading.Thread(target=drive, daemon=True)
        client.start()
        crystal.calc = server
        energy, forces, stress = (
            crystal.get_potential_energy(),
            crystal.get_forces(),
            crystal.get_stress(),
        )
    client.join(timeout=30)
    assert not client.is_alive()
    assert energy == pytest.approx(expected["energy"], abs=1e-9)
    assert np.abs(forces - expected["forces"]).max() < 1e-9
    assert np.abs(stress - expected["stress"]).max() < 1e-9


def test_a_dipole_turns_with_its_molecule_and_a_mirror_image_has_the_other_sign(tmp_path):
    pytest.importorskip("tblite")
    arguments = ["--frames", "60", "--epochs", "20", "--out", str(tmp_path / "dipole.png")]
    found = example("dipole").main(arguments)
    seen, mirrored = "the form of the training", "mirror images"
    assert found["turned"] < 1e-12
    assert found[mirrored] == pytest.approx(found[seen], rel=1e-6)
    assert found[seen] < 0.1  # e Å, of dipoles of 0.54
    hands = [found[f"handedness of {name}"] for name in (seen, mirrored)]
    assert hands[0] == pytest.approx(3.5, abs=0.5)
    assert hands[1] == pytest.approx(-hands[0], rel=1e-9)
    assert (tmp_path / "dipole.png").stat().st_size > 10_000


def test_direct_forces_lose_the_energy_that_derivatives_keep(tmp_path):
    pytest.importorskip("tblite")
    arguments = ["--frames", "100", "--epochs", "10", "--ps", "0.1"]
    found = example("direct_forces").main([*arguments, "--out", str(tmp_path / "direct.png")])
    exact, direct = found["conservative"], found["direct"]
    assert abs(exact["drift, meV/atom/ps"]) < 0.02 * abs(direct["drift, meV/atom/ps"])
    assert exact["verdict"] != "FAIL" == direct["verdict"]
    assert (tmp_path / "direct.png").stat().st_size > 10_000
