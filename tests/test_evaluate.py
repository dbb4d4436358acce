"""Errors on labelled frames: hand-made figures, engines that agree, files that keep the labels."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.stress import full_3x3_to_voigt_6_stress
from ase.units import GPa
from potentials import untrained
from typer.testing import CliRunner

from eqcalc import EquivariantCalculator
from eqcalc.cli import app
from eqcalc.data.dataset import FrameDataset
from eqcalc.data.frames import Frame
from eqcalc.data.labels import Labels
from eqcalc.data.store import pack
from eqcalc.errors import InputError
from eqcalc.export import load, read_metadata
from eqcalc.training.evaluate import evaluate, evaluate_results, format_table, write_predictions
from eqcalc.training.metrics import Comparison, Comparisons, compare

DATA = Path(__file__).parent / "data"


@pytest.fixture
def frames(crystal, molecule) -> list[Frame]:
    """Two crystals, one without stress, and a molecule, with labels out of the air."""
    rng = np.random.default_rng(0)
    other = crystal.copy()
    other.rattle(0.1, seed=7)
    made = []
    for n, atoms in enumerate((crystal, other, molecule)):
        stress = rng.normal(scale=0.01, size=(3, 3))
        made.append(
            Frame(
                atoms,
                -20.0 - n,
                rng.normal(size=(len(atoms), 3)),
                stress + stress.T if n == 0 else None,
                "molecule" if n == 2 else "crystal",
                f"a.xyz, frame {n}",
            )
        )
    return made


def test_figures_by_hand():
    label = Labels(-8.0, np.zeros((2, 3)), np.zeros((3, 3)))
    stress = np.array([[1.0, 4, 5], [4, 2, 6], [5, 6, 3]]) * GPa
    value = Labels(-8.2, np.full((2, 3), 0.05), stress)
    result = Comparisons()
    result.add("a", compare(label, value, molecule=False))
    errors = result.summary()["a"]
    assert errors["energy"]["mae"] == pytest.approx(100.0)  # meV/atom
    fifty = pytest.approx(50.0)
    assert errors["forces"] == {"mae": fifty, "rmse": fifty, "count": 6, "unit": "meV/Å"}
    assert errors["stress"]["mae"] == pytest.approx(3.5)
    assert errors["stress"]["count"] == 6
    assert errors["stress_offdiagonal"]["mae"] == pytest.approx(5.0)
    assert errors["stress_offdiagonal"]["rmse"] == pytest.approx(np.sqrt(77 / 3))
    assert "energy_total" not in errors
    assert result.summary()["all"] == errors
    molecules = Comparisons()
    molecules.add("b", compare(label, value, molecule=True))
    assert molecules.summary()["all"]["energy_total"]["mae"] == pytest.approx(200.0)  # meV
    assert "energy of a molecule meV" in format_table(molecules.summary())
    unlabelled = compare(Labels(np.nan, None, None), value, molecule=True)
    assert unlabelled == {}


def test_many_points_are_thinned_but_all_count():
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(2, n)) for n in rng.integers(1, 60, size=400)]
    pairs = Comparison(limit=1000)
    for k, part in enumerate(parts):
        pairs.add(part)
        assert pairs.kept == pairs.sample.shape[1] <= 1000
        if sum(p.shape[1] for p in parts[: k + 1]) <= 1000:
            assert np.array_equal(pairs.sample, np.concatenate(parts[: k + 1], axis=1))
    assert pairs.kept > 300
    expected = np.concatenate(parts, axis=1)
    assert pairs.count == expected.shape[1]
    assert pairs.absolute == pytest.approx(np.abs(expected[1] - expected[0]).sum())
    assert pairs.square == pytest.approx(np.square(expected[1] - expected[0]).sum())
    kept = [k for k, part in enumerate(parts) if part[0, 0] in pairs.sample[0]]
    assert kept == list(range(0, len(parts), kept[1])), "evenly from all structures"


@pytest.mark.parametrize("other", ["all", "surface"])
def test_all_is_every_frame_once(frames, potential_path, other):
    """Frames without a config_type are called "all", too."""
    potential = load(potential_path)
    named = [replace(f, config_type="all" if n else other) for n, f in enumerate(frames)]
    dataset = FrameDataset(named, potential.atomic_numbers, potential.cutoff)
    summary = evaluate(potential.module, dataset).summary()
    assert set(summary) == {"all", other}
    assert summary["all"]["energy"]["count"] == 3
    assert summary["all"]["forces"]["count"] == 3 * sum(len(f.atoms) for f in frames)


def test_energies_of_molecules_are_not_mixed_with_those_of_crystals(frames, potential_path):
    results = EquivariantCalculator(potential_path, engine="torch").evaluate(
        frame.atoms for frame in frames
    )
    summary = evaluate_results(frames, results).summary()
    assert "energy_total" in summary["molecule"]
    assert "energy_total" not in summary["crystal"]
    assert "energy_total" not in summary["all"]
    assert summary["crystal"]["stress"]["count"] == 6
    assert "stress" not in summary["molecule"]
    size = len(frames[2].atoms)
    ratio = summary["molecule"]["energy_total"]["mae"] / summary["molecule"]["energy"]["mae"]
    assert ratio == pytest.approx(size)


def test_training_path_and_calculator_agree(frames, potential_path):
    potential = load(potential_path, dtype="float64")
    dataset = FrameDataset(frames, potential.atomic_numbers, potential.cutoff)
    expected = evaluate(potential.module, dataset, batch_size=2).summary()
    for engine in ("torch", "fused"):
        calculator = EquivariantCalculator(potential_path, engine=engine, dtype="float64")
        results = calculator.evaluate(frame.atoms for frame in frames)
        got = evaluate_results(frames, results).summary()
        assert got.keys() == expected.keys()
        for group, errors in expected.items():
            assert got[group].keys() == errors.keys()
            for name, error in errors.items():
                assert got[group][name]["count"] == error["count"]
                for kind in ("mae", "rmse"):
                    assert got[group][name][kind] == pytest.approx(error[kind], rel=1e-6)


def test_perfect_predictions_have_no_error(frames, potential_path):
    calculator = EquivariantCalculator(potential_path, dtype="float64", engine="torch")
    results = calculator.evaluate(frame.atoms for frame in frames)
    xx, yy, zz, yz, xz, xy = results[0]["stress"]
    stress = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    perfect = [
        replace(f, energy=r["energy"], forces=r["forces"], stress=stress if n == 0 else None)
        for n, (f, r) in enumerate(zip(frames, results, strict=True))
    ]
    for errors in evaluate_results(perfect, results).summary().values():
        assert all(error["rmse"] < 1e-9 for error in errors.values())


def test_predictions_keep_the_labels(frames, tmp_path, potential_path):
    images = []
    for frame in frames:
        atoms = frame.atoms.copy()
        atoms.calc = None
        atoms.info |= {"REF_energy": frame.energy, "config_type": frame.config_type}
        atoms.arrays["REF_forces"] = frame.forces
        if frame.stress is not None:
            atoms.info["REF_stress"] = frame.stress
        images.append(atoms)
    write(tmp_path / "in.xyz", images)
    keys = [f"--{name}-key=REF_{name}" for name in ("energy", "forces", "stress")]
    files = {n: str(tmp_path / n) for n in ("out.xyz", "errors.json", "parity.png")}
    command = ["evaluate", str(potential_path), str(tmp_path / "in.xyz"), *keys]
    command += ["--predictions", files["out.xyz"], "-o", files["errors.json"]]
    command += ["--plot", files["parity.png"], "--dtype", "float64", "--engine", "torch"]
    run = CliRunner().invoke(app, command, catch_exceptions=False)
    assert run.exit_code == 0
    assert "off-diagonal GPa" in run.output
    assert not list(tmp_path.glob("*.partial"))
    calculator = EquivariantCalculator(potential_path, dtype="float64", engine="torch")
    errors = json.loads(Path(files["errors.json"]).read_text())
    written = read(files["out.xyz"], ":")
    off = []
    for atoms, frame in zip(written, frames, strict=True):
        assert atoms.info["REF_energy"] == pytest.approx(frame.energy, abs=1e-9)
        assert np.allclose(atoms.arrays["REF_forces"], frame.forces, atol=1e-7)
        result = calculator.evaluate([frame.atoms])[0]
        assert atoms.info["eqcalc_energy"] == pytest.approx(result["energy"], abs=1e-6)
        assert np.allclose(atoms.arrays["eqcalc_forces"], result["forces"], atol=1e-6)
        error = (result["energy"] - frame.energy) / len(atoms)
        assert atoms.info["eqcalc_energy_error"] == pytest.approx(error, abs=1e-6)
        off.append(abs(1e3 * error))
    assert errors["all"]["energy"]["mae"] == pytest.approx(np.mean(off), rel=1e-5)
    stress = calculator.evaluate([frames[0].atoms])[0]["stress"]
    assert np.allclose(written[0].info["eqcalc_stress"], stress)
    assert "eqcalc_stress" not in written[2].info


def test_the_mean_of_a_committee(frames, tmp_path, potential_path):
    """A folder of a committee is evaluated as its mean; one that is not finished is refused."""
    folder = tmp_path / "runs"
    (folder / "1").mkdir(parents=True)
    (folder / "2").mkdir()
    (folder / "1" / "model.pth").write_bytes(Path(potential_path).read_bytes())
    untrained(folder / "2" / "model.pth", seed=7)
    images = []
    for frame in frames[:2]:
        atoms = frame.atoms.copy()
        atoms.calc = SinglePointCalculator(atoms, energy=frame.energy, forces=frame.forces)
        images.append(atoms)
    write(tmp_path / "in.xyz", images)
    command = ["evaluate", str(folder), str(tmp_path / "in.xyz"), "--dtype", "float64"]
    command += ["-o", str(tmp_path / "errors.json")]
    unfinished = CliRunner().invoke(app, command)
    assert "no finished committee" in str(unfinished.exception)
    (folder / "committee.json").write_text('{"members": ["1/model.pth", "2/model.pth"]}')
    run = CliRunner().invoke(app, command, catch_exceptions=False)
    assert run.exit_code == 0
    each = [
        EquivariantCalculator(folder / k / "model.pth", dtype="float64").evaluate(images)
        for k in "12"
    ]
    errors = [
        (a["energy"] + b["energy"]) / 2.0 - atoms.get_potential_energy()
        for a, b, atoms in zip(*each, images, strict=True)
    ]
    per_atom = 1e3 * np.abs(np.array(errors) / [len(atoms) for atoms in images])
    found = json.loads((tmp_path / "errors.json").read_text())["all"]["energy"]["mae"]
    assert found == pytest.approx(per_atom.mean(), rel=1e-6)


def test_a_failed_write_leaves_the_old_file(frames, tmp_path):
    path = tmp_path / "out.xyz"
    path.write_text("precious")
    broken = [{"energy": 0.0, "forces": np.zeros((len(f.atoms), 3))} for f in frames]
    broken[2]["forces"] = np.zeros((1, 3))
    with pytest.raises(ValueError, match=r"."):
        write_predictions(path, [f.atoms for f in frames], frames, broken)
    assert path.read_text() == "precious"
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("prepare", "options", "sentence"),
    [
        (lambda a: a.info.update(energy=1.0), ["--engine", "magic"], "no engine 'magic'"),
        (lambda a: a.info.update(energy=1.0), ["--forces-key", "F"], "forces under the key 'F'"),
        (lambda _: None, [], "has no energy under the key 'energy'"),
        (lambda a: a.numbers.__setitem__(0, 26), [], r"in.xyz, frame 0: .*contains Fe"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, potential_path, prepare, options, sentence):
    atoms = Atoms("SiO", positions=[[0, 0, 0], [0, 0, 1.6]])
    prepare(atoms)
    if atoms.numbers[0] == 26:
        atoms.info["energy"] = 0.0
    write(tmp_path / "in.xyz", atoms)
    command = ["evaluate", str(potential_path), str(tmp_path / "in.xyz"), *options]
    run = CliRunner().invoke(app, command)
    assert isinstance(run.exception, InputError)
    assert re.search(sentence, str(run.exception))


def test_a_pressure_that_the_stress_lacks(tmp_path, potential_path, crystal):
    atoms, spoilt = crystal.copy(), crystal.copy()
    for image, pressure in ((atoms, 0.0), (spoilt, 3.0)):
        stress = np.array([0.01, 0.02, -0.01, 0.0, 0.005, 0.0])
        stress[:3] += pressure * GPa
        image.calc = SinglePointCalculator(image, energy=-20.0, stress=stress)
    errors = []
    for name, image, options in (
        ("a.xyz", atoms, ()),
        ("b.xyz", spoilt, ("--pulay-pressure", "3")),
        ("b.xyz", spoilt, ()),
    ):
        write(tmp_path / name, image)
        output = tmp_path / "errors.json"
        command = ["evaluate", str(potential_path), str(tmp_path / name), "-o", str(output)]
        run = CliRunner().invoke(app, [*command, *options], catch_exceptions=False)
        assert run.exit_code == 0, run.output
        errors.append(json.loads(output.read_text())["all"]["stress"]["rmse"])
    assert errors[1] == pytest.approx(errors[0], rel=1e-5)
    assert abs(errors[2] - errors[0]) > 0.5


def test_a_corrected_training_is_mentioned(tmp_path, monkeypatch, potential_path, crystal):
    crystal.calc = SinglePointCalculator(crystal, energy=-20.0)
    write(tmp_path / "a.xyz", crystal)
    document = read_metadata(potential_path) | {"training": {"pulay_pressure": 2.5}}
    monkeypatch.setattr("eqcalc.export.read_metadata", lambda _: document)
    command = ["evaluate", str(potential_path), str(tmp_path / "a.xyz")]
    for options, said in (((), True), (("--pulay-pressure", "2.5"), False)):
        run = CliRunner().invoke(app, [*command, *options], catch_exceptions=False)
        assert ("--pulay-pressure 2.5 does so here" in run.output) == said


def test_a_store_is_evaluated_like_its_files(frames, tmp_path, potential_path):
    images = []
    for frame in frames:
        atoms = frame.atoms.copy()
        results = {"energy": frame.energy, "forces": frame.forces}
        if frame.stress is not None:
            results["stress"] = full_3x3_to_voigt_6_stress(frame.stress)
        atoms.calc = SinglePointCalculator(atoms, **results)
        atoms.info["config_type"] = frame.config_type
        images.append(atoms)
    write(tmp_path / "a.xyz", images)
    store = str(tmp_path / "a.eqdata")
    cutoff = load(potential_path).cutoff
    pack(tmp_path / "a.xyz", store, cutoff)
    errors = []
    for source in (str(tmp_path / "a.xyz"), store):
        output = tmp_path / "errors.json"
        command = ["evaluate", str(potential_path), source, "-o", str(output), "--dtype=float64"]
        run = CliRunner().invoke(app, command, catch_exceptions=False)
        assert run.exit_code == 0, run.output
        errors.append(json.loads(output.read_text()))
    assert errors[0].keys() == errors[1].keys() == {"all", *(f.config_type for f in frames)}
    for group, measures in errors[0].items():
        for name, measure in measures.items():
            other = errors[1][group][name]
            assert other.pop("unit") == measure.pop("unit")
            assert other == pytest.approx(measure, rel=1e-6), (group, name)
    refused = CliRunner().invoke(
        app, ["evaluate", str(potential_path), store, "--predictions", str(tmp_path / "p.xyz")]
    )
    assert "A data store is evaluated alone" in str(refused.exception)
    refused = CliRunner().invoke(
        app, ["evaluate", str(potential_path), store, "--energy-key", "REF_energy"]
    )
    assert "with the labels that it was packed with" in str(refused.exception)
    refused = CliRunner().invoke(
        app, ["evaluate", str(potential_path), store, "--pulay-pressure", "2"]
    )
    assert "with the labels that it was packed with" in str(refused.exception)
    refused = CliRunner().invoke(app, ["data", "check", store])
    assert "a data store holds no positions" in str(refused.exception)
