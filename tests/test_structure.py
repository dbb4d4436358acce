"""Arrays of users at the border: converted without loss, or refused in a sentence."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.cell import Cell

from eqcalc import EquivariantCalculator, InputError
from eqcalc.neighbors import VerletList, neighbor_list
from eqcalc.structure import Structure, as_array


@pytest.fixture(scope="module", params=["fused", "torch"])
def calc(request, potential_path):
    return EquivariantCalculator(potential_path, dtype="float64", engine=request.param)


def spaced(array):
    """The same numbers, every second place in memory."""
    wide = np.repeat(array, 2, axis=0)[::2]
    assert not wide.flags.c_contiguous or len(array) < 2
    return wide


#: other layouts and types of the same numbers, which are exact in float32 and as integers
LAYOUTS = {
    "float32": lambda a: a.astype(np.float32),
    "longdouble": lambda a: a.astype(np.longdouble),
    "int32": lambda a: a.astype(np.int32),
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "Fortran": np.asfortranarray,
    "strided": spaced,
    "read-only": lambda a: np.broadcast_to(a, a.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_gives_the_same_numbers(calc, layout):
    """Positions and cell of whole numbers of Å, so that every type holds them exactly."""
    rng = np.random.default_rng(0)
    places = np.array([[x, y, z] for x in (0, 3) for y in (0, 3) for z in (0, 3)], dtype=float)
    plain = Atoms("SiO" * 4, places + rng.integers(0, 2, (8, 3)), cell=[6, 7, 6], pbc=True)
    expected = calc.evaluate([plain])[0]
    other = plain.copy()
    for name in ("positions", "numbers"):
        other.arrays[name] = LAYOUTS[layout](other.arrays[name])
    other.cell = Cell(LAYOUTS[layout](plain.cell.array))
    for atoms in (other, other.copy()):
        got = calc.evaluate([atoms])[0]
        for name, value in expected.items():
            assert np.array_equal(got[name], value), name
        atoms.calc = calc
        calc.reset()
        assert atoms.get_potential_energy() == pytest.approx(expected["energy"], abs=1e-12)
        assert np.allclose(atoms.get_forces(), expected["forces"], atol=1e-12)
        assert np.allclose(atoms.get_stress(), expected["stress"], atol=1e-12)


def test_hessians_and_descriptors_in_another_layout(potential_path, molecule):
    molecule.positions = np.round(molecule.positions * 8) / 8
    calc = EquivariantCalculator(potential_path, dtype="float64")
    expected = calc.get_hessian(molecule), calc.get_descriptors(molecule)
    other = molecule.copy()
    other.arrays["positions"] = np.asfortranarray(molecule.positions, dtype=np.float32)
    calc._kept = None, {}
    assert np.array_equal(calc.get_hessian(other), expected[0])
    assert np.array_equal(calc.get_descriptors(other), expected[1])


def test_float32_positions_of_many_crystals(calc):
    """As read by other programs: float64 of the same numbers gives the same energies."""
    for seed in range(10):
        atoms = bulk("Si", cubic=True)
        atoms.rattle(0.05, seed=seed)
        atoms.arrays["positions"] = atoms.positions.astype(np.float32)
        exact = atoms.copy()
        exact.arrays["positions"] = atoms.positions.astype(np.float64)
        energies = [r["energy"] for r in calc.evaluate([atoms, exact])]
        assert energies[0] == pytest.approx(energies[1], abs=1e-12)


def put(name, value):
    return lambda atoms: atoms.arrays.__setitem__(name, value)


def one_nan(atoms):
    atoms.positions[1, 2] = np.inf


def far_away(atoms):
    atoms.positions[3] = [0.0, -3e12, 0.0]


def in_metres(atoms):
    atoms.set_cell(atoms.cell.array * 1e10)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (put("positions", np.zeros((8, 3), dtype=complex)), "positions are of type complex128"),
        (put("positions", np.zeros((8, 2))), r"positions have shape 8 x 2: it must be N x 3"),
        (put("positions", np.zeros(24)), r"positions have shape 24: it must be N x 3"),
        (put("positions", np.zeros((7, 3))), "8 atomic numbers and 7 positions"),
        (put("positions", np.full((8, 3), "a")), "positions are of type <U1"),
        (put("positions", np.ma.masked_equal(np.eye(8, 3), 1.0)), "masked array"),
        (one_nan, "position of atom 1 is .* not a finite number"),
        (far_away, r"position of atom 3 is .* beyond 1e\+08 Å"),
        (in_metres, r"vectors longer than 1e\+08 Å"),
        (put("numbers", np.full(8, 14.5)), "atomic numbers must be integers"),
        (put("numbers", np.full(8, "Si")), "atomic numbers are of type <U2"),
        (put("numbers", np.full((8, 1), 14)), "atomic numbers have shape 8 x 1"),
        (put("numbers", np.full(8, 119)), r"contains atomic number 119 \(no element\)"),
        (put("numbers", np.full(8, -2)), r"contains atomic number -2 \(no element\)"),
        (put("numbers", np.zeros(8, dtype=int)), r"contains X \(dummy atoms"),
    ],
)
def test_what_cannot_be_meant_is_refused(potential_path, crystal, change, sentence):
    calc = EquivariantCalculator(potential_path)
    change(crystal)
    with pytest.raises(InputError, match=sentence):
        calc.evaluate([crystal])
    with pytest.raises(InputError, match=sentence):
        calc.get_property("energy", crystal)


def test_other_objects_than_atoms_are_refused(potential_path):
    calc = EquivariantCalculator(potential_path)
    with pytest.raises(InputError, match=r"Structure 0 of the list: ase.Atoms are needed"):
        calc.evaluate([np.zeros(3)])


@pytest.mark.parametrize("pbc", ["TTF", ("T", "T", "F"), (True, True), 2, None, (1.0, np.nan, 0.0)])
def test_directions_that_cannot_be_meant(pbc):
    with pytest.raises(InputError, match="pbc = "):
        neighbor_list(np.zeros((1, 3)), np.eye(3) * 5, pbc, 3.0)


@pytest.mark.parametrize("pbc", [True, 1, np.bool_(True), (1, 1, 1), [1.0, 1.0, 1.0]])
def test_one_direction_for_all(pbc):
    found = neighbor_list(np.zeros((1, 3)), np.eye(3) * 2, pbc, 2.5)
    assert len(found.edge_dst) == 6


def test_tensors_are_arrays():
    values = torch.arange(6.0).reshape(2, 3)
    assert as_array(values, (None, 3), "positions").dtype == np.float64
    with pytest.raises(InputError, match="cannot be read as an array"):
        as_array(values.requires_grad_(), (None, 3), "positions")
    with pytest.raises(InputError, match="cannot be read as an array"):
        as_array([[1.0, 2.0], [3.0]], (None, 3), "positions")


def test_what_fits_is_not_copied():
    atoms = bulk("Si")
    assert Structure.of(atoms).positions is atoms.positions


def test_verlet_list_of_any_layout(crystal):
    """Vectors are differences of float64 positions; the list keeps arrays of its own."""
    crystal.arrays["positions"] = np.asfortranarray(crystal.positions.astype(np.float32))
    exact = crystal.positions.astype(np.float64)
    verlet = VerletList(4.0, 0.5)
    found, vectors = verlet.update(crystal)
    shifts = found.cell_shift @ crystal.cell.array
    assert np.array_equal(vectors, exact[found.edge_src] - exact[found.edge_dst] + shifts)
    crystal.positions[0] += 0.3
    verlet.update(crystal)
    assert verlet.num_builds == 2
