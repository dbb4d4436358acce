"""The ASE calculator: what ASE users do with it, and what they get wrong."""

import copy
import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, diamond100
from ase.calculators.calculator import CalculatorSetupError, PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_stress
from ase.filters import FrechetCellFilter
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS, FIRE
from scipy.spatial.transform import Rotation

from eqcalc import EquivariantCalculator, InputError
from eqcalc.checks.gradients import check_gradients
from eqcalc.checks.symmetry import check_symmetry
from eqcalc.checks.traces import with_velocities
from eqcalc.derivatives import stress_volume


@pytest.fixture(scope="module")
def silicon():
    return EquivariantCalculator("si", dtype="float64")


@pytest.fixture
def calc(potential_path):
    return EquivariantCalculator(potential_path, dtype="float64")


def test_properties_fit_together(calc, crystal):
    crystal.calc = calc
    energy = crystal.get_potential_energy()
    assert energy == pytest.approx(crystal.get_potential_energies().sum(), abs=1e-12)
    assert energy == crystal.get_potential_energy(force_consistent=True)
    assert np.allclose(crystal.get_stresses().sum(axis=0), crystal.get_stress(), atol=1e-14)
    assert crystal.get_forces().shape == (8, 3)


@pytest.mark.parametrize("pbc", [(1, 1, 1), (1, 1, 0), (0, 1, 0), (0, 0, 0)])
@pytest.mark.parametrize("path", ["potential_path", "parity_path"])
def test_symmetry_and_gradients_for_any_periodicity(path, pbc, crystal, request):
    calc = EquivariantCalculator(request.getfixturevalue(path), dtype="float64")
    crystal.pbc = pbc
    report = check_symmetry(crystal, calc)
    assert report.passed, str(report)
    report = check_gradients(crystal, calc, num_components=4, steps=(1e-4, 1e-5))
    assert report.passed, str(report)


def test_symmetry_in_float32(potential_path, crystal):
    calc = EquivariantCalculator(potential_path)
    assert calc.potential.dtype == torch.float32
    report = check_symmetry(crystal, calc)
    assert report.passed, str(report)


def test_tiny_cells_equal_their_supercells(calc):
    primitive = bulk("Si")
    primitive.set_cell(primitive.cell.array @ np.diag([0.9, 1.0, 1.1]), scale_atoms=True)
    large = primitive.repeat(4)
    primitive.calc = large.calc = calc
    assert large.get_potential_energy() == pytest.approx(
        64 * primitive.get_potential_energy(), rel=1e-12
    )
    assert np.allclose(large.get_stress(), primitive.get_stress(), atol=1e-12)


def test_left_handed_cells(calc, crystal):
    crystal.calc = calc
    expected = crystal.get_potential_energy(), crystal.get_stress()
    crystal.set_cell(crystal.cell.array[[1, 0, 2]])
    assert crystal.get_potential_energy() == pytest.approx(expected[0], rel=1e-12)
    assert np.allclose(crystal.get_stress(), expected[1], atol=1e-12)


def test_isolated_atom_and_pair_beyond_the_cutoff(calc):
    atom = Atoms("Si")
    pair = Atoms("Si2", [[0, 0, 0], [0, 0, 40]])
    atom.calc = pair.calc = calc
    assert not atom.get_forces().any()
    assert pair.get_potential_energy() == pytest.approx(2 * atom.get_potential_energy(), rel=1e-12)


def test_stress_needs_a_periodic_direction_and_a_volume(calc, molecule):
    molecule.calc = calc
    sheet = molecule.copy()
    sheet.set_cell([12.0, 12.0, 0.0])
    sheet.pbc = (True, True, False)
    boxed = molecule.copy()
    boxed.set_cell([12.0, 12.0, 12.0])
    for atoms in (molecule, sheet, boxed):
        atoms.calc = calc
        with pytest.raises(PropertyNotImplementedError, match="Stress needs a periodic direction"):
            atoms.get_stress()
        assert np.isfinite(atoms.get_forces()).all()
        assert "stress" not in calc.evaluate([atoms])[0]


@pytest.mark.parametrize("pbc", [(1, 1, 0), (0, 1, 0)])
def test_stress_of_slabs_and_wires_is_the_derivative_over_the_cell(calc, crystal, pbc):
    """As of ASE's other calculators: vacuum is part of the volume."""
    crystal.center(vacuum=3.0, axis=np.flatnonzero(np.equal(pbc, 0)))
    crystal.pbc = pbc
    crystal.calc = calc
    stress = crystal.get_stress()
    numerical = calculate_numerical_stress(crystal, eps=1e-5)
    assert np.abs(stress).max() > 0.004
    assert np.abs(stress - numerical).max() < 1e-9
    assert np.allclose(crystal.get_stresses().sum(axis=0), stress, atol=1e-14)
    assert np.allclose(calc.evaluate([crystal])[0]["stress"], stress, atol=1e-12)


def test_in_plane_relaxation_of_a_slab(silicon):
    """It ends where the energy is lowest over the in-plane lattice constants."""
    slab = diamond100("Si", (1, 1, 5), vacuum=6.0)
    strain = np.diag([1.02, 0.985, 1.0])
    slab.set_cell(slab.cell.array @ strain, scale_atoms=True)
    slab.calc = silicon
    height = slab.cell[2].copy()
    inplane = FrechetCellFilter(slab, mask=[1, 1, 0, 0, 0, 1])
    assert BFGS(inplane, logfile=None).run(fmax=1e-4, steps=200)
    assert np.array_equal(slab.cell[2], height)
    assert np.abs(slab.get_stress()[[0, 1, 5]]).max() * slab.get_volume() < 1e-3
    lowest = slab.get_potential_energy()
    for axis in (0, 1):
        energies = []
        for h in (-1e-3, 1e-3):
            other = slab.copy()
            cell = slab.cell.array.copy()
            cell[axis] *= 1.0 + h
            other.set_cell(cell, scale_atoms=True)
            other.calc = silicon
            energies.append(other.get_potential_energy())
        assert min(energies) > lowest
        assert abs(energies[1] - energies[0]) / 2e-3 < 2e-3  # dE/dstrain, eV


def test_only_what_is_asked_and_only_once(calc, crystal, monkeypatch):
    calls = []
    compute = type(calc.backend).compute

    def counted(self, species, positions, pairs, wanted):
        calls.append(wanted.gradient)
        return compute(self, species, positions, pairs, wanted)

    monkeypatch.setattr(type(calc.backend), "compute", counted)
    crystal.calc = calc
    crystal.get_potential_energy()
    crystal.get_potential_energies()
    assert calls == [False]
    assert "forces" not in calc.results
    crystal.get_forces()
    crystal.get_stress()
    crystal.get_potential_energy()
    calc.get_atomic_virials(crystal)
    assert calls == [False, True]
    crystal.positions[0, 0] += 0.01
    crystal.get_forces()
    assert calls == [False, True, True]


@pytest.mark.parametrize(
    "engine", ["fused", pytest.param("exact", marks=pytest.mark.slow), "torch"]
)
def test_energies_alone_equal_energies_with_forces(potential_path, crystal, engine):
    crystal.calc = EquivariantCalculator(potential_path, engine=engine)
    alone = crystal.get_potential_energies()
    crystal.get_forces()
    assert np.array_equal(alone, crystal.get_potential_energies())


@pytest.mark.parametrize("pbc", [(1, 1, 1), (1, 0, 1), (0, 0, 0)])
def test_atomic_virials_follow_from_scaling(calc, crystal, pbc):
    """Their sum is minus the derivative of the energy in a strain of atoms and cell."""
    crystal.pbc = pbc
    crystal.calc = calc
    virials = calc.get_atomic_virials(crystal)
    assert virials.shape == (8, 3, 3)
    total = virials.sum(axis=0)
    assert np.abs(total - total.T).max() < 1e-10
    if all(pbc):
        stress = crystal.get_stress(voigt=False)
        assert np.allclose(total, -crystal.get_volume() * stress, atol=1e-12)
    positions, cell = crystal.positions.copy(), crystal.cell.array.copy()
    for i, j in ((0, 0), (0, 2)):
        energies = []
        for h in (1e-5, -1e-5):
            strain = np.eye(3)
            strain[i, j] += h
            crystal.set_cell(cell @ strain)
            crystal.positions = positions @ strain
            energies.append(crystal.get_potential_energy())
        assert total[i, j] == pytest.approx(-(energies[0] - energies[1]) / 2e-5, abs=1e-6)


def test_atomic_virials_turn_with_the_structure(calc, crystal):
    expected = calc.get_atomic_virials(crystal)
    turn = Rotation.random(random_state=1).as_matrix() @ np.diag([1.0, -1.0, 1.0])
    crystal.set_cell(crystal.cell.array @ turn.T)
    crystal.positions = crystal.positions @ turn.T
    assert np.abs(calc.get_atomic_virials(crystal) - turn @ expected @ turn.T).max() < 1e-10


def test_copies_and_pickles(calc, crystal):
    crystal.calc = calc
    expected = crystal.get_forces()
    for twin in (copy.deepcopy(calc), pickle.loads(pickle.dumps(calc))):
        other = crystal.copy()
        other.positions += 0.0
        other.calc = twin
        assert twin.potential.dtype == torch.float64
        assert np.array_equal(other.get_forces(), expected)
        other.positions[0] += 0.1
        assert not np.array_equal(other.get_forces(), expected)


def test_copies_share_the_network_and_nothing_else(calc, crystal):
    crystal.calc = calc
    expected = crystal.get_forces()
    atoms = copy.deepcopy(crystal)
    twin = atoms.calc
    assert twin is not calc
    assert twin.backend is calc.backend
    assert twin.neighbors is not calc.neighbors
    atoms.positions[0] += 0.1
    assert not np.array_equal(atoms.get_forces(), expected)
    assert np.array_equal(calc.results["forces"], expected)


def forces_of(atoms):
    return atoms.get_forces()


@pytest.mark.parametrize(
    ("start", "engine"),
    [("fork", "fused"), ("fork", "torch"), pytest.param("spawn", "auto", marks=pytest.mark.slow)],
)
def test_other_processes(potential_path, crystal, start, engine, monkeypatch):
    """Also from another folder, and forked while the parent has threads, which do not follow."""
    monkeypatch.chdir(potential_path.parent)
    options = {"dtype": "float64", "engine": engine, "threads": 2}
    crystal.calc = EquivariantCalculator(potential_path.name, **options)
    expected = crystal.get_forces()
    other = crystal.copy()
    other.positions[0] += 0.1
    other.calc = crystal.calc
    monkeypatch.chdir("/")
    with multiprocessing.get_context(start).Pool(1) as pool:
        same, moved = pool.map_async(forces_of, [crystal, other]).get(timeout=60)
    assert np.array_equal(same, expected)
    assert np.abs(moved - other.get_forces()).max() < 1e-12


def test_copies_in_threads_do_not_mix(calc, crystal):
    """ASE's NEB with parallel=True runs its images like this."""
    images = []
    for k in range(4):
        image = crystal.repeat((k + 1, 1, 1))
        image.rattle(0.05, seed=k)
        image.calc = copy.copy(calc)
        images.append(image)
    expected = [image.get_forces() for image in images]
    for _ in range(5):
        for image in images:
            image.calc.results = {}
        with ThreadPoolExecutor(4) as pool:
            got = list(pool.map(forces_of, images))
        for a, b in zip(got, expected, strict=True):
            assert np.array_equal(a, b)


def test_nothing_global_changes(potential_path, crystal):
    before = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    single = EquivariantCalculator(potential_path, dtype="float32", threads=2)
    double = EquivariantCalculator(potential_path, dtype="float64")
    with torch.no_grad():
        forces = []
        for calc in (single, double, single, double):
            atoms = crystal.copy()
            atoms.calc = calc
            forces.append(atoms.get_forces())
    assert np.array_equal(forces[0], forces[2])
    assert np.array_equal(forces[1], forces[3])
    assert 0 < np.abs(forces[0] - forces[1]).max() < 1e-4
    assert before == (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled())


def awkward_structures(crystal, molecule):
    slab = crystal.repeat((2, 1, 1))
    slab.pbc = [True, True, False]
    left_handed = crystal.copy()
    left_handed.set_cell(crystal.cell.array[[1, 0, 2]])
    tiny = bulk("Si")
    return [crystal, molecule, Atoms("O"), tiny, slab, Atoms(), left_handed, tiny.repeat(3)]


@pytest.mark.parametrize("engine", ["fused", "torch"])
@pytest.mark.parametrize("batch_atoms", [1, 20, 1000])
def test_many_structures_at_once(potential_path, crystal, molecule, engine, batch_atoms):
    calc = EquivariantCalculator(potential_path, dtype="float64", engine=engine)
    structures = awkward_structures(crystal, molecule)
    results = calc.evaluate(iter(structures), batch_atoms=batch_atoms)
    assert len(results) == len(structures)
    single = EquivariantCalculator(potential_path, dtype="float64", engine=engine)
    for atoms, got in zip(structures, results, strict=True):
        assert ("stress" in got) == (stress_volume(atoms.cell.array, atoms.pbc) is not None)
        atoms.calc = single
        atoms.get_forces()
        assert got.keys() == single.results.keys()
        for name, value in got.items():
            assert np.shape(value) == np.shape(single.results[name])
            assert np.abs(value - single.results[name]).max(initial=0.0) < 1e-10, name


def test_screening_leaves_the_calculator_alone(calc, crystal, molecule):
    crystal.calc = calc
    forces, pairs = crystal.get_forces(), calc.neighbors.pairs(crystal)
    calc.evaluate([molecule, crystal])
    assert calc.results["forces"] is not None
    assert np.array_equal(calc.results["forces"], forces)
    assert calc.neighbors.pairs(crystal) is pairs
    assert calc.evaluate([]) == []


def test_screening_says_which_structure_is_wrong(calc, crystal, molecule):
    broken_one = molecule.copy()
    broken_one.positions[2] = broken_one.positions[4]
    with pytest.raises(InputError, match=r"Structure 2 of the list: Atoms 2 and 4 are 0 Å apart"):
        calc.evaluate([crystal, molecule, broken_one])
    with pytest.raises(InputError, match=r"Structure 1 of the list: .* contains Fe"):
        calc.evaluate([crystal, Atoms("Fe")])
    with pytest.raises(InputError, match=r"evaluate\(\[atoms\]\)"):
        calc.evaluate(crystal)


@pytest.mark.parametrize("optimizer", [BFGS, FIRE])
def test_relaxations(silicon, optimizer):
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=1)
    atoms.calc = silicon
    assert optimizer(atoms, logfile=None).run(fmax=0.01, steps=100)
    assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 0.01


def test_cell_relaxation_reaches_the_dft_lattice_constant(silicon):
    atoms = bulk("Si", cubic=True, a=5.3)
    deformation = np.eye(3) + np.array([[0, 0.03, 0], [0, 0, 0], [0, 0, 0.02]])
    atoms.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
    atoms.calc = silicon
    assert BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.001, steps=100)
    assert abs(atoms.get_volume() ** (1 / 3) / 5.469 - 1) < 0.003
    assert np.abs(atoms.get_stress()).max() < 1e-4


def test_energy_volume_curve_has_one_minimum(silicon):
    energies = []
    for ratio in np.linspace(0.8, 1.3, 51):
        atoms = bulk("Si", a=5.469 * ratio ** (1 / 3))
        atoms.calc = silicon
        energies.append(atoms.get_potential_energy())
    signs = np.sign(np.diff(energies))
    assert (np.diff(signs) != 0).sum() == 1


def test_dynamics_and_list_reuse():
    atoms = bulk("Si", cubic=True)
    atoms.calc = calc = EquivariantCalculator("si", dtype="float64", skin=1.0)
    atoms.set_velocities(with_velocities(atoms, 600.0).get_velocities())
    start = atoms.get_total_energy()
    VelocityVerlet(atoms, 1.0 * units.fs).run(100)
    assert abs(atoms.get_total_energy() - start) / len(atoms) < 1e-3
    assert calc.neighbors.num_builds < 20


def test_nudged_elastic_band_of_a_vacancy(silicon):
    """A vacancy hops to a neighbouring site of diamond; the middle image lies higher."""
    crystal = bulk("Si", cubic=True, a=5.469)
    initial, final = crystal.copy(), crystal.copy()
    near = int(np.argsort(crystal.get_distances(0, range(8), mic=True))[1])
    final.positions[near] = crystal.positions[0]
    del initial[0], final[0]
    images = [initial, *(initial.copy() for _ in range(3)), final]
    for image in images:
        image.calc = silicon
    band = NEB(images, allow_shared_calculator=True, method="improvedtangent")
    band.interpolate(mic=True)
    before = np.abs(band.get_forces()).max()
    FIRE(band, logfile=None).run(fmax=0.05, steps=8)
    energies = [image.get_potential_energy() for image in images]
    assert np.abs(band.get_forces()).max() < before
    assert energies[2] > energies[0]
    assert energies[0] == pytest.approx(energies[4], abs=1e-6)


def broken(atoms):
    atoms.positions[3, 1] = np.nan


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (broken, "position of atom 3 is .* not a finite number"),
        (lambda a: a.symbols.__setitem__(0, "Fe"), r"knows O, Si, but the structure contains Fe"),
        (lambda a: a.positions.__setitem__(0, a.positions[1]), "Atoms 0 and 1 are 0 Å apart"),
        (lambda a: a.set_cell(np.zeros((3, 3))), "periodic along abc, but those cell vectors"),
    ],
)
def test_broken_structures_get_one_sentence(calc, crystal, change, sentence):
    change(crystal)
    crystal.calc = calc
    with pytest.raises(InputError, match=sentence):
        crystal.get_potential_energy()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"model": "sj"}, "no model file 'sj', nor a bundled model of that name"),
        ({"dtype": "half"}, r"dtype 'half' \(.*\): it must be float32 or float64"),
        ({"skin": -1.0}, "must not be negative"),
        ({"threads": 0}, "must be at least 1"),
        ({"model": []}, "list of models is empty"),
    ],
)
def test_wrong_options_get_one_sentence(potential_path, options, sentence):
    with pytest.raises(InputError, match=sentence):
        EquivariantCalculator(**({"model": potential_path} | options))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu_is_said(potential_path):
    with pytest.raises(InputError, match="sees no CUDA GPU"):
        EquivariantCalculator(potential_path, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_gpu_equals_cpu(potential_path, crystal):
    results = []
    for device in ("cpu", "cuda"):
        atoms = crystal.copy()
        atoms.calc = EquivariantCalculator(potential_path, device=device, dtype="float64")
        results.append((atoms.get_forces(), atoms.get_stress()))
    for a, b in zip(*results, strict=True):
        assert np.abs(a - b).max() < 1e-10


def test_unknown_parameters_are_not_swallowed(calc):
    with pytest.raises(CalculatorSetupError, match="no parameter to set"):
        calc.set(cutof=4.0)
