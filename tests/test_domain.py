"""The training domain: measured, written, read, and noticed when a structure leaves it."""

import copy
import json
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.md.verlet import VelocityVerlet
from runs import tiny
from typer.testing import CliRunner

from eqcalc import EquivariantCalculator
from eqcalc.checks.trained import Trained
from eqcalc.cli import app
from eqcalc.domain import Domain, OutsideDomainError, where_unmet
from eqcalc.errors import InputError
from eqcalc.export import read_metadata
from eqcalc.training.domain import temperature
from eqcalc.training.run import train


def crystals(path: Path) -> str:
    """Neon and argon, shaken, with labels that mean nothing but their ranges."""
    frames = []
    for n in range(8):
        atoms = bulk(("Ne", "Ar")[n % 2], "fcc", a=4.4 + 0.05 * n, cubic=True)
        atoms.rattle(0.05, seed=n)
        forces = np.zeros((4, 3))
        forces[0, 0], forces[1, 0] = 0.1 * n, -0.1 * n
        stress = -np.array([n, n, n, 0, 0, 0]) * units.GPa
        energy = -4.0 * (n % 2) + 0.004 * n
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces, stress=stress)
        atoms.info["config_type"] = f"MD {100 * (n + 1)} K"
        frames.append(atoms)
    write(path, frames, format="extxyz")
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("domain")
    data = {"reference_energies": {"Ne": 0.0, "Ar": -1.0}}
    config = tiny(crystals(folder / "all.xyz"), data=data, epochs=1)
    train(config, folder / "run", quiet=True)
    return folder / "run" / "model.pth"


def test_elements_that_never_met(model):
    """Checks take the mean of what each has with itself, else covalent radii."""
    metadata = read_metadata(model)
    shortest = Domain.read(metadata).shortest_training(["Ar", "Ne"])
    assert np.isinf(shortest[0, 1])
    trained = Trained.read(metadata, Atoms("NeAr"), ["Ne", "Ar"])
    assert trained.symbols == ["Ar", "Ne"]
    assert trained.shortest[0, 1] == trained.shortest[1, 0] == shortest.diagonal().mean()
    assert (trained.shortest.diagonal() == shortest.diagonal()).all()
    lone = where_unmet(np.array([[1.0, np.inf], [np.inf, np.inf]]), np.full((2, 2), 3.0))
    assert lone.tolist() == [[1.0, 3.0], [3.0, 3.0]]


def test_measured(model):
    """All training frames (two of the eight are held out) and nothing else."""
    metadata = read_metadata(model)
    document = metadata["domain"]
    assert (document["frames"], document["atoms"]) == (6, 24)
    domain = Domain.read(metadata)
    symbols = ["Ne", "Ar"]
    shortest = domain.shortest_training(symbols)
    assert np.isinf(shortest[0, 1])
    assert 2.8 < shortest[0, 0] < 4.4 / np.sqrt(2)
    assert domain.shortest_limits(symbols)[0, 0] == pytest.approx(0.95 * shortest[0, 0], rel=1e-5)
    assert document["neighbors"]["Ne"]["training"] == [12, 12]
    low, high = document["pressure"]["training"]
    assert low < high
    assert {round(p) for p in (low, high)} <= set(range(8))
    assert document["force"]["limit"] == pytest.approx(1.5 * document["force"]["training"])
    assert document["energy_per_atom"]["training"][0] >= -1e-6  # above the reference energies
    assert document["density"]["training"][1] == pytest.approx(4 / 4.4**3, rel=0.1)
    assert 600.0 <= document["temperature"] <= 800.0


def test_temperature_of_names():
    """As data sets write it: by itself, or as a part of a config_type."""
    for name, kelvin in (("MD 300 K", 300.0), ("300K_MD", 300.0), ("aimd-1200.5K", 1200.5)):
        assert temperature([(Atoms("H"), name)]) == kelvin
    assert temperature([(Atoms("H"), "2Kr 3KCl K4")]) is None


def test_text_for_lammps(model):
    """One line per quantity, with the same limits."""
    document = read_metadata(model)["domain"]
    with zipfile.ZipFile(model) as archive:
        name = next(n for n in archive.namelist() if n.endswith("extra/eqcalc_domain.txt"))
        lines = archive.read(name).decode().splitlines()
    assert lines[0] == "eqcalc-domain 1"
    rows = {tuple(line.split()[:-1]): line.split()[-1] for line in lines if "shortest" in line}
    assert rows["shortest_distance", "Ne", "Ar"] == "inf"
    limit = document["shortest_distance"]["Ne-Ne"]["limit"]
    assert float(rows["shortest_distance", "Ne", "Ne"]) == pytest.approx(limit)
    density = next(line.split()[1:] for line in lines if line.startswith("density"))
    assert [float(x) for x in density] == pytest.approx(document["density"]["limits"])


def test_info_shows_it(model):
    shown = CliRunner().invoke(app, ["info", str(model)]).output
    assert "training domain     6 frames, 24 atoms" in shown
    assert "never met" in shown
    assert "Ne-Ar" in shown


def sentences(model, atoms, **options) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        atoms.calc = EquivariantCalculator(model, **options)
        atoms.get_forces()
    return [str(w.message) for w in caught if "Outside of the training" in str(w.message)]


def inside() -> Atoms:
    atoms = bulk("Ne", "fcc", a=4.5, cubic=True)
    atoms.rattle(0.03, seed=9)
    return atoms


def limits_only(model: Path, folder: Path, *keys: str) -> Path:
    """The same file with some of its domain."""
    path = folder / "some.pth"
    with zipfile.ZipFile(model) as old, zipfile.ZipFile(path, "w") as new:
        for item in old.infolist():
            content = old.read(item)
            if item.filename.endswith("extra/eqcalc.json"):
                document = json.loads(content)
                for key in {"density", "pressure", "energy_per_atom", "force"} - set(keys):
                    document["domain"].pop(key)
                content = json.dumps(document)
            new.writestr(item, content)
    return path


def test_distance_is_named_with_atoms_and_figures(model, tmp_path):
    geometry = limits_only(model, tmp_path)
    assert sentences(geometry, inside()) == []
    near = inside()
    near.positions[2] = near.positions[0] + [2.0, 0.0, 0.0]
    (said,) = sentences(geometry, near)
    assert "atoms 0 and 2 (Ne-Ne) are 2.000 Å apart (training: not shorter than" in said
    assert sentences(geometry, near, on_domain_exit="ignore") == []
    mixed = inside()
    mixed.numbers[3] = 18
    (said,) = sentences(geometry, mixed)
    assert "Ne-Ar" in said
    assert "they never met" in said


def test_neighbours_density_pressure_and_forces(model, tmp_path):
    few = sentences(limits_only(model, tmp_path), Atoms("Ne", cell=3 * [20.0], pbc=True))
    assert len(few) == 1
    assert "atom 0 (Ne) has 0 neighbours (training: 12 to 12)" in few[0]
    thin = bulk("Ne", "fcc", a=4.4, cubic=True)
    thin.set_cell([4.4, 4.4, 9.0])
    said = sentences(limits_only(model, tmp_path, "density"), thin)
    assert any("the density is 0.02296 atoms/Å^3 (training: " in s for s in said)
    path = limits_only(model, tmp_path, "force", "energy_per_atom")
    document = read_metadata(path)["domain"]
    atoms = inside()
    calc = EquivariantCalculator(path, on_domain_exit="ignore")
    force = np.linalg.norm(calc.evaluate([atoms])[0]["forces"], axis=1)
    said = sentences(path, atoms)
    beyond = force.max() > document["force"]["limit"]
    assert any(f"the force on atom {force.argmax()} is" in s for s in said) == beyond


def test_said_once_and_stop_raises(model, tmp_path):
    geometry = limits_only(model, tmp_path)
    near = inside()
    near.positions[2] = near.positions[0] + [2.0, 0.0, 0.0]
    calc = EquivariantCalculator(geometry)
    near.calc = calc
    with pytest.warns(UserWarning, match="Outside of the training of some: atoms 0 and 2"):
        near.get_forces()
    near.positions[2, 0] -= 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        near.get_forces()
        near.calc = copy.copy(calc)
        near.get_forces()
    near.calc = EquivariantCalculator(geometry, on_domain_exit="stop")
    with pytest.raises(OutsideDomainError, match="atoms 0 and 2"):
        near.get_forces()
    with pytest.raises(InputError, match="must be one of warn, stop, ignore"):
        EquivariantCalculator(geometry, on_domain_exit="loud")


def test_dynamics_is_stopped_within_eight_steps(model, tmp_path):
    """The list of neighbours does not change, and two atoms fly towards each other."""
    atoms = inside()
    atoms.set_masses([1e6] * 4)
    geometry = limits_only(model, tmp_path)
    atoms.calc = EquivariantCalculator(geometry, on_domain_exit="stop", skin=3.0)
    apart = atoms.get_distance(0, 1, mic=True, vector=True)
    length = np.linalg.norm(apart)
    limit = read_metadata(geometry)["domain"]["shortest_distance"]["Ne-Ne"]["limit"]
    step = (length - limit) / 4.5
    speed = step / (1.0 * units.fs) * apart / length
    atoms.set_momenta(1e6 * np.array([speed, 0 * speed, 0 * speed, 0 * speed]))
    dynamics = VelocityVerlet(atoms, timestep=1.0 * units.fs)
    with pytest.raises(OutsideDomainError):
        dynamics.run(14)
    assert 5 <= dynamics.nsteps <= 13
