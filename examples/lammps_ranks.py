"""Any number of processes gives the same dynamics: real LAMMPS on 1, 2 and 4 ranks against ASE.

    python examples/lammps_ranks.py

Each run starts from the same warm silicon crystal; energy and forces of its last step are compared
with the ASE calculator on the positions of that step, and a table is printed.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
from ase.build import bulk
from ase.io import read

from eqcalc import EquivariantCalculator, InputError
from eqcalc.lammps import read_thermo, run_lmp, write_input
from eqcalc.lammps.script import DUMP_FILE

#: eV per atom and eV/Å. Sums in another order; the dump has 15 digits of each position.
ALLOWED = {"double": (1e-10, 1e-9), "single": (1e-5, 1e-3)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="si", help="a potential file for silicon")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--repeat", type=int, default=3, help="n^3 cubic cells of 8 atoms")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--precision", choices=ALLOWED, default="double")
    options = parser.parse_args(arguments)

    dtype = {"double": "float64", "single": "float32"}[options.precision]
    calc = EquivariantCalculator(options.model, dtype=dtype, threads=1)
    atoms = bulk("Si", cubic=True, a=5.47).repeat(options.repeat)
    atoms.rattle(0.05, seed=1)
    print(
        f"{len(atoms)} atoms, {options.steps} steps, {options.precision} precision, one thread per "
        f"rank, {os.cpu_count()} cores here"
    )
    print(f"{'ranks':>5}{'ms per step':>14}{'speed-up':>10}{'|ΔE| eV/atom':>15}{'|ΔF| eV/Å':>12}")

    passed, first = True, None
    for ranks in options.ranks:
        with tempfile.TemporaryDirectory() as folder:
            script = write_input(
                atoms,
                options.model,
                folder,
                "nve",
                temperature=1500.0,
                steps=options.steps,
                thermo_every=options.steps,
                dump_every=options.steps,
                digits=15,
                precision=options.precision,
            )
            output = run_lmp(script, ranks=ranks)
            last = read(Path(folder) / DUMP_FILE, format="lammps-dump-text", index=-1)
        seconds = float(re.search(r"Loop time of (\S+) on", output)[1]) / options.steps
        first = first or seconds
        energy, forces = read_thermo(output)["PotEng"][-1], last.get_forces()
        last.calc = calc
        off = (
            abs(energy - last.get_potential_energy()) / len(last),
            np.abs(forces - last.get_forces()).max(),
        )
        print(f"{ranks:5}{1e3 * seconds:14.1f}{first / seconds:10.2f}{off[0]:15.1e}{off[1]:12.1e}")
        passed &= all(a <= b for a, b in zip(off, ALLOWED[options.precision], strict=True))
    print("Same energies and forces as in ASE." if passed else "NOT the same as in ASE.")
    return 0 if passed else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(f"Error: {error}")
