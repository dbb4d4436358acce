"""Two elements in one cell, from a model that was trained on each of them alone.

    python examples/alloys.py [MODEL] [--out alloys.png]

Relaxes the body-centred cubic elements and every ordered compound AB of the CsCl kind (B2), prints
lattice constants beside those of Vegard's rule and formation energies, and draws energy against
lattice constant. Nothing but the likeness of elements speaks for such numbers where no frame of the
training had two of them: similar metals should come out near zero, at Vegard's lattice constant.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from matplotlib.figure import Figure

from eqcalc import EquivariantCalculator


def pair(first: str, second: str, a: float) -> Atoms:
    return Atoms([first, second], scaled_positions=[[0, 0, 0], [0.5] * 3], cell=[a] * 3, pbc=True)


def relaxed(first: str, second: str, calc: EquivariantCalculator) -> tuple[float, float]:
    """Lattice constant (Å) and energy per atom (eV) of CsCl's structure."""
    atoms = pair(first, second, 3.2)
    atoms.calc = calc
    optimizer = BFGS(FrechetCellFilter(atoms, hydrostatic_strain=True), logfile=None)
    if not optimizer.run(fmax=1e-4, steps=100):
        sys.exit(f"{first}{second} does not come to rest in 100 steps from a = 3.2 Å.")
    return float(atoms.cell.lengths()[0]), atoms.get_potential_energy() / 2


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default=Path(__file__).with_name("nbmotaw.pth"))
    parser.add_argument("--out", type=Path, default=Path("alloys.png"))
    options = parser.parse_args(arguments)

    # elements that never met in the training are the point
    calc = EquivariantCalculator(options.model, dtype="float64", on_domain_exit="ignore")
    if len(calc.potential.symbols) < 2:
        sys.exit(f"{options.model} knows one element: give a model of two or more.")
    elements = {symbol: relaxed(symbol, symbol, calc) for symbol in calc.potential.symbols}
    for symbol, (a, _) in elements.items():
        print(f"{symbol:<6}{a:8.3f} Å")
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    print(f"{'':<6}{'a, Å':>8}{'Vegard':>9}{'formation energy, meV/atom':>29}")
    results = {}
    for one, other in itertools.combinations(elements, 2):
        a, energy = relaxed(one, other, calc)
        vegard = (elements[one][0] + elements[other][0]) / 2
        mixed = (elements[one][1] + elements[other][1]) / 2
        results[one + other] = {"a": a, "vegard": vegard, "formation": 1e3 * (energy - mixed)}
        print(f"{one + other:<6}{a:8.3f}{vegard:9.3f}{1e3 * (energy - mixed):29.0f}")
        constants = a * np.linspace(0.97, 1.03, 25)
        curve = []
        for constant in constants:
            atoms = pair(one, other, constant)
            atoms.calc = calc
            curve.append(1e3 * (atoms.get_potential_energy() / 2 - mixed))
        (line,) = axes.plot(constants, curve, label=one + other)
        axes.plot(vegard, 1e3 * (energy - mixed), "|", ms=14, mew=2, color=line.get_color())
    axes.axhline(0.0, color="0.7", lw=0.8, zorder=0)
    axes.set_xlabel("lattice constant, Å (upright strokes: Vegard's rule)")
    axes.set_ylabel("energy over the elements', meV/atom")
    axes.legend(ncols=2)
    figure.savefig(options.out, dpi=150)
    print(f"Drawn: {options.out}")
    return results


if __name__ == "__main__":
    main()
