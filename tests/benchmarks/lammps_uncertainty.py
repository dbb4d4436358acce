"""What uncertainty costs in LAMMPS: CPU time of a step with it, by that without.

    python tests/benchmarks/lammps_uncertainty.py [--atoms 216] [--out lammps_uncertainty.json]

NVE of silicon at 300 K with the bundled model, one rank, one thread: the model, and a committee of
the same file four times, which costs what four files of its size do. Either instance of LAMMPS runs
with `fix equivariant/monitor` at every step and without it by turns (two instances differ by 5 %
because of where their memory lies); every second round goes backwards. Ratios are of the two turns
of a round: medians, with the standard error of the mean.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from ase.build import bulk
from report import machine

from eqcalc.lammps import lammps, write_input

WARM_UP = 5  # steps

WATCH = "fix watch all equivariant/monitor 1 {folder}/watch.txt quantity {quantity}"

#: by name: members, and the quantity that is watched
CASES = {"grade": (1, "grade"), "force deviations": (4, "force_deviation")}


class Run:
    """An instance of LAMMPS that has taken its first steps."""

    def __init__(self, name: str, atoms: int, folder: Path) -> None:
        members, quantity = CASES[name]
        cell = bulk("Si", cubic=True).repeat(round((atoms / 8) ** (1 / 3)))
        script = write_input(
            cell, ["si"] * members, folder, steps=WARM_UP, thermo_every=0, dump_every=0
        )
        self.watch = WATCH.format(folder=folder, quantity=quantity)
        self.lammps = lammps(cmdargs=["-log", "none", "-screen", "none", "-nocite"])
        for line in script.read_text().splitlines():
            if line.startswith("write_data"):
                break
            self.lammps.command(line.replace("read_data ", f"read_data {folder}/"))

    def seconds(self, steps: int, *, watched: bool) -> float:
        """CPU time of a step."""
        if watched:
            self.lammps.command(self.watch)
        self.lammps.command(f"run {WARM_UP} post no")
        start = time.process_time()
        self.lammps.command(f"run {steps} post no")
        spent = time.process_time() - start
        if watched:
            self.lammps.command("unfix watch")
        return spent / steps


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--atoms", type=int, default=216)
    parser.add_argument("--steps", type=int, default=20, help="of one turn")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("build/lammps_uncertainty.json"))
    options = parser.parse_args()
    document: dict[str, Any] = {
        "machine": machine(),
        "atoms": options.atoms,
        "steps": options.steps,
        "rounds": options.rounds,
        "with / without": {},
        "cpu_ms_per_step": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        for number, name in enumerate(CASES):
            run = Run(name, options.atoms, Path(scratch) / str(number))
            found = np.zeros((options.rounds, 2))  # without, with
            for turn in range(options.rounds):
                for watched in (False, True) if turn % 2 else (True, False):
                    found[turn, int(watched)] = run.seconds(options.steps, watched=watched)
            ratio = found[:, 1] / found[:, 0]
            spread = float(ratio.std(ddof=1) / np.sqrt(len(ratio)))
            document["with / without"][name] = [float(np.median(ratio)), spread]
            document["cpu_ms_per_step"][name] = (1e3 * np.median(found, axis=0)).tolist()
            print(f"{name:<20} {np.median(ratio):.3f} +- {spread:.3f}", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(options.out)


if __name__ == "__main__":
    main()
