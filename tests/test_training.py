"""Training on real data: it learns, resumes after a kill, exports, and says what is wrong."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import read
from test_units import without_unit

from eqcalc import export
from eqcalc.cli import main
from eqcalc.contract import set_precision
from eqcalc.data.dataset import Batch, FrameDataset
from eqcalc.data.frames import read_frames
from eqcalc.errors import InputError
from eqcalc.training.config import from_dict, override, read_config
from eqcalc.training.folder import load_run
from eqcalc.training.loss import Loss, residuals
from eqcalc.training.network import build_model
from eqcalc.training.options import Config
from eqcalc.training.run import train
from eqcalc.training.setup import Constants
from eqcalc.training.task import predict
from eqcalc.training.template import to_toml

DATA = Path(__file__).parent / "data"


def small(**training) -> Config:
    return from_dict(
        {
            "data": {"train": [str(DATA / "lithium_strained.xyz")], "val_fraction": 0.2},
            "model": {
                "cutoff": 4.0,
                "num_layers": 2,
                "l_max": 1,
                "num_channels": [8, 4],
                "product_channels": 0,
                "radial_mlp": [8],
                "readout": 4,
            },
            "training": {
                "epochs": 6,
                "batch_size": 4,
                "warmup_steps": 2,
                "threads": 1,
                "ema_decay": 0.9,
                "device": "cpu",
                **training,
            },
        }
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An uninterrupted run: folder and summary."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, train(small(), out, quiet=True)


def final_weights(out: Path) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(out / "last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 5
    return checkpoint["current_model_state"]


def test_run_leaves_what_it_promises(run):
    out, summary = run
    for name in (
        *("config.json", "setup.json", "history.csv", "last.ckpt", "best.ckpt", "summary.json"),
        *("model.pth", "learning_curve.png", "parity.png"),
    ):
        assert (out / name).stat().st_size > 0, name
    assert not list(out.glob("*.partial"))
    assert json.loads((out / "summary.json").read_text()) == summary
    assert not without_unit(summary)
    stress = summary["errors"]["train"]["all"]["stress"]["count"]
    labelled = sum(f.stress is not None for f in read_frames(DATA / "lithium_strained.xyz"))
    held_out = summary["errors"]["validation"]["all"]["stress"]["count"]
    assert stress + held_out == 6 * labelled
    assert len((out / "history.csv").read_text().splitlines()) == 7


def test_learns(tmp_path):
    assignments = [f"data.train={json.dumps(str(DATA / 'acac.xyz'))}"]
    assignments.append("model.num_channels=[16, 16]")
    config = override(small(epochs=80, learning_rate=0.02, batch_size=2), assignments)
    errors = train(config, tmp_path / "a", quiet=True)["errors"]["train"]["all"]
    labels = np.concatenate([f.forces for f in read_frames(DATA / "acac.xyz")])
    assert errors["forces"]["mae"] < 0.3 * 1e3 * np.abs(labels).mean()
    assert "stress" not in errors


def test_summary_agrees_with_the_export(run):
    out, summary = run
    potential = export.load(out / "model.pth")
    dataset = FrameDataset(
        read_frames(DATA / "lithium_strained.xyz"), potential.atomic_numbers, potential.cutoff
    )
    batch = Batch.collate(dataset.items)
    difference = residuals(predict(potential.module, batch), batch)["energy"].abs().mean()
    train_part, val_part = (summary["errors"][k]["all"]["energy"] for k in ("train", "validation"))
    total = train_part["mae"] * train_part["count"] + val_part["mae"] * val_part["count"]
    assert float(difference) * 1e3 == pytest.approx(total / 22, rel=1e-4)
    assert potential.metadata["training"]["data"] == summary["data"]


def killed_in_the_third_epoch(command, out):
    """Starts a run and kills it after two epochs; False if it was too quick to be killed."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    limit = time.monotonic() + 300
    history = out / "history.csv"
    while time.monotonic() < limit and process.poll() is None:
        if history.is_file() and len(history.read_text().splitlines()) >= 3:
            break
        time.sleep(0.002)
    alive = process.poll() is None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return alive and torch.load(out / "last.ckpt", weights_only=True)["epoch"] < 5


def test_resume_after_kill_gives_the_same_numbers(run, tmp_path):
    out = tmp_path / "killed"
    config = tmp_path / "config.toml"
    config.write_text(to_toml(small()))
    command = [sys.executable, "-m", "eqcalc.cli", "train", str(config), "--out", str(out)]
    for _ in range(5):  # a busy machine may look too late
        if killed_in_the_third_epoch(command, out):
            break
        shutil.rmtree(out)
    else:
        pytest.fail("the run ended before it could be killed, five times")
    train(read_config(config), out, quiet=True)
    whole, resumed = final_weights(run[0]), final_weights(out)
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name
    columns = (0, 2, 3, 4, 5)  # all but the seconds that an epoch took
    for a, b in zip(
        (run[0] / "history.csv").read_text().splitlines(),
        (out / "history.csv").read_text().splitlines(),
        strict=True,
    ):
        assert [a.split(",")[c] for c in columns] == [b.split(",")[c] for c in columns]


def test_finished_run_is_not_trained_again(run):
    out, summary = run
    before = (out / "last.ckpt").stat().st_mtime_ns
    assert train(small(), out, quiet=True)["errors"] == summary["errors"]
    assert (out / "last.ckpt").stat().st_mtime_ns == before


def test_a_folder_holds_one_run(run):
    out, _ = run
    with pytest.raises(InputError, match=r"another setting of training\.learning_rate"):
        train(small(learning_rate=0.1), out, quiet=True)


def test_compiled_kernels_do_not_change_training(tmp_path):
    for fused in (False, True):
        config = small(fused=fused, precision="float64")
        train(config, tmp_path / str(fused), quiet=True)
    plain, compiled = (final_weights(tmp_path / str(fused)) for fused in (False, True))
    for name, tensor in plain.items():
        assert torch.allclose(tensor, compiled[name], rtol=0.0, atol=1e-8), name


@pytest.mark.parametrize("kind", ["huber", "mae", "mse"])
def test_loss_counts_only_what_is_labelled(kind):
    config = small(loss=kind)
    frames = read_frames([DATA / "lithium_strained.xyz", DATA / "acac.xyz"])
    dataset = FrameDataset(frames, [1, 3, 6, 8], config.model.cutoff)
    constants = Constants([1, 3, 6, 8], dataset.avg_num_neighbors, [1.0] * 4, [0.0] * 4)
    model = build_model(config, constants)
    loss = Loss(config.training)
    batch = Batch.collate(dataset.items)
    difference = residuals(predict(model, batch, differentiable=True), batch)
    assert difference["energy"].numel() == len(frames)
    assert difference["stress"].numel() == 6 * sum(f.stress is not None for f in frames)
    value = loss(difference)
    value.backward()
    assert torch.isfinite(value)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    doubled = {k: 2.0 * v.detach() for k, v in difference.items()}
    assert loss(doubled) > value


def test_stress_and_forces_are_finite_differences_of_the_energy():
    """The training path itself, through batches of unlike structures."""
    config = small(precision="float64")
    frames = read_frames(DATA / "lithium_strained.xyz")[:3]
    from dataclasses import replace

    constants = Constants([3], 10.0, [1.0], [-1.0])
    model = set_precision(build_model(config, constants), torch.float64)

    def energies(change):
        moved = []
        for frame in frames:
            atoms = frame.atoms.copy()
            atoms.positions += 0.1 * np.sin(np.arange(6).reshape(2, 3))
            change(atoms)
            moved.append(replace(frame, atoms=atoms))
        return predict(model, Batch.collate(FrameDataset(moved, [3], 4.0).items))

    step = 1e-4
    at_rest = energies(lambda _: None)

    def displaced(h):
        return energies(lambda a: a.positions.__setitem__((1, 2), a.positions[1, 2] + h)).energy

    numeric = -(displaced(step) - displaced(-step)) / (2 * step)
    assert (numeric - at_rest.forces.view(3, 2, 3)[:, 1, 2]).abs().max() < 1e-7

    def strained(h):
        strain = np.eye(3)
        strain[0, 1] += h / 2
        strain[1, 0] += h / 2
        return energies(lambda a: a.set_cell(a.cell.array @ strain, scale_atoms=True)).energy

    volume = torch.tensor([f.atoms.get_volume() for f in frames])
    numeric = (strained(step) - strained(-step)) / (2 * step) / volume
    assert (numeric - at_rest.stress[:, 0, 1]).abs().max() < 1e-8


def test_config_errors_name_the_option(tmp_path):
    with pytest.raises(
        InputError, match=r"'training\.lerning_rate' \(did you mean 'learning_rate'"
    ):
        from_dict({"training": {"lerning_rate": 1.0}})
    with pytest.raises(InputError, match=r"training\.epochs = '5': int is expected"):
        from_dict({"training": {"epochs": "5"}})
    with pytest.raises(InputError, match=r"training\.loss = 'l7': it must be one of huber, mae"):
        from_dict({"training": {"loss": "l7"}})
    with pytest.raises(InputError, match="l_max = 1 needs 2"):
        from_dict({"model": {"l_max": 1, "num_channels": [4, 4, 4]}})
    (tmp_path / "c.toml").write_text("[data\n")
    with pytest.raises(InputError, match="is not valid TOML"):
        read_config(tmp_path / "c.toml")
    with pytest.raises(InputError, match=r"write an override as section\.option=value"):
        override(Config(), ["epochs=3"])
    assert override(Config(), ["training.epochs=3"]).training.epochs == 3
    with pytest.raises(InputError, match=r"data\.train"):
        train(Config(), tmp_path / "none", quiet=True)
    assert not (tmp_path / "none").exists()


def test_learned_strain_along_x_holds_along_y_and_z(tmp_path):
    """Equivariance is exact: cells turned by 90 degrees have the energy of the unturned ones."""
    out = tmp_path / "x"
    train(small(), out, quiet=True)
    model = load_run(out).model
    atoms = read(DATA / "lithium_strained.xyz", 0)
    values = []
    for axis in range(3):
        turned = atoms.copy()
        turned.set_cell(np.diag(np.roll(np.diag(atoms.cell.array), axis)))
        turned.positions = np.roll(atoms.positions, axis, axis=1)
        turned.info["energy"] = 0.0
        from eqcalc.data.frames import to_frame

        item = FrameDataset([to_frame(turned, "here")], [3], 4.0)[0]
        values.append(float(predict(model, item).energy))
    assert np.ptp(values) < 1e-5 * abs(values[0])


def test_command_line(tmp_path, run, monkeypatch, capsys):
    def call(*arguments):
        """In this process."""
        monkeypatch.setattr(sys, "argv", ["eqcalc", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    out, _ = run
    exported = call("export", out, "-o", tmp_path / "m.pth")
    assert exported.returncode == 0, exported.stderr
    alone = [sys.executable, "-m", "eqcalc.cli", "info", tmp_path / "m.pth"]
    info = subprocess.run(alone, capture_output=True, text=True, check=True)
    assert "cutoff              4.0 Å" in info.stdout
    assert "Li" in info.stdout
    evaluated = call(
        "evaluate",
        tmp_path / "m.pth",
        DATA / "lithium_strained.xyz",
        "-o",
        tmp_path / "e.json",
        "--plot",
        tmp_path / "p.png",
    )
    assert evaluated.returncode == 0, evaluated.stderr
    errors = json.loads((tmp_path / "e.json").read_text())
    assert errors["all"]["energy"]["count"] == 22
    assert not without_unit(errors)
    assert (tmp_path / "p.png").stat().st_size > 10_000
    wrong = call("evaluate", tmp_path / "m.pth", DATA / "acac.xyz")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("Error: ")
    assert "Traceback" not in wrong.stderr
    missing = call("export", tmp_path, "-o", tmp_path / "n.pth")
    assert missing.returncode == 2
    assert "is not a finished training run" in missing.stderr
    assert not (tmp_path / "n.pth").exists()
    frames = call(
        "train",
        DATA / "lithium_strained.xyz",
        "--out",
        tmp_path / "direct",
        "--set",
        "training.epochs=1",
        "--set",
        "model.num_channels=[4,2,2]",
    )
    assert frames.returncode == 0, frames.stderr
    assert "meV/atom" in frames.stdout
