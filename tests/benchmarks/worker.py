"""One package in one process, which answers on stdout what it is asked on stdin, as JSON lines.

Runs in every package's own environment: needs numpy and torch only. A row's script gives `serve` a
function build(network, options) -> prepare, where prepare(graph) -> evaluate and evaluate() ->
(energy eV, forces [N, 3] eV/Å, stress [3, 3] eV/Å^3), torch tensors. options["device"] is where a
row that knows GPUs runs: "cpu" (default) or "cuda".

    {"do": "warm", "small": PATH, "graph": PATH}  -> {"energy", "memory_mb"}
    {"do": "time", "at_least": 0.3}               -> {"wall", "cpu"} s, medians of one visit
    {"do": "forces", "to": PATH}                  -> {}
    {"do": "results", "graph": PATH, "to": PATH}  -> {}: energy, forces, stress of another graph
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

Evaluate = Callable[[], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
Prepare = Callable[[dict[str, np.ndarray]], Evaluate]

WARM_UP = 4  # evaluations: TorchScript compiles during the first three


def _status_mb(field: str) -> float | None:
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    return next(
        (int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith(field)), None
    )


def _reset_peak() -> bool:
    """Makes the kernel's peak of resident memory start again from now (Linux only)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True


def _read(path: str) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


class Worker:
    """Answers the questions; `evaluate` is what is timed."""

    def __init__(self, prepare: Prepare) -> None:
        self.prepare = prepare
        self.evaluate: Evaluate | None = None
        self.last = 0.0

    def _seconds(self) -> tuple[float, float]:
        """Of the clock, and of this process on the CPU."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.evaluate()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.last = time.perf_counter() - wall
        return self.last, time.process_time() - cpu

    def warm(self, small: str, graph: str) -> dict[str, Any]:
        """Memory: growth of the peak over evaluations of `graph`, after some of `small`."""
        self.evaluate = self.prepare(_read(small))
        for _ in range(WARM_UP):
            self._seconds()
        self.evaluate = self.prepare(_read(graph))
        before = _status_mb("VmRSS:") if _reset_peak() else None
        for _ in range(WARM_UP):
            self._seconds()
        memory = None if before is None else _status_mb("VmHWM:") - before
        energy, forces, stress = self.evaluate()
        if not all(bool(torch.isfinite(x).all()) for x in (energy, forces, stress)):
            raise ValueError("energy, forces or stress are not finite")
        return {"energy": float(energy), "memory_mb": memory}

    def time(self, at_least: float) -> dict[str, Any]:
        """Evaluations for `at_least` s; the first is left out if it is short (cold caches)."""
        if self.last < at_least:
            self._seconds()
        taken = [self._seconds()]
        while sum(wall for wall, _ in taken) < at_least:
            taken.append(self._seconds())
        wall, cpu = (statistics.median(column) for column in zip(*taken, strict=True))
        return {"wall": wall, "cpu": cpu}

    def forces(self, to: str) -> dict[str, Any]:
        np.save(to, self.evaluate()[1].detach().double().cpu().numpy())
        return {}

    def results(self, graph: str, to: str) -> dict[str, Any]:
        energy, forces, stress = (
            x.detach().double().cpu().numpy() for x in self.prepare(_read(graph))()
        )
        np.savez(to, energy=energy, forces=forces, stress=stress)
        return {}


def serve(build: Callable[[dict[str, Any], dict[str, Any]], Prepare]) -> None:
    """Builds what argv[1] asks for, then answers until stdin ends."""
    warnings.filterwarnings("ignore")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print goes to stderr
    torch.set_num_threads(1)

    def answer(make: Callable[[], dict[str, Any]]) -> None:
        try:
            got = make()
        except Exception as error:  # whatever a package raises is that row's result
            traceback.print_exc()
            lines = str(error).strip().splitlines() or [""]
            got = {"error": f"{type(error).__name__}: {lines[0][:200]}"}
        answers.write(json.dumps(got) + "\n")
        answers.flush()

    asked = json.loads(sys.argv[1])
    worker = None

    def start() -> dict[str, Any]:
        nonlocal worker
        worker = Worker(build(asked["network"], asked["options"]))
        return {"torch": torch.__version__}

    answer(start)
    for line in sys.stdin:
        question = json.loads(line)
        answer(lambda q=question: getattr(worker, q.pop("do"))(**q))
