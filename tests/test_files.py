"""Files that appear complete or not at all."""

import os
import shutil
import stat
import threading
import time
from pathlib import Path

import pytest
import torch
from runs import tiny, write_frames

from eqcalc import cli, export, files
from eqcalc.data import store
from eqcalc.data.frames import read_frames
from eqcalc.errors import InputError
from eqcalc.training.config import read_config
from eqcalc.training.folder import load_run
from eqcalc.training.run import train


def test_old_or_new_and_nothing_beside(tmp_path):
    path = tmp_path / "file"
    with files.replacing(path) as partial:
        partial.write_text("old")
        assert not path.exists()

    def fail() -> None:
        with files.replacing(path) as partial:
            partial.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_writers_at_the_same_time_do_not_meet(tmp_path):
    path, barrier = tmp_path / "file", threading.Barrier(4)

    def write(k: int) -> None:
        with files.replacing(path) as partial, partial.open("w") as file:
            barrier.wait()
            file.write(str(k) * 1000)
            barrier.wait()

    writers = [threading.Thread(target=write, args=(k,)) for k in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert path.read_text() in {str(k) * 1000 for k in range(4)}
    assert list(tmp_path.iterdir()) == [path]


def test_modes_links_and_devices_stay(tmp_path):
    before = os.umask(0o027)
    try:
        path = files.write_bytes(tmp_path / "new", b"1")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o664)
        files.write_bytes(path, b"2")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o664
    link = tmp_path / "link"
    link.symlink_to(path)
    files.write_bytes(link, b"3")
    assert link.is_symlink()
    assert path.read_bytes() == b"3"
    files.write_bytes("/dev/null", b"4")
    assert Path("/dev/null").is_char_device()


def test_a_folder_is_never_replaced_by_a_file(tmp_path):
    kept = tmp_path / "folder" / "file"
    files.write_bytes(kept, b"1")
    with pytest.raises(InputError, match="is a folder: name a file"):
        files.write_json(kept.parent, {})
    assert kept.read_bytes() == b"1"


def test_what_killed_writers_left_is_removed_after_a_day(tmp_path):
    old, new, other = (tmp_path / f"{n}.partial" for n in ("a[1].12", "a[1].34", "b.12"))
    for path in (old, new, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (time.time() - 2 * files.ABANDONED,) * 2)
    files.write_json(tmp_path / "a[1]", {})
    assert set(tmp_path.iterdir()) == {tmp_path / "a[1]", new, other}


def test_a_store_stays_until_its_successor_stands(tmp_path, monkeypatch):
    frames, output = write_frames(tmp_path / "a.xyz", 3), tmp_path / "a.eqdata"
    store.pack(frames, output, 3.0)
    content = {p.name: p.read_bytes() for p in output.iterdir()}
    real = Path.rename

    def fails(path, target):
        if path.suffix == ".partial" and Path(target) == output and path.name != aside.name:
            raise OSError(5, "Input/output error")
        if path == output:
            aside.name = Path(target).name
        return real(path, target)

    class aside:  # noqa: N801 - where the old one waits
        name = ""

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", fails)
        with pytest.raises(InputError, match=r"cannot be written: .*Input/output error"):
            store.pack(frames, output, 4.0)
    assert {p.name: p.read_bytes() for p in output.iterdir()} == content
    assert set(tmp_path.iterdir()) == {output, tmp_path / "a.xyz"}
    assert store.pack(frames, output, 4.0)["cutoff"] == store.read_header(output)["cutoff"] == 4.0
    assert set(tmp_path.iterdir()) == {output, tmp_path / "a.xyz"}


class Program:
    """What a checkpoint must not hold."""

    def __reduce__(self):
        return open, (Program.target, "w")


def test_checkpoints_run_no_code(tmp_path):
    """Neither where a run is resumed nor where it is read."""
    config = tiny(write_frames(tmp_path / "frames.xyz", 6), epochs=1)
    out = tmp_path / "run"
    train(config, out, quiet=True)
    Program.target = str(tmp_path / "made")
    for name in ("best.ckpt", "last.ckpt"):
        content = torch.load(out / name, weights_only=True)
        torch.save(content | {"hooked": Program()}, out / name)
    with pytest.raises(InputError, match=r"best\.ckpt is no checkpoint of eqcalc"):
        load_run(out)
    with pytest.raises(InputError, match=r"last\.ckpt is no checkpoint of eqcalc"):
        train(config, out, quiet=True)
    assert not (tmp_path / "made").exists()


def test_home_folders_are_found_wherever_a_path_is_given(tmp_path, monkeypatch, potential_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_frames(tmp_path / "a.xyz", 3)
    shutil.copy(potential_path, tmp_path / "model.pth")
    assert len(read_frames("~/a.xyz")) == 3
    store.pack("~/a.xyz", "~/a.eqdata", 3.0)
    assert store.is_store("~/a.eqdata")
    assert store.read_header("~/a.eqdata")["frames"] == 3
    assert export.load("~/model.pth").path == tmp_path / "model.pth"
    (tmp_path / "c.toml").write_text(
        '[data]\ntrain = ["~/a.xyz"]\nisolated_atoms = "~/a.xyz"\n'
        '[fine_tune]\nmodel = "~/model.pth"'
    )
    config = read_config("~/c.toml")
    assert config.data.train == [config.data.isolated_atoms] == [str(tmp_path / "a.xyz")]
    assert config.fine_tune.model == str(tmp_path / "model.pth")
    files.write_json("~/new/b.json", {})
    assert (tmp_path / "new" / "b.json").is_file()
    assert files.user_path("~nobody-of-this-name.xyz") == Path("~nobody-of-this-name.xyz")
    arguments = ["info", "~/model.pth"], ["evaluate", "~/model.pth", "~/a.xyz", "--output=~/e.json"]
    for words in arguments:
        assert [cli._at_home(w) for w in words] == [w.replace("~", str(tmp_path)) for w in words]
    assert not (tmp_path / "~").exists()
