"""Compiles generated C++ into a shared library, once per content, machine and compiler."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import tempfile
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path

from eqcalc.errors import InputError
from eqcalc.toolchain import cache_folder, find_compiler

# -ffast-math is not among them: it would make the whole process flush small numbers to zero
FLAGS = [
    *("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"),
]


def machine() -> str:
    """What `-march=native` depends on: the processor's feature flags."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


class EngineUnavailable(InputError):  # noqa: N818 - a state, which the torch engine gets round
    """Generated kernels cannot be had here; torch alone can do the work, slowly."""


@cache
def header(name: str) -> str:
    """The text of a file of csrc/."""
    return (resources.files("eqcalc.engine") / "csrc" / name).read_text(encoding="utf-8")


@lru_cache
def compile_library(source: str, *flags: str) -> Path:
    """The library made of `source` with FLAGS and `flags`, from the cache if it was made before.

    Safe when many processes start at once: each compiles into a folder of its own and renames.
    Without a compiler, one that any compiler has made.

    Raises:
        EngineUnavailable: no compiler, or it fails.
    """
    flags = (*FLAGS, *flags)
    made_of = hashlib.sha256("\n".join([source, machine(), *flags]).encode()).hexdigest()[:20]
    folder = cache_folder("kernels")
    compiler = find_compiler()
    if compiler is None:
        for library in folder.glob(f"{made_of}-*.so"):
            return library
        raise EngineUnavailable(
            "There is no C++ compiler: install g++ (Debian: apt install g++), or set CXX."
        )
    path, version = compiler
    made_by = hashlib.sha256(version.encode()).hexdigest()[:8]
    library = folder / f"{made_of}-{made_by}.so"
    if not library.is_file():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            code = Path(work) / "kernel.cpp"
            code.write_text(source, encoding="utf-8")
            made = Path(work) / library.name
            run = subprocess.run(
                [path, *flags, str(code), "-o", str(made)],
                capture_output=True,
                text=True,
                check=False,
            )
            if run.returncode:
                raise EngineUnavailable(
                    f"{path} cannot compile eqcalc's kernels: {run.stderr[-600:]}"
                )
            os.replace(made, library)
    return library
