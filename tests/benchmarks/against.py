"""Speed of this checkout against that of another commit, all interleaved.

    git worktree add --detach ../former 410ff7d
    python tests/benchmarks/against.py ../former [--parts inference training compile]
        [--cases default melt] [--rounds 8] [--out results.json]

Two processes, one of each checkout, take turns and never run at once: on a graph of
inference.py's cases, in the compiled engines, with a file that the other checkout has written;
epoch by epoch through the same training (sets of training_epoch.py). They are started anew a few
times, since where the memory of a process lies costs or gains some per cent; compile times are of
caches that begin empty. Ratios (this checkout's CPU time over the other's) are medians over
turns, each with its neighbours in time, so that other work on the machine falls on both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from ase.io import write
from cases import CASES, Case, crystal, structure_of, write_structure
from inference import ONE_THREAD, Row, running
from report import machine
from training_epoch import SETS, eqcalc_config, frames_of

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SESSIONS = 3
#: pairs of processes for a graph
PROCESSES = 5
#: writes a case's network, by the checkout whose benchmarks are imported
WRITE = """
import pathlib, sys, cases
cases.write_export(cases.CASES[sys.argv[1]], pathlib.Path(sys.argv[2]))
"""
#: opens a file in an empty cache: CPU seconds of the compiler
OPEN = """
import pathlib, resource, sys
from eqcalc.engine.fused import fuse
fuse(sys.argv[1], dtype=sys.argv[2])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime)
"""
#: Python looks into the folder where it is started, first of all
OF_CHECKOUT = """
import eqcalc
assert pathlib.Path(eqcalc.__file__).is_relative_to(sys.argv[-1]), eqcalc.__file__
"""


def environment(checkout: Path, cache: Path) -> dict[str, str]:
    paths = os.pathsep.join(map(str, (checkout, checkout / "tests" / "benchmarks")))
    return {**os.environ, **ONE_THREAD, "PYTHONPATH": paths, "XDG_CACHE_HOME": str(cache)}


def output(code: str, *arguments: str, checkout: Path, cache: Path) -> str:
    """What a program prints that imports this checkout's eqcalc, whatever the folder is here."""
    done = subprocess.run(
        [sys.executable, "-c", code + OF_CHECKOUT, *arguments, str(checkout)],
        cwd=checkout,
        env=environment(checkout, cache),
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


def take_turns(rows: list[Row], rounds: int, do: str, **question: Any) -> list[list[float]]:
    """CPU seconds [rounds, 2]; who begins changes."""
    taken = []
    for k in range(rounds):
        order = (0, 1) if k % 2 == 0 else (1, 0)
        got = {n: rows[n].ask(do, **question)["cpu"] for n in order}
        taken.append([got[0], got[1]])
    return taken


def summary(seconds: list[list[float]]) -> dict[str, Any]:
    """Of pairs (this checkout, the other)."""
    ratios = np.divide(*np.array(seconds).T)
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    both = [float(x) for x in np.median(seconds, axis=0)]
    return {
        "ratio": float(middle),
        "quartiles": [float(low), float(high)],
        "turns": len(seconds),
        "cpu_seconds": dict(zip(("this", "other"), both, strict=True)),
    }


def inference(
    case: Case, engine: str, checkouts: list[Path], folder: Path, rounds: int
) -> dict[str, Any]:
    """Energy, forces and stress of a case, one engine."""
    small, graph, model = (folder / name for name in ("small.npz", "graph.npz", "model.pth"))
    write_structure(case, crystal(8), small)
    write_structure(case, structure_of(case), graph)
    caches = [folder / "cache-0", folder / "cache-1"]
    output(WRITE, case.name, str(model), checkout=checkouts[1], cache=caches[1])
    asked = {"network": case.network, "options": {"engine": engine, "model": str(model)}}
    seconds = []
    for _ in range(PROCESSES):
        with ExitStack() as stack:
            rows = []
            for checkout, cache in zip(checkouts, caches, strict=True):
                script = checkout / "tests" / "benchmarks" / "row_eqcalc.py"
                log, of = cache.with_suffix(".log"), environment(checkout, cache)
                command = [sys.executable, str(script), json.dumps(asked)]
                row = stack.enter_context(running(command, of, log))
                row.hear()
                row.ask("warm", small=str(small), graph=str(graph))
                rows.append(row)
            seconds += take_turns(rows, rounds, "time", at_least=0.2)
    return summary(seconds)


def training(
    name: str, settings: list[str], checkouts: list[Path], folder: Path, rounds: int
) -> dict[str, Any]:
    """Epochs, and kernels, of one set: `rounds` epochs in each session.

    settings: of [model], for this checkout alone.
    """
    data = folder / "train.xyz"
    frames = frames_of(name)
    write(data, frames)
    write(data.with_name("val.xyz"), frames[:2])
    epochs, compiled = [], []
    for session in range(SESSIONS):
        with ExitStack() as stack:
            rows, took = [None, None], [0.0, 0.0]
            for n in (0, 1) if session % 2 == 0 else (1, 0):
                work = folder / f"{session}-{n}"
                work.mkdir()
                text = eqcalc_config(data, SETS[name][1], "muon", epochs=1000)
                if n == 0:
                    text = text.replace("[model]", "\n".join(["[model]", *settings]))
                (work / "config.toml").write_text(text, encoding="utf-8")
                of = environment(checkouts[n], work / "cache")
                arguments = str(work / "config.toml"), str(work)
                command = [sys.executable, str(HERE / "row_training.py"), *arguments]
                row = running(command, of, work / "log")
                rows[n] = stack.enter_context(row)
                ready = rows[n].hear()
                if not Path(ready["eqcalc"]).is_relative_to(checkouts[n]):
                    raise SystemExit(f"{ready['eqcalc']} is not of {checkouts[n]}")
                took[n] = ready["compile_cpu"]
            compiled.append(took)
            take_turns(rows, 1, "epoch")  # caches
            epochs += take_turns(rows, rounds, "epoch")
    return {"epoch": summary(epochs), "compile": summary(compiled)}


def compilation(model: Path, dtype: str, checkouts: list[Path], folder: Path) -> dict[str, Any]:
    """The engine's kernels for a file."""
    taken = []
    for session in range(SESSIONS):
        took = [0.0, 0.0]
        for n in (0, 1) if session % 2 == 0 else (1, 0):
            of = {"checkout": checkouts[n], "cache": folder / f"{session}-{n}"}
            took[n] = float(output(OPEN, str(model), dtype, **of))
        taken.append(took)
    return summary(taken)


Keep = Callable[[str, str, dict[str, Any]], None]


def every_compilation(_: argparse.Namespace, checkouts: list[Path], keep: Keep) -> None:
    model = checkouts[1] / "eqcalc" / "pretrained" / "si.pth"
    for dtype in ("float32", "float64"):
        with tempfile.TemporaryDirectory() as folder:
            keep("compile", f"si, {dtype}", compilation(model, dtype, checkouts, Path(folder)))


def every_training(options: argparse.Namespace, checkouts: list[Path], keep: Keep) -> None:
    same, default = ["crowding_limit = false"], []
    for name in options.sets:
        for label, settings in (("", same), (", as by default", default)):
            with tempfile.TemporaryDirectory() as folder:
                found = training(name, settings, checkouts, Path(folder), options.rounds)
            keep("training epoch", name + label, found["epoch"])
            keep("training kernels", name + label, found["compile"])


def every_inference(options: argparse.Namespace, checkouts: list[Path], keep: Keep) -> None:
    names = options.cases or [n for n, case in CASES.items() if case.kind == "nequip"]
    for name in names:
        for engine in options.engines:
            with tempfile.TemporaryDirectory() as folder:
                found = inference(CASES[name], engine, checkouts, Path(folder), options.rounds)
            keep("inference", f"{name}, {engine}", found)


MEASURE = {
    "compile": every_compilation,
    "training": every_training,
    "inference": every_inference,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--parts", nargs="+", choices=list(MEASURE), default=list(MEASURE))
    parser.add_argument("--cases", nargs="+", choices=list(CASES))
    parser.add_argument("--engines", nargs="+", default=["fused", "exact"])
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--rounds", type=int, default=8, help="turns of a session")
    parser.add_argument("--out", type=Path, default=Path("build/against.json"))
    options = parser.parse_args()
    checkouts = [ROOT, options.checkout.resolve()]
    git = ["git", "-C", str(checkouts[1]), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    document: dict[str, Any] = {"machine": machine(), "against": commit}
    if options.out.exists():
        document = json.loads(options.out.read_text("utf-8")) | document
    options.out.parent.mkdir(parents=True, exist_ok=True)

    def keep(part: str, name: str, found: dict[str, Any]) -> None:
        document.setdefault(part, {})[name] = found
        low, high = found["quartiles"]
        print(f"{part:<18}{name:<28}{found['ratio']:7.3f}  ({low:.3f}-{high:.3f})", flush=True)
        options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    for part, found in MEASURE.items():
        if part in options.parts:
            found(options, checkouts, keep)


if __name__ == "__main__":
    main()
