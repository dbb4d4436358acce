"""Molecular dynamics end to end: steps per second in LAMMPS, and of NequIP's calculator in ASE.

    python tests/benchmarks/lammps_steps.py [--atoms 512 4096] [--repeats 3]
        [--environments FOLDER] [--out lammps.json]

NVE of silicon at 300 K, 1 fs, one rank, one thread, neighbour lists and all; the bundled model with
either engine. Where --environments has the NequIP environment that inference.py makes, an
untrained NequIP of the bundled model's size (AOTInductor) drives ASE at the smallest number of
atoms. Runs take turns; medians. Ratios are of steps per second of CPU time, as in inference.py.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ase.build import bulk
from ase.io import write
from cases import Case
from environments import PEERS, UnavailableError, found_python
from report import machine

from eqcalc.errors import InputError
from eqcalc.lammps import run_lmp, write_input

ENGINES = ("fused", "torch")
WARM_UP = 2  # steps
ROW_NEQUIP = Path(__file__).with_name("row_nequip.py")
SIZE = Case("bundled", 0, channels=(64, 32, 32)).network  # of the bundled model


Rates = tuple[float, float]  # steps per second of the clock, and of CPU time


def lammps_rate(engine: str, repeat: int, folder: Path, steps: int) -> Rates:
    """Of a run after a short one that warms up.

    Raises:
        UnavailableError: LAMMPS refuses.
    """
    atoms = bulk("Si", cubic=True).repeat(repeat)
    script = write_input(atoms, "si", folder, steps=steps, thermo_every=0, dump_every=0)
    text = script.read_text()
    text = text.replace("pair_style equivariant", f"pair_style equivariant engine {engine}")
    script.write_text(text.replace(f"run {steps}", f"run {WARM_UP}\nrun {steps}"))
    try:
        output = run_lmp(script)
    except InputError as error:
        if engine != "torch" or "engine" not in str(error):
            raise UnavailableError(f"engine {engine}: {error}") from None
        script.write_text(script.read_text().replace(" engine torch", ""))
        output = run_lmp(script)
    wall = float(re.findall(r"^Loop time of (\S+) on", output, re.MULTILINE)[-1])
    used = float(re.findall(r"^(\S+)% CPU use", output, re.MULTILINE)[-1]) / 100.0
    return steps / wall, steps / (wall * used)


def nequip_rate(python: Path, models: Path, repeat: int, folder: Path, steps: int) -> Rates:
    structure = folder / "structure.xyz"
    write(structure, bulk("Si", cubic=True).repeat(repeat))
    arguments = ["--md", json.dumps(SIZE), models, structure, str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [str(word) for word in (python, ROW_NEQUIP, *arguments)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env=environment,
    )
    if done.returncode:
        raise UnavailableError(f"NequIP in ASE: {done.stderr.strip().splitlines()[-1]}")
    wall, cpu = done.stdout.strip().splitlines()[-1].split()
    return float(wall), float(cpu)


def compare(runs: dict[str, Callable[[int], Rates]], options: argparse.Namespace) -> dict[str, Any]:
    """Steps per second of each; every repetition runs each once, for about as long."""
    steps: dict[str, int] = {}
    for label, run in runs.items():
        try:
            steps[label] = max(3, min(1000, round(options.seconds * run(3)[0])))
        except UnavailableError as error:
            print(f"  without {label}: {error}", flush=True)
    rates: dict[str, list[Rates]] = {label: [] for label in steps}
    for _ in range(options.repeats):
        for label, count in steps.items():
            rates[label].append(runs[label](count))
    medians = {label: np.median(values, axis=0).tolist() for label, values in rates.items()}
    print(f"  {'steps per second':<18}{'CPU':>9}{'clock':>9}", flush=True)
    for label, (wall, cpu) in medians.items():
        ratios = ", ".join(f"{cpu / medians[o][1]:.1f} × {o}" for o in medians if o != label)
        print(f"  {label:<18}{cpu:>9.2f}{wall:>9.2f}   {ratios}", flush=True)
    return {
        label: {
            "steps_per_second": wall,
            "steps_per_cpu_second": cpu,
            "steps": steps[label],
            "each": rates[label],
        }
        for label, (wall, cpu) in medians.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--atoms", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0, help="of one run")
    parser.add_argument("--environments", type=Path, default=Path("build/peers"))
    parser.add_argument("--out", type=Path, default=Path("build/lammps_steps.json"))
    options = parser.parse_args()
    nequip = found_python("nequip", options.environments)
    if nequip is None:
        print(f"without {PEERS['nequip'].label} in ASE: inference.py makes its environment")
    document: dict[str, Any] = {"machine": machine(), "model": "si", "sizes": {}}
    for atoms in options.atoms:
        repeat = round((atoms / 8) ** (1 / 3))
        count = 8 * repeat**3
        print(f"{count} atoms", flush=True)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            runs: dict[str, Callable[[int], Rates]] = {
                f"LAMMPS {engine}": lambda steps, e=engine, r=repeat, f=folder: lammps_rate(
                    e, r, f, steps
                )
                for engine in ENGINES
            }
            if nequip and atoms == min(options.atoms):
                models = options.environments.resolve() / "models"
                runs["NequIP in ASE"] = lambda steps, r=repeat, f=folder, m=models: nequip_rate(
                    nequip, m, r, f, steps
                )
            document["sizes"][count] = compare(runs, options)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(options.out)


if __name__ == "__main__":
    main()
