"""Runs that are extended, what a run prints, and training from Python."""

import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from ase.io import read
from runs import MODEL, checkpoint, column, history, tiny, train_and_kill, weights, write_frames

import eqcalc
from eqcalc.data.frames import read_frames
from eqcalc.data.tables import FrameList
from eqcalc.errors import InputError
from eqcalc.progress import Progress, duration
from eqcalc.training.api import write_structures
from eqcalc.training.folder import ends_before
from eqcalc.training.optimizers import LearningRate
from eqcalc.training.options import SecondStageConfig, TrainingConfig
from eqcalc.training.run import train


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> str:
    return write_frames(tmp_path_factory.mktemp("data") / "train.xyz", 8)


@pytest.mark.usefixtures("no_potential_file")
def test_extended_is_as_long_from_the_start(frames, tmp_path):
    options = {"schedule": "plateau", "plateau_patience": 0, "learning_rate": 0.05}
    train(tiny(frames, epochs=4, **options), tmp_path / "long", quiet=True)
    train(tiny(frames, epochs=2, **options), tmp_path / "extended", quiet=True)
    train(tiny(frames, epochs=4, **options), tmp_path / "extended", quiet=True)
    assert history(tmp_path / "long") == history(tmp_path / "extended")
    long, extended = (weights(tmp_path / name) for name in ("long", "extended"))
    assert all(torch.equal(tensor, extended[name]) for name, tensor in long.items())


@pytest.mark.usefixtures("no_potential_file")
def test_an_extended_cosine_begins_anew(frames, tmp_path, monkeypatch):
    """Past epochs stay what they were, also when the extension is killed and resumed."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(tiny(frames, epochs=2), whole, quiet=True)
    shutil.copytree(whole, killed)
    before = history(whole)
    train(tiny(frames, epochs=5), whole, quiet=True)
    train_and_kill(tiny(frames, epochs=5), killed, monkeypatch, kill_in=3)
    train(tiny(frames, epochs=5), killed, quiet=True)
    assert history(whole)[:3] == before
    assert history(whole) == history(killed)
    assert all(torch.equal(t, weights(killed)[name]) for name, t in weights(whole).items())
    rates = column(whole, "learning_rate")
    assert rates[1] < rates[2]
    assert rates[2] > rates[3] > rates[4]
    assert checkpoint(whole)["epoch"] == 4
    assert json.loads((whole / "setup.json").read_text())["ends"] == [2]
    assert [ends_before(whole, tiny(frames, epochs=n)) for n in (5, 6)] == [[2], [2, 5]]


def test_ends_cut_the_cosine():
    config = TrainingConfig(epochs=6, warmup_steps=0, learning_rate=1.0)
    rate = LearningRate(config, 10, [2])
    alone = LearningRate(TrainingConfig(epochs=2, warmup_steps=0, learning_rate=1.0), 10)
    assert [rate(n, {}) for n in range(20)] == [alone(n, {}) for n in range(20)]
    assert rate(20, {}) == 1.0
    assert rate(40, {}) == pytest.approx(0.5)
    second = SecondStageConfig(start=3, learning_rate=0.1)
    config = TrainingConfig(epochs=8, warmup_steps=0, learning_rate=1.0, second_stage=second)
    rate = LearningRate(config, 10, [5])
    assert rate(29, {}) < 0.01
    assert rate(30, {}) == rate(50, {}) == pytest.approx(0.1)
    assert rate(40, {}) == pytest.approx(0.05)


@pytest.mark.usefixtures("no_potential_file")
def test_what_changes_past_epochs_is_refused(frames, tmp_path):
    train(tiny(frames, epochs=2), tmp_path / "r", quiet=True)
    for change in ({"epochs": 1}, {"epochs": 4, "learning_rate": 0.01}, {"batch_size": 2}):
        with pytest.raises(InputError, match=r"another setting of training\..*fine_tune\.model"):
            train(tiny(frames, **{"epochs": 2, **change}), tmp_path / "r", quiet=True)


@pytest.mark.usefixtures("no_potential_file")
def test_a_line_for_each_epoch(frames, tmp_path, capfd):
    train(tiny(frames, epochs=2), tmp_path / "r")
    said = "".join(capfd.readouterr())
    assert "\r" not in said
    for words in (
        *("training frames", "Li 6 with", "reference energies", "neighbours", "parameters"),
        *("Training for 2 epochs of 2 steps, 4 frames each.", "E meV/atom", "F meV/Å"),
    ):
        assert words in said or words == "Li 6 with", said
    rows = re.findall(r"^ +(\d) .*$", said, flags=re.MULTILINE)
    assert rows == ["0", "1"]
    losses = [float(line.split()[2].rstrip("*")) for line in said.splitlines() if line[4:5] in "01"]
    assert losses == pytest.approx(column(tmp_path / "r", "val_loss"), rel=1e-4)
    train(tiny(frames, epochs=2), tmp_path / "r")
    assert "All 2 epochs are done: raise training.epochs" in capfd.readouterr().out
    train(tiny(frames, epochs=3, patience=9), tmp_path / "r")
    assert "Resuming at epoch 2; the last one is epoch 2." in capfd.readouterr().out


def test_progress_off_a_terminal(capsys):
    with Progress(40, "frames", done=10) as progress:
        for _ in range(30):
            progress.update()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"{n} of 40 frames" for n in range(12, 41, 4)]
    assert lines[-1].endswith("complete")
    assert [duration(s) for s in (8.31, 250.0, 9000.0, 400000.0)] == [
        *("8.3 s", "4.2 min", "2.5 h", "4.6 d"),
    ]


class TestFromPython:
    def test_structures_with_labels(self, frames, tmp_path):
        """The same data, to the last digit, and a file that ASE opens."""
        structures = read(frames, ":")
        options = {name: value for name, value in MODEL.items() if name != "cutoff"}

        def train():
            return eqcalc.train(
                *(structures, tmp_path / "r"),
                epochs=1,
                cutoff=4.0,
                val_fraction=0.25,
                device="cpu",
                fused=False,
                model=options,
                quiet=True,
            )

        run = train()
        assert run.model.is_file()
        assert run.summary["errors"]["train"]["all"]["energy"]["count"] == 6
        calc = eqcalc.EquivariantCalculator(run.model, engine="torch", on_domain_exit="ignore")
        assert np.isfinite(calc.get_potential_energy(structures[0]))
        before = (tmp_path / "r" / "last.ckpt").stat().st_mtime_ns
        again = train()
        assert again.summary["errors"] == run.summary["errors"]
        assert (tmp_path / "r" / "last.ckpt").stat().st_mtime_ns == before

    def test_labels_are_kept(self, frames, tmp_path):
        structures = read(frames, ":3")
        for atoms in structures:
            atoms.arrays["REF_forces"] = atoms.get_forces()
            atoms.info["REF_energy"] = atoms.get_potential_energy()
            atoms.positions += 1e-11
            atoms.info["note"] = io.StringIO()  # of no use and no harm
        stripped = [atoms.copy() for atoms in structures]
        for atoms in stripped:
            atoms.calc = None
        for name, images, keys in (
            ("a.db", structures, {}),
            ("b.db", stripped, {"energy_key": "REF_energy", "forces_key": "REF_forces"}),
        ):
            write_structures(images, tmp_path / name)
            found = read_frames(tmp_path / name, **keys)
            assert [f.config_type for f in found] == ["molecule"] * 3
            for atoms, frame in zip(structures, found, strict=True):
                assert np.array_equal(frame.atoms.positions, atoms.positions)
                assert np.array_equal(frame.forces, atoms.arrays["REF_forces"])
                assert frame.energy == atoms.info["REF_energy"]
        hashes = {
            FrameList(read_frames(tmp_path / name, **keys)).hash
            for name, keys in (
                ("a.db", {}),
                ("b.db", {"energy_key": "REF_energy", "forces_key": "REF_forces"}),
            )
        }
        assert len(hashes) == 1

    def test_options(self, frames, tmp_path):
        for options, sentence in (
            ({"epoch": 3}, r"Unknown option 'epoch' \(did you mean 'epochs'"),
            ({"correlation": 2}, "Unknown option 'correlation'"),
            ({"training": 3}, "training is a section"),
            ({"epochs": "3"}, r"training\.epochs = '3': int is expected"),
        ):
            with pytest.raises(InputError, match=sentence):
                eqcalc.train(frames, tmp_path / "none", **options)
        assert not (tmp_path / "none").exists()
        with pytest.raises(InputError, match="files or structures"):
            eqcalc.train([frames, read(frames, 0)], tmp_path / "none")
        for given, val, sentence in (
            (3, None, "frames is int: give files that ASE reads, or structures"),
            (None, None, "frames is NoneType"),
            ([frames, 3], None, "frames contains int"),
            (frames, 3, "val is int"),
        ):
            with pytest.raises(InputError, match=sentence):
                eqcalc.train(given, tmp_path / "none", val=val)
        labelled = read(frames, ":3")
        bare = [*labelled[:2], labelled[2].copy()]
        with pytest.raises(InputError, match=r"^frame 2 of the frames given has no energy"):
            eqcalc.train(bare, tmp_path / "without")
        with pytest.raises(InputError, match=r"^frame 2 of the validation frames given has no"):
            eqcalc.train(labelled, tmp_path / "without", val=bare)
        with pytest.raises(InputError, match="out is NoneType: give the name of the run folder"):
            eqcalc.train(frames, None)
        assert not (tmp_path / "none").exists()
        from eqcalc.training.api import config_of

        config = config_of(
            architecture="mace", correlation=2, epochs=3, pretrain={"teacher": "gfn2", "epochs": 5}
        )
        assert (config.model.correlation, config.training.epochs) == (2, 3)
        assert config.pretrain.epochs == 5
