"""The main job on the bundled model: relax a silicon vacancy in ASE, then NVE in real LAMMPS.

    python examples/relax_and_nve.py

prints a table and writes `nve_silicon.png` into the current folder.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from ase.build import bulk
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from matplotlib.figure import Figure

from eqcalc import EquivariantCalculator, InputError
from eqcalc.checks.nve import check_nve


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="si", help="a potential file for silicon")
    parser.add_argument("--steps", type=int, default=120, help="MD steps at the longer time step")
    parser.add_argument("--out", type=Path, default=Path("nve_silicon.png"))
    options = parser.parse_args(arguments)

    print("1. Diamond silicon: relax atoms and cell (ASE, BFGS with FrechetCellFilter)")
    calc = EquivariantCalculator(options.model, dtype="float64", threads=1)
    crystal = bulk("Si", cubic=True, a=5.6)
    crystal.calc = calc
    BFGS(FrechetCellFilter(crystal), logfile=None).run(fmax=1e-4)
    a0 = crystal.cell.lengths()[0]
    per_atom = crystal.get_potential_energy() / len(crystal)
    print(f"   lattice constant {a0:.4f} Å (DFT 5.469), energy {per_atom:.4f} eV/atom")

    print("2. A vacancy in 64 atoms: relax it (ASE, BFGS)")
    vacancy = bulk("Si", cubic=True, a=a0).repeat(2)
    del vacancy[0]
    vacancy.rattle(0.02, seed=1)  # away from the symmetric point, so that it can reconstruct
    vacancy.calc = calc
    energies, forces = [], []
    optimizer = BFGS(vacancy, logfile=None)

    def record() -> None:
        energies.append(vacancy.get_potential_energy() - per_atom * len(vacancy))
        forces.append(np.linalg.norm(vacancy.get_forces(), axis=1).max())

    optimizer.attach(record)
    optimizer.run(fmax=0.01, steps=200)
    print(
        f"   formation energy {energies[-1]:.3f} eV after {optimizer.nsteps} steps, "
        f"largest force {forces[-1]:.4f} eV/Å"
    )

    print("3. NVE from there at about 300 K, in ASE and in LAMMPS (pair_style equivariant)")
    report = check_nve(
        vacancy, options.model, timestep=2.0, steps=options.steps, temperature=600.0, progress=True
    )
    print(report)

    figure = Figure(figsize=(16, 4.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.plot(energies, "o-", ms=3, color="C0")
    left.set(xlabel="BFGS step", ylabel="vacancy formation energy (eV)")
    left.set_title("ASE: relaxing a vacancy, 63 atoms")
    force_axis = left.twinx()
    force_axis.semilogy(forces, ".-", color="C1", lw=0.8)
    force_axis.set_ylabel("largest force (eV/Å)", color="C1")
    report.draw_energies(middle)
    report.draw_conservation(right)
    for axis in (left, middle, right):
        axis.grid(alpha=0.3)
    figure.savefig(options.out, dpi=120)
    print(f"Picture: {options.out}")
    return 0 if report.passed else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(f"Error: {error}")
