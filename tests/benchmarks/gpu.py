"""The day a GPU is there: is the GPU engine right on it, and how fast?

    python tests/benchmarks/gpu.py [--model si] [--repeats 3 8 16 32] [--steps 10]
        [--environments FOLDER] [--out gpu.json] [--emulate | --count]

Runs the tests marked `gpu`; then, on perturbed diamond silicon of 8 n^3 atoms,

1. each engine in turn: energies, forces and virials for every step of moving atoms with a
   neighbour list that lasts (median, µs per atom, of the clock), and the largest difference of
   forces from the CPU's engine (eV/Å);
2. the GPU engine in each of its variants (VARIANTS);
3. a network of 4 layers and 32 channels up to degree 2 with random weights, by the GPU engine and
   by those peers that are installed (in this environment, or below --environments: inference.py
   makes these), on a graph that is given: µs per atom;
4. a step of training of the default network, with generated convolutions and in plain torch, on
   structures of 64 atoms, as many as --repeats says: µs per atom, and the difference of gradients.

Writes a line for each size, JSON and a picture. Needs no network. Sizes that an engine has no
memory for are left out of its column. Every part runs in a process of its own, which is ended where
its share of --minutes is over, with the rows that it has by then: the command takes no longer,
whatever hangs. Estimated for an H100, from CPU times of what runs without one and from counts:
tests 1 minute, engines 2 (9 s of these compile kernels, once; most is the CPU's engine), variants
2, training 1, each of the peers half a minute.

With --emulate all of it runs on the CPU, GPU kernels in the tests' emulation: it shows that the
command works, at --repeats 1, and its times mean nothing. With --count nothing runs: it prints what
a step in float32 moves through the second-level cache, from which the defaults follow that nobody
has timed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ase.build import bulk

from eqcalc import EquivariantCalculator
from eqcalc.engine.fused import NETWORKS
from eqcalc.errors import InputError

#: options of the calculator, by column
ENGINES: dict[str, dict[str, str]] = {
    "GPU fused": {"engine": "fused", "device": "cuda"},
    "GPU torch": {"engine": "torch", "device": "cuda"},
    "CPU fused": {"engine": "fused", "device": "cpu"},
}

#: environment variables of the GPU engine (eqcalc/engine/cuda/variants.py), by name
VARIANTS: dict[str, dict[str, str]] = {
    "as chosen": {},
    "without CUDA graphs": {"EQCALC_GPU_GRAPHS": "no"},
    "tables of degree 5": {"EQCALC_GPU_TABLES": "quintic"},
    "no slices of tables": {"EQCALC_GPU_SLICES": "no"},
    "slices of tables": {"EQCALC_GPU_SLICES": "yes"},
    "slices of degree 5": {"EQCALC_GPU_SLICES": "yes", "EQCALC_GPU_TABLES": "quintic"},
}

#: peers that run on a GPU (environments.py), beside ours
PEERS = ("e3nn", "mace", "nequip", "sevenn")
OURS = "eqcalc GPU fused"
#: shares of the time that there is, by part
SHARES = {"tests": 0.2, "engines": 0.3, "variants": 0.25, "peers": 0.15, "training": 0.1}
#: s of steps of one engine and size
MOST_SECONDS = 5.0
HERE = Path(__file__).parent
TESTS = HERE.parent


def measure(model: str, options: dict[str, str], repeat: int, steps: int) -> dict[str, Any] | None:
    """µs per atom and step, and forces of the first step; None where memory does not suffice."""
    calc = EquivariantCalculator(model, on_domain_exit="ignore", **options)
    atoms = bulk("Si", cubic=True).repeat(repeat)
    atoms.rattle(0.05, seed=1)
    atoms.calc = calc
    random = np.random.default_rng(0)
    try:
        forces = atoms.get_forces()
        seconds = []
        for _ in range(steps):
            atoms.positions += random.normal(scale=1e-3, size=atoms.positions.shape)
            start = time.perf_counter()
            atoms.get_forces()
            seconds.append(time.perf_counter() - start)
            if sum(seconds) > MOST_SECONDS:
                break
    except InputError as error:
        if "memory" not in str(error):
            raise
        return None
    return {"atoms": len(atoms), "forces": forces, "µs": 1e6 * np.median(seconds) / len(atoms)}


def compare(
    model: str, repeats: list[int], steps: int, until: float = np.inf
) -> list[dict[str, Any]]:
    """A row for each size: atoms, µs per atom by engine, difference of forces from the CPU's.

    until: sizes after this time (time.monotonic) are left out.
    """
    rows = []
    for repeat in repeats:
        if time.monotonic() > until:
            break
        found = {name: measure(model, options, repeat, steps) for name, options in ENGINES.items()}
        reference = found["CPU fused"]
        row: dict[str, Any] = {"atoms": 8 * repeat**3, "µs per atom": {}, "difference": {}}
        for engine, got in found.items():
            if got is None:
                continue
            row["µs per atom"][engine] = got["µs"]
            if reference is not None:
                row["difference"][engine] = float(np.abs(got["forces"] - reference["forces"]).max())
        rows.append(row)
        print(json.dumps(row, ensure_ascii=False), flush=True)
    return rows


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """With these variables; what has been opened without them is forgotten."""
    before = dict(os.environ)
    os.environ.update(values)
    NETWORKS.forget()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        NETWORKS.forget()


def sweep(model: str, repeats: list[int], steps: int, until: float) -> list[dict[str, Any]]:
    """A row for each size: µs per atom by variant, difference of forces from the first variant."""
    rows = []
    for repeat in repeats:
        if time.monotonic() > until:
            break
        row: dict[str, Any] = {"atoms": 8 * repeat**3, "µs per atom": {}, "difference": {}}
        reference = None
        for name, values in VARIANTS.items():
            with environment(values):
                got = measure(model, ENGINES["GPU fused"], repeat, steps)
            if got is None:
                continue
            reference = got["forces"] if reference is None else reference
            row["µs per atom"][name] = got["µs"]
            row["difference"][name] = float(np.abs(got["forces"] - reference).max())
        rows.append(row)
        print(json.dumps(row, ensure_ascii=False), flush=True)
    return rows


def _of_ours(case: Any, model: Path, at_least: float) -> float:
    """µs per atom of our engine, on the case's structure."""
    from cases import structure_of

    calc = EquivariantCalculator(str(model), on_domain_exit="ignore", **ENGINES["GPU fused"])
    potential, pairs = calc.potential, calc.neighbors.pairs(structure_of(case))
    atoms = structure_of(case)
    species, seconds = potential.species_of(atoms.numbers), []
    potential.step(species, atoms.positions, pairs)
    while sum(seconds) < at_least or not seconds:
        start = time.perf_counter()
        potential.step(species, atoms.positions, pairs)
        seconds.append(time.perf_counter() - start)
    return 1e6 * float(np.median(seconds)) / case.atoms


def against_peers(
    repeats: list[int], device: str, environments: Path, at_least: float, until: float
) -> list[dict[str, Any]]:
    """A row for each size: µs per atom by package; why a package has none."""
    sys.path.insert(0, str(HERE))
    from cases import Case, write_export, write_structure
    from environments import PEERS as KNOWN
    from environments import UnavailableError, found_python
    from inference import SMALL, crystal, started, structure_of

    rows = []
    for repeat in repeats:
        if time.monotonic() > until:
            break
        case = Case(f"{8 * repeat**3}", 8 * repeat**3)
        row: dict[str, Any] = {"atoms": case.atoms, "µs per atom": {}, "without": {}}
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            model = write_export(case, folder / "model.pth")
            write_structure(case, crystal(SMALL), folder / "small.npz")
            write_structure(case, structure_of(case), folder / "graph.npz")
            try:
                row["µs per atom"][OURS] = _of_ours(case, model, at_least)
            except InputError as error:
                row["without"][OURS] = str(error)
            for peer in PEERS:
                python, label = found_python(peer, environments), KNOWN[peer].label
                if python is None or time.monotonic() > until:
                    row["without"][label] = "not installed" if python is None else "no time left"
                    continue
                options = {"device": device, "folder": str(environments.resolve() / "models")}
                own = str(python) == sys.executable
                log = folder / f"{peer}.log"
                script = KNOWN[peer].script
                with started(python, script, case.network, options, log, ours=own) as process:
                    try:
                        process.hear()
                        paths = {n: str(folder / f"{n}.npz") for n in ("small", "graph")}
                        process.ask("warm", **paths)
                        seconds = process.ask("time", at_least=at_least)["wall"]
                    except (UnavailableError, BrokenPipeError) as error:
                        row["without"][label] = str(error)
                        continue
                row["µs per atom"][label] = 1e6 * seconds / case.atoms
        rows.append(row)
        print(json.dumps(row, ensure_ascii=False), flush=True)
    return rows


def count(model: str, neighbors: int = 50) -> list[dict[str, Any]]:
    """By degree of the tables: MB that a step's convolutions move for an atom through the
    second-level cache, on GPUs that have slices of tables in shared memory, and on others.

    And of these the tables; by GPU and layer from how many edges on kernels have slices (forward,
    gradients of edges and of features), and channels times paths of each; MB of all tables and of
    the largest layer's; kB of a slice of one path and 32 channels.
    """
    from eqcalc import export
    from eqcalc.engine.cuda.platform import Multiprocessors
    from eqcalc.engine.cuda.potential import PADDING
    from eqcalc.engine.cuda.source import slices_of
    from eqcalc.engine.cuda.variants import DEGREES
    from eqcalc.engine.fused import TABLES
    from eqcalc.engine.readers import read
    from eqcalc.engine.tables import tabulate
    from eqcalc.names import find

    gpus = {
        "H100, H200": Multiprocessors(132, 227 * 1024),
        "A100": Multiprocessors(108, 163 * 1024),
        "RTX 5090": Multiprocessors(170, 99 * 1024),
    }
    path, size = find(model), 4
    potential = export.load(path, dtype="float64")
    rows = []
    for name, degree in DEGREES.items():
        plan = read(potential, "float", PADDING)
        tolerance = TABLES["float"][1]
        tabulate(potential.module, plan, degree=degree, tolerance=tolerance, densities=False)
        intervals = [len(layer.table.coefficients) for layer in plan.layers]
        tables = [layer.table.coefficients.size * size / 1e6 for layer in plan.layers]
        row: dict[str, Any] = {"tables of degree": name, "intervals": intervals}
        moved: dict[str, float] = {"without slices": 0.0, "of these tables": 0.0}
        from_edges: dict[str, list[list[int | None]]] = {}
        shapes: dict[str, list[list[str]]] = {}
        for gpu, multiprocessors in gpus.items():
            made = slices_of(plan, degree, multiprocessors)
            moved[gpu], from_edges[gpu], shapes[gpu] = 0.0, [], []
            for k, layer in enumerate(plan.layers):
                kernels = made[layer.convolution].every
                names = ("forward", "edges", "gather") if k else ("forward", "edges")
                from_edges[gpu].append([])
                shapes[gpu].append([])
                for what in names:
                    kernel = kernels[what]
                    least = kernel.least_edges(intervals[k], multiprocessors.count)
                    per_atom = 1e-6 * neighbors
                    better = kernel.plain if least is None else kernel.moved
                    moved[gpu] += per_atom * better
                    from_edges[gpu][-1].append(least)
                    shapes[gpu][-1].append(f"{kernel.width} x {kernel.most}" if least else "")
                    if gpu == "A100":
                        moved["without slices"] += per_atom * kernel.plain
                        functions = sum(path.mul for path in layer.convolution.paths)
                        moved["of these tables"] += per_atom * functions * (degree + 1) * size
        row |= {"MB per atom": moved, "slices from edges": from_edges, "slices": shapes}
        row |= {
            "MB of all tables": sum(tables),
            "MB of a layer": max(tables),
            "kB of a slice": max(intervals) * (degree + 1) * 32 * size / 1e3,
        }
        rows.append(row)
        print(json.dumps(row, ensure_ascii=False), flush=True)
    return rows


def train(
    repeats: list[int], device: str, until: float, config: Any = None, steps: int = 5
) -> list[dict[str, Any]]:
    """A row for each number of structures: µs per atom of a step of training, and the largest
    difference of gradients, relative to the largest."""
    import copy

    import torch

    sys.path.insert(0, str(HERE))
    from training_step import batch_of, step

    from eqcalc.engine.cuda.training import fuse_convolutions
    from eqcalc.models.nequip import NequIPConfig
    from eqcalc.models.registry import build

    torch.manual_seed(0)
    plain = build(config or NequIPConfig(product_channels=0), [14], 28.0, [1.0], [0.0])
    models = {"plain torch": plain, "generated kernels": fuse_convolutions(copy.deepcopy(plain))}
    rows = []
    for repeat in repeats:
        if time.monotonic() > until:
            break
        batch = batch_of(0.05, repeat).to(device)
        row: dict[str, Any] = {"atoms": batch.graph.num_atoms, "µs per atom": {}, "difference": {}}
        reference = None
        for name, model in models.items():
            model.to(device)
            seconds = []
            try:
                for _ in range(steps):
                    start = time.perf_counter()
                    step(model, batch)
                    if device != "cpu":
                        torch.cuda.synchronize()
                    seconds.append(time.perf_counter() - start)
            except torch.cuda.OutOfMemoryError:
                continue
            gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            got = torch.cat(gradients).double()
            reference = got if reference is None else reference
            row["µs per atom"][name] = 1e6 * float(np.median(seconds)) / row["atoms"]
            row["difference"][name] = float((got - reference).abs().max() / reference.abs().max())
        rows.append(row)
        print(json.dumps(row, ensure_ascii=False), flush=True)
    return rows


def draw(rows: dict[str, list[dict[str, Any]]], title: str, path: Path) -> None:
    """Time per atom over the number of atoms; rows: of each comparison, by its name."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(rows), figsize=(5 * len(rows), 4), squeeze=False)
    for axes, (name, table) in zip(panels[0], rows.items(), strict=True):
        for column in dict.fromkeys(key for row in table for key in row["µs per atom"]):
            points = [
                (row["atoms"], row["µs per atom"][column])
                for row in table
                if column in row["µs per atom"]
            ]
            axes.loglog(*zip(*points, strict=True), "o-", label=column)
        axes.set(xlabel="atoms", ylabel="µs per atom and step", title=name)
        if table:
            axes.legend(fontsize=8)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def emulate() -> dict[str, Any]:
    """GPUs that are none, and torch's engine on the CPU; options of `train` for such."""
    sys.path.insert(0, str(TESTS))
    from emulated import Emulated

    from eqcalc.engine.cuda import platform
    from eqcalc.models.nequip import NequIPConfig

    platform.PLATFORM = Emulated()
    os.environ["EQCALC_EMULATION_SHARED"] = str(227 * 1024)
    ENGINES["GPU torch"] = {"engine": "torch", "device": "cpu"}
    options = {"cutoff": 3.0, "num_layers": 2, "l_max": 1, "num_channels": [4, 3]}
    return {"config": NequIPConfig(product_channels=0, **options), "steps": 1}


def gpu_name(*, emulated: bool) -> str:
    """Of the GPU that is to be timed.

    Raises:
        InputError: there is none, or torch does not see it.
    """
    import torch

    from eqcalc.engine.cuda import platform

    if emulated:
        return "an emulation on the CPU"
    platform.PLATFORM.count()
    if not torch.cuda.is_available():
        raise InputError(
            "There is a GPU here, but this torch cannot use it: install torch's build for CUDA."
        )
    return torch.cuda.get_device_name()


def run_part(name: str, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of a comparison, which it also prints, each when it is there."""
    small = emulate() if given.emulate else {}
    device, until = "cpu" if given.emulate else "cuda", np.inf
    if name == "engines":
        return compare(given.model, given.repeats, given.steps, until)
    if name == "variants":
        return sweep(given.model, given.repeats, given.steps, until)
    if name == "peers":
        folder, at_least = given.environments, given.at_least
        return against_peers(given.repeats, device, folder, at_least, until)
    return train(given.repeats, device, until, **small)


def bounded(command: list[str], seconds: float) -> tuple[list[dict[str, Any]], str]:
    """Rows that a command prints within this time, and why there are no more; "" if it came to its
    end. It and what it has started are ended."""
    rows: list[dict[str, Any]] = []
    start = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        timer = threading.Timer(seconds, os.killpg, (process.pid, signal.SIGKILL))
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.startswith("{"):
                rows.append(json.loads(line))
        status = process.wait()
        timer.cancel()
    if status == 0:
        return rows, ""
    late = time.monotonic() - start >= seconds
    return rows, f"ended after {seconds:.0f} s" if late else f"failed with status {status}"


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="si")
    parser.add_argument("--repeats", type=int, nargs="+", default=[3, 8, 16, 32])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--at-least", type=float, default=0.5, help="seconds of a peer's timing")
    parser.add_argument("--minutes", type=float, default=7.5, help="for all parts together")
    parser.add_argument("--environments", type=Path, default=Path("build/peers"))
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--emulate", action="store_true")
    parser.add_argument("--count", action="store_true")
    parser.add_argument("--part", choices=[*SHARES][1:], help="this one alone, here")
    given = parser.parse_args(words)
    if given.count:
        count(given.model)
        return
    if given.part:
        run_part(given.part, given)
        return
    try:
        name = gpu_name(emulated=given.emulate)
    except InputError as error:
        parser.exit(1, f"{error} (--emulate shows what would be run.)\n")
    files = [str(TESTS / name) for name in ("test_cuda_device.py", "test_calculator.py")]
    python, left = sys.executable, 60.0 * given.minutes
    again = sys.argv[1:] if words is None else words
    tables: dict[str, list[dict[str, Any]]] = {}
    said: dict[str, str] = {}
    for part, share in SHARES.items():
        start = time.monotonic()
        command = [python, __file__, *again, "--part", part]
        if part == "tests":
            command = [python, "-m", "pytest", "-q", "-m", "gpu", *files]
        # what is left over goes to those that follow
        following = sum(list(SHARES.values())[list(SHARES).index(part) :])
        rows, said[part] = bounded(command, left * share / following)
        left -= time.monotonic() - start
        if part != "tests":
            tables[part] = rows
    notes = {part: why for part, why in said.items() if why}
    passed = "tests" not in notes
    result = {"GPU": name, "model": given.model, "tests passed": passed, "cut short": notes}
    given.out.write_text(
        json.dumps({**result, **tables}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    titles = {"engines": given.model, "peers": "random weights"}
    drawn = {titles.get(part, part): rows for part, rows in tables.items()}
    draw(drawn, f"on {name}", given.out.with_suffix(".png"))
    for part, why in notes.items():
        print(f"{part}: {why}")
    print(f"{given.out}, {given.out.with_suffix('.png')}")


if __name__ == "__main__":
    main()
