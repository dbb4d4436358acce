"""Networks of other packages as imports, beside the original: numbers and speed in one run.

    python tests/benchmarks/published.py [--models 7net-0 7net-l3i5] [--repeats 5]
        [--without-lammps] [--environments FOLDER] [--out results.json]

SevenNet 0.13.0 and NequIP 0.19.1 get environments below --environments (default: build/peers),
which are kept; NequIP compiles its network once with AOTInductor (a minute).
Numbers: energies, forces and stresses of five structures (a molecule, a metal, an oxide of four
elements, a high-entropy alloy, a strained crystal), each engine and precision, in ASE and in
LAMMPS on one and four ranks, against the original in the same precision.
Speed: whole calls of both calculators for ASE in float32, one thread, atoms that move a little
between calls, each process visited once in every repetition; ratios are of medians of CPU time, and
of the shortest times. Then the time that opening a file takes once its kernels are compiled, and
the size of its radial tables.
Models that --out has and that are not asked for stay in it. Exits with 1 where numbers differ by
more than 1e-5 eV per atom or 1e-4 eV/Å in float32, a tenth of that in float64.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from ase import Atoms
from environments import PEERS, UnavailableError, python_of
from inference import Row, started
from published_cases import NETWORKS, PeerNetwork, structures, timed
from report import machine

from eqcalc import export
from eqcalc.checks.parity import by_lammps
from eqcalc.engine import readers
from eqcalc.engine.fused import SCALARS, TABLES
from eqcalc.engine.tables import tabulate
from eqcalc.importers import import_model
from eqcalc.lammps.box import lammps_cell

#: by precision: eV per atom, eV/Å, eV/Å^3
ALLOWED = {"float32": (1e-5, 1e-4, 1e-5), "float64": (1e-6, 1e-5, 1e-6)}
ENGINES = ("fused", "torch")
RANKS = (1, 4)
FILES = dict[str, Path]  # imported, by precision


def save(atoms: Atoms, path: Path) -> str:
    cell = {"cell": atoms.cell.array, "pbc": atoms.pbc}
    np.savez(path, numbers=atoms.numbers, positions=atoms.positions, **cell)
    return str(path)


def difference(atoms: Atoms, mine: dict, theirs: dict) -> dict[str, float]:
    """Largest ones: eV per atom, eV/Å, eV/Å^3."""
    return {
        "energy": float(abs(mine["energy"] - theirs["energy"])) / len(atoms),
        "forces": float(np.abs(mine["forces"] - theirs["forces"]).max()),
        "stress": float(np.abs(mine["stress"] - theirs["stress"]).max()),
    }


def in_lammps(atoms: Atoms, path: Path, dtype: str, ranks: int, engine: str) -> dict:
    """Energy, forces and stress, turned back from LAMMPS's box."""
    got, turn = by_lammps(atoms, path, dtype, ranks, engine=engine), lammps_cell(atoms)[2]
    stress = -turn @ got["pressure"] @ turn.T if "pressure" in got else np.zeros((3, 3))
    energy = got["energy"] * len(atoms)
    return {"energy": energy, "forces": got["forces"] @ turn.T, "stress": stress}


def compare(
    rows: dict[tuple[str, str], Row], files: FILES, folder: Path, ranks: tuple[int, ...]
) -> list[dict]:
    """Largest differences of every engine and precision on every structure, in ASE and LAMMPS."""
    table = []
    for name, atoms in structures().items():
        graph, found = save(atoms, folder / "graph.npz"), {}
        for key, row in rows.items():
            row.ask("results", graph=graph, to=str(folder / "found.npz"))
            found[key] = dict(np.load(folder / "found.npz"))
        for dtype, path in files.items():
            theirs = found["original", dtype]
            for engine in ENGINES:
                everywhere = {"ASE": found[engine, dtype]} | {
                    f"LAMMPS, {n} rank{'s' * (n > 1)}": in_lammps(atoms, path, dtype, n, engine)
                    for n in ranks
                }
                for where, mine in everywhere.items():
                    row = {"structure": name, "in": where, "engine": engine, "dtype": dtype}
                    table.append(row | difference(atoms, mine, theirs))
    return table


def race(rows: dict[tuple[str, str], Row], folder: Path, repeats: int) -> list[dict]:
    """µs of CPU time per atom of the original and the fused engine in float32."""
    table = []
    runners = {label: rows[label, "float32"] for label in ("original", "fused")}
    for name, atoms in timed().items():
        graph = save(atoms, folder / "graph.npz")
        small = save(atoms[:40], folder / "small.npz")
        seconds: dict[str, list[float]] = {label: [] for label in runners}
        for row in runners.values():
            row.ask("warm", small=small, graph=graph)
        for _ in range(repeats):
            for label, row in runners.items():
                seconds[label].append(row.ask("time", at_least=0.2)["cpu"])
        each = {k: 1e6 * statistics.median(v) / len(atoms) for k, v in seconds.items()}
        ratio = {
            "ratio": each["original"] / each["fused"],
            "ratio_of_shortest": min(seconds["original"]) / min(seconds["fused"]),
        }
        table.append({"structure": name, **each, **ratio})
    return table


OPENING = """
import sys, time
from eqcalc.engine.fused import fuse
start = time.process_time()
fuse(sys.argv[1], threads=1)
print(time.process_time() - start)
"""


def opening(path: Path) -> dict[str, float]:
    """Of a file in float32 whose kernels are compiled: s of CPU time, MB of its radial tables."""
    command = [sys.executable, "-c", OPENING, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    potential = export.load(path, dtype="float64")
    scalar = SCALARS[export.precision("float32", {})]
    plan = readers.read(potential, scalar)
    degree, tolerance = TABLES[scalar]
    tabulate(potential.module, plan, degree=degree, tolerance=tolerance)
    numbers = sum(layer.table.coefficients.size for layer in plan.layers)
    return {"seconds": float(done.stdout), "table_mb": 4e-6 * numbers}


def run(model: str, python: Path, options: argparse.Namespace, logs: Path) -> dict:
    network: PeerNetwork = NETWORKS[model]
    own, made = Path(sys.executable), options.environments.resolve() / "models"
    made.mkdir(exist_ok=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        rows: dict[tuple[str, str], Row] = {}
        files: FILES = {}
        for dtype in ALLOWED:
            original, path = network.file(python, made, dtype), folder / f"{dtype}.pth"
            import_model(original, path, elements=network.elements, task=network.task)
            files[dtype] = path
            given = network.of | {"dtype": dtype, "task": network.task}
            extra = {"model": str(path), "original": str(original), "folder": str(made)}
            log = logs / f"{model.partition(':')[0]}-{dtype}"
            for label in ("original", *ENGINES):
                ours = label != "original"
                rows[label, dtype] = stack.enter_context(
                    started(
                        own if ours else python,
                        "row_eqcalc_published.py" if ours else network.script,
                        given,
                        extra | {"engine": label},
                        Path(f"{log}-{label}.log"),
                        ours=ours,
                    )
                )
        for row in rows.values():
            row.hear()
        return {
            "model": model,
            "peer": PEERS[network.peer].label,
            "differences": compare(rows, files, folder, () if options.without_lammps else RANKS),
            "speed": race(rows, folder, options.repeats) if network.timed else [],
            "opening": opening(files["float32"]),
            "machine": machine(),
        }


def too_different(row: dict) -> bool:
    energy, forces, stress = ALLOWED[row["dtype"]]
    return not (row["energy"] < energy and row["forces"] < forces and row["stress"] < stress)


#: of differences and of times
UNITS = {
    "energy": "eV/atom",
    "forces": "eV/Å",
    "stress": "eV/Å^3",
    "original": "µs of CPU per atom",
    "fused": "µs of CPU per atom",
}


def text(document: dict) -> str:
    """JSON with a line for each row of a table."""
    found = json.dumps({"units": UNITS, **document}, indent=1, ensure_ascii=False)
    return re.sub(r"\{[^{}\[\]]*\}", lambda row: " ".join(row[0].split()), found) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--without-lammps", action="store_true")
    parser.add_argument("--environments", type=Path, default=Path("build/peers"))
    parser.add_argument("--out", type=Path, default=Path("build/published.json"))
    options = parser.parse_args()
    logs = options.environments / "logs"
    for folder in (logs, options.out.parent):
        folder.mkdir(parents=True, exist_ok=True)
    document = {"models": []}
    if options.out.is_file():
        document = json.loads(options.out.read_text(encoding="utf-8"))
    wrong = False
    for model in options.models:
        try:
            python = python_of(NETWORKS[model].peer, options.environments)
        except UnavailableError as error:
            print(error)
            continue
        found = run(model, python, options, logs)
        others = [other for other in document["models"] if other["model"] != model]
        document["models"] = sorted(
            [*others, found], key=lambda m: list(NETWORKS).index(m["model"])
        )
        for row in found["differences"]:
            wrong |= too_different(row)
            print("{structure:17}{in:17}{engine:7}{dtype:9}".format(**row), end="")
            print("{energy:.1e} eV/atom {forces:.1e} eV/Å {stress:.1e} eV/Å^3".format(**row))
        for row in found["speed"]:
            print(f"{model} {row['structure']}: original {row['original']:.0f}, ", end="")
            print("fused {fused:.1f} µs per atom, ratio {ratio:.1f}".format(**row), end="")
            print(", of the shortest {ratio_of_shortest:.1f}".format(**row))
        print(
            "{}: opens in {seconds:.1f} s, tables of {table_mb:.0f} MB".format(
                model, **found["opening"]
            )
        )
        options.out.write_text(text(document), encoding="utf-8")
        sys.stdout.flush()
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
