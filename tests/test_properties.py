"""Properties against known values, and models that contradict themselves."""

import json
from pathlib import Path

import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import all_changes
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones

from eqcalc import EquivariantCalculator, InputError
from eqcalc.checks import elastic
from eqcalc.checks.molecule import num_rigid
from eqcalc.checks.properties import check_properties
from eqcalc.checks.references import read_references
from eqcalc.checks.structures import primitive_cell

REFERENCES = Path(__file__).parent.parent / "examples" / "silicon_references.toml"


@pytest.fixture(scope="module")
def copper():
    return check_properties(bulk("Cu", a=3.6), EMT())


def test_copper_in_effective_medium_theory(copper):
    """ASE's own documentation and tests of EMT: a 3.59 Å, C11, C12, C44 172, 116, 90 GPa."""
    values = {name: p.value for name, p in copper.properties.items()}
    assert copper.passed, str(copper)
    assert values["a"] == pytest.approx(3.59, abs=0.005)
    assert values["C11"] == pytest.approx(172, abs=2)
    assert values["C12"] == pytest.approx(116, abs=2)
    assert values["C44"] == pytest.approx(90, abs=1)
    assert values["bulk_modulus"] == pytest.approx(
        (values["C11"] + 2 * values["C12"]) / 3, rel=0.01
    )
    assert abs(values["phonon_min"]) < 1e-3
    # one atom in the cell: nothing to relax
    assert values["C44_clamped"] == pytest.approx(values["C44"])


def test_report_is_written(copper, tmp_path):
    copper.write(tmp_path)
    document = json.loads((tmp_path / "properties.json").read_text())
    assert document["properties"]["C11"]["unit"] == "GPa"
    assert (tmp_path / "properties.png").stat().st_size > 5_000


def test_bundled_silicon_has_the_elastic_constants_of_its_data():
    """DFT of the training data: C44 is 99 GPa with clamped ions and 76 with relaxed ones."""
    calc = EquivariantCalculator("si", dtype="float64")
    references = read_references(REFERENCES)
    report = check_properties(bulk("Si", cubic=True, a=5.43), calc, references=references)
    assert report.passed, str(report)
    assert report.properties["phonon_max"].value == pytest.approx(15.0, abs=0.3)
    assert "76 ± 5" in str(report)


class Scaled(EMT):
    """Stresses that are 10 % too large."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, [*properties, "forces"], system_changes)
        self.results["stress"] = 1.1 * self.results["stress"]


def test_stress_that_contradicts_the_energy_is_found():
    report = check_properties(bulk("Cu", a=3.6), Scaled())
    assert any("they contradict each other" in f for f in report.failures)


def test_unstable_crystal_is_found():
    """Lennard-Jones atoms do not like to be simple cubic."""
    calc = LennardJones(sigma=3.4, epsilon=0.01, rc=8.0, smooth=True)
    report = check_properties(bulk("Ar", "sc", a=3.7), calc)
    said = " ".join(report.failures)
    assert "unstable against strain" in said
    assert "imaginary phonons" in said


def test_molecule():
    report = check_properties(molecule("H2O"), EMT())
    assert report.passed, str(report)
    assert len(report.spectrum) == 3
    assert report.properties["bond_H_O"].value == pytest.approx(1.099, abs=0.01)
    line = check_properties(molecule("N2"), EMT())
    assert len(line.spectrum) == 1
    assert line.properties["mode_1"].value == pytest.approx(1231, abs=10)


def test_saddle_point_is_found():
    """Four atoms of argon in a square relax without leaving their plane's symmetry."""
    side = 3.78
    square = Atoms("Ar4", [[0, 0, 0], [side, 0, 0], [side, side, 0], [0, side, 0]])
    report = check_properties(square, LennardJones(sigma=3.4, epsilon=0.1, rc=30.0))
    assert any("A vibration is imaginary" in f for f in report.failures)


def test_rigid_motions():
    assert num_rigid(molecule("H2O")) == 6
    assert num_rigid(molecule("CO2")) == 5
    assert num_rigid(Atoms("H")) == 3


@pytest.mark.parametrize(
    ("atoms", "count"),
    [
        (bulk("Si", cubic=True), 2),
        (bulk("Cu", cubic=True).repeat((2, 1, 3)), 1),
        (bulk("Ti").repeat((2, 2, 1)), 2),
        (bulk("NaCl", "rocksalt", a=5.6, cubic=True), 2),
        (bulk("Fe", cubic=True), 1),
    ],
    ids=["Si", "Cu", "Ti", "NaCl", "Fe"],
)
def test_primitive_cell(atoms, count):
    small = primitive_cell(atoms)
    assert len(small) == count
    assert small.get_volume() / count == pytest.approx(atoms.get_volume() / len(atoms))
    rattled = atoms.copy()
    rattled.rattle(0.05, seed=1)
    assert len(primitive_cell(rattled)) == len(atoms)


def test_primitive_cell_is_the_same_crystal():
    large = bulk("Cu", cubic=True).repeat((2, 1, 1))
    energies = []
    for atoms in (primitive_cell(large), large):
        atoms.calc = EMT()
        energies.append(atoms.get_potential_energy() / len(atoms))
    assert energies[0] == pytest.approx(energies[1], abs=1e-10)


def test_elastic_constants_of_a_rotated_crystal_are_rotated():
    """Of a turned cube they have not the cubic form, but the same bulk modulus."""
    atoms = bulk("Cu", a=3.59)
    straight = elastic.elastic_constants(atoms, EMT(), relaxed=False)
    atoms.rotate(30, "z", rotate_cell=True)
    turned = elastic.elastic_constants(atoms, EMT(), relaxed=False)
    assert elastic.is_cubic(straight)
    assert not elastic.is_cubic(turned)
    assert turned[:3, :3].sum() == pytest.approx(straight[:3, :3].sum(), rel=1e-3)


def test_wires_are_refused():
    with pytest.raises(InputError, match="some directions only"):
        check_properties(Atoms("Cu", cell=[3, 9, 9], pbc=[1, 0, 0]), EMT())


def test_references(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('source = "somewhere"\na = 3.6\nC11 = { value = 150, tolerance = 5 }\n')
    references = read_references(path)
    assert references.source == "somewhere"
    assert references.values["a"].tolerance is None
    report = check_properties(bulk("Cu", a=3.6), EMT(), references=references)
    assert len(report.failures) == 1
    assert "but 150 ± 5 is expected" in report.failures[0]
    document = path.with_suffix(".json")
    document.write_text('{"a": {"value": 3.6, "tolerance": 0.1}}')
    assert read_references(document).values["a"].tolerance == 0.1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = ", "neither valid TOML nor JSON"),
        ('a = "long"', "must be a number"),
        ("a = { value = 3.6, toleranz = 1 }", "a value and perhaps a tolerance"),
        ("C14 = 3.6", "did you mean 'C44'"),
    ],
)
def test_bad_references(text, message, tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        check_properties(bulk("Cu", a=3.6), EMT(), references=read_references(path))
