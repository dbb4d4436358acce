"""A section [pretrain]: frames of a teacher, a run that learns them, a run that goes on from it."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import all_changes
from ase.calculators.lj import LennardJones
from ase.io import read, write
from potentials import untrained
from runs import (
    MODEL,
    Killed,
    checkpoint,
    column,
    history,
    tiny,
    train_and_kill,
    weights,
    write_frames,
)
from typer.testing import CliRunner

from eqcalc import EquivariantCalculator, InputError
from eqcalc.cli import app
from eqcalc.data.dataset import Batch
from eqcalc.data.store import pack
from eqcalc.errors import Interrupted
from eqcalc.outputs import OutputConfig
from eqcalc.sampling.teachers import open_teacher
from eqcalc.training import pretrain as module
from eqcalc.training import run
from eqcalc.training.config import from_dict, override, read_config
from eqcalc.training.distributed import World
from eqcalc.training.dryrun import dry_run
from eqcalc.training.folder import load_run
from eqcalc.training.prepare import prepare
from eqcalc.training.pretrain import first_run, second_run
from eqcalc.training.run import train
from eqcalc.training.task import predict
from eqcalc.training.template import to_toml


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_frames(tmp_path_factory.mktemp("data") / "train.xyz", 12)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    return str(untrained(path, elements=(1, 3)))


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Files of three frames."""
    monkeypatch.setattr(module, "CHUNK", 3)


def config_of(frames, teacher, pretrain=None, **options):
    config = tiny(frames, **{"precision": "float64", **options})
    section = {"teacher": teacher, "frames": 8, "length": 2, "epochs": 3, **(pretrain or {})}
    return from_dict(config.to_dict() | {"pretrain": section})


def same_end(one, two):
    assert history(one) == history(two)
    assert all(torch.equal(w, weights(two)[name]) for name, w in weights(one).items())


@pytest.fixture(scope="module")
def finished(data, teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "finished"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "CHUNK", 3)
        train(config_of(data, teacher), out, quiet=True)
    return out


def test_frames_are_the_teachers(finished, teacher):
    files = sorted((finished / "pretrain").glob("frames_*.xyz"))
    frames = [read(path, ":") for path in files]
    assert [len(part) for part in frames] == [3, 3, 2]
    frames = [frame for part in frames for frame in part]
    groups = {frame.info["config_type"] for frame in frames}
    assert groups <= {f"network_{t}K" for t in (300, 600, 1000, 1500)}
    assert len(groups) > 1
    assert len({frame.positions.tobytes() for frame in frames}) == 8
    results = EquivariantCalculator(teacher).evaluate(frames)
    for frame, found in zip(frames, results, strict=True):
        assert np.abs(frame.get_forces() - found["forces"]).max() < 1e-4
    # trajectories start at training frames, not at those that are held out
    setup = load_run(finished).setup
    assert setup.train_frames == 9
    started = json.loads((finished / "pretrain" / "sampling.json").read_text())
    assert started["starts"] == setup.train_hash


def test_steps_are_of_as_many_frames_as_suit_each_set(data, teacher):
    prepared = prepare(config_of(data, teacher, {"frames": 900}, batch_size=0))
    assert prepared.config.training.batch_size == 1
    assert [first_run(prepared, [], size).training.batch_size for size in (0, 2)] == [3, 2]


@pytest.mark.usefixtures("no_potential_file")
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_second_run_begins_where_the_first_ended(data, teacher, tmp_path, precision):
    rest = {"epochs": 1, "learning_rate": 1e-300, "weight_decay": 0.0}
    config = config_of(data, teacher, **rest, precision=precision)
    train(config, tmp_path, quiet=True)
    first, second = load_run(tmp_path / "pretrain"), load_run(tmp_path)
    assert checkpoint(tmp_path / "pretrain")["epoch"] == 2
    for (name, a), b in zip(first.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    # reference energies are those that leave least: nothing that the composition explains
    frames = prepare(second_run(config, tmp_path / "pretrain")).train
    batch = Batch.collate([frames[n] for n in range(len(frames))])
    atoms = frames.atom_counts()
    shares = frames.composition([1, 3]) / atoms[:, None]

    def explained(run):
        left = (batch.energy - predict(run.model, batch).energy).numpy() / atoms
        return np.abs(shares.T @ left / len(atoms)).max()

    assert explained(second) < 1e-5
    assert explained(first) > 0.1
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["pretrain"]["teacher"] == teacher
    assert not written["fine_tune"]["model"]


def interrupt_sampling(config, out, monkeypatch):
    """A ctrl-c after five frames of eight."""
    plain, seen = module.sample, []

    def interrupted(*args):
        for frame in plain(*args):
            seen.append(frame)
            if len(seen) == 5:
                raise KeyboardInterrupt
            yield frame

    with monkeypatch.context() as patched:
        patched.setattr(module, "sample", interrupted)
        with pytest.raises(Interrupted, match="after 1 of 3 files of frames: run the same command"):
            train(config, out, quiet=True)
    assert len(read(out / "pretrain" / "frames_000.xyz", ":")) == 3
    assert not (out / "pretrain" / "frames_001.xyz").exists()


def stop_between(config, out, monkeypatch):
    def killed(*_):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(run, "second_run", killed)
        with pytest.raises(Killed):
            train(config, out, quiet=True)
    assert (out / "pretrain" / "summary.json").is_file()
    assert not (out / "last.ckpt").exists()


@pytest.mark.usefixtures("no_potential_file")
@pytest.mark.parametrize("place", ["frames", "first run", "between", "second run"])
def test_resumed_is_uninterrupted(data, teacher, finished, tmp_path, monkeypatch, place):
    config, out = config_of(data, teacher), tmp_path / "run"
    if place == "frames":
        interrupt_sampling(config, out, monkeypatch)
    elif place == "first run":
        train_and_kill(config, out, monkeypatch, kill_in=1, part="pretrain")
    elif place == "between":
        stop_between(config, out, monkeypatch)
    else:  # the first one has but three epochs
        train_and_kill(config, out, monkeypatch, kill_in=3)
    train(config, out, quiet=True)
    same_end(finished / "pretrain", out / "pretrain")
    same_end(finished, out)


def test_what_is_finished_is_left_alone(data, teacher, finished, tmp_path, monkeypatch):
    """On however many threads, and wherever the folder is now."""
    out = tmp_path / "moved"
    shutil.copytree(finished, out)
    learned = []
    plain = run.fit
    monkeypatch.setattr(run, "fit", lambda _, out, *__, **___: learned.append(out))
    train(config_of(data, teacher, threads=2), finished, quiet=True)
    assert learned == [finished]
    monkeypatch.setattr(run, "fit", plain)
    train(config_of(data, teacher), out, quiet=True)
    same_end(finished, out)


@pytest.mark.parametrize(
    ("pretrain", "options", "sentence"),
    [
        ({"frames": 9}, {}, r"frames of another setting of pretrain\.frames: choose another"),
        ({"temperatures": [300.0]}, {}, r"another setting of pretrain\.temperatures"),
        ({}, {"seed": 2}, r"another setting of training\.seed, the data"),
        ({}, {"data": {"val_fraction": 0.5}}, "another setting of the data"),
        ({"epochs": 4}, {}, r"another setting of training\.epochs"),
    ],
)
def test_other_options_need_another_folder(data, teacher, finished, pretrain, options, sentence):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    with pytest.raises(InputError, match=sentence):
        train(config_of(data, teacher, pretrain, **options), finished, quiet=True)
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*")}


def test_bad_input_is_said_before_any_work(data, teacher, tmp_path):
    out = tmp_path / "run"
    store = tmp_path / "frames.eqdata"
    pack([data], store, 4.0)
    for config, sentence in (
        (lambda: config_of(data, "no.pth"), "no.pth"),
        (lambda: config_of(data, teacher, {"frames": 0}), "frames = 0: it must be positive"),
        (lambda: config_of(data, teacher, {"epochs": 0}), r"pretrain\.epochs must be positive"),
        (lambda: config_of(str(store), teacher), "holds no positions"),
        (lambda: config_of(data, teacher, data={"val": ["absent.xyz"]}), "absent.xyz"),
        (lambda: config_of(data, teacher, fine_tune={"model": "si"}), "name one"),
    ):
        with pytest.raises(InputError, match=sentence):
            train(config(), out, quiet=True)
        assert not list(out.rglob("*.ckpt")), sentence
        assert not list(out.rglob("*.xyz")), sentence
    train(config_of(data, teacher), out, quiet=True)  # in the same folder, once it is mended


def test_isolated_atoms_of_the_teacher(data, teacher, tmp_path):
    config = config_of(
        data,
        teacher,
        epochs=1,
        model={"exact_isolated_atoms": True},
        data={"reference_energies": {"H": -0.5, "Li": -7.0}},
    )
    train(config, tmp_path, quiet=True)
    atoms = [Atoms("H"), Atoms("Li")]
    known = [r["energy"] for r in EquivariantCalculator(teacher).evaluate(atoms)]
    for folder, energies in ((tmp_path / "pretrain", known), (tmp_path, [-0.5, -7.0])):
        calc = EquivariantCalculator(folder / "model.pth", dtype="float64")
        found = [r["energy"] for r in calc.evaluate(atoms)]
        assert found == pytest.approx(energies, abs=1e-5)


def test_dry_run_tells_both_runs(data, teacher):
    said = dry_run(config_of(data, teacher))
    assert re.search(r"time before +\d\S* (s|min|h) for 8 frames of .*teacher\.pth\n", said)
    assert re.search(r"\n +\d\S* (s|min|h) for 3 epochs over them\n", said)
    with pytest.raises(InputError, match=r"no\.pth"):
        dry_run(config_of(data, "no.pth"))


def test_config_file_names_the_teacher_beside_it(data, teacher, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(f'[data]\ntrain = "{data}"\n[pretrain]\nteacher = "gfn2"\n')
    assert read_config(path).pretrain.teacher == "gfn2"
    shutil.copy(teacher, tmp_path / "t.pth")
    path.write_text(f'[data]\ntrain = "{data}"\n[pretrain]\nteacher = "t.pth"\n')
    assert read_config(path).pretrain.teacher == str(tmp_path / "t.pth")


def test_any_calculator_teaches(data, tmp_path):
    options = {"sigma": 1.6, "epsilon": 0.2, "rc": 3.0, "smooth": True}
    section = {"teacher_options": options, "strain": 0.02, "epochs": 1}
    config = config_of(data, "ase.calculators.lj:LennardJones", section, epochs=1)
    train(config, tmp_path, quiet=True)
    frames = [f for p in sorted(tmp_path.rglob("frames_*.xyz")) for f in read(p, ":")]
    assert len(frames) == 8
    for frame in frames:
        atoms = frame.copy()
        atoms.calc = LennardJones(**options)
        assert np.abs(frame.get_forces() - atoms.get_forces()).max() < 1e-5
    changed = {"teacher_options": options | {"sigma": 1.7}}
    again = config_of(data, "ase.calculators.lj:LennardJones", section | changed, epochs=1)
    with pytest.raises(InputError, match=r"another setting of pretrain\.teacher_options"):
        train(again, tmp_path, quiet=True)
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config))
    assert read_config(path).pretrain == config.pretrain
    changed = override(config, ["pretrain.teacher_options.sigma=1.7"])
    assert changed.pretrain.teacher_options == options | {"sigma": 1.7}


def test_frames_of_an_earlier_version_are_used(data, teacher, finished, tmp_path):
    """Their record lacks options that did not exist."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    path = out / "pretrain" / "sampling.json"
    record = json.loads(path.read_text())
    for name in ("teacher_options", "strain"):
        del record[name]
    path.write_text(json.dumps(record))
    before = (out / "summary.json").read_text()
    train(config_of(data, teacher), out, quiet=True)
    assert json.loads((out / "summary.json").read_text())["errors"] == json.loads(before)["errors"]


def test_one_command_from_a_semi_empirical_method(data, tmp_path):
    pytest.importorskip("tblite")
    sets = {
        "pretrain.teacher": "gfn2",
        "pretrain.frames": 6,
        "pretrain.length": 2,
        "pretrain.epochs": 1,
        **{f"model.{k}": v for k, v in MODEL.items()},
        "training.epochs": 1,
        "training.fused": "false",
        "training.threads": 1,
    }
    options = [word for name, value in sets.items() for word in ("--set", f"{name}={value}")]
    result = CliRunner().invoke(app, ["train", data, "--out", str(tmp_path), *options])
    assert result.exit_code == 0, result.output
    frames = [f for path in sorted(tmp_path.rglob("frames_*.xyz")) for f in read(path, ":")]
    assert len(frames) == 6
    assert {frame.info["config_type"].partition("_")[0] for frame in frames} == {"gfn2"}
    assert (tmp_path / "model.pth").is_file()


class Dipolar(LennardJones):
    """With charges by element, zero in sum, and the dipole of these."""

    implemented_properties = [*LennardJones.implemented_properties, "dipole", "charges"]  # noqa: RUF012

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        charges = np.where(self.atoms.numbers == 1, 0.3, -0.2)
        charges -= charges.mean()
        self.results |= {"charges": charges, "dipole": charges @ self.atoms.positions}


class Flat(Dipolar):
    """Its dipole has two components."""

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        self.results["dipole"] = self.results["dipole"][:2]


LJ = {"sigma": 1.6, "epsilon": 0.2, "rc": 3.0, "smooth": True}
OUTPUTS = [
    {"name": "dipole", "key": "mu"},
    {"name": "charges", "key": "q"},
    {"name": "twist", "irreps": "1o", "per": "atom"},
]


@pytest.fixture(scope="module")
def with_outputs(data, tmp_path_factory):
    """Frames with labels of all outputs."""
    frames = read(data, ":")
    for atoms in frames:
        atoms.info["mu"] = np.ones(3) * len(atoms)
        atoms.arrays["q"] = np.where(atoms.numbers == 1, 0.3, -0.2)
        atoms.arrays["twist"] = atoms.positions - atoms.positions.mean(axis=0)
    path = tmp_path_factory.mktemp("outputs") / "train.xyz"
    write(path, frames, format="extxyz")
    return str(path)


def of_outputs(path, teacher, outputs=OUTPUTS, pretrain=None, **options):
    model = {"outputs": outputs, **options.pop("model", {})}
    section = {"teacher_options": LJ, **(pretrain or {})}
    return config_of(path, f"{__name__}:{teacher}", section, model=model, epochs=1, **options)


def test_outputs_that_the_teacher_has_are_learned_and_others_left(with_outputs, tmp_path):
    config = of_outputs(with_outputs, "Dipolar", learning_rate=1e-300, weight_decay=0.0)
    train(config, tmp_path, quiet=True)
    paths = sorted((tmp_path / "pretrain").glob("frames_*.xyz"))
    frames = [frame for path in paths for frame in read(path, ":")]
    assert len(frames) == 8
    for frame in frames:
        atoms = frame.copy()
        atoms.calc = Dipolar(**LJ)
        assert np.abs(frame.info["mu"] - atoms.get_dipole_moment()).max() < 1e-7
        assert np.abs(frame.arrays["q"].ravel() - atoms.get_charges()).max() < 1e-7
        assert "twist" not in frame.arrays
    first, second = load_run(tmp_path / "pretrain"), load_run(tmp_path)
    prepared = prepare(config)
    assert first.setup.constants.outputs == prepared.setup.constants.outputs  # of the data
    assert second.setup.constants.outputs == prepared.setup.constants.outputs
    # the maps that twist alone has are as they were drawn; those of all others have learned
    drawn = prepare(module.first_run(prepared, paths), prepared.setup.constants.outputs).model
    own = {id(p) for p in drawn.only_for(["twist"])}
    assert 0 < len(own) < len([*drawn.parameters()])
    for (name, p), q in zip(drawn.named_parameters(), first.model.parameters(), strict=True):
        assert p.numel() == 0 or torch.equal(p, q) == (id(p) in own), name
    # errors of what is taught alone; the second run begins with the first one's weights
    names = (tmp_path / "pretrain" / "history.csv").read_text().partition("\n")[0]
    assert "val_dipole_mae" in names
    assert "twist" not in names
    errors = column(tmp_path / "pretrain", "train_charges_rmse")
    assert errors[-1] < errors[0]
    for (name, p), q in zip(first.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert "val_twist_mae" in (tmp_path / "history.csv").read_text()


def test_outputs_without_an_energy(with_outputs, tmp_path):
    outputs = [OUTPUTS[0], "direct_forces"]
    config = of_outputs(with_outputs, "Dipolar", outputs, model={"energy": False})
    train(config, tmp_path, quiet=True)
    names = (tmp_path / "pretrain" / "history.csv").read_text().partition("\n")[0]
    assert {"val_dipole_mae", "val_direct_forces_mae"} <= {*names.strip().split(",")}
    assert (tmp_path / "model.pth").is_file()


def test_which_outputs_a_teacher_gives(teacher, tmp_path):
    outputs = [OutputConfig(**out) for out in OUTPUTS]
    other_unit, torch_engine = OutputConfig("dipole", unit="D"), {"engine": "torch"}
    wanted = [*outputs, other_unit, OutputConfig("direct_forces"), OutputConfig("polarizability")]
    calculated = open_teacher([f"{__name__}:Dipolar"], LJ, wanted)
    assert [out.name for out in calculated.outputs] == ["dipole", "charges", "direct_forces"]
    plain = open_teacher([teacher], torch_engine, wanted)
    assert [out.name for out in plain.outputs] == ["direct_forces"]
    own = {"options": {"outputs": outputs[:2]}, "elements": (1, 3)}
    network = open_teacher([untrained(tmp_path / "two.pth", **own)], torch_engine, wanted)
    assert [out.name for out in network.outputs] == ["dipole", "charges", "direct_forces"]
    periodic = Atoms("LiH", [[0, 0, 0], [1.6, 0, 0]], cell=[9, 9, 9], pbc=(True, False, False))
    periodic.calc = calculated.drivers[0]
    assert "dipole" not in calculated.label(periodic)
    assert np.ptp(network.label(periodic)["charges"]) > 0.0


@pytest.mark.parametrize(
    ("teacher", "outputs", "model", "sentence"),
    [
        (
            "Flat",
            OUTPUTS,
            {},
            r"form of the output dipole: shape 3 is expected, not \(2,\)",
        ),
        (
            "Dipolar",
            OUTPUTS[2:],
            {"energy": False},
            r"labels nothing that this .* \(twist,",
        ),
    ],
)
def test_what_a_teacher_cannot_teach(with_outputs, tmp_path, teacher, outputs, model, sentence):
    with pytest.raises(InputError, match=sentence):
        train(of_outputs(with_outputs, teacher, outputs, model=model), tmp_path, quiet=True)
    assert not list(tmp_path.rglob("*.xyz"))


def test_frames_without_the_labels_are_not_reused(with_outputs, tmp_path):
    config = of_outputs(with_outputs, "Dipolar", OUTPUTS[:1])
    prepared = prepare(config)
    (tmp_path / "pretrain").mkdir()
    module._claim(prepared, tmp_path / "pretrain", World())
    (tmp_path / "pretrain" / "frames_000.xyz").touch()
    with pytest.raises(InputError, match=r"another setting of .*model\.outputs"):
        train(of_outputs(with_outputs, "Dipolar", OUTPUTS[:2]), tmp_path, quiet=True)
