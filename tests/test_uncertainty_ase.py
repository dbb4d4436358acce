"""Grades and deviations in ASE: results, dynamics, trajectories, the command, training."""

import json
import re
from pathlib import Path

import imported
import numpy as np
import pytest
from ase.io import Trajectory, read, write
from ase.md.verlet import VelocityVerlet
from ase.units import fs
from potentials import untrained
from test_uncertainty import calibrated, features_of, two_elements
from typer.testing import CliRunner

from eqcalc import DisagreementStop, EquivariantCalculator, InputError, export, uncertainty
from eqcalc.checks import provenance
from eqcalc.checks.labelled import labelled as labelled_page
from eqcalc.checks.page import render
from eqcalc.checks.suite import Suite
from eqcalc.cli import app
from eqcalc.data.frames import read_frames
from eqcalc.importers import import_model
from eqcalc.observers import KeepUncertainty
from eqcalc.training.calibration import calibrate
from eqcalc.uncertainty.coverage import Coverage, remarks
from eqcalc.uncertainty.coverage import text as coverage_text


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two calibrated models and one that is not, with random weights."""
    folder = tmp_path_factory.mktemp("calibrated")
    made = []
    for seed in (0, 1):
        source = untrained(folder / f"plain_{seed}.pth", seed=seed)
        made.append(folder / f"model_{seed}.pth")
        calibrated(source, made[-1])
    return [*made, source]


def open_torch(model, **options):
    return EquivariantCalculator(model, engine="torch", on_domain_exit="ignore", **options)


def test_results_are_there_when_they_are_asked_for(files):
    atoms = two_elements(3)
    atoms.calc = calc = open_torch(files[0], dtype="float64")
    atoms.get_forces()
    assert not {"grade", "energies_std"} & calc.results.keys()
    known = uncertainty.read(files[0])
    frame = features_of(files[0], [atoms])[0]
    grade = calc.get_property("grade", atoms)
    assert np.allclose(grade, known.grades(frame.species, frame.features), rtol=1e-6)
    std = calc.get_property("energies_std", atoms)
    assert np.allclose(std, known.energies_std(frame.species, frame.features), rtol=1e-6)
    expected = known.energy_std(frame.species, frame.features)
    assert calc.get_property("energy_std", atoms) == pytest.approx(expected, rel=1e-6)
    assert "forces" in calc.results  # of the same structure still
    (batch,) = calc.evaluate([atoms], uncertainty=True)
    assert np.allclose(batch["grade"], grade)
    assert batch["energy_std"] == pytest.approx(expected, rel=1e-6)
    assert "grade" not in calc.evaluate([atoms])[0]


def test_every_calculation_has_them_on_request(files):
    atoms = two_elements(3)
    atoms.calc = calc = open_torch(files[0], uncertainty=True)
    atoms.get_forces()
    assert {"grade", "energies_std", "forces"} <= calc.results.keys()


def test_a_committee_has_the_largest_grade(files):
    atoms = two_elements(3)
    together = open_torch(files[:2])
    single = [open_torch(path) for path in files[:2]]
    grades = [calc.get_property("grade", atoms) for calc in single]
    assert np.allclose(together.get_property("grade", atoms), np.max(grades, axis=0))
    energies = [calc.get_property("energies", atoms) for calc in single]
    std = together.get_property("energies_std", atoms)
    assert np.allclose(std, np.std(energies, axis=0))


def test_files_without_say_what_to_do(files):
    words = "plain_1.pth has no uncertainty: run 'eqcalc calibrate"
    for model in (files[2], [files[0], files[2]]):
        calc = open_torch(model)
        with pytest.raises(InputError, match=words):
            calc.get_property("grade", two_elements(3))
        with pytest.raises(InputError, match=words):
            open_torch(model, uncertainty=True)
        with pytest.raises(InputError, match=words):
            calc.evaluate([two_elements(3)], uncertainty=True)
        atoms = two_elements(3)
        atoms.calc = calc
        with pytest.raises(InputError, match=words):
            DisagreementStop(VelocityVerlet(atoms, fs), grade=2.0)


def test_dynamics_end_at_a_grade(files, capsys):
    atoms = two_elements(3)
    atoms.calc = open_torch(files[0], uncertainty=True)
    atoms.set_velocities(np.random.default_rng(0).standard_normal((8, 3)) * 0.4)
    dynamics = VelocityVerlet(atoms, 2.0 * fs)
    stop = DisagreementStop(dynamics, grade=4.0)
    dynamics.attach(stop)
    dynamics.run(200)
    assert 0 < dynamics.nsteps < 200
    assert stop.largest_grade > 4.0
    assert f"after step {dynamics.nsteps}: the extrapolation grade of atom" in stop.reason
    assert stop.reason in capsys.readouterr().out
    with pytest.raises(InputError, match="needs a limit"):
        DisagreementStop(dynamics)
    with pytest.raises(InputError, match="must be positive"):
        DisagreementStop(dynamics, grade=0.0)


@pytest.mark.parametrize("ending", ["traj", "xyz"])
def test_trajectories_keep_them(files, tmp_path, ending):
    atoms = two_elements(3)
    atoms.calc = calc = open_torch(files[:2], uncertainty=True)
    dynamics = VelocityVerlet(atoms, fs)
    path = tmp_path / f"run.{ending}"
    into = "info" if ending == "traj" else "arrays"
    dynamics.attach(KeepUncertainty(atoms, into=into))
    if ending == "traj":
        dynamics.attach(Trajectory(str(path), "w", atoms).write)
    else:
        dynamics.attach(lambda: write(path, atoms, append=True))
    dynamics.run(2)
    frames = read(path, ":")
    assert len(frames) == 3
    for name in ("grade", "forces_std", "energies_std"):
        kept = getattr(frames[-1], into)[name]
        assert np.allclose(kept, calc.get_property(name, atoms), atol=1e-7)
    with pytest.raises(InputError, match="'arrays' or 'info'"):
        KeepUncertainty(atoms, into="file")


def labelled(path, frames, noise=0.01):
    """Frames with the energies of a model, and errors."""
    calc = open_torch(path)
    rng = np.random.default_rng(1)
    for atoms, found in zip(frames, calc.evaluate(frames), strict=True):
        energy = found["energy"] + noise * rng.standard_normal()
        atoms.info |= {"energy": energy, "config_type": "crystal"}
        atoms.arrays["forces"] = np.array(found["forces"])
    return frames


def test_the_command_calibrates_any_file(files, tmp_path):
    plain = files[2]
    train = labelled(plain, [two_elements(seed) for seed in range(30)])
    unseen = labelled(plain, [two_elements(seed) for seed in range(30, 40)])
    for name, frames in (("train", train), ("unseen", unseen)):
        write(tmp_path / f"{name}.xyz", frames)
    made = tmp_path / "made.pth"
    words = ["calibrate", str(plain), str(tmp_path / "train.xyz"), "-o", str(made)]
    words += ["--engine", "torch"]
    done = CliRunner().invoke(app, [*words, "--validation", str(tmp_path / "unseen.xyz")])
    assert done.exit_code == 0, done.output
    assert "30 training frames (O, Si)" in done.output
    assert "10 energies" in done.output
    document = export.read_metadata(made)["uncertainty"]
    assert (document["frames"], document["errors"]) == (30, 10)
    shown = CliRunner().invoke(app, ["info", str(made)])
    assert "grade of Si" in shown.output
    found = open_torch(made).evaluate(train, uncertainty=True)
    # features are float32 here, and directions that the training hardly varies count, too
    assert max(f["grade"].max() for f in found) == pytest.approx(1.0, abs=0.02)
    again = CliRunner().invoke(app, words)  # every tenth frame is held out
    assert again.exit_code == 0, again.output
    assert json.loads(json.dumps(export.read_metadata(made)))["uncertainty"]["frames"] == 27
    weights = [list(export.load(path).module.parameters()) for path in (plain, made)]
    assert all(bool((a == b).all()) for a, b in zip(*weights, strict=True))


def test_an_imported_file_is_calibrated(tmp_path):
    data = Path(__file__).parent / "data" / "sevennet" / "so3.pth"
    plain = import_model(data, tmp_path / "plain.pth", dtype="float64").path
    crystals = [imported.structure() for _ in range(60)]
    for seed, atoms in enumerate(crystals):
        atoms.rattle(0.1, seed=seed)
    write(tmp_path / "frames.xyz", labelled(plain, crystals))
    frames = read_frames([tmp_path / "frames.xyz"])
    document = calibrate(plain, tmp_path / "made.pth", frames, engine="torch")
    assert (document["frames"], document["errors"]) == (54, 6)
    assert set(document["elements"]) == {"O", "Si", "Cu"}
    far = imported.structure()
    far.set_cell(0.8 * far.cell.array, scale_atoms=True)
    before, after = (open_torch(path) for path in (plain, tmp_path / "made.pth"))
    for atoms in (crystals[0], far):
        energies = [calc.get_potential_energy(atoms.copy()) for calc in (before, after)]
        assert energies[0] == energies[1]
    grades = [after.get_property("grade", a.copy()).max() for a in (crystals[0], far)]
    assert grades[0] < 1.05
    assert grades[1] > 5.0
    assert np.isfinite(after.get_property("energies_std", far.copy())).all()


def test_labels_of_another_method(files, tmp_path):
    frames = [two_elements(seed)[[*range(8 - seed % 3)]] for seed in range(30)]
    train = labelled(files[2], frames)
    for atoms in train:
        atoms.info["energy"] += 5.0 * (atoms.numbers == 8).sum() - 3.0 * (atoms.numbers == 14).sum()
    write(tmp_path / "train.xyz", train)
    scales = []
    for more in ([], ["--refit-energies"]):
        made = tmp_path / "made.pth"
        words = ["calibrate", str(files[2]), str(tmp_path / "train.xyz"), "-o", str(made)]
        done = CliRunner().invoke(app, [*words, "--engine", "torch", *more])
        assert done.exit_code == 0, done.output
        calc = open_torch(made)
        scales.append(calc.get_property("energy_std", two_elements(3)))
    assert scales[1] < 0.05 * scales[0]


def test_errors_beside_deviations_in_evaluate_and_the_report(files, tmp_path):
    frames = labelled(files[0], [two_elements(seed) for seed in range(70, 90)])
    frames += labelled(files[0], [two_elements(90, rattle=0.5)])
    write(tmp_path / "test.xyz", frames)
    paths = {name: tmp_path / name for name in ("out.json", "plot.png", "predicted.xyz")}
    words = ["evaluate", str(files[0]), str(tmp_path / "test.xyz"), "--engine", "torch"]
    words += ["--precision", "float64"]  # far outside, a grade has the rounding times a thousand
    more = ["-o", paths["out.json"], "--calibration", paths["plot.png"]]
    done = CliRunner().invoke(
        app, [*words, *map(str, more), "--predictions", str(paths["predicted.xyz"])]
    )
    assert done.exit_code == 0, done.output
    document = json.loads(paths["out.json"].read_text())["uncertainty"]
    assert sum(row["frames"] for row in document["rows"]) == 21
    assert document["rows"][-1]["grade"] == "above 8"
    calc = open_torch(files[0], dtype="float64")
    last = document["rows"][-1]
    assert last["predicted"] == pytest.approx(
        calc.get_property("energy_std", frames[-1]) / 8e-3, rel=1e-3
    )
    assert last["within_two"] == float(last["error"] <= 2.0 * last["predicted"])
    assert "within 1 std" in done.output
    assert last["ratio"] == pytest.approx(last["error"] / last["predicted"], rel=1e-3)
    assert document["force_rows"][-1]["error"] < 0.1  # labels are the model's own
    assert paths["plot.png"].stat().st_size > 10_000
    predicted = read(paths["predicted.xyz"], "-1")
    grade = calc.get_property("grade", frames[-1])
    assert np.allclose(predicted.arrays["eqcalc_grade"], grade, rtol=1e-4)
    plain = CliRunner().invoke(app, [words[0], str(files[2]), *words[2:], *map(str, more[2:])])
    assert "run 'eqcalc calibrate" in str(plain.exception)


def test_deviations_that_are_wrong_far_outside_are_said_to_be():
    """Errors are as predicted up to grade 1 and four times as large beyond 4; one frame is mute."""
    rng = np.random.default_rng(4)
    std = rng.uniform(0.01, 0.05, 4001)
    far = np.arange(4001) >= 2000
    error = std * rng.standard_normal(4001) * np.where(far, 4.0, 1.0)
    grades = [np.array([0.5, 6.0 if f else 0.9]) for f in far[:-1]] + [np.array([1.5, 0.1])]
    forces = [np.full(2, 0.3 if f else 0.1) for f in far]
    document = Coverage.of([2] * 4001, error, std, grades, forces).document()
    near, alone, beyond = document["rows"]
    assert [row["frames"] for row in document["rows"]] == [2000, 1, 2000]
    assert near["ratio"] == pytest.approx(1.0, abs=0.05)
    assert near["within_one"] == pytest.approx(0.683, abs=0.03)
    assert near["within_two"] == pytest.approx(0.954, abs=0.015)
    assert beyond["ratio"] == pytest.approx(4.0, rel=0.05)
    assert beyond["ratio"] == pytest.approx(beyond["error"] / beyond["predicted"], rel=1e-3)
    assert beyond["within_two"] == pytest.approx(0.383, abs=0.03)  # erf(0.5 / sqrt(2))
    (said,) = remarks(document)
    assert said.startswith("Grade 4 to 8: deviations are too small")
    assert f"{beyond['ratio']:.2g} times" in said
    assert said in coverage_text(document)
    (fine,) = remarks(document | {"rows": [near, alone]})
    assert "agree within a factor of 1.5" in fine
    (large,) = remarks(document | {"rows": [near | {"ratio": 0.4}]})
    assert "too large" in large
    assert remarks(document | {"rows": [alone]}) == []
    shifted = Coverage.of(
        [2] * 2000, error[:2000] + 0.3, std[:2000] + 0.3, grades[:2000]
    ).document()
    assert shifted["offset"] == pytest.approx(150.0, abs=2.0)
    assert shifted["scatter"] == pytest.approx(1e3 * np.std(error[:2000]) / 2.0, rel=1e-3)
    (an_offset,) = [s for s in remarks(shifted) if "one offset" in s]
    assert f"one offset, {shifted['offset']:+.3g} meV/atom" in an_offset
    (row,) = shifted["rows"]
    expected = np.std(error[:2000]) / np.sqrt(np.mean((std[:2000] + 0.3) ** 2))
    assert row["without_offset"] == pytest.approx(expected, rel=1e-3)
    assert row["ratio"] > 5.0 * expected
    assert f"{row['without_offset']:.2g} (grade up to 1)" in an_offset
    older = [{k: v for k, v in row.items() if k != "ratio"} for row in document["rows"]]
    assert remarks(document | {"rows": older}) == [said]  # files written before
    page = labelled_page(["far.xyz"], {}, document)
    assert any(said in table.note for table in page.tables)
    suite = Suite({"file": "made.pth"}, "", [], labelled=page)
    assert {"Labelled frames: far.xyz", f"{beyond['ratio']:.2f}"} <= set(
        re.findall(r">([^<>]+)<", render(suite))
    )
    assert suite.to_dict()["labelled_frames"]["uncertainty"] == document


def test_frames_that_a_report_is_given(files, tmp_path, monkeypatch):
    """`check all --frames` writes what `evaluate` says of the same frames."""
    frames = labelled(files[0], [two_elements(seed, rattle=0.3) for seed in range(3)])
    write(tmp_path / "far.xyz", frames)
    suite = Suite({"file": "made.pth"}, "", [])
    monkeypatch.setattr("eqcalc.checks.suite.check_all", lambda *_args, **_options: suite)
    paths = [str(tmp_path / name) for name in ("far.xyz", "report.html", "out.json")]
    words = ["check", "all", str(files[0]), "--frames", paths[0], "-o", paths[1]]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["evaluate", str(files[0]), paths[0], "-o", paths[2]])
    assert done.exit_code == 0, done.output
    report, evaluated = (
        json.loads((tmp_path / n).read_text()) for n in ("report.json", "out.json")
    )
    found = report["labelled_frames"]
    assert sum(row["frames"] for row in found["uncertainty"]["rows"]) == 3
    assert found["errors"] | {"uncertainty": found["uncertainty"]} == evaluated
    assert "far.xyz" in (tmp_path / "report.html").read_text()


def test_the_report_shows_them(files, tmp_path):
    write(tmp_path / "train.xyz", labelled(files[2], [two_elements(s) for s in range(30)]))
    made = tmp_path / "made.pth"
    words = ["calibrate", str(files[2]), str(tmp_path / "train.xyz"), "-o", str(made)]
    assert CliRunner().invoke(app, [*words, "--engine", "torch"]).exit_code == 0
    document = export.read_metadata(made)
    (table,) = provenance.stored_coverage(document)
    assert sum(int(row[1]) for row in table.rows) == 3
    picture = provenance.coverage_picture(document)
    page = render(Suite({"file": "made.pth"}, "", [], errors=[table], coverage=picture))
    assert "predicted deviations" in page
    assert "data:image/png;base64" in page
    assert provenance.stored_coverage(export.read_metadata(files[2])) == []
    assert provenance.coverage_picture(export.read_metadata(files[2])) == b""


def test_a_committee_is_its_folder(files, tmp_path):
    for number, path in enumerate(files[:2], 1):
        (tmp_path / "com" / str(number)).mkdir(parents=True)
        (tmp_path / "com" / str(number) / "model.pth").write_bytes(path.read_bytes())
    folder = tmp_path / "com"
    with pytest.raises(InputError, match="holds no finished committee"):
        open_torch(folder)
    members = {"members": ["1/model.pth", "2/model.pth"]}
    (folder / "committee.json").write_text(json.dumps(members))
    atoms = two_elements(3)
    expected = open_torch(files[:2]).get_property("forces_std", atoms)
    for name in (folder, str(folder), [folder]):
        calc = open_torch(name)
        assert len(calc.members) == 2
        assert np.allclose(calc.get_property("forces_std", atoms), expected)
    write(tmp_path / "atoms.xyz", atoms)
    a, b = map(str, files[:2])
    atoms_file = str(tmp_path / "atoms.xyz")
    for words, potentials in (
        ([str(folder), atoms_file], f'"{folder}"'),
        (["--model", str(folder), atoms_file], f'"{folder}"'),
        ([a, b, atoms_file], f'"{a}" "{b}"'),
        (["--model", a, b, atoms_file], f'"{a}" "{b}"'),
        ([atoms_file, "--model", a, b], f'"{a}" "{b}"'),
        ([atoms_file, "--model", a], f'"{a}"'),
    ):
        done = CliRunner().invoke(app, ["lammps", "input", *words, "--out", str(tmp_path)])
        assert done.exit_code == 0, (words, done.output, done.exception)
        assert f"pair_coeff * * {potentials} O Si\n" in (tmp_path / "in.lammps").read_text()
    alone = CliRunner().invoke(app, ["lammps", "input", atoms_file])
    assert "Give a model, or several, then a structure" in str(alone.exception)
