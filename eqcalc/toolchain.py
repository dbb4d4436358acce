"""The C++ compiler, and the folder for what it makes. Light: LAMMPS imports this on every rank."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from eqcalc.errors import InputError


def output(command: Sequence[str | os.PathLike]) -> str:
    """What a program prints; nothing if it cannot be run or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def find_compiler() -> tuple[str, str] | None:
    """Path and version of the C++ compiler: `$CXX`, else g++, c++ or clang++; None without one."""
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        path = shutil.which(name) if name else None
        version = output([path, "--version"]).partition("\n")[0] if path else ""
        if version:
            return path, version
    return None


def cache_folder(name: str) -> Path:
    """`$XDG_CACHE_HOME/eqcalc/NAME`, by default below `~/.cache`; made if need be."""
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    folder = Path(base) / "eqcalc" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be made ({error.strerror}): set XDG_CACHE_HOME to a folder that "
            "can be written to."
        ) from None
    return folder
