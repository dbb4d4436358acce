"""What every kind of imported file is asked."""

import importlib.util
import sys
from pathlib import Path

import pytest
from ase import Atoms

from eqcalc import EquivariantCalculator, export
from eqcalc.errors import InputError
from eqcalc.importers import import_model

HERE = Path(__file__).parent


def peer_python(name):
    """The interpreter of a package's environment (benchmarks/environments.py), made if need be."""
    path = HERE / "benchmarks" / "environments.py"
    spec = importlib.util.spec_from_file_location("environments", path)
    environments = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(environments)
    try:
        return environments.python_of(name, HERE.parent / "build" / "peers")
    except environments.UnavailableError as error:
        pytest.skip(str(error))


def structure(fourth="Cu"):
    """Five atoms of three elements, which the files of tests/data know."""
    return Atoms(
        ["O", "Si", "Si", fourth, "O"],
        positions=[[0, 0, 0], [1.6, 0.1, 0], [-0.3, 1.7, 0.2], [0.1, -0.4, 2.1], [2.2, 1.5, -0.4]],
        cell=[[4.5, 0.2, 0], [0, 5.0, 0.3], [0.4, 0, 5.5]],
        pbc=True,
    )


def results(path, atoms=None, **options):
    """Energy and forces of a structure, of the one above if none is given."""
    atoms = structure() if atoms is None else atoms.copy()
    atoms.calc = EquivariantCalculator(path, **options)
    return atoms.get_potential_energy(), atoms.get_forces()


def assert_fewer_elements_change_nothing(source, folder):
    """Silicon and oxygen alone have the numbers that they have among all elements."""
    whole, part = (
        import_model(source, folder / f"{n}.pth", elements=kept, dtype="float64").path
        for n, kept in enumerate((None, ["Si", "O"]))
    )
    a, b = (results(path, structure("Si"), engine="torch") for path in (whole, part))
    assert b[0] == pytest.approx(a[0], abs=1e-11)
    assert b[1] == pytest.approx(a[1], abs=1e-11)
    before, after = map(export.read_metadata, (whole, part))
    assert after["species"] == ["O", "Si"]
    assert after["num_parameters"] < before["num_parameters"]
    with pytest.raises(InputError, match="does not know Fe"):
        import_model(source, folder / "x.pth", elements=["Fe"])
    assert not (folder / "x.pth").exists()


def assert_reference_holds_every_element(source, folder):
    path = import_model(source, folder / "m.pth").path
    species = export.load(path).module.reference_structure.species
    assert set(species.tolist()) == {0, 1, 2}
