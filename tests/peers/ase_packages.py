"""Packages that take a calculator of ASE, with ours, beside our own figures.

    python ase_packages.py PACKAGE

with that package installed beside eqcalc. Prints figures as JSON.
"""

import json
import sys

import numpy as np
from ase import Atoms
from ase.build import bulk

from eqcalc import EquivariantCalculator
from eqcalc.checks.elastic import elastic_constants, hill_shear

A0 = 5.4695  # Å, nearly at rest


def calculator():
    return EquivariantCalculator("si", dtype="float64")


def ase_of(cell):
    return Atoms(cell.symbols, positions=cell.positions, cell=cell.cell, pbc=True)


def phono3py():
    """Cubic force constants, and differences of our exact Hessian, in the same supercell."""
    from phono3py import Phono3py
    from phonopy.structure.atoms import PhonopyAtoms

    calc, cell = calculator(), bulk("Si", a=A0)
    of_phonopy = PhonopyAtoms(["Si", "Si"], cell=cell.cell, positions=cell.positions)
    phonons = Phono3py(of_phonopy, [[-1, 1, 1], [1, -1, 1], [1, 1, -1]], primitive_matrix="auto")
    phonons.generate_displacements(distance=0.01)
    displaced = [ase_of(s) for s in phonons.supercells_with_displacements]
    phonons.forces = [result["forces"] for result in calc.evaluate(displaced)]
    phonons.produce_fc3()
    whole = ase_of(phonons.supercell)
    shape = (len(whole), 3, len(whole), 3)
    first = phonons.primitive.p2s_map[0]
    derivative = []
    for axis in range(3):
        sides = []
        for h in (1e-3, -1e-3):
            atoms = whole.copy()
            atoms.positions[first, axis] += h
            sides.append(calc.get_hessian(atoms).reshape(shape).transpose(0, 2, 1, 3))
        derivative.append((sides[0] - sides[1]) / 2e-3)
    derivative = np.array(derivative).transpose(1, 2, 0, 3, 4)  # [N, N, 3, 3, 3] of the first atom
    place = 0 if len(phonons.fc3) < len(whole) else first  # of primitive atoms alone, or of all
    return {
        "largest": float(np.abs(derivative).max()),  # eV/Å^3
        "off": float(np.abs(phonons.fc3[place] - derivative).max()),
    }


def matcalc():
    """Moduli in GPa: of its stress-strain fit, and of our differences."""
    from matcalc import ElasticityCalc

    calc, crystal = calculator(), bulk("Si", a=A0)
    fit = ElasticityCalc(
        calc,
        norm_strains=(-0.004, 0.004),
        shear_strains=(-0.004, 0.004),
        fmax=1e-3,
        relax_deformed_structures=True,
        units_GPa=True,
    )
    found = fit.calc(crystal)
    ours = elastic_constants(crystal, calc, relaxed=True)
    return {
        "bulk": [float(found["bulk_modulus_vrh"]), float(ours[:3, :3].mean())],
        "shear": [float(found["shear_modulus_vrh"]), float(hill_shear(ours))],
    }


def janus_core():
    """A single point, of a structure that brings its calculator."""
    from janus_core.calculations.single_point import SinglePoint

    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=1)
    atoms.calc = calculator()
    expected = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    found = SinglePoint(struct=atoms, properties=["energy", "forces", "stress"]).run()
    return {
        name: float(np.abs(found[name] - value).max())
        for name, value in zip(("energy", "forces", "stress"), expected, strict=True)
    }


if __name__ == "__main__":
    print(json.dumps({f.__name__: f for f in (phono3py, matcalc, janus_core)}[sys.argv[1]]()))
