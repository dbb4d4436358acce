"""Committees: means, spreads, members that differ, and the stop that hangs on them."""

import copy
import pickle
from io import StringIO

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import SumCalculator
from ase.io import Trajectory, read, write
from ase.md.langevin import Langevin
from potentials import untrained
from scipy.spatial.transform import Rotation

from eqcalc import DisagreementStop, EquivariantCalculator, InputError
from eqcalc.checks.gradients import check_gradients
from eqcalc.checks.nve import with_velocities


@pytest.fixture(scope="module")
def paths(potential_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("committee")
    return [potential_path, *(untrained(folder / f"{k}.pth", seed=k) for k in (1, 2))]


@pytest.fixture
def committee(paths):
    return EquivariantCalculator(paths, dtype="float64")


@pytest.mark.parametrize("engine", ["fused", "torch"])
def test_means_and_spreads(paths, crystal, engine):
    committee = EquivariantCalculator(paths, dtype="float64", engine=engine)
    crystal.calc = committee
    crystal.get_stress()
    single = {}
    for path in paths:
        other = crystal.copy()
        other.calc = EquivariantCalculator(path, dtype="float64", engine=engine)
        other.get_forces()
        for name, value in other.calc.results.items():
            single.setdefault(name, []).append(value)
    for name, values in single.items():
        assert np.allclose(committee.results[name], np.mean(values, axis=0), atol=1e-12), name
    for name in ("energy", "forces", "stress"):
        spread = committee.results[f"{name}_std"]
        assert np.shape(spread) == np.shape(committee.results[name])
        assert np.allclose(spread, np.std(single[name], axis=0), atol=1e-12)
        assert np.max(spread) > 1e-3
        assert np.array_equal(committee.get_property(f"{name}_std", crystal), spread)
    off = np.array(single["forces"]) - np.mean(single["forces"], axis=0)
    expected = np.sqrt(np.mean(np.sum(off**2, axis=-1), axis=0))  # [N] eV/Å
    assert np.allclose(committee.results["forces_deviation"], expected, atol=1e-12)


def test_mean_forces_are_derivatives_of_the_mean_energy(committee, crystal):
    report = check_gradients(crystal, committee, num_components=4, steps=(1e-4, 1e-5))
    assert report.passed, str(report)


def test_the_mean_hessian(committee, paths, molecule):
    each = [EquivariantCalculator(p).get_hessian(molecule) for p in paths]
    assert np.allclose(committee.get_hessian(molecule), np.mean(each, axis=0), atol=1e-10)


def test_deviation_does_not_depend_on_the_axes(committee, molecule):
    expected = committee.get_property("forces_deviation", molecule)
    molecule.positions = molecule.positions @ Rotation.random(random_state=0).as_matrix().T
    assert np.allclose(committee.get_property("forces_deviation", molecule), expected, atol=1e-10)
    order = [4, 2, 0, 1, 3]
    assert np.allclose(
        committee.get_property("forces_deviation", molecule[order]), expected[order], atol=1e-10
    )


def test_copies_of_one_model_agree(potential_path, crystal):
    calc = EquivariantCalculator([potential_path, potential_path])
    assert not calc.get_property("forces_std", crystal).any()


def test_one_list_of_neighbours_for_all(committee, crystal, monkeypatch):
    lists = []
    for member in committee.members:
        compute = member.compute

        def noted(species, positions, pairs, wanted, compute=compute):
            lists.append(pairs)
            return compute(species, positions, pairs, wanted)

        monkeypatch.setattr(member, "compute", noted)
    crystal.calc = committee
    crystal.get_forces()
    crystal.positions += 0.01
    crystal.get_forces()
    assert len(lists) == 6
    assert all(pairs is lists[0] for pairs in lists)
    assert committee.neighbors.num_builds == 1


@pytest.mark.parametrize("engine", ["fused", "torch"])
def test_members_with_other_cutoffs_and_elements(potential_path, tmp_path, engine):
    """Every member sees its own cutoff and counts species in its own order."""
    longer = untrained(tmp_path / "longer.pth", elements=(14, 8, 1), cutoff=4.7, seed=5)
    atoms = bulk("Si", cubic=True)
    atoms.numbers[::3] = 8
    atoms.rattle(0.1, seed=1)
    each = []
    for path in (potential_path, longer):
        atoms.calc = EquivariantCalculator(path, dtype="float64", engine=engine)
        each.append((atoms.get_forces(), atoms.get_stress()))
    for order in ((potential_path, longer), (longer, potential_path)):
        atoms.calc = calc = EquivariantCalculator(order, dtype="float64", engine=engine)
        assert calc.neighbors.cutoff == 4.7
        assert np.allclose(atoms.get_forces(), (each[0][0] + each[1][0]) / 2, atol=1e-11)
        assert np.allclose(atoms.get_stress(), (each[0][1] + each[1][1]) / 2, atol=1e-11)
    with pytest.raises(InputError, match=r"model.pth knows O, Si, but the structure contains H"):
        calc.get_property("energy", Atoms("SiH", [[0, 0, 0], [0, 0, 1.5]]))


def test_screening_with_a_committee(committee, crystal, molecule):
    results = committee.evaluate([crystal, molecule])
    for atoms, got in zip((crystal, molecule), results, strict=True):
        spread = committee.get_property("forces_std", atoms)
        assert np.allclose(got["forces_std"], spread, atol=1e-11)
        assert got["energy_std"] == pytest.approx(committee.results["energy_std"], abs=1e-11)


def test_copies_pickles_and_files(committee, crystal, tmp_path):
    crystal.calc = committee
    expected = crystal.get_forces()
    for twin in (copy.deepcopy(committee), pickle.loads(pickle.dumps(committee))):
        assert np.array_equal(twin.get_property("forces_std"), committee.results["forces_std"])
    for name in ("frame.traj", "frame.xyz"):
        write(tmp_path / name, crystal)
        assert np.allclose(read(tmp_path / name).get_forces(), expected, atol=1e-7)


def test_properties_of_a_committee_for_ase(committee, crystal, tmp_path):
    """ASE has no name for standard deviations; the rest goes through it."""
    crystal.calc = committee
    expected = crystal.get_potential_energy(), crystal.get_forces(), crystal.get_stress()
    got = crystal.get_properties(["energy", "forces", "stress"])
    for name, value in zip(("energy", "forces", "stress"), expected, strict=True):
        assert np.array_equal(got[name], value)
    assert np.max(committee.results["forces_std"]) > 0.0
    with Trajectory(tmp_path / "run.traj", "w", crystal) as trajectory:
        trajectory.write()
    written = read(tmp_path / "run.traj")
    assert written.get_potential_energy() == expected[0]
    assert np.array_equal(written.get_forces(), expected[1])


def test_a_single_model_has_no_spread(potential_path, crystal):
    calc = EquivariantCalculator([potential_path])
    with pytest.raises(PropertyNotImplementedError):
        calc.get_property("forces_std", crystal)
    with pytest.raises(InputError, match="cannot disagree with itself"):
        calc.get_property("forces_deviation", crystal)
    crystal.calc = calc
    with pytest.raises(InputError, match="needs a committee"):
        DisagreementStop(hot(crystal, calc), 0.1)


def test_descriptors_belong_to_one_model(committee, crystal):
    with pytest.raises(InputError, match="make a calculator of one model"):
        committee.get_descriptors(crystal)


def hot(atoms, calc, **options):
    atoms.calc = calc
    atoms.set_velocities(with_velocities(atoms, 600.0).get_velocities())
    rng = np.random.default_rng(0)
    options |= {"temperature_K": 300, "friction": 0.01 / units.fs, "rng": rng, "fixcm": False}
    return Langevin(atoms, 1.0 * units.fs, **options)


def test_dynamics_stop_where_the_committee_disagrees(committee, crystal, tmp_path):
    """Loggers get the last step whether they were attached before or after."""
    start, frames, deviations = crystal.copy(), [], []
    dynamics = hot(crystal, committee)
    dynamics.attach(
        lambda: deviations.append(committee.get_property("forces_deviation", crystal).max())
    )
    dynamics.run(12)
    limit = float(np.sort(deviations[1:])[-1]) * 0.999
    first = next(k for k, d in enumerate(deviations) if d > limit)

    assert first > 0

    log, fresh = StringIO(), start.copy()
    dynamics = hot(fresh, committee, trajectory=str(tmp_path / "run.traj"))
    stop = DisagreementStop(dynamics, limit, log=log)
    dynamics.attach(stop)
    dynamics.attach(lambda: frames.append(dynamics.nsteps))
    dynamics.run(12)
    assert dynamics.nsteps == first
    assert frames == list(range(first + 1))
    assert stop.largest > limit
    assert log.getvalue() == stop.reason + "\n"
    assert f"Stopped after step {first}: the committee's forces on atom" in stop.reason
    with Trajectory(tmp_path / "run.traj") as trajectory:
        assert len(trajectory) == first + 1
        assert np.allclose(trajectory[-1].get_forces(), fresh.get_forces(), atol=1e-12)


def test_dynamics_go_on_while_the_committee_agrees(committee, crystal, capsys):
    dynamics = hot(crystal, committee)
    stop = DisagreementStop(dynamics, limit=1e3)
    dynamics.attach(stop, interval=2)
    dynamics.run(5)
    assert dynamics.nsteps == 5
    assert stop.reason is None
    assert 0.0 < stop.largest < 1e3
    assert capsys.readouterr().out == ""
    with pytest.raises(InputError, match="must be positive"):
        DisagreementStop(dynamics, limit=0.0)


def test_a_committee_inside_a_sum(committee, crystal, capsys):
    pair = LennardJones(sigma=1.5, epsilon=0.01, rc=3.0)
    dynamics = hot(crystal, SumCalculator([committee, pair]))
    with pytest.raises(InputError, match="pass it as calc"):
        DisagreementStop(dynamics, limit=1e-6)
    dynamics.attach(DisagreementStop(dynamics, limit=1e-6, calc=committee))
    dynamics.run(5)
    assert dynamics.nsteps == 0
    assert "Stopped after step 0" in capsys.readouterr().out
