"""Files that appear complete or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eqcalc.errors import InputError

#: seconds without a change, after which what a killed process left is removed
ABANDONED = 24 * 3600.0


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path as a user writes it: `~` and `~name` are home folders, where there are such."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises for "~1.xyz"


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_names(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every file system can do that for folders
        _fsync(folder)


def sync(path: Path) -> None:
    """Waits until a file, or the files of a folder and their names, are on the disk."""
    if not path.is_dir():
        _fsync(path)
        return
    for file in path.iterdir():
        _fsync(file)
    _sync_names(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    """A name that no other writer has; what killed ones left long ago is removed."""
    stem = path.name[:200]
    for left in path.parent.glob(f"{_literal(stem)}.*.partial"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED:
                _remove(left)
    return path.with_name(f"{stem}.{secrets.token_hex(4)}.partial")


def _literal(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields the name to write a file or folder to, which takes the place of `path` at the end.

    It is on the disk before it has its name, so that after a crash there is the old one or the new
    one; what it replaces is removed after that. After an exception nothing is left of it. The mode
    of a file that is replaced is kept, links stay links, and devices are written to directly.
    """
    path = Path(os.path.realpath(user_path(path)))
    if path.exists() and not (path.is_file() or path.is_dir()):
        yield path
        return
    partial = _beside(path)
    try:
        yield partial
        if path.is_file():
            shutil.copymode(path, partial)
        sync(partial)
        if not path.is_dir():
            partial.replace(path)
        elif partial.is_dir():
            _swap(partial, path)
        else:
            raise InputError(f"'{path}' is a folder: name a file to write to.")
        _sync_names(path.parent)
    finally:
        _remove(partial)


def _swap(new: Path, old: Path) -> None:
    """Puts a folder in the place of another; the old one is removed when the new one is there."""
    aside = _beside(old)
    old.rename(aside)
    try:
        new.rename(old)
    except BaseException:
        aside.rename(old)
        raise
    _remove(aside)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> Path:
    """A whole file, in a folder that is made if need be."""
    path = user_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_bytes(content)
    return path


def write_json(path: str | os.PathLike[str], document: Any, *, allow_nan: bool = True) -> Path:
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=allow_nan)
    return write_bytes(path, (text + "\n").encode())
