"""Speed of energy + forces + stress against other packages, all in one interleaved run.

    python tests/benchmarks/inference.py [--cases 32ch-1000 melt] [--repeats 11]
        [--peers nequip mace sevenn e3nn fairchem] [--engines fused exact torch]
        [--environments FOLDER] [--out results.json]

Fixed graphs without the neighbour list, one thread, networks of one size with random weights (see
cases.py and the row_*.py); a MACE network, too, with Symmetrix-XL, which compiles for ten
minutes at its first call (and gives up after ten: raise its DEFAULT_COMPILE_TIMEOUT on a slow
machine); an eSEN with fairchem-core's. Every repetition visits every process once; medians over
repetitions.
Ratios are of CPU time, which on an idle machine is the clock's, and on a busy one still means
something.
Peers get an environment each below --environments (default: build/peers), kept for the next run.
Writes the results as JSON, after each case, and as a picture beside it. Microseconds are for
orientation.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from cases import CASES, Case, crystal, structure_of, write_export, write_structure
from environments import PEERS, UnavailableError, python_of
from report import machine, plot, summarise, table

HERE = Path(__file__).parent
ENGINES = ("fused", "exact", "torch")
SMALL = 8  # atoms, of the structure that warms up
ONE_THREAD = {f"{k}_NUM_THREADS": "1" for k in ("OMP", "MKL", "OPENBLAS", "VECLIB_MAXIMUM")}


class Row:
    """A worker process (worker.py) and what it answered."""

    def __init__(self, process: subprocess.Popen, log: Path) -> None:
        self.process, self.log = process, log
        self.seconds: dict[str, list[float]] = {"wall": [], "cpu": []}

    def hear(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            said = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise UnavailableError(f"it died: {said[-1] if said else 'nothing said'}")
        answer = json.loads(line)
        if "error" in answer:
            raise UnavailableError(answer["error"])
        return answer

    def ask(self, do: str, **question: Any) -> dict[str, Any]:
        self.process.stdin.write(json.dumps({"do": do, **question}) + "\n")
        self.process.stdin.flush()
        return self.hear()


@contextmanager
def running(command: list[str], environment: dict[str, str], log: Path) -> Iterator[Row]:
    """A process of this command, which ends afterwards; what it complains of goes into the log."""
    with log.open("w", encoding="utf-8") as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=environment,
        )
        try:
            yield Row(process, log)
        finally:
            process.stdin.close()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def started(
    python: Path, script: str, network: dict, options: dict, log: Path, *, ours: bool
) -> Iterator[Row]:
    environment = {**os.environ, **ONE_THREAD, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    if not ours:
        environment.pop("PYTHONPATH", None)
    asked = json.dumps({"network": network, "options": options})
    with running([str(python), str(HERE / script), asked], environment, log) as row:
        yield row


def wanted_rows(
    kind: str, pythons: dict[str, Path], folder: Path, model: Path, engines: list[str]
) -> list[tuple[str, Path, str, dict[str, str], bool]]:
    """Label, interpreter, script, options, ours or not."""
    own = Path(sys.executable)
    rows = [
        (f"eqcalc {e}", own, "row_eqcalc.py", {"engine": e, "model": str(model)}, True)
        for e in engines
    ]
    options = {"folder": str(folder.resolve() / "models")}
    for name, python in pythons.items():
        if kind in PEERS[name].networks:
            rows.append((PEERS[name].label, python, PEERS[name].script, options, python == own))
    return rows


def deviations(rows: dict[str, Row], folder: Path) -> dict[str, float]:
    """Largest difference of each engine's forces from the torch engine's, eV/Å."""
    forces = {}
    for engine in ENGINES:
        if row := rows.get(f"eqcalc {engine}"):
            path = folder / f"{engine}.npy"
            row.ask("forces", to=str(path))
            forces[engine] = np.load(path)
    plain = forces.pop("torch", None)
    if plain is None:
        return {}
    return {engine: float(np.abs(f - plain).max()) for engine, f in forces.items()}


def run_case(
    case: Case, pythons: dict[str, Path], options: argparse.Namespace, logs: Path
) -> dict[str, Any]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        small, graph = folder / "small.npz", folder / "graph.npz"
        write_structure(case, crystal(SMALL), small)
        neighbours = write_structure(case, structure_of(case), graph)
        model = write_export(case, folder / "model.pth")
        rows: dict[str, Row] = {}
        facts: dict[str, dict[str, Any]] = {}
        refused: dict[str, str] = {}
        for number, (label, python, script, extra, ours) in enumerate(
            wanted_rows(case.kind, pythons, options.environments, model, options.engines)
        ):
            log = logs / f"{case.name}-{number}.log"
            row = stack.enter_context(started(python, script, case.network, extra, log, ours=ours))
            try:
                facts[label] = row.hear() | row.ask("warm", small=str(small), graph=str(graph))
            except (UnavailableError, BrokenPipeError) as error:
                refused[label] = str(error)
                print(f"  without {label}: {error}", flush=True)
            else:
                rows[label] = row
        order = list(rows)
        for repeat in range(options.repeats):
            for label in order[repeat % len(order) :] + order[: repeat % len(order)]:
                taken = rows[label].ask("time", at_least=options.at_least)
                for clock, values in rows[label].seconds.items():
                    values.append(taken[clock])
        different = deviations(rows, folder)
    for label, row in rows.items():
        facts[label]["seconds"] = row.seconds
    return {
        "name": case.name,
        "case": asdict(case),
        "description": case.describe(),
        "neighbours": neighbours,
        "rows": summarise(facts, case.atoms),
        "refused": refused,
        "force_deviation_from_torch": different,
        "load_average": os.getloadavg(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--environments", type=Path, default=Path("build/peers"))
    parser.add_argument("--out", type=Path, default=Path("build/inference.json"))
    parser.add_argument("--at-least", type=float, default=0.3, help="seconds of one visit")
    options = parser.parse_args()
    skipped, pythons = [], {}
    kinds = {CASES[name].kind for name in options.cases}
    for name in options.peers:
        if kinds.isdisjoint(PEERS[name].networks):
            continue
        try:
            pythons[name] = python_of(name, options.environments)
        except UnavailableError as error:
            skipped.append(str(error))
            print(error, flush=True)
    logs = options.environments / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {
        "machine": machine(),
        "repeats": options.repeats,
        "skipped": skipped,
        "cases": [],
    }
    for count, name in zip(itertools.count(1), options.cases, strict=False):
        print(f"[{count}/{len(options.cases)}] {name}: {CASES[name].describe()}", flush=True)
        document["cases"].append(run_case(CASES[name], pythons, options, logs))
        print(table(document["cases"][-1]), flush=True)
        options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    plot(document, options.out.with_suffix(".png"))
    print(f"{options.out}, {options.out.with_suffix('.png')}")


if __name__ == "__main__":
    main()
