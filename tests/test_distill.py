"""Frames of a committee's dynamics: labels are its means, and what ends a trajectory."""

import json

import numpy as np
import pytest
from ase.build import bulk
from ase.io import read, write
from potentials import untrained
from typer.testing import CliRunner

from eqcalc import EquivariantCalculator, InputError
from eqcalc.committee import forces_deviation
from eqcalc.data.frames import read_frames
from eqcalc.errors import Interrupted
from eqcalc.training import distill as module
from eqcalc.training.committee import member_files
from eqcalc.training.distill import Sampling, Tally, distill, sample

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
    return Sampling(**{"frames": 6, "interval": 4.0, "limit": ANYTHING} | options)


def test_labels_are_the_means_of_the_members(paths, starts, tmp_path):
    tally = distill(paths, starts, tmp_path / "frames.xyz", some())
    frames = read(tmp_path / "frames.xyz", ":")
    assert len(frames) == tally.frames == 6
    assert {len(f) for f in frames} == {len(s) for s in starts}
    assert {f.info["temperature"] for f in frames} == {300.0, 600.0}
    committee = EquivariantCalculator(paths)
    worst = []
    for frame in frames:
        (expected,) = committee.evaluate([frame])
        assert frame.info["config_type"] == "distilled"
        assert abs(frame.get_potential_energy() - expected["energy"]) < 1e-5  # digits of the file
        assert np.abs(frame.get_forces() - expected["forces"]).max() < 1e-5
        assert np.abs(frame.get_stress() - expected["stress"]).max() < 1e-6
        frame.calc = committee
        worst.append(forces_deviation(committee, frame).max())
        assert abs(frame.info["forces_deviation"] - worst[-1]) < 1e-5
    assert abs(tally.worst - max(worst)) < 1e-5
    assert "6 frames" in str(tally)


def test_training_reads_them(paths, starts, tmp_path):
    distill(paths, starts, tmp_path / "frames.xyz", some())
    frames = read_frames(tmp_path / "frames.xyz")
    assert all(f.config_type == "distilled" and f.stress is not None for f in frames)


def test_frames_move_and_depend_on_the_seed_alone(paths, starts):
    def positions(**options):
        return [f.positions for f in sample(paths, starts, some(**options), Tally())]

    first, again, other = positions(), positions(), positions(seed=2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(
        np.allclose(a, b) for a, b in zip(first, other, strict=False) if len(a) == len(b)
    )
    moved = [np.abs(p - s.positions).max() for p in first for s in starts if len(s) == len(p)]
    assert min(moved) > 1e-3


def test_hotter_frames_move_further(paths, starts):
    def spread(temperature):
        sampling = some(frames=8, temperatures=[temperature])
        frames = sample(paths[:1], starts[:1], sampling, Tally())
        return np.mean([np.square(f.positions - starts[0].positions).mean() for f in frames])

    assert spread(1200.0) > spread(5.0)


def test_trajectories_end_where_members_disagree(paths, starts):
    free = [f.info["forces_deviation"] for f in sample(paths, starts, some(frames=20), Tally())]
    limit = float(np.median(free))
    tally = Tally()
    taken = list(sample(paths, starts, some(frames=20, limit=limit), tally))
    assert max(f.info["forces_deviation"] for f in taken) <= limit
    assert tally.stopped > 0
    assert "ended where they disagree" in str(tally)


def test_members_that_never_agree_are_told(paths, starts):
    with pytest.raises(InputError, match=r"disagree by more than 1e-06 eV/Å nearly everywhere"):
        list(sample(paths, starts, some(limit=1e-6), Tally()))


def test_a_single_teacher_has_no_limit(paths, starts):
    tally = Tally()
    frames = list(sample(paths[:1], starts, some(limit=1e-6), tally))
    assert len(frames) == 6
    assert "disagree" not in str(tally)


def test_atoms_that_collide_end_a_trajectory(paths, starts, monkeypatch):
    """A driver that refuses its structure costs that trajectory, not the run."""
    calls = []
    run = module.Langevin.run

    def broken_at_first(dynamics, steps):
        calls.append(steps)
        if len(calls) <= 2:
            raise InputError("Atoms 0 and 1 overlap.")
        return run(dynamics, steps)

    monkeypatch.setattr(module.Langevin, "run", broken_at_first)
    tally = Tally()
    assert len(list(sample(paths, starts, some(), tally))) == 6
    assert tally.trajectories > 4


def test_ctrl_c_keeps_what_there_is(paths, starts, tmp_path):
    calls = []

    def interrupt():
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="4 of 6 frames are in"):
        distill(paths, starts, tmp_path / "frames.xyz", some(), interrupt)
    assert len(read(tmp_path / "frames.xyz", ":")) == 4
    assert [p.name for p in tmp_path.iterdir()] == ["frames.xyz"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"frames": 0}, "frames = 0: it must be positive"),
        ({"interval": -1.0}, "interval = -1.0"),
        ({"timestep": 0.0}, "timestep = 0.0"),
        ({"limit": float("nan")}, "limit = nan"),
        ({"temperatures": [300.0, -5.0]}, "temperatures = "),
        ({"temperatures": []}, "temperatures = "),
    ],
)
def test_impossible_settings(options, sentence):
    with pytest.raises(InputError, match=sentence):
        some(**options)


def test_bad_input_leaves_no_file(paths, starts, tmp_path):
    starts[1].numbers[0] = 79
    with pytest.raises(InputError, match=r"Start 1: .*Au"):
        distill(paths, starts, tmp_path / "frames.xyz", some())
    with pytest.raises(InputError, match="extended XYZ"):
        distill(paths, starts[:1], tmp_path / "frames.traj", some())
    assert not list(tmp_path.iterdir())


def test_folders_of_committees(paths, tmp_path):
    with pytest.raises(InputError, match="no finished committee"):
        member_files([tmp_path])
    (tmp_path / "committee.json").write_text(json.dumps({"members": ["1/model.pth"]}))
    assert member_files([tmp_path, paths[0]]) == [tmp_path / "1" / "model.pth", paths[0]]


def test_command(paths, starts, tmp_path):
    from eqcalc.cli import app

    write(tmp_path / "starts.xyz", starts)
    out = tmp_path / "new" / "frames.xyz"
    arguments = ["distill", *map(str, paths), "--start", str(tmp_path / "starts.xyz")]
    arguments += ["-o", str(out), "--frames", "3", "--interval", "4", "--temperature", "200"]
    result = CliRunner().invoke(app, [*arguments, "--limit", str(ANYTHING)])
    assert result.exit_code == 0, result.output
    assert "3 frames of" in result.output
    assert {f.info["temperature"] for f in read(out, ":")} == {200.0}
