"""What the calculator gives beside energies, forces and stress."""

import copy
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.io import read
from ase.io.trajectory import Trajectory
from ase.md.verlet import VelocityVerlet
from ase.vibrations import Vibrations
from e3nn import o3
from potentials import untrained

from eqcalc import EquivariantCalculator
from eqcalc.committee import UncertainError, UncertaintyStop, largest_deviation
from eqcalc.errors import InputError


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """Three models that differ in their weights; the last one sees less far."""
    folder = tmp_path_factory.mktemp("committee")
    return [untrained(folder / f"{seed}.pth", seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def mirrored_path(tmp_path_factory):
    """Both parities: a mirror image flips the sign of 0o, 1e, ... features."""
    folder = tmp_path_factory.mktemp("descriptors")
    return untrained(folder / "model.pth", channels=(4, 3, 2), parity=True, layers=3)


STRUCTURES = {
    "crystal": lambda: bulk("Si", cubic=True),
    "one atom in a tiny cell": lambda: bulk("Si"),
    "molecule": lambda: Atoms("SiO2", [[0, 0, 0], [1.6, 0.1, 0], [-0.3, 1.7, 0.2]]),
    "slab": lambda: Atoms("SiO", [[0, 0, 0], [1, 1, 1.1]], cell=[3, 3, 0], pbc=[1, 1, 0]),
    "atoms outside": lambda: Atoms("SiO", [[-9, 0, 2], [31, 1, 0.4]], cell=[4, 4, 4], pbc=True),
    "an atom alone": lambda: Atoms("O"),
    "no atoms": Atoms,
}


def structures() -> list[Atoms]:
    made = [make() for make in STRUCTURES.values()]
    for k, atoms in enumerate(made):
        atoms.rattle(0.1, seed=k)
    return made


@pytest.mark.parametrize("engine", ["fused", "torch"])
def test_batches_equal_one_by_one(potential_path, engine, monkeypatch):
    monkeypatch.setattr("eqcalc.calculator.BATCH", 12)  # several batches, one of them too large
    calc = EquivariantCalculator(potential_path, dtype="float64", engine=engine)
    got = calc.evaluate(iter(structures()))
    assert len(got) == len(STRUCTURES)
    for atoms, results in zip(structures(), got, strict=True):
        calc.calculate(atoms)
        assert results.keys() == calc.results.keys()
        for name, value in calc.results.items():
            scale = np.abs(value).max(initial=1.0)
            assert np.allclose(results[name], value, rtol=0.0, atol=1e-10 * scale), name
    assert calc.evaluate([]) == []


def test_batches_name_the_bad_structure(potential_path):
    calc = EquivariantCalculator(potential_path)
    with pytest.raises(InputError, match=r"Structure 1: .* contains Fe"):
        calc.evaluate([bulk("Si"), bulk("Fe"), bulk("Si")])
    broken = bulk("Si")
    broken.positions[0, 1] = np.nan
    with pytest.raises(InputError, match=r"Structure 0: The position of atom 0"):
        calc.evaluate([broken])


def test_committee_is_mean_and_deviation(members, crystal):
    committee = EquivariantCalculator(members, dtype="float64")
    single = [EquivariantCalculator(m, dtype="float64") for m in members]
    for calc in (committee, *single):
        calc.calculate(crystal)
    for name in ("energy", "energies", "forces", "stress", "stresses", "atomic_virials"):
        values = np.array([c.results[name] for c in single])
        assert np.allclose(committee.results[name], values.mean(axis=0), atol=1e-12)
        if f"{name}_std" in committee.results:
            expected = np.sqrt(((values - values.mean(axis=0)) ** 2).sum(axis=0) / 2)
            assert np.allclose(committee.results[f"{name}_std"], expected, atol=1e-12)
    assert {"energy_std", "energies_std", "forces_std", "stress_std"} < set(committee.results)
    assert committee.results["energy_std"] > 0.0
    assert committee.evaluate([crystal])[0]["energy"] == pytest.approx(committee.results["energy"])
    twin = pickle.loads(pickle.dumps(committee))
    twin.calculate(crystal)
    assert twin.results["energy_std"] == committee.results["energy_std"]


def test_one_model_in_a_list_is_that_model(members, crystal):
    calc = EquivariantCalculator(members[:1])
    calc.calculate(crystal)
    assert "forces_std" not in calc.results
    crystal.calc = calc
    with pytest.raises(InputError, match="not a committee: give EquivariantCalculator a list"):
        largest_deviation(crystal)


def test_dynamics_stops_where_a_committee_disagrees(members, crystal, tmp_path):
    crystal.calc = EquivariantCalculator(members, dtype="float64")
    deviation, atom = largest_deviation(crystal)
    lengths = np.linalg.norm(crystal.calc.results["forces_std"], axis=1)
    assert (deviation, atom) == (lengths.max(), lengths.argmax())
    dynamics = VelocityVerlet(crystal, timestep=1.0 * units.fs)
    path = tmp_path / "run.traj"
    dynamics.attach(Trajectory(path, "w", crystal))
    dynamics.attach(UncertaintyStop(crystal, limit=2.0 * deviation))
    dynamics.run(3)  # nothing happens yet
    crystal.positions[atom] += 0.9
    with pytest.raises(UncertainError, match=r"disagrees about the force on atom \d+ \((Si|O)\)"):
        dynamics.run(5)
    kept = read(path, ":")
    assert len(kept) >= 4  # whole, with the structure in question as its last frame
    assert np.allclose(kept[-1].positions, crystal.positions)
    with pytest.raises(InputError, match="must be positive"):
        UncertaintyStop(crystal, limit=0.0)


def test_empty_committee(members):
    with pytest.raises(InputError, match="at least one model"):
        EquivariantCalculator([])
    with pytest.raises(InputError, match="Descriptors belong to one model"):
        EquivariantCalculator(members).get_descriptors(bulk("Si"))


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_descriptors_rotate_by_wigner_matrices(mirrored_path, crystal, layer):
    calc = EquivariantCalculator(mirrored_path, dtype="float64")
    before = calc.get_descriptors(crystal, layer=layer)
    irreps = calc.descriptor_irreps(layer)
    assert before.shape == (len(crystal), irreps.dim)
    assert np.abs(before).max() > 1e-3
    rotation = -o3.rand_matrix(dtype=torch.float64)  # improper: parities count
    turned = crystal.copy()
    turned.set_cell(crystal.cell.array @ rotation.numpy().T)
    turned.positions = crystal.positions @ rotation.numpy().T
    wigner = irreps.D_from_matrix(rotation).numpy()
    after = calc.get_descriptors(turned, layer=layer)
    assert np.abs(after - before @ wigner.T).max() < 1e-6  # Euler angles in e3nn: 1e-7
    invariant = calc.get_descriptors(crystal, layer=layer, invariants_only=True)
    assert invariant.shape[1] == sum(mul for mul, ir in irreps if ir == o3.Irrep("0e"))
    turned_too = calc.get_descriptors(turned, layer=layer, invariants_only=True)
    assert np.abs(turned_too - invariant).max() < 1e-10
    if layer != -1:
        assert np.abs(after - before).max() > 1e-3


def test_descriptors_are_of_atoms(potential_path, crystal):
    calc = EquivariantCalculator(potential_path, dtype="float64")
    order = np.random.default_rng(0).permutation(len(crystal))
    before = calc.get_descriptors(crystal)
    assert np.abs(calc.get_descriptors(crystal[order]) - before[order]).max() < 1e-12
    doubled = calc.get_descriptors(crystal.repeat((1, 1, 2)))
    assert np.abs(doubled[: len(crystal)] - before).max() < 1e-12
    with pytest.raises(InputError, match="has layers 0 to 1"):
        calc.get_descriptors(crystal, layer=2)
    with pytest.raises(InputError, match="no structure yet"):
        EquivariantCalculator(potential_path).get_descriptors()


@pytest.mark.parametrize("pbc", [True, False])
def test_hessian_is_the_slope_of_the_forces(potential_path, crystal, pbc):
    crystal.pbc = pbc
    calc = EquivariantCalculator(potential_path, dtype="float64", engine="exact")
    got = calc.get_hessian(crystal)
    assert got.shape == (3 * len(crystal), 3 * len(crystal))
    assert np.abs(got - got.T).max() < 1e-10 * np.abs(got).max()
    assert np.abs(got.reshape(-1, len(crystal), 3).sum(axis=1)).max() < 1e-9  # translation
    step = 1e-4
    for atom, axis in ((0, 0), (3, 2)):
        forces = []
        for sign in (1.0, -1.0):
            moved = crystal.copy()
            moved.positions[atom, axis] += sign * step
            forces.append(calc.get_forces(moved))
        slope = -(forces[0] - forces[1]).flatten() / (2.0 * step)
        assert np.abs(slope - got[3 * atom + axis]).max() < 1e-6 * np.abs(got).max()
    rows = calc.get_hessian(crystal, indices=[3])
    assert np.allclose(rows, got[9:12], atol=1e-12)


def test_hessian_of_what_has_no_neighbours(potential_path):
    calc = EquivariantCalculator(potential_path)
    assert not calc.get_hessian(Atoms("Si")).any()
    with pytest.raises(InputError, match="the structure has atoms 0 to 0"):
        calc.get_hessian(Atoms("Si"), indices=[1])


def test_hessian_gives_the_vibrations(potential_path, tmp_path):
    atoms = STRUCTURES["molecule"]()
    atoms.calc = EquivariantCalculator(potential_path, dtype="float64")
    vibrations = Vibrations(atoms, name=str(tmp_path / "vib"), delta=0.002)
    vibrations.run()
    expected = vibrations.get_vibrations().get_hessian_2d()
    got = atoms.calc.get_hessian(atoms)
    assert np.abs(got - expected).max() < 1e-3 * np.abs(expected).max()


def test_atomic_virials_sum_to_the_stress(potential_path, crystal):
    calc = EquivariantCalculator(potential_path, dtype="float64")
    virials = calc.get_atomic_virials(crystal)
    assert virials.shape == (len(crystal), 3, 3)
    total = -virials.sum(axis=0) / crystal.get_volume()
    voigt = [total[i, j] for i, j in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))]
    assert np.allclose(voigt, calc.get_stress(crystal), atol=1e-12)
    torch_calc = EquivariantCalculator(potential_path, dtype="float64", engine="torch")
    assert np.abs(torch_calc.get_atomic_virials(crystal) - virials).max() < 1e-8


def test_copies_share_the_network_but_not_the_results(potential_path, crystal):
    calc = EquivariantCalculator(potential_path, dtype="float64")
    energy = calc.get_potential_energy(crystal)
    twin = calc.copy()
    assert twin.potential is calc.potential
    assert twin.neighbors is not calc.neighbors
    assert not twin.results
    moved = crystal.copy()
    moved.positions[0] += 0.1
    assert twin.get_potential_energy(moved) != energy
    assert calc.results["energy"] == energy
    assert copy.deepcopy(calc).get_potential_energy(moved) == twin.results["energy"]


def test_copies_may_run_in_threads(potential_path, crystal):
    calc = EquivariantCalculator(potential_path, dtype="float64")
    work = []
    for seed in range(8):
        atoms = crystal.repeat((1, 1, 1 + seed % 3))
        atoms.rattle(0.05, seed=seed)
        work.append((calc.copy(), atoms))
    expected = [calc.get_potential_energy(atoms) for _, atoms in work]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda pair: pair[0].get_potential_energy(pair[1]), work))
    assert got == pytest.approx(expected, abs=1e-12)


def energy_of(job):
    calc, atoms = job
    return calc.get_potential_energy(atoms)


def test_calculators_travel_to_other_processes(potential_path, crystal):
    calc = EquivariantCalculator(potential_path, dtype="float64")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        (got,) = pool.map(energy_of, [(calc, crystal)])
    assert got == pytest.approx(calc.get_potential_energy(crystal), abs=1e-12)
