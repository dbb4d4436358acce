"""Folders that are made once per key, by any number of processes on any number of machines.

    $XDG_CACHE_HOME/eqcalc/KIND/KEY/        an entry, complete; by default below ~/.cache
                                KEY.lock    held by the process that makes it, while others wait
                                partial-*/  being made, or left by a process that was killed

An entry is made under another name and renamed when it is complete. Where locks do not work
(network file systems) several processes may make the same one; the first to rename wins, and the
others take its entry. No entry is replaced or removed but by `_tidy`, so that what one process was
promised, no other takes away; one that is damaged is left, and KEY+1/ made beside it.

Compiled code is loaded from here, so the folders must be the user's own and nobody else may write
to them. Where that cannot be had, or there is no room, a folder of the user in the temporary
directory takes their place: it is as safe, and kernels that are compiled again after a restart are
many times faster than torch.

Light: LAMMPS imports this on every rank.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from eqcalc.errors import InputError
from eqcalc.files import sync

#: seconds for which an entry may be unused before it is removed
UNUSED = 90 * 24 * 3600.0
#: bytes of one kind of entries, above which those that were not used for the longest time go
MOST = 4 * 2**30
#: seconds after its last use within which no entry is removed, and after which a partial one is
RECENT = 3600.0
#: seconds to wait for another process that is making an entry, before making it too
PATIENCE = 1800.0

#: a file of every entry, locked (shared) by the processes that use it
USED = "used"

Whole = Callable[[Path], bool]

#: descriptors of the USED files of this process's entries
_held: dict[Path, int] = {}
#: the folders that stand in for the user's cache, of which the user knows
_told: set[Path] = set()


class CacheError(InputError):
    """Nothing can be kept, neither in the user's cache nor in the temporary directory."""


def _homes() -> Iterator[Path]:
    """Where the cache may be: the user's choice, then the temporary directory."""
    chosen = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")  # noqa: PTH118
    yield Path(os.path.expanduser(chosen)).absolute() / "eqcalc"  # noqa: PTH111 - never raises
    with contextlib.suppress(FileNotFoundError):  # there is no temporary directory
        yield Path(tempfile.gettempdir()).absolute() / f"eqcalc-{os.geteuid()}"


def _make_private(folder: Path) -> None:
    """Makes a folder for this user alone; OSError if it is there and may be another's work."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "it belongs to another user", str(folder))
    if status.st_mode & 0o022:
        sentence = "other users may write to it: remove it, and what is in it"
        raise PermissionError(errno.EPERM, sentence, str(folder))
    if status.st_mode & 0o077:
        folder.chmod(0o700)


def _open(home: Path, kind: str) -> Path:
    """The folder of entries of one sort, safe to load code from; OSError if there is none."""
    shared = home.parent.is_dir() and home.parent.stat().st_mode & 0o002
    if shared and home.is_symlink():
        raise PermissionError(errno.EPERM, "it is a link in a folder of all users", str(home))
    _make_private(home)
    _make_private(home / kind)
    return home / kind


def _first(kind: str, use: Callable[[Path], Path]) -> Path:
    """`use` of the first folder for this kind where it raises no OSError."""
    problems = []
    for home in _homes():
        try:
            result = use(_open(home, kind))
        except OSError as error:
            where = error.filename if error.filename == str(home / kind) else home
            problems.append(f"{where}: {error.strerror or error}")
            continue
        if problems and home not in _told:
            _told.add(home)
            warnings.warn(
                f"The cache cannot be used ({problems[0]}), so {home} keeps compiled code until it "
                "is cleared: set XDG_CACHE_HOME to a folder that only you can write to.",
                stacklevel=2,
            )
        return result
    raise CacheError(
        f"There is no folder to keep compiled code in ({'; '.join(problems)}): set XDG_CACHE_HOME "
        "to a folder that only you can write to."
    )


def folder(kind: str) -> Path:
    """The folder of entries of one sort, made if need be.

    Raises:
        CacheError: there is none.
    """
    return _first(kind, lambda root: root)


def entry(kind: str, key: str, make: Callable[[Path], None], whole: Whole) -> Path:
    """The entry of that key, kept from removal as long as this process lives.

    Args:
        kind: of entries, the name of their folder.
        key: changes with all that the entry depends on.
        make: fills the empty folder that it gets, whose parent is that of the entry.
        whole: whether the folder that it gets is there with all that `make` puts there.

    Raises:
        CacheError: there is no folder for it; or whatever `make` raises, OSError excepted.
    """
    return _first(kind, lambda root: _entry(root, key, make, whole))


def find(kind: str, start: str, whole: Whole) -> Path | None:
    """An entry whose key begins so, or None; kept from removal as long as this process lives."""
    for home in _homes():
        with contextlib.suppress(OSError):
            found = _find(_open(home, kind), start, whole)
            if found:
                return found
    return None


def remove(kind: str, key: str) -> None:
    """Removes the entry of that key, used or not."""
    for home in _homes():
        with contextlib.suppress(OSError):
            for path in _open(home, kind).glob(f"{key}*"):
                if path.is_dir():
                    _discard(path)


def _find(root: Path, start: str, whole: Whole) -> Path | None:
    for path in sorted(root.glob(f"{start}*")):
        if path.is_dir() and whole(path) and _hold(path):
            return path
    return None


def _entry(root: Path, key: str, make: Callable[[Path], None], whole: Whole) -> Path:
    found = _find(root, key, whole)
    if found:
        return found
    _tidy(root)
    with _lock(root / f"{key}.lock"):
        found = _find(root, key, whole)
        if found:
            return found
        partial = Path(tempfile.mkdtemp(prefix="partial-", dir=root))
        try:
            make(partial)
            (partial / USED).touch()
            sync(partial)
            return _put(partial, root / key, whole)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _put(partial: Path, target: Path, whole: Whole) -> Path:
    """Renames a complete folder, or takes the one that another process was faster with."""
    for n in itertools.count():
        place = target.with_name(f"{target.name}+{n}") if n else target
        try:
            partial.rename(place)
        except OSError:
            if not place.is_dir():
                raise
        if whole(place) and _hold(place):
            return place
    raise AssertionError


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time, where there are locks and nobody holds one for too long."""
    with path.open("a", encoding="utf-8") as file:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:  # this file system has no locks
                break
            else:
                break
        os.utime(file.fileno())
        yield


def _hold(path: Path) -> bool:
    """Marks an entry as used, now and until this process ends; False if it is being removed."""
    with contextlib.suppress(OSError):  # in a folder that cannot be written to
        os.utime(path)
    if path in _held and (path / USED).exists():
        return True
    try:
        descriptor = os.open(path / USED, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    except OSError:  # no locks: `_tidy` removes nothing there
        pass
    if not (path / USED).exists():
        os.close(descriptor)
        return False
    _held[path] = descriptor
    return True


def _discard(path: Path) -> None:
    """Removes a folder; under its own name it is there as a whole or not at all."""
    aside = Path(tempfile.mkdtemp(prefix="partial-", dir=path.parent))
    try:
        path.rename(aside / path.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _evict(path: Path) -> bool:
    """Removes an entry that no process uses, or a file beside the entries."""
    if not path.is_dir() or path.is_symlink():
        path.unlink()
        return True
    if not (path / USED).exists():  # made by an earlier version
        _discard(path)
        return True
    with (path / USED).open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # used, or nobody can tell
            return False
        _discard(path)
    return True


def _size(path: Path) -> int:
    return sum(p.lstat().st_size for p in ([path, *path.iterdir()] if path.is_dir() else [path]))


def _tidy(root: Path) -> None:
    """Removes what killed processes left, and entries by age and size, but none in use."""
    now, total = time.time(), 0
    last_used: list[tuple[float, Path]] = []
    for path in root.iterdir():
        with contextlib.suppress(OSError):  # gone meanwhile
            last_used.append((path.lstat().st_mtime, path))
    for when, path in sorted(last_used, reverse=True):
        with contextlib.suppress(OSError):
            if path.name.startswith("partial-"):
                if now - when > RECENT:
                    shutil.rmtree(path, ignore_errors=True)
                continue
            size = _size(path)
            total += size
            old = now - when > UNUSED or (total > MOST and now - when > RECENT)
            if old and _evict(path):
                total -= size
