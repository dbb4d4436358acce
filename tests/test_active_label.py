"""Labels of given structures: killed and resumed, failed frames, other calculators, wrong input."""

import json
import multiprocessing
import os
import signal

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms
from ase.io import read, write
from potentials import untrained
from typer.testing import CliRunner

from eqcalc import EquivariantCalculator, InputError
from eqcalc.active import label as module
from eqcalc.active.label import identity, label_frames
from eqcalc.cli import app
from eqcalc.data.frames import iter_images, read_frames
from eqcalc.errors import Interrupted
from eqcalc.sampling.teachers import open_teacher

NAME = "ase.calculators.lj:LennardJones"
OPTIONS = {"sigma": 2.0, "epsilon": 0.3, "rc": 4.0, "smooth": True}


def lennard_jones():
    return open_teacher([NAME], OPTIONS), identity(NAME, OPTIONS)


@pytest.fixture
def frames(tmp_path):
    """Five crystals and a molecule, with old labels and what else a file may have."""
    structures = [bulk("Si", cubic=True) for _ in range(5)] + [molecule("H2O")]
    for k, atoms in enumerate(structures):
        atoms.rattle(0.05, seed=k)
        atoms.info.update(config_type="hot", forces_deviation=0.3, grade=float(k))
        atoms.info["REF_energy"] = -99.0
        atoms.arrays["REF_forces"] = np.full((len(atoms), 3), 9.0)
    write(tmp_path / "chosen.xyz", structures, format="extxyz")
    return tmp_path / "chosen.xyz"


def images(path):
    return list(iter_images(path))


def counting(monkeypatch, *, fail=(), interrupt_at=None):
    """Counts the structures that are computed; some fail, or ctrl-c comes at one."""
    calls = []
    plain = module._compute

    def compute(teacher, atoms):
        calls.append(len(calls))
        if calls[-1] == interrupt_at:
            raise KeyboardInterrupt
        if calls[-1] in fail:
            raise RuntimeError("SCF did not converge")
        return plain(teacher, atoms)

    monkeypatch.setattr(module, "_compute", compute)
    return calls


def check(path, number=6):
    """Every frame has Lennard-Jones's labels, of all forces, and no others."""
    found = read(path, ":")
    assert len(found) == number
    for frame in found:
        atoms = Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=frame.pbc)
        atoms.calc = LennardJones(**OPTIONS)
        assert frame.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-8)
        assert frame.get_forces() == pytest.approx(atoms.get_forces(), abs=1e-7)
        assert ("stress" in frame.calc.results) == frame.pbc.all()
        if frame.pbc.all():
            assert frame.get_stress() == pytest.approx(atoms.get_stress(), abs=1e-7)
        assert frame.info["config_type"] == "hot"
        assert "grade" in frame.info
        assert not {"REF_energy", "REF_forces", "forces_deviation"} & {*frame.info, *frame.arrays}
    return found


def test_labels_are_those_of_the_calculator(frames, tmp_path):
    outcome = label_frames(*lennard_jones(), images(frames), tmp_path / "out.xyz")
    assert str(outcome) == "6 labelled frames."
    check(tmp_path / "out.xyz")
    assert len(read_frames(tmp_path / "out.xyz")) == 6
    assert {p.name for p in tmp_path.iterdir()} == {"chosen.xyz", "out.xyz"}


def test_forces_of_atoms_that_were_held_are_labels(tmp_path):
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=1)
    free = atoms.copy()
    atoms.set_constraint(FixAtoms([0, 1]))
    label_frames(*lennard_jones(), [(atoms, "a"), (free, "b")], tmp_path / "out.xyz")
    held, other = read(tmp_path / "out.xyz", ":")
    assert np.abs(held.get_forces()[0]).max() > 1e-3
    assert held.get_forces() == pytest.approx(other.get_forces(), abs=1e-9)


def test_ctrl_c_and_the_same_command_again(frames, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        counting(patched, interrupt_at=4)
        with pytest.raises(Interrupted, match="4 of 6 frames have labels; the same command goes"):
            label_frames(*lennard_jones(), images(frames), tmp_path / "out.xyz")
    assert not (tmp_path / "out.xyz").exists()
    calls = counting(monkeypatch)
    outcome = label_frames(*lennard_jones(), images(frames), tmp_path / "out.xyz")
    assert len(calls) == 2
    assert str(outcome) == "6 labelled frames, 4 of them from before."
    check(tmp_path / "out.xyz")
    assert len(label_frames(*lennard_jones(), images(frames), tmp_path / "out.xyz").failed) == 0
    assert len(calls) == 2  # a whole file is not computed again


def _until_killed(frames, output):
    plain = module._compute
    done = []

    def compute(teacher, atoms):
        if len(done) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(1)
        return plain(teacher, atoms)

    module._compute = compute
    label_frames(*lennard_jones(), images(frames), output)


def test_sigkill_loses_one_structure(frames, tmp_path, monkeypatch):
    """And a line that was cut off is computed again, not read."""
    process = multiprocessing.get_context("fork").Process(
        target=_until_killed, args=(frames, tmp_path / "out.xyz")
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    journal = tmp_path / "out.xyz.journal"
    assert {p.name for p in tmp_path.iterdir()} == {"chosen.xyz", journal.name}
    assert len(journal.read_text().splitlines()) == 3
    journal.write_bytes(journal.read_bytes()[:-20])
    calls = counting(monkeypatch)
    outcome = label_frames(*lennard_jones(), images(frames), tmp_path / "out.xyz")
    assert (outcome.before, len(calls)) == (2, 4)
    check(tmp_path / "out.xyz")
    assert not journal.exists()


def test_a_failed_frame_loses_nothing(frames, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        counting(patched, fail={0, 3})
        outcome = label_frames(*lennard_jones(), images(frames), tmp_path / "out.xyz")
    assert outcome.failed == {
        "chosen.xyz, frame 0": "SCF did not converge",
        "chosen.xyz, frame 3": "SCF did not converge",
    }
    assert "chosen.xyz, frame 3: SCF did not converge" in str(outcome)
    check(tmp_path / "out.xyz", 4)
    failed = read(tmp_path / "out_failed.xyz", ":")
    assert [f.info["failure"] for f in failed] == ["SCF did not converge"] * 2
    assert failed[1].positions == pytest.approx(read(frames, 3).positions)
    assert all(f.calc is None for f in failed)
    calls = counting(monkeypatch)
    outcome = label_frames(*lennard_jones(), images(frames), tmp_path / "out.xyz")
    assert (len(calls), outcome.labelled, outcome.before) == (2, 6, 4)
    check(tmp_path / "out.xyz")
    assert not (tmp_path / "out_failed.xyz").exists()


def test_what_is_not_finite_fails(frames, tmp_path, monkeypatch):
    teacher, name = lennard_jones()
    plain = teacher.label
    monkeypatch.setattr(
        teacher, "label", lambda a: plain(a) | ({"energy": np.nan} if len(a) == 3 else {})
    )
    outcome = label_frames(teacher, name, images(frames), tmp_path / "out.xyz")
    assert outcome.failed == {"chosen.xyz, frame 5": "its energy is not finite"}


def test_copies_are_computed_once(frames, tmp_path, monkeypatch):
    calls = counting(monkeypatch)
    label_frames(*lennard_jones(), images(frames) * 2, tmp_path / "out.xyz")
    assert len(calls) == 6
    check(tmp_path / "out.xyz", 12)


def test_labels_of_two_calculators_do_not_mix(frames, tmp_path, monkeypatch):
    label_frames(*lennard_jones(), images(frames), tmp_path / "out.xyz")
    before = (tmp_path / "out.xyz").read_bytes()
    other = {**OPTIONS, "epsilon": 0.4}
    with pytest.raises(InputError, match="not labelled by this calculator with these options"):
        label_frames(
            open_teacher([NAME], other), identity(NAME, other), images(frames), tmp_path / "out.xyz"
        )
    assert (tmp_path / "out.xyz").read_bytes() == before
    with monkeypatch.context() as patched:
        counting(patched, interrupt_at=2)
        with pytest.raises(Interrupted):
            label_frames(*lennard_jones(), images(frames), tmp_path / "new.xyz")
    with pytest.raises(InputError, match=r"new\.xyz\.journal' holds labels of another calculator"):
        label_frames(
            open_teacher([NAME], other), identity(NAME, other), images(frames), tmp_path / "new.xyz"
        )
    more = [*images(frames), (bulk("Si", cubic=True), "more")]
    assert label_frames(*lennard_jones(), more, tmp_path / "out.xyz").before == 6


def test_potential_files_are_known_by_what_is_in_them(tmp_path):
    path = untrained(tmp_path / "a.pth")
    first = identity(str(path), {})
    assert identity(str(untrained(tmp_path / "b.pth")), {}) == first
    assert identity(str(untrained(path, seed=1)), {}) != first
    assert identity(str(path), {"dtype": "float64"}) != identity(str(path), {})


def test_one_process_at_a_time(frames, tmp_path):
    with (
        module._journal(tmp_path / "out.xyz.journal"),
        pytest.raises(InputError, match="another process labels these frames"),
    ):
        label_frames(*lennard_jones(), images(frames), tmp_path / "out.xyz")


def test_a_calculator_that_never_works_is_told(frames, tmp_path, monkeypatch):
    calls = counting(monkeypatch, fail=range(100))
    structures = images(frames) + [(bulk("Si").repeat(k), str(k)) for k in range(1, 9)]
    with pytest.raises(InputError, match=r"The first 10 frames could not be labelled.*SCF did not"):
        label_frames(*lennard_jones(), structures, tmp_path / "out.xyz")
    assert len(calls) == 10
    assert [p.name for p in tmp_path.iterdir()] == ["chosen.xyz"]
    with pytest.raises(InputError, match="no frames to label"):
        label_frames(*lennard_jones(), [], tmp_path / "out.xyz")


def test_command(frames, tmp_path):
    out = tmp_path / "new" / "out.xyz"
    arguments = ["label", str(frames), "--calculator", NAME, "-o", str(out)]
    result = CliRunner().invoke(app, [*arguments, "--kwargs", json.dumps(OPTIONS)])
    assert result.exit_code == 0, result.output
    assert "out.xyz: 6 labelled frames." in result.output
    check(out)
    for text, sentence in (("sigma=2", "this is no JSON"), ("[1]", 'write \'{"name": value}')):
        result = CliRunner().invoke(app, [*arguments, "--kwargs", text])
        assert isinstance(result.exception, InputError)
        assert sentence in str(result.exception)
    result = CliRunner().invoke(app, [*arguments, "--kwargs", '{"nonsense": 1}'])
    assert result.exit_code != 0


@pytest.mark.slow
def test_models_label_too(frames, tmp_path):
    """A committee's folder: the mean of its members; elements that it lacks fail alone."""
    paths = [untrained(tmp_path / f"{k}.pth", seed=k) for k in range(2)]
    (tmp_path / "committee.json").write_text(json.dumps({"members": ["0.pth", "1.pth"]}))
    arguments = ["label", str(frames), "--calculator", str(tmp_path), "-o"]
    result = CliRunner().invoke(app, [*arguments, str(tmp_path / "out.xyz")])
    assert result.exit_code == 0, result.output
    assert "chosen.xyz, frame 5: " in result.output
    found = read(tmp_path / "out.xyz", ":")
    expected = EquivariantCalculator(paths).evaluate(found)
    for frame, results in zip(found, expected, strict=True):
        assert frame.get_potential_energy() == pytest.approx(results["energy"], abs=1e-5)
        assert frame.get_forces() == pytest.approx(results["forces"], abs=1e-5)
