"""Published weights of SevenNet as imports, beside the original: numbers and speed in one run.

    python tests/benchmarks/published.py [--models 7net-0 7net-l3i5 7net-mf-0:PBE] [--repeats 5]
        [--environments FOLDER] [--out results.json]

SevenNet 0.13.0 gets an environment below --environments (default: build/peers), which is kept.
Numbers: energies, forces and stresses of five structures (a molecule, a metal, an oxide of four
elements, a high-entropy alloy, a strained crystal), each engine and precision against the original
in the same precision. Speed: whole calls of both calculators in float32, one thread, each process
visited once in every repetition; ratios are of medians of CPU time. Exits with 1 where numbers
differ by more than 1e-5 eV per atom or 1e-4 eV/Å in float32, a tenth of that in float64.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from ase.spacegroup import crystal

sys.path.append(str(Path(__file__).parents[2] / "examples"))

from environments import PEERS, UnavailableError, python_of
from inference import Row, started
from report import machine
from teacher_lifepo4 import lithium_iron_phosphate

from eqcalc.importers import import_model
from eqcalc.importers.published import SEVENN

#: by precision: eV per atom, eV/Å, eV/Å^3
ALLOWED = {"float32": (1e-5, 1e-4, 1e-5), "float64": (1e-6, 1e-5, 1e-6)}


def structures() -> dict[str, Atoms]:
    """What numbers are compared on."""
    ethanol = molecule("CH3CH2OH")
    copper = bulk("Cu", cubic=True)
    phosphate = lithium_iron_phosphate()
    alloy = bulk("Co", "fcc", a=3.57, cubic=True).repeat(2)
    alloy.set_chemical_symbols(np.random.default_rng(0).permutation(["Co", "Cr", "Fe", "Ni"] * 8))
    silicon = bulk("Si", cubic=True)
    strain = np.array([[1.03, 0.01, 0.0], [0.0, 0.98, 0.02], [0.0, 0.0, 1.01]])
    silicon.set_cell(silicon.cell.array @ strain, scale_atoms=True)
    found = {
        "ethanol": ethanol,
        "copper": copper,
        "LiFePO4": phosphate,
        "CoCrFeNi": alloy,
        "strained silicon": silicon,
    }
    for seed, atoms in enumerate(found.values()):
        atoms.rattle(0.05, seed=seed)
    return found


def timed() -> dict[str, Atoms]:
    """What is timed."""
    titanate = crystal(
        ["Ba", "Ti", "O"],
        [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)],
        spacegroup=221,
        cellpar=[4.01] * 3 + [90] * 3,
    )
    found = {
        "Si, 216 atoms": bulk("Si", cubic=True).repeat(3),
        "BaTiO3, 135 atoms": titanate.repeat(3),
    }
    for seed, atoms in enumerate(found.values()):
        atoms.rattle(0.05, seed=seed)
    return found


def save(atoms: Atoms, path: Path) -> str:
    cell = {"cell": atoms.cell.array, "pbc": atoms.pbc}
    np.savez(path, numbers=atoms.numbers, positions=atoms.positions, **cell)
    return str(path)


def compare(rows: dict[tuple[str, str], Row], folder: Path) -> list[dict]:
    """Largest differences of every engine and precision on every structure."""
    table = []
    for name, atoms in structures().items():
        graph, found = save(atoms, folder / "graph.npz"), {}
        for key, row in rows.items():
            row.ask("results", graph=graph, to=str(folder / "found.npz"))
            found[key] = dict(np.load(folder / "found.npz"))
        for (label, dtype), mine in found.items():
            if label == "original":
                continue
            theirs = found["original", dtype]
            table.append(
                {
                    "structure": name,
                    "engine": label,
                    "dtype": dtype,
                    "energy": float(abs(mine["energy"] - theirs["energy"])) / len(atoms),
                    "forces": float(np.abs(mine["forces"] - theirs["forces"]).max()),
                    "stress": float(np.abs(mine["stress"] - theirs["stress"]).max()),
                }
            )
    return table


def race(rows: dict[tuple[str, str], Row], folder: Path, repeats: int) -> list[dict]:
    """µs of CPU time per atom of the original and the fused engine in float32."""
    table = []
    runners = {label: rows[label, "float32"] for label in ("original", "fused")}
    for name, atoms in timed().items():
        graph = save(atoms, folder / "graph.npz")
        seconds: dict[str, list[float]] = {label: [] for label in runners}
        for row in runners.values():
            row.ask("warm", small=graph, graph=graph)
        for _ in range(repeats):
            for label, row in runners.items():
                seconds[label].append(row.ask("time", at_least=0.2)["cpu"])
        each = {k: 1e6 * statistics.median(v) / len(atoms) for k, v in seconds.items()}
        table.append({"structure": name, **each, "ratio": each["original"] / each["fused"]})
    return table


def run(model: str, python: Path, options: argparse.Namespace, logs: Path) -> dict:
    name, _, task = model.partition(":")
    weights = next(python.parents[1].glob(f"lib/*/site-packages/sevenn/*/{SEVENN[name]}"))
    own = Path(sys.executable)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path = import_model(weights, folder / "model.pth", task=task or None).path
        rows: dict[tuple[str, str], Row] = {}
        for dtype in ALLOWED:
            network, log = {"model": model, "dtype": dtype}, logs / f"{name}-{dtype}"
            for label in ("original", "fused", "torch"):
                ours = label != "original"
                script = f"row_{'eqcalc' if ours else 'sevenn'}_published.py"
                extra = {"engine": label, "model": str(path)}
                rows[label, dtype] = stack.enter_context(
                    started(
                        own if ours else python,
                        script,
                        network,
                        extra,
                        Path(f"{log}-{label}.log"),
                        ours=ours,
                    )
                )
        for row in rows.values():
            row.hear()
        return {
            "model": model,
            "differences": compare(rows, folder),
            "speed": race(rows, folder, options.repeats),
            "load_average": os.getloadavg(),
        }


def too_different(row: dict) -> bool:
    energy, forces, stress = ALLOWED[row["dtype"]]
    return not (row["energy"] < energy and row["forces"] < forces and row["stress"] < stress)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["7net-0", "7net-l3i5", "7net-mf-0:PBE"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--environments", type=Path, default=Path("build/peers"))
    parser.add_argument("--out", type=Path, default=Path("build/published.json"))
    options = parser.parse_args()
    try:
        python = python_of("sevenn", options.environments)
    except UnavailableError as error:
        print(error)
        return 0
    logs = options.environments / "logs"
    for folder in (logs, options.out.parent):
        folder.mkdir(parents=True, exist_ok=True)
    document = {"machine": machine(), "peer": PEERS["sevenn"].label, "models": []}
    wrong = False
    for model in options.models:
        document["models"].append(found := run(model, python, options, logs))
        for row in found["differences"]:
            wrong |= too_different(row)
            print("{structure:18}{engine:7}{dtype:9}".format(**row), end="")
            print("{energy:.1e} eV/atom {forces:.1e} eV/Å {stress:.1e} eV/Å^3".format(**row))
        for row in found["speed"]:
            print(f"{model} {row['structure']}: original {row['original']:.0f}, ", end="")
            print(f"fused {row['fused']:.0f} µs per atom, ratio {row['ratio']:.0f}", flush=True)
        options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
