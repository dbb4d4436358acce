"""A GPU on the CPU, for tests: see emulation/simt.h and emulation/driver.cpp.

The engine's own C++ host and the text of its own kernels run; the driver and the compiler are
replaced. Tests take it by the fixture `emulated_gpu`.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from eqcalc import cache
from eqcalc.engine.cuda.platform import Platform

FOLDER = Path(__file__).parent / "emulation"
COMPILER = ["g++", "-std=c++17", "-shared", "-fPIC", "-w"]


class Counts(NamedTuple):
    """Of what an emulated driver was asked for.

    Attributes:
        kernels: that ran.
        up, down: bytes to and from the GPU.
        waits: of the host.
        started: kernels and graphs, each at once.
        left: kernels that waits for an event left for later.
        slices: kernels with slices of tables.
        graphs: that were made.
    """

    kernels: int
    up: int
    down: int
    waits: int
    started: int
    left: int
    slices: int
    graphs: int


def _compiled(name: str, source: str, *flags: str, headers: tuple[str, ...] = ()) -> Path:
    """A library in the cache; headers: files of FOLDER that the source includes."""
    texts = [source, *flags, *((FOLDER / file).read_text(encoding="utf-8") for file in headers)]
    key = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:24]

    def make(folder: Path) -> None:
        code = folder / f"{name}.cpp"
        code.write_text(source, encoding="utf-8")
        target = folder / f"{name}.so"
        done = subprocess.run(
            [*COMPILER, *flags, str(code), "-o", str(target), "-ldl"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]

    return (
        cache.entry("emulation", key, make, lambda f: (f / f"{name}.so").is_file()) / f"{name}.so"
    )


class Emulated(Platform):
    """Two GPUs that are none.

    Each has 3 multiprocessors, or EQCALC_EMULATION_PROCESSORS, and 48 kB of shared memory for a
    block of threads, or EQCALC_EMULATION_SHARED bytes.

    change: what is done to the kernels' source before they are compiled, to plant faults.
    """

    def __init__(self, change=lambda source: source) -> None:
        source = (FOLDER / "driver.cpp").read_text(encoding="utf-8")
        self.driver = str(_compiled("driver", source, "-O1"))
        self.change = change

    def architecture(self, number: int) -> str:  # noqa: ARG002
        return "sm_90"

    def image(self, source: str, architecture: str) -> Path:  # noqa: ARG002
        changed = self.change(source)
        found = re.findall(r"__launch_bounds__\((\d+)(?:, \d+)?\) (\w+)\(", changed)
        bounds = ", ".join(f'{{"{name}", {threads}}}' for threads, name in [*found, (0, "")])
        table = f"struct {{ const char *name; int threads; }} SIMT_BOUNDS[] = {{{bounds}}};"
        whole = f'{changed}\nstatic const {table}\n#include "{FOLDER / "simt_end.h"}"\n'
        flag = f'-DEQCALC_EMULATION="{FOLDER / "simt.h"}"'
        return _compiled("kernels", whole, "-O1", flag, headers=("simt.h", "simt_end.h"))

    @functools.cached_property
    def _emulation(self) -> ctypes.CDLL:
        return ctypes.CDLL(self.driver)

    def count(self) -> int:
        return 2

    def limit_memory(self, size: int) -> None:
        """Bytes that each GPU has."""
        self._emulation.emulated_memory(ctypes.c_size_t(size))

    def fail(self, allocation: int) -> bool:
        """One of the next allocations fails, 1 is the next; 0: none does. Whether the one that was
        to fail before is still to come."""
        return self._emulation.emulated_failing(allocation) > 0

    @property
    def used(self) -> int:
        """Bytes of both GPUs that are taken."""
        self._emulation.emulated_used.restype = ctypes.c_size_t
        return self._emulation.emulated_used()

    def counts(self) -> Counts:
        """Since the last call."""
        numbers = (ctypes.c_longlong * len(Counts._fields))()
        self._emulation.emulated_counts(numbers)
        return Counts(*numbers)

    @contextmanager
    def gone(self) -> Iterator[None]:
        """As at the end of a process, where the driver may end first."""
        self._emulation.emulated_end(1)
        try:
            yield
        finally:
            self._emulation.emulated_end(0)


def counts_of_processes(path: Path) -> list[tuple[Counts, list[int]]]:
    """What processes with EQCALC_EMULATION_COUNTS = path did, and kernels by device; by rank."""
    files = sorted(path.parent.glob(f"{path.name}.*"), key=lambda file: int(file.suffix[1:]))
    numbers = [[int(word) for word in file.read_text().split()] for file in files]
    end = len(Counts._fields)
    return [(Counts(*of_one[:end]), of_one[end:]) for of_one in numbers]
