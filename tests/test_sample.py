"""Frames of a teacher's dynamics: whose labels they have, and what ends a trajectory."""

import json
import sys

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import CalculationFailed
from ase.calculators.lj import LennardJones
from ase.io import read, write
from potentials import calibrated, installed_sevenn, untrained
from typer.testing import CliRunner

from eqcalc import EquivariantCalculator, InputError, names
from eqcalc.data.frames import read_frames
from eqcalc.errors import Interrupted
from eqcalc.sampling import dynamics as module
from eqcalc.sampling.dynamics import Sampling, Tally, sample, write_sample
from eqcalc.sampling.teachers import Networks, SemiEmpirical, open_teacher

#: members of random weights agree on nothing
ANYTHING = 1e6


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    return [untrained(folder / f"{k}.pth", seed=k) for k in range(3)]


@pytest.fixture
def starts():
    structures = [bulk("Si", cubic=True), bulk("Si").repeat((2, 1, 1))]
    for k, atoms in enumerate(structures):
        atoms.numbers[::2] = 8
        atoms.rattle(0.05, seed=k)
    return structures


def some(**options):
    return Sampling(**{"frames": 6, "interval": 4.0, "length": 2, "limit": ANYTHING} | options)


def test_labels_are_the_means_of_the_members(paths, starts, tmp_path):
    tally = write_sample(Networks(paths), starts, tmp_path / "frames.xyz", some())
    frames = read(tmp_path / "frames.xyz", ":")
    assert len(frames) == tally.frames == 6
    assert {len(f) for f in frames} == {len(s) for s in starts}
    assert {f.info["config_type"] for f in frames} == {"committee_300K", "committee_600K"}
    committee = EquivariantCalculator(paths)
    worst = []
    for frame in frames:
        (expected,) = committee.evaluate([frame])
        assert abs(frame.get_potential_energy() - expected["energy"]) < 1e-5  # digits of the file
        assert np.abs(frame.get_forces() - expected["forces"]).max() < 1e-5
        assert np.abs(frame.get_stress() - expected["stress"]).max() < 1e-6
        frame.calc = committee
        worst.append(committee.get_property("forces_deviation", frame).max())
        assert abs(frame.info["forces_deviation"] - worst[-1]) < 1e-5
    assert abs(tally.worst - max(worst)) < 1e-5
    assert "6 frames of 3 trajectories" in str(tally)


def test_training_reads_them(paths, starts, tmp_path):
    write_sample(Networks(paths), starts, tmp_path / "frames.xyz", some())
    frames = read_frames(tmp_path / "frames.xyz")
    assert all(f.config_type.startswith("committee") and f.stress is not None for f in frames)


def test_frames_move_and_depend_on_the_seed_alone(paths, starts):
    def positions(**options):
        return [f.positions for f in sample(Networks(paths), starts, some(**options), Tally())]

    first, again, other = positions(), positions(), positions(seed=2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.allclose(a, b) for a, b in zip(first, other, strict=True) if len(a) == len(b))
    moved = [np.abs(p - s.positions).max() for p in first for s in starts if len(s) == len(p)]
    assert min(moved) > 1e-3


def test_hotter_frames_move_further(paths, starts):
    def spread(temperature):
        sampling = some(frames=8, temperatures=[temperature])
        frames = sample(Networks(paths[:1]), starts[:1], sampling, Tally())
        return np.mean([np.square(f.positions - starts[0].positions).mean() for f in frames])

    assert spread(1200.0) > spread(5.0)


def test_trajectories_end_where_members_disagree(paths, starts):
    teacher = Networks(paths)
    free = [f.info["forces_deviation"] for f in sample(teacher, starts, some(frames=20), Tally())]
    limit = float(np.median(free))
    tally = Tally()
    taken = list(sample(teacher, starts, some(frames=20, limit=limit), tally))
    assert max(f.info["forces_deviation"] for f in taken) <= limit
    assert tally.stopped > 0
    assert "ended where they disagree" in str(tally)


def test_teachers_that_are_of_no_use_are_told(paths, starts):
    with pytest.raises(InputError, match=r"50 ended where the members disagree by more than 1e-06"):
        list(sample(Networks(paths), starts, some(limit=1e-6), Tally()))


def test_a_single_network_has_no_limit(paths, starts):
    tally = Tally()
    frames = list(sample(Networks(paths[:1]), starts, some(limit=1e-6), tally))
    assert len(frames) == 6
    assert {f.info["config_type"] for f in frames} == {"network_300K", "network_600K"}
    assert "disagree" not in str(tally)


@pytest.mark.parametrize("error", [InputError, CalculationFailed])
def test_a_failure_costs_its_trajectory(paths, starts, monkeypatch, error):
    calls = []
    run = module.Langevin.run

    def broken_at_first(dynamics, steps):
        calls.append(steps)
        if len(calls) <= 2:
            raise error("Atoms 0 and 1 overlap.")
        return run(dynamics, steps)

    monkeypatch.setattr(module.Langevin, "run", broken_at_first)
    tally = Tally()
    assert len(list(sample(Networks(paths), starts, some(), tally))) == 6
    assert tally.failed == 2
    assert "2 ended where the teacher failed" in str(tally)
    monkeypatch.setattr(module.Langevin, "run", lambda *_: (_ for _ in ()).throw(error("no luck")))
    with pytest.raises(InputError, match=r"50 where the teacher failed .the last failure: no luck"):
        list(sample(Networks(paths), starts, some(), Tally()))


def test_ctrl_c_keeps_what_there_is(paths, starts, tmp_path):
    calls = []

    def interrupt():
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="4 of 6 frames are in"):
        write_sample(Networks(paths), starts, tmp_path / "frames.xyz", some(), interrupt)
    assert len(read(tmp_path / "frames.xyz", ":")) == 4
    assert [p.name for p in tmp_path.iterdir()] == ["frames.xyz"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"frames": 0}, "frames = 0: it must be positive"),
        ({"length": -1}, "length = -1"),
        ({"interval": -1.0}, "interval = -1.0"),
        ({"timestep": 0.0}, "timestep = 0.0"),
        ({"limit": float("nan")}, "limit = nan"),
        ({"temperatures": [300.0, -5.0]}, "temperatures = "),
        ({"temperatures": []}, "temperatures = "),
        ({"strain": 0.5}, "strain = 0.5: it must be 0 .. 0.5"),
    ],
)
def test_impossible_settings(options, sentence):
    with pytest.raises(InputError, match=sentence):
        some(**options)


def test_bad_input_leaves_no_file(paths, starts, tmp_path):
    starts[1].numbers[0] = 79
    teacher = Networks(paths)
    with pytest.raises(InputError, match=r"Start 1: .*Au"):
        write_sample(teacher, starts, tmp_path / "frames.xyz", some())
    with pytest.raises(InputError, match="extended XYZ"):
        write_sample(teacher, starts[:1], tmp_path / "frames.traj", some())
    with pytest.raises(InputError, match="no structures to start from"):
        write_sample(teacher, [], tmp_path / "frames.xyz", some())
    assert not list(tmp_path.iterdir())


def test_which_teacher_is_meant(paths, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no finished committee"):
        open_teacher([tmp_path])
    names = [str(p) for p in paths]
    (tmp_path / "committee.json").write_text(json.dumps({"members": names[:2]}))
    assert len(open_teacher([str(tmp_path), names[2]]).drivers) == 3
    assert isinstance(open_teacher(["gfn2"]), SemiEmpirical)
    with pytest.raises(InputError, match="gfn2 teaches alone"):
        open_teacher(["gfn2", names[0]])
    monkeypatch.setitem(sys.modules, "tblite.ase", None)
    with pytest.raises(InputError, match="pip install 'tblite>="):
        open_teacher(["gfn1"])


@pytest.mark.parametrize("method", ["gfn1", "gfn2"])
def test_semi_empirical_labels(method):
    """Forces are derivatives of the energies, and what tblite says of the frame by itself."""
    water = molecule("H2O")
    sampling = some(frames=4, temperatures=[500.0])
    frames = list(sample(open_teacher([method]), [water], sampling, Tally()))
    assert {f.info["config_type"] for f in frames} == {f"{method}_500K"}
    calc = open_teacher([method]).drivers[0]
    for frame in frames:
        atoms = Atoms(frame.numbers, frame.positions, calculator=calc)
        assert abs(atoms.get_potential_energy() - frame.get_potential_energy()) < 1e-6
        assert np.abs(atoms.get_forces() - frame.get_forces()).max() < 1e-4
    frame = frames[-1]
    step = 1e-3
    energies = []
    for sign in (1.0, -1.0):
        moved = Atoms(frame.numbers, frame.positions, calculator=calc)
        moved.positions[1, 2] += sign * step
        energies.append(moved.get_potential_energy())
    slope = (energies[0] - energies[1]) / (2.0 * step)
    assert abs(slope + frame.get_forces()[1, 2]) < 1e-3


def test_semi_empirical_crystals_have_stresses():
    sampling = some(frames=1, temperatures=[300.0], interval=2.0)
    (frame,) = sample(open_teacher(["gfn1"]), [bulk("Si")], sampling, Tally())
    assert frame.get_stress().shape == (6,)


LENNARD_JONES = "ase.calculators.lj:LennardJones"
OPTIONS = {"sigma": 2.0, "epsilon": 0.3, "rc": 4.0, "smooth": True}


def test_any_calculator_teaches(starts):
    """With its options; stress where everything is periodic."""
    slab = starts[0].copy()
    slab.pbc = [True, True, False]
    teacher = open_teacher([LENNARD_JONES], OPTIONS)
    frames = list(sample(teacher, [starts[0], slab], some(), Tally()))
    assert {f.info["config_type"] for f in frames} == {"LennardJones_300K", "LennardJones_600K"}
    assert {"stress" in f.calc.results for f in frames} == {True, False}
    for frame in frames:
        atoms = frame.copy()
        atoms.calc = LennardJones(**OPTIONS)
        assert frame.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
        assert frame.get_forces() == pytest.approx(atoms.get_forces(), abs=1e-9)
        assert ("stress" in frame.calc.results) == frame.pbc.all()
        if frame.pbc.all():
            assert frame.get_stress() == pytest.approx(atoms.get_stress(), abs=1e-12)


#: a user's module: forces are the derivatives of the free energy
MODULE = """
import numpy as np
from ase.calculators.calculator import Calculator, all_changes

class Smeared(Calculator):
    implemented_properties = ["energy", "free_energy", "forces"]
    calls = 0

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        Smeared.calls += 1
        if Smeared.calls in (5, 6):
            raise RuntimeError("not converged")
        forces = np.full((len(atoms), 3), np.nan if Smeared.calls == 8 else 0.0)
        self.results = {"energy": 1.0, "free_energy": -2.0, "forces": forces}

def nothing():
    return 3
"""


def test_a_calculator_in_a_file_of_the_user(starts, tmp_path, monkeypatch):
    """Whatever it raises, and what is not finite, costs a trajectory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "users_module.py").write_text(MODULE)
    tally = Tally()
    teacher = open_teacher(["users_module:Smeared"])
    frames = list(sample(teacher, starts[:1], some(interval=1e-9), tally))
    assert [f.get_potential_energy() for f in frames] == [-2.0] * 6
    assert tally.failed > 1
    for name, sentence in (
        ("users_module:nothing", "is no calculator of ASE that has forces"),
        ("users_module:absent", "cannot be imported: .*absent"),
        ("no_module_like_this:Class", "cannot be imported: No module named"),
    ):
        with pytest.raises(InputError, match=sentence):
            open_teacher([name])
    assert str(tmp_path) not in sys.path


def test_what_a_calculator_does_not_know_is_told_at_once(starts, paths):
    with pytest.raises(InputError, match=r"Start 0: the teacher cannot label it: .*EMT"):
        list(sample(open_teacher(["ase.calculators.emt:EMT"]), starts, some(), Tally()))
    with pytest.raises(InputError, match=r"Options of the teacher .*nonsense"):
        open_teacher(paths, {"nonsense": 1})
    with pytest.raises(InputError, match="teaches alone"):
        open_teacher([LENNARD_JONES, paths[0]])


def test_networks_take_options_and_names(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(installed_sevenn(tmp_path / "packages"))
    teacher = open_teacher(["7net-0"], {"dtype": "float64", "engine": "torch"})
    assert teacher.calc.potential.path == names.find("7net-0")
    assert teacher.drivers[0].potential.dtype == torch.float64
    with pytest.raises(InputError, match="there is no PBE"):  # a task, no module and class
        open_teacher(["7net-mf-0:PBE"])


def test_cells_are_strained(paths, starts):
    slab = starts[0].copy()
    slab.pbc = [True, True, False]
    slab.cell[2] = [1.0, 2.0, 30.0]
    molecule = starts[0].copy()
    molecule.set_cell(None)
    molecule.pbc = False
    sampling = some(frames=12, interval=1e-6, timestep=1e-6, strain=0.04)
    frames = list(sample(Networks(paths[:1]), [starts[0], slab, molecule], sampling, Tally()))
    strains = []
    for frame in frames:
        if not frame.pbc.any():
            assert not frame.cell.array.any()
            continue
        start = starts[0] if frame.pbc.all() else slab
        change = np.linalg.solve(start.cell.array, frame.cell.array) - np.eye(3)
        if frame.pbc.all():
            strains.append(change)
            assert np.abs(change - change.T).max() < 1e-9
        else:
            assert np.abs(change[2]).max() < 1e-9
            assert frame.cell.array[:2, 2] == pytest.approx([0.0, 0.0])
        expected = start.positions @ (np.eye(3) + change)
        assert frame.positions == pytest.approx(expected, abs=1e-4)
    assert 0.01 < np.abs(strains).max() <= 0.04
    assert len({s.tobytes() for s in strains}) > 1


def test_command_with_a_calculator(starts, tmp_path):
    from eqcalc.cli import app

    write(tmp_path / "starts.xyz", starts)
    options = [f"--teacher-option={name}={value}" for name, value in OPTIONS.items()]
    options = [option.replace("True", "true") for option in options]
    arguments = ["sample", LENNARD_JONES, *options, "--start", str(tmp_path / "starts.xyz")]
    arguments += ["-o", str(tmp_path / "out.xyz"), "--frames", "2", "--strain", "0.02"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    frame = read(tmp_path / "out.xyz", 0)
    atoms = frame.copy()
    atoms.calc = LennardJones(**OPTIONS)
    assert frame.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-5)
    result = CliRunner().invoke(app, [*arguments, "--teacher-option", "sigma"])
    assert "--teacher-option sigma: write name=value" in str(result.exception)


def test_command(paths, starts, tmp_path):
    from eqcalc.cli import app

    lone = Atoms("Xe", info={"config_type": "IsolatedAtom"})  # no structure to start from
    write(tmp_path / "starts.xyz", [lone, *starts])
    out = tmp_path / "new" / "frames.xyz"
    arguments = ["sample", *map(str, paths), "--start", str(tmp_path / "starts.xyz")]
    arguments += ["-o", str(out), "--frames", "3", "--interval", "4", "--temperature", "200"]
    result = CliRunner().invoke(app, [*arguments, "--limit", str(ANYTHING)])
    assert result.exit_code == 0, result.output
    assert "3 frames of" in result.output
    assert {f.info["config_type"] for f in read(out, ":")} == {"committee_200K"}


def test_frames_at_which_trajectories_ended_are_kept(paths, starts, tmp_path):
    """Beyond the limit, one for each trajectory, without the labels that are worth nothing."""
    from eqcalc.cli import app

    teacher = Networks(paths)
    free = [f.info["forces_deviation"] for f in sample(teacher, starts, some(frames=20), Tally())]
    limit = float(np.median(free))
    write(tmp_path / "starts.xyz", starts)
    arguments = ["sample", *map(str, paths), "--start", str(tmp_path / "starts.xyz")]
    arguments += ["-o", str(tmp_path / "frames.xyz"), "--frames", "20", "--interval", "4"]
    arguments += ["--length", "2", "--limit", str(limit)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    kept = read(tmp_path / "candidates.xyz", ":")
    assert f"candidates.xyz: {len(kept)} frames at which they ended so" in result.output
    assert f"{len(kept)} trajectories ended where they disagree" in result.output
    assert all(f.calc is None for f in kept)
    assert {f.info["config_type"] for f in kept} <= {"candidate_300K", "candidate_600K"}
    committee = EquivariantCalculator(paths)
    for frame in kept:
        frame.calc = committee
        deviation = committee.get_property("forces_deviation", frame).max()
        assert deviation > limit
        assert deviation == pytest.approx(frame.info["forces_deviation"], abs=1e-5)
    result = CliRunner().invoke(app, [*arguments, "--candidates", str(tmp_path / "frames.xyz")])
    assert "cannot have labelled frames and candidates" in str(result.exception)


def test_candidates_are_kept_where_nothing_else_is(paths, starts, tmp_path):
    with pytest.raises(InputError, match=r"They are in .*stopped.xyz"):
        write_sample(
            Networks(paths),
            starts,
            tmp_path / "frames.xyz",
            some(limit=1e-6),
            candidates=tmp_path / "stopped.xyz",
        )
    assert len(read(tmp_path / "stopped.xyz", ":")) == 50
    assert not (tmp_path / "frames.xyz").exists()


def test_trajectories_end_beyond_a_grade(paths, starts, tmp_path):
    """Of one model that knows cold frames of the structure that it starts from."""
    cold = [starts[0].copy() for _ in range(12)]
    for k, atoms in enumerate(cold):
        atoms.rattle(0.03, seed=k)
    graded = calibrated(paths[0], tmp_path / "graded.pth", cold)
    teacher = Networks([graded], engine="torch", dtype="float64")  # few frames: a thin ellipsoid
    assert teacher.label(cold[0])["grade"].max() < 1.001
    tally = Tally()
    frames = list(sample(teacher, starts[:1], some(frames=2, grade=1e9), tally))
    assert all(0.0 < f.info["grade"] < 1e9 for f in frames)
    assert not tally.candidates
    limit = 1e-6
    with pytest.raises(InputError, match="50 where a grade was above the limit"):
        list(sample(teacher, starts[:1], some(interval=2.0, grade=limit), tally := Tally()))
    assert tally.graded == len(tally.candidates) == 50
    assert min(f.info["grade"] for f in tally.candidates) > limit
    with pytest.raises(InputError, match="teacher has no grades; run 'eqcalc calibrate'"):
        list(sample(Networks(paths[:1], engine="torch"), starts, some(grade=limit), Tally()))
