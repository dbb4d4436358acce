"""torchrun: as many processes as one likes, the same training."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from potentials import untrained
from runs import checkpoint, column, history, tiny, train_and_kill, weights, write_frames

from eqcalc.errors import InputError
from eqcalc.training import pretrain
from eqcalc.training.config import from_dict
from eqcalc.training.distributed import Shares, World
from eqcalc.training.run import train
from eqcalc.training.template import to_toml


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> str:
    return write_frames(tmp_path_factory.mktemp("data") / "train.xyz", 13)


def torchrun(config, out: Path, processes: int = 2) -> subprocess.CompletedProcess:
    path, program = out.with_suffix(".toml"), out.with_suffix(".py")
    path.write_text(to_toml(config))
    program.write_text(
        f"from eqcalc.cli import main\nfrom eqcalc.training import pretrain\n"
        f"pretrain.CHUNK = {pretrain.CHUNK}\nmain()\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*launcher, f"--nproc-per-node={processes}", program, "train", path, "--out", out],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "options",
    [
        {"fused": True, "patience": 20, "second_stage": {"start": 2, "energy_weight": 9.0}},
        {"optimizer": "schedule_free", "batch_size": 6},
    ],
    ids=["fused", "schedule-free"],
)
def test_two_processes_train_like_one(frames, tmp_path, monkeypatch, options):
    # 9 frames to train on: of the last batch of four, one process has nothing
    config = tiny(frames, precision="float64", data={"val_fraction": 0.3}, **options)
    pretrained = "fused" in options
    if pretrained:  # each process labels files of its own
        monkeypatch.setattr(pretrain, "CHUNK", 8)
        teacher = str(untrained(tmp_path / "teacher.pth", elements=(1, 3)))
        section = {"teacher": teacher, "frames": 12, "length": 4, "interval": 1.0, "epochs": 1}
        config = from_dict(config.to_dict() | {"pretrain": section})
    one = train(config, tmp_path / "one", quiet=True)
    if "optimizer" in options:  # begun by one process, finished by two
        train_and_kill(config, tmp_path / "two", monkeypatch)
    done = torchrun(config, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert history(tmp_path / "one")[0] == history(tmp_path / "two")[0]
    for name in history(tmp_path / "one")[0]:
        a, b = (torch.tensor(column(tmp_path / part, name)) for part in ("one", "two"))
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10), name
    for folder in ("pretrain", "") if pretrained else ("",):
        whole, shared = (weights(tmp_path / part / folder) for part in ("one", "two"))
        for name, tensor in whole.items():
            assert torch.allclose(tensor, shared[name], rtol=0, atol=1e-9), name
    for name in ("frames_000.xyz", "frames_001.xyz") if pretrained else ():
        files = [tmp_path / part / "pretrain" / name for part in ("one", "two")]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert checkpoint(tmp_path / "two")["epoch"] == 3
    assert done.stdout.count("best epoch") == 1
    assert one["best_epoch"] == checkpoint(tmp_path / "two", "best.ckpt")["epoch"]
    assert (tmp_path / "two" / "model.pth").is_file()


def test_shares_are_the_batches_of_one_process():
    for size, frames in ((4, 13), (6, 12), (2, 3)):
        whole = list(Shares(range(frames), size, World()))
        parts = [list(Shares(range(frames), size, World(2, 2, rank))) for rank in (0, 1)]
        assert len(parts[0]) == len(parts[1]) == len(Shares(range(frames), size, World()))
        for batch, a, b in zip(whole, *parts, strict=True):
            assert sorted([*a, *b]) == batch
            assert len(a) - len(b) in (0, 1)
    assert list(Shares(range(13), 4, World(2, 2, 1)))[-1] == []
    with pytest.raises(InputError, match="batch_size = 3 cannot be shared by 2 processes"):
        Shares(range(4), 3, World(2, 2, 0))


def test_a_mistake_can_be_mended_in_the_same_folder(frames, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        for name, value in (("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2"), ("RANK", "0")):
            patched.setenv(name, value)
        with pytest.raises(InputError, match="batch_size = 3 cannot be shared by 2 processes"):
            train(tiny(frames, batch_size=3), tmp_path, quiet=True)
    assert not (tmp_path / "last.ckpt").exists()
    train(tiny(frames, epochs=1), tmp_path, quiet=True)
    with pytest.raises(InputError, match=r"another setting of training\.batch_size"):
        train(tiny(frames, epochs=1, batch_size=3), tmp_path, quiet=True)
