"""Compiles generated C++ into a shared library, once per content, machine and compiler."""

from __future__ import annotations

import ctypes
import errno
import functools
import hashlib
import os
import platform
import re
import subprocess
from functools import lru_cache
from importlib import resources
from pathlib import Path

from eqcalc import cache
from eqcalc.errors import InputError
from eqcalc.toolchain import compile_limit, find_compiler, run

# -ffast-math is not among them: it would make the whole process flush small numbers to zero
FLAGS = [
    *("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"),
]

#: options for the compiler after ours, which they may replace: -O1 compiles twice as fast, and
#: -g is for debuggers and profilers
MORE_FLAGS = "EQCALC_CXXFLAGS"

#: the library in an entry of the cache
LIBRARY = "kernel.so"

#: what compilers say where a disk or a quota is full
NO_ROOM = ("No space left on device", "Disk quota exceeded")


def machine() -> str:
    """What `-march=native` depends on: the processor's feature flags."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


class EngineUnavailable(InputError):  # noqa: N818 - a state, which the torch engine gets round
    """Generated kernels cannot be had here; torch alone can do the work, slowly."""


@functools.cache
def header(name: str, package: str = "eqcalc.engine") -> str:
    """The text of a file of a package's csrc/, without the lines by which it opens by itself.

    Sources are made of these texts, with what is generated in between (csrc/generated: examples).
    """
    text = (resources.files(package) / "csrc" / name).read_text(encoding="utf-8")
    return re.sub(r'#pragma once\n(#include "[^"]*"\n)*\n', "", text)


#: what took too long once is not tried again by this process
_too_long: dict[str, str] = {}


def more_flags() -> list[str]:
    """The user's options for the compiler."""
    return os.environ.get(MORE_FLAGS, "").split()


def compile_library(source: str, *flags: str) -> Path:
    """The library made of `source` with FLAGS, `flags` and the user's, from the cache if it was
    made before.

    Without a compiler, one that any compiler has made.

    Raises:
        EngineUnavailable: no compiler, or it fails; no place for the library.
    """
    return compiled(source, *FLAGS, *flags, *more_flags())


@lru_cache
def compiled(source: str, *flags: str) -> Path:
    """The library made of `source` with these flags; errors of compile_library."""
    made_of = hashlib.sha256("\n".join([source, machine(), *flags]).encode()).hexdigest()[:20]
    compiler = find_compiler()
    if compiler is None:
        found = cache.find("kernels", f"{made_of}-", _whole)
        if found:
            return found / LIBRARY
        raise EngineUnavailable(
            "There is no C++ compiler: install g++ (Debian: apt install g++), or set CXX."
        )
    path, version = compiler
    made_by = hashlib.sha256(version.encode()).hexdigest()[:8]
    key = f"{made_of}-{made_by}"
    if key in _too_long:
        raise EngineUnavailable(_too_long[key])

    def make(folder: Path) -> None:
        try:
            _compile([path, *flags], source, folder)
        except subprocess.TimeoutExpired as error:
            _too_long[key] = (
                f"{path} had not compiled eqcalc's kernels after {error.timeout:g} s: set "
                "EQCALC_COMPILE_LIMIT to more seconds, or CXX to another compiler."
            )
            raise EngineUnavailable(_too_long[key]) from None

    try:
        return cache.entry("kernels", key, make, _whole) / LIBRARY
    except cache.CacheError as error:
        raise EngineUnavailable(str(error)) from None


def _whole(folder: Path) -> bool:
    library = folder / LIBRARY
    return library.is_file() and library.stat().st_size > 0


def _compile(command: list[str], source: str, folder: Path) -> None:
    """Leaves the library, and nothing else, in `folder`."""
    code = folder / "kernel.cpp"
    code.write_text(source, encoding="utf-8")
    done = run([*command, str(code), "-o", str(folder / LIBRARY)], compile_limit())
    if any(sentence in done.stderr for sentence in NO_ROOM):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    if done.returncode or not _whole(folder):
        said = done.stderr[-600:] or f"no library, exit status {done.returncode}"
        raise EngineUnavailable(f"{command[0]} cannot compile eqcalc's kernels: {said}")
    code.unlink()


def load_library(path: Path) -> ctypes.CDLL:
    """A compiled library in this process.

    Raises:
        EngineUnavailable: it does not load here.
    """
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise EngineUnavailable(
            f"The kernels in {path.parent} cannot be loaded ({error}): remove that folder, or set "
            "XDG_CACHE_HOME to one from which programs may run."
        ) from None
