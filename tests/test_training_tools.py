"""Committees, dry runs, printed configs, TensorBoard, ctrl-c."""

import json
import re
import signal
import subprocess
import sys
import time
import tomllib

import numpy as np
import pytest
import torch
from ase.io import read
from runs import column, history, tiny, train_in_pieces, weights, write_frames
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from eqcalc import EquivariantCalculator, export
from eqcalc.cli import app
from eqcalc.errors import InputError
from eqcalc.training.config import from_dict, read_config
from eqcalc.training.members import members_of, train_committee
from eqcalc.training.options import Config
from eqcalc.training.run import train
from eqcalc.training.template import to_toml


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> str:
    return write_frames(tmp_path_factory.mktemp("data") / "train.xyz", 12)


def eqcalc(*arguments):
    done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def test_committee(frames, tmp_path):
    held_out = write_frames(tmp_path / "val.xyz", 3, seed=9)
    config = tiny(frames, data={"val": [held_out]}, seed=7)
    summary = train_committee(config, tmp_path / "c", 2, quiet=True)
    assert summary["seeds"] == [7, 8]
    assert json.loads((tmp_path / "c" / "committee.json").read_text()) == summary
    # as the calculator sees it
    paths = [tmp_path / "c" / member for member in summary["members"]]
    calc = EquivariantCalculator(paths, engine="torch", on_domain_exit="ignore")
    deviations, energies, errors = [], [], []
    for atoms in read(held_out, ":"):
        deviations.append(calc.get_property("forces_deviation", atoms))
        energies.append(calc.get_property("energy_std", atoms) / len(atoms))
        errors.append(np.abs(calc.get_property("forces", atoms) - atoms.get_forces()).ravel())
    got = summary["disagreement"]
    rms = 1e3 * np.sqrt(np.mean(np.concatenate(deviations) ** 2))
    assert got["forces"]["rms"] == pytest.approx(rms, rel=1e-3)
    assert got["forces"]["max"] == pytest.approx(1e3 * np.concatenate(deviations).max(), rel=1e-3)
    assert got["energy"]["rms"] == pytest.approx(
        1e3 * np.sqrt(np.mean(np.square(energies))), rel=1e-3
    )
    mae = summary["errors"]["forces"]["mae"]
    assert mae == pytest.approx(1e3 * np.concatenate(errors).mean(), rel=1e-3)
    assert rms > 1.0
    # a second call finds everything done; a member is what it would be on its own
    before = history(tmp_path / "c" / "2")
    assert train_committee(config, tmp_path / "c", 2, quiet=True) == summary
    assert history(tmp_path / "c" / "2") == before
    train(tiny(frames, data={"val": [held_out]}, seed=8), tmp_path / "alone", quiet=True)
    assert history(tmp_path / "alone") == before


def test_members_share_their_split_unless_asked(frames):
    together = members_of(tiny(frames, seed=3), 2)
    assert [(m.training.seed, m.data.split_seed) for m in together] == [(3, 3), (4, 3)]
    apart = members_of(tiny(frames, seed=3), 2, resplit=True)
    assert [(m.training.seed, m.data.split_seed) for m in apart] == [(3, None), (4, None)]
    with pytest.raises(InputError, match="at least two"):
        members_of(tiny(frames), 1)


def test_committee_command(frames, tmp_path):
    config = tmp_path / "config.toml"
    config.write_text(to_toml(tiny(frames, epochs=1)))
    done = eqcalc("train", config, "--out", tmp_path / "c", "--committee", 2)
    assert "Members disagree on validation frames by, root mean square: energy" in done.stdout
    assert (tmp_path / "c" / "2" / "model.pth").is_file()


def test_dry_run(frames, tmp_path, monkeypatch):
    config = tmp_path / "config.toml"
    second = {"start": 3, "energy_weight": 9.0, "learning_rate": 1e-4}
    config.write_text(to_toml(tiny(frames, warmup_steps=0, second_stage=second)))
    monkeypatch.chdir(tmp_path)
    done = eqcalc("train", config, "--dry-run")
    assert [p.name for p in tmp_path.iterdir()] == ["config.toml"]
    rows = {line[:28].strip(): line[28:] for line in done.stdout.splitlines()}
    assert rows["training frames"].startswith("9 with ")
    assert rows["validation frames"].startswith("3 with ")
    assert "H -" in rows["reference energies"]
    assert "within 4 Å" in rows["neighbours"]
    train(tiny(frames, epochs=1), tmp_path / "run", quiet=True)
    document = export.read_metadata(tmp_path / "run" / "model.pth")
    assert int(rows["parameters"]) == document["num_parameters"]
    assert rows["time of an epoch"].endswith(" s for 3 steps and validation")
    assert rows["stage 1"].startswith("epochs 0 to 2; muon, cosine, learning rate 0.02 to ")
    assert "learning rate 0.0001 to" in rows["stage 2"]
    assert rows["stage 2"].endswith("weights: energy 9, forces 1, stress 10")


def test_dry_run_predicts_the_time_of_an_epoch(frames, tmp_path):
    from eqcalc.training.dryrun import dry_run

    config = tiny(frames, epochs=4)
    report = dry_run(config)
    predicted = float(report.split("time of an epoch")[1].split()[0])
    train(config, tmp_path, quiet=True)
    rows = (tmp_path / "history.csv").read_text().splitlines()
    seconds = [float(r.split(",")[rows[0].split(",").index("seconds")]) for r in rows[2:]]
    assert 0.2 * min(seconds) < predicted < 5.0 * max(seconds)


def test_printed_config_is_the_default(tmp_path):
    done = eqcalc("config")
    assert from_dict(tomllib.loads(done.stdout)) == Config()
    assert re.search(r"# structures per step.*\n(# .*\n)+batch_size = 0\n", done.stdout)
    options = [line for line in done.stdout.splitlines() if " = " in line or line.endswith(" =")]
    undocumented = {
        section: [k for k in keys if not any(o.lstrip("# ").startswith(f"{k} ") for o in options)]
        for section, keys in Config().to_dict().items()
    }
    assert {name: keys for name, keys in undocumented.items() if keys} == {
        "training": ["second_stage"]
    }
    (tmp_path / "mine.toml").write_text(
        '[data]\ntrain = ["a b.xyz"]\nval = {bulk = ["c.xyz"]}\nreference_energies = {Si = -0.5}\n'
        "[training]\nsecond_stage = {start = 3, energy_weight = 2.0}\n"
        '[training.config_weights]\n"a b" = 2.0\n'
    )
    done = eqcalc("config", tmp_path / "mine.toml")
    mine = read_config(tmp_path / "mine.toml")
    assert from_dict(tomllib.loads(done.stdout)) == mine
    assert mine.data.val == {"bulk": [str(tmp_path / "c.xyz")]}


def test_tensorboard_has_every_epoch_once(frames, tmp_path, monkeypatch):
    train_in_pieces(tiny(frames, tensorboard=True), tmp_path, monkeypatch)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    names = (tmp_path / "history.csv").read_text().splitlines()[0].split(",")
    assert sorted(events.Tags()["scalars"]) == sorted(set(names) - {"epoch"})
    scalars = events.Scalars("val_loss")
    assert [s.step for s in scalars] == [0, 1, 2, 3]
    assert [s.value for s in scalars] == pytest.approx(column(tmp_path, "val_loss"), rel=1e-6)
    assert len(list((tmp_path / "tensorboard").glob("events*"))) == 2


def test_ctrl_c(frames, tmp_path):
    config = tmp_path / "config.toml"
    config.write_text(to_toml(tiny(frames, epochs=2000, schedule="constant")))
    out = tmp_path / "run"
    command = [sys.executable, "-m", "eqcalc.cli", "train", str(config), "--out", str(out)]
    # tests that run in the background are deaf to ctrl-c, and so would be their children
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, heard)
    limit = time.monotonic() + 60
    while not (out / "last.ckpt").is_file() and time.monotonic() < limit:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith("Interrupted in epoch ")
    assert "run the same command again to go on" in last
    assert "Traceback" not in errors
    eqcalc("export", out)
    assert export.load(out / "model.pth").symbols == ["H", "Li"]
    assert not (out / "model.pth.partial").exists()
    assert all(torch.isfinite(w).all() for w in weights(out).values())
