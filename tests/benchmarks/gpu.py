"""The day a GPU is there: is the GPU engine right on it, and how fast?

    python tests/benchmarks/gpu.py [--model si] [--repeats 3 8 16 32] [--steps 10] [--out gpu.json]

Runs the tests marked `gpu`; then each engine in turn, on perturbed diamond silicon of 8 n^3 atoms:
energies, forces and virials for every step of moving atoms with a neighbour list that lasts
(median, µs per atom, of the clock), and the largest difference of forces from the CPU's engine
(eV/Å). Writes a line for each size, JSON and a picture. Needs no network. Sizes that an engine has
no memory for are left out of its column.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from ase.build import bulk

from eqcalc import EquivariantCalculator
from eqcalc.errors import InputError

#: options of the calculator, by column
ENGINES: dict[str, dict[str, str]] = {
    "GPU fused": {"engine": "fused", "device": "cuda"},
    "GPU torch": {"engine": "torch", "device": "cuda"},
    "CPU fused": {"engine": "fused", "device": "cpu"},
}
TESTS = Path(__file__).parent.parent


def measure(model: str, engine: str, repeat: int, steps: int) -> dict[str, Any] | None:
    """µs per atom and step, and forces of the first step; None where memory does not suffice."""
    calc = EquivariantCalculator(model, on_domain_exit="ignore", **ENGINES[engine])
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
    except InputError as error:
        if "memory" not in str(error):
            raise
        return None
    return {"atoms": len(atoms), "forces": forces, "µs": 1e6 * np.median(seconds) / len(atoms)}


def compare(model: str, repeats: list[int], steps: int) -> list[dict[str, Any]]:
    """A row for each size: atoms, µs per atom by engine, difference of forces from the CPU's."""
    rows = []
    for repeat in repeats:
        found = {engine: measure(model, engine, repeat, steps) for engine in ENGINES}
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


def draw(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Time per atom over the number of atoms."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for engine in ENGINES:
        points = [
            (r["atoms"], r["µs per atom"][engine]) for r in rows if engine in r["µs per atom"]
        ]
        if points:
            axes.loglog(*zip(*points, strict=True), "o-", label=engine)
    axes.set(xlabel="atoms", ylabel="µs per atom and step", title=title)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="si")
    parser.add_argument("--repeats", type=int, nargs="+", default=[3, 8, 16, 32])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    given = parser.parse_args()
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch sees"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(TESTS)]
    tests = subprocess.run(command, check=False).returncode
    rows = compare(given.model, given.repeats, given.steps)
    result = {"GPU": name, "model": given.model, "tests passed": tests == 0, "rows": rows}
    given.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draw(rows, f"{given.model} on {name}", given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
