"""CPU time per atom of networks whose messages live on edges: the fused engine against torch.

    python tests/benchmarks/messages.py [esen ...] [--out FOLDER] [--repeats 5]

The three architectures, or those that are named, with their defaults and random weights: energy,
forces and stress of perturbed diamond silicon with 28 neighbours, float32, one thread. Both engines
take turns, and the median of the ratios counts, so that other work of the machine matters less.
Writes messages.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from ase import Atoms
from ase.build import bulk

from eqcalc import EquivariantCalculator, export
from eqcalc.models.registry import build, model_config
from eqcalc.neighbors import neighbor_list

ARCHITECTURES = ("esen", "equiformer_v2", "equiformer")
CUTOFF = 5.0  # Å


def silicon() -> Atoms:
    atoms = bulk("Si", cubic=True).repeat(2)
    atoms.rattle(0.05, seed=1)
    return atoms


def write(path: Path, architecture: str, atoms: Atoms) -> None:
    """A file of random weights, its messages brought to size on the structure."""
    torch.manual_seed(0)
    config = model_config({"architecture": architecture, "cutoff": CUTOFF})
    model = build(config, [14], 28.0, [1.0], [0.0], None)
    pairs = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF)
    vectors = torch.from_numpy(pairs.vectors(atoms.positions, atoms.cell.array))
    species = torch.zeros(len(atoms), dtype=torch.int64)
    edges = torch.from_numpy(pairs.edge_src), torch.from_numpy(pairs.edge_dst)
    model.reference_structure = export.reference_structure(model, species, vectors, *edges)
    export.save(model, path, {"architecture": config.architecture_name})


def seconds(atoms: Atoms, calculator: EquivariantCalculator) -> float:
    """CPU time of one evaluation of a structure that has moved."""
    atoms.calc = calculator
    atoms.rattle(1e-3)
    start = time.process_time()
    atoms.get_forces()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architectures", nargs="*", default=ARCHITECTURES)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for architecture in arguments.architectures:
        atoms = silicon()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.pth"
            write(path, architecture, atoms)
            engines = {
                name: EquivariantCalculator(path, engine=name, dtype="float32", threads=1)
                for name in ("fused", "torch")
            }
            for calculator in engines.values():  # TorchScript compiles in the first evaluations
                for _ in range(3):
                    seconds(atoms, calculator)
            times: dict[str, list[float]] = {name: [] for name in engines}
            for _ in range(arguments.repeats):
                for name, calculator in engines.items():
                    times[name].append(seconds(atoms, calculator))
        ratios = [b / a for a, b in zip(times["fused"], times["torch"], strict=True)]
        results[architecture] = {
            "fused_us_per_atom": 1e6 * statistics.median(times["fused"]) / len(atoms),
            "torch_us_per_atom": 1e6 * statistics.median(times["torch"]) / len(atoms),
            "ratio": statistics.median(ratios),
            "ratios": [min(ratios), max(ratios)],
        }
        print(architecture, results[architecture])
    (arguments.out / "messages.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
