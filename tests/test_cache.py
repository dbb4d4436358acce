"""The cache: who makes an entry, who may trust it, what is removed, and how it is done without."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eqcalc import cache

#: makes an entry and says which; "slow" waits for a file in the middle, "no locks" has none
CHILD = """
import fcntl, sys, time
from pathlib import Path
from eqcalc import cache
me, slow, locks, go = sys.argv[1], sys.argv[2] == "slow", sys.argv[3] == "locks", Path(sys.argv[4])
if not locks:
    def flock(*_):
        raise OSError(37, "No locks available")
    fcntl.flock = flock
def make(folder):
    Path(go.parent / f"{me}.started").touch()
    (folder / "who").write_text(me)
    while slow and not go.exists():
        time.sleep(0.01)
    (folder / "done").touch()
folder = cache.entry("things", "key", make, lambda f: (f / "done").exists())
print(folder.name, (folder / "who").read_text(), folder.stat().st_ino)
"""


def whole(folder: Path) -> bool:
    return (folder / "done").is_file()


def make(folder: Path) -> None:
    (folder / "done").touch()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The user's cache; the temporary directory is another folder."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(cache, "_told", set())
    return tmp_path / "home" / "eqcalc"


def child(name, speed, locks, go: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", CHILD, name, speed, locks, str(go)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_slow_process_leaves_the_entry_of_a_fast_one(home, tmp_path):
    """Without locks both make it; the slow one began first and ends last."""
    go = tmp_path / "go"
    slow = child("slow", "slow", "no locks", go)
    wait_for(tmp_path / "slow.started")
    fast = child("fast", "fast", "no locks", go).communicate()[0].split()
    inode = (home / "things" / "key").stat().st_ino
    go.touch()
    assert slow.communicate()[0].split() == fast == ["key", "fast", str(inode)]
    assert sorted(p.name for p in (home / "things").iterdir()) == ["key", "key.lock"]


def test_with_locks_one_makes_it_and_the_others_wait(home, tmp_path):
    go = tmp_path / "go"
    first = child("first", "slow", "locks", go)
    wait_for(tmp_path / "first.started")
    others = [child(f"other{k}", "fast", "locks", go) for k in range(3)]
    time.sleep(0.3)
    go.touch()
    said = {process.communicate()[0] for process in (first, *others)}
    assert len(said) == 1
    assert said.pop().split()[:2] == ["key", "first"]
    assert not list(tmp_path.glob("other*"))
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "things").stat().st_mode) == 0o700


def test_a_damaged_entry_is_made_anew_beside(home):
    (home / "things" / "key").mkdir(parents=True)
    (home / "things" / "key" / "half").touch()
    for folder in (home, home / "things"):
        folder.chmod(0o700)
    made = [cache.entry("things", "key", make, whole) for _ in range(2)]
    assert made == [home / "things" / "key+1"] * 2
    assert cache.find("things", "ke", whole) == made[0]


def test_nothing_is_left_of_a_failure(home):
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cache.entry("things", "key", fail, whole)
    assert [p.name for p in (home / "things").iterdir()] == ["key.lock"]


@pytest.mark.parametrize("below", ["", "things"])
def test_folders_of_others_are_refused(home, tmp_path, below, monkeypatch):
    """Whoever may write there could have put code there."""
    (home / below).mkdir(parents=True)
    elsewhere = tmp_path / "temporary" / f"eqcalc-{os.geteuid()}" / "things"
    (home / below).chmod(0o777)
    with pytest.warns(UserWarning, match=r"other users may write to it.* set XDG_CACHE_HOME"):
        assert cache.folder("things") == elsewhere
    (home / below).chmod(0o700)
    assert cache.folder("things") == home / "things"

    real = Path.stat
    other = os.geteuid() + 1

    def foreign(path, **options):
        found = real(path, **options)
        if path != home / below:
            return found
        return os.stat_result([*found[:4], other, *found[5:10]])

    monkeypatch.setattr(Path, "stat", foreign)
    cache._told.clear()
    with pytest.warns(UserWarning, match="it belongs to another user"):
        assert cache.folder("things") == elsewhere


def test_a_folder_that_others_may_read_is_closed(home):
    home.mkdir(parents=True)
    home.chmod(0o755)
    cache.folder("things")
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


@pytest.mark.usefixtures("home")
def test_a_link_in_the_temporary_directory_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "temporary").chmod(0o1777)
    (tmp_path / "mine").mkdir()
    (tmp_path / "temporary" / f"eqcalc-{os.geteuid()}").symlink_to(tmp_path / "mine")
    with pytest.raises(cache.CacheError, match=r"set XDG_CACHE_HOME") as caught:
        cache.entry("things", "key", make, whole)
    assert "Not a directory" in str(caught.value)
    assert "it is a link" in str(caught.value)


def test_a_full_disk_makes_the_temporary_directory_take_over(home, tmp_path):
    def no_room(folder: Path) -> None:
        if folder.is_relative_to(home):
            raise OSError(28, "No space left on device", str(folder))
        make(folder)

    with pytest.warns(UserWarning, match="No space left on device") as said:
        found = [cache.entry("things", "key", no_room, whole) for _ in range(2)]
    assert len(said) == 1
    assert found == [tmp_path / "temporary" / f"eqcalc-{os.geteuid()}" / "things" / "key"] * 2


@pytest.mark.usefixtures("home")
def test_what_is_in_a_cache_that_cannot_be_written_is_used(monkeypatch):
    made = cache.entry("things", "key", make, whole)

    def read_only(*_args, **_options):
        raise OSError(30, "Read-only file system")

    for name in ("os.utime", "tempfile.mkdtemp"):
        monkeypatch.setattr(name, read_only)
    assert cache.entry("things", "key", make, whole) == made


def aged(path: Path, seconds: float) -> Path:
    when = time.time() - seconds
    os.utime(path, (when, when))
    return path


def test_what_is_old_is_removed_but_not_what_is_used(home, tmp_path):
    go = tmp_path / "go"
    code = CHILD.replace('"key"', '"used"') + "\nimport time; time.sleep(600)"
    command = [sys.executable, "-c", code, "user", "fast", "locks", str(go)]
    user = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        wait_for(home / "things" / "used.lock")
        wait_for(home / "things" / "used")
        root = home / "things"
        for name in ("old", "newer"):
            entry = root / name
            entry.mkdir()
            for file in ("done", cache.USED):
                (entry / file).touch()
        (root / "earlier-version.so").touch()
        (root / "partial-left").mkdir()
        (root / "partial-alive").mkdir()
        for name in ("old", "used", "earlier-version.so"):
            aged(root / name, cache.UNUSED + 100)
        aged(root / "newer", cache.UNUSED - 1000)
        aged(root / "partial-left", cache.RECENT + 100)
        aged(root / "partial-alive", cache.RECENT - 100)
        time.sleep(0.2)  # until the user holds its entry
        cache.entry("things", "key", make, whole)
        names = {p.name for p in root.iterdir() if p.suffix != ".lock"}
        assert names == {"key", "newer", "used", "partial-alive"}
    finally:
        user.kill()
        user.communicate()


@pytest.mark.parametrize(("most", "left"), [(250_000, {"key1", "key2"}), (50_000, {"key2"})])
def test_the_size_is_bounded_and_what_is_recent_stays(home, monkeypatch, most, left):
    def large(folder: Path) -> None:
        (folder / "done").write_bytes(bytes(100_000))

    for k, age in enumerate((3.0, 2.0, 0.5)):
        found = cache.entry("things", f"key{k}", large, whole)
        os.close(cache._held.pop(found))  # as when its process has ended
        aged(found, age * cache.RECENT)
    monkeypatch.setattr(cache, "MOST", most)
    cache.entry("things", "key3", large, whole)
    assert {p.name for p in (home / "things").iterdir() if p.is_dir()} == {"key3"} | left
