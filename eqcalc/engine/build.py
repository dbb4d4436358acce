"""Compiles generated C++ into a shared library, once per content, machine and compiler."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

from eqcalc.errors import InputError

FLAGS = ["-std=c++17", "-O3", "-march=native", "-ffast-math", "-fopenmp", "-fPIC", "-shared"]


def cache_folder() -> Path:
    """Where compiled things are kept: `$XDG_CACHE_HOME/eqcalc`, by default `~/.cache/eqcalc`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "eqcalc"


@lru_cache
def compiler() -> tuple[str, str]:
    """Path and version line of the C++ compiler: `$CXX`, else g++, c++ or clang++.

    Raises:
        InputError: there is none.
    """
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        path = shutil.which(name) if name else None
        if path:
            version = subprocess.run(
                [path, "--version"], capture_output=True, text=True, check=False
            )
            return path, version.stdout.splitlines()[0] if version.stdout else path
    raise InputError("No C++ compiler was found: install one (g++ or clang++), or set CXX to it.")


def _machine() -> str:
    """What `-march=native` depends on: the processor's feature flags."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@lru_cache
def compile_library(source: str) -> Path:
    """The library made of `source`, from the cache if it was made before.

    Safe when many processes start at once: each compiles into a folder of its own and renames.

    Raises:
        InputError: no compiler, or it fails.
    """
    path, version = compiler()
    key = "\n".join([source, version, _machine(), *FLAGS])
    name = hashlib.sha256(key.encode()).hexdigest()[:20]
    folder = cache_folder() / "kernels"
    library = folder / f"{name}.so"
    if not library.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            code = Path(work) / "kernel.cpp"
            code.write_text(source, encoding="utf-8")
            made = Path(work) / library.name
            run = subprocess.run(
                [path, *FLAGS, str(code), "-o", str(made)],
                capture_output=True,
                text=True,
                check=False,
            )
            if run.returncode:
                raise InputError(f"{path} cannot compile eqcalc's kernels: {run.stderr[-600:]}")
            os.replace(made, library)
    return library
