"""What the potential says of a crystal or a molecule, beside reference values if there are any."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator

from eqcalc.checks import crystal, elastic, molecule
from eqcalc.checks.crystal import EnergyVolume
from eqcalc.checks.naming import crystal_name
from eqcalc.checks.property_report import (
    BULK_MODULUS_AGREES,
    IMAGINARY_INVCM,
    IMAGINARY_THZ,
    PropertiesReport,
    Property,
)
from eqcalc.checks.structures import bare, primitive_cell
from eqcalc.errors import InputError

if TYPE_CHECKING:
    from eqcalc.checks.references import References

Progress = Callable[[str], None]


def _silent(_: str) -> None:
    pass


def _lattice(atoms: Atoms) -> dict[str, Property]:
    """Lengths of the conventional cell of the Bravais lattice, and the volume."""
    lattice = atoms.cell.get_bravais_lattice(eps=1e-3)
    lengths = {n: v for n, v in lattice.vars().items() if n in ("a", "b", "c")}
    found = {
        name: Property(value, "Å", f"lattice constant, {crystal_name(atoms)}")
        for name, value in lengths.items()
    }
    per_atom = atoms.get_volume() / len(atoms)
    return found | {"volume": Property(per_atom, "Å³/atom", "equilibrium volume")}


def _elastic(clamped: np.ndarray, relaxed: np.ndarray) -> dict[str, Property]:
    """Independent constants of a cubic crystal, or every one that is not zero."""
    found = {}
    cubic = elastic.is_cubic(relaxed)
    for ending, how, matrix in (("", "relaxed-ion", relaxed), ("_clamped", "clamped-ion", clamped)):
        if cubic:
            values = dict(zip(("C11", "C12", "C44"), elastic.cubic_constants(matrix), strict=True))
        else:
            large = 0.005 * np.abs(matrix).max()
            values = {
                f"C{i + 1}{j + 1}": matrix[i, j]
                for i in range(6)
                for j in range(i, 6)
                if abs(matrix[i, j]) > large
            }
        for name, value in values.items():
            found[name + ending] = Property(float(value), "GPa", f"elastic constant, {how}")
    found["shear_modulus"] = Property(elastic.hill_shear(relaxed), "GPa", "Voigt-Reuss-Hill mean")
    return found


def crystal_properties(
    atoms: Atoms,
    calc: Calculator,
    *,
    references: References | None = None,
    progress: Progress = _silent,
) -> PropertiesReport:
    """Lattice, E(V), elastic constants, vacancy (of elements) and phonons of a periodic crystal."""
    progress("relaxing the crystal")
    cell = crystal.relax(primitive_cell(bare(atoms)), calc, cell=True, fmax=crystal.TIGHT)
    progress("energy over volume")
    scan = crystal.energy_volume(cell, calc)
    properties = _lattice(cell)
    properties["energy"] = Property(scan.equilibrium_energy, "eV/atom", "energy at equilibrium")
    properties["bulk_modulus"] = Property(scan.bulk_modulus, "GPa", "bulk modulus from E(V)")
    progress("elastic constants")
    matrices = {
        "clamped-ion": elastic.elastic_constants(cell, calc, relaxed=False),
        "relaxed-ion": elastic.elastic_constants(cell, calc, relaxed=True),
    }
    from_stress = float(matrices["relaxed-ion"][:3, :3].mean())
    properties["bulk_modulus_stress"] = Property(from_stress, "GPa", "the same from stresses")
    properties |= _elastic(matrices["clamped-ion"], matrices["relaxed-ion"])
    problems, notes = _crystal_problems(scan, matrices["relaxed-ion"], from_stress), []
    if len(set(cell.numbers)) == 1:
        progress("vacancy")
        energy, count = crystal.vacancy_energy(cell, calc)
        meaning = f"vacancy formation energy, {count} sites at constant volume"
        properties["vacancy_energy"] = Property(energy, "eV", meaning)
    else:
        notes.append("No vacancy energy: in a compound it depends on chemical potentials.")
    progress("phonons")
    bands = crystal.phonon_bands(cell, calc)
    lowest, highest = float(bands.frequency.min()), float(bands.frequency.max())
    properties["phonon_max"] = Property(highest, "THz", "highest phonon on the path")
    properties["phonon_min"] = Property(lowest, "THz", "lowest phonon on the path (0 at Γ)")
    if lowest < -IMAGINARY_THZ:
        problems.append(
            f"There are imaginary phonons down to {lowest:.2f} THz: in this model the crystal is "
            "not a minimum."
        )
    if references:
        references.require_known(properties)
    name = cell.get_chemical_formula(empirical=True)
    return PropertiesReport(
        f"{name}, {crystal_name(cell)}",
        properties,
        problems,
        notes,
        references,
        scan=scan,
        bands=bands,
        matrices=matrices,
    )


def _crystal_problems(scan: EnergyVolume, relaxed: np.ndarray, from_stress: float) -> list[str]:
    said = []
    if scan.minima != 1:
        said.append(f"E(V) has {scan.minima} minima between 0.8 and 1.3 V0 instead of 1.")
    lowest = float(np.linalg.eigvalsh(relaxed).min())
    if lowest <= 0.0:
        said.append(
            f"The elastic matrix has an eigenvalue of {lowest:.2f} GPa: the crystal is unstable "
            "against strain."
        )
    if not abs(scan.bulk_modulus - from_stress) <= BULK_MODULUS_AGREES * abs(from_stress):
        said.append(
            f"The bulk modulus is {scan.bulk_modulus:.1f} GPa from energies, but "
            f"{from_stress:.1f} from stresses: they contradict each other."
        )
    return said


def molecule_properties(
    atoms: Atoms,
    calc: Calculator,
    *,
    references: References | None = None,
    progress: Progress = _silent,
) -> PropertiesReport:
    """Energy, bond lengths and vibrations of a relaxed molecule."""
    progress("relaxing the molecule")
    relaxed = crystal.relax(bare(atoms), calc, cell=False, fmax=crystal.TIGHT)
    properties = {"energy": Property(relaxed.get_potential_energy(), "eV", "relaxed energy")}
    for name, lengths in molecule.bonds(relaxed).items():
        key, count = f"bond_{name.replace('-', '_')}", len(lengths)
        meaning = f"{name} bond, mean of {count}" if count > 1 else f"{name} bond"
        properties[key] = Property(float(np.mean(lengths)), "Å", meaning)
    problems = []
    spectrum = np.empty(0)
    if len(relaxed) > 1:
        progress("vibrations")
        modes = molecule.vibrations(relaxed, calc)
        spectrum = modes.vibrations
        for k, value in enumerate(spectrum):
            properties[f"mode_{k + 1}"] = Property(float(value), "1/cm", f"vibration {k + 1}")
        rigid = float(np.abs(modes.rigid).max())
        properties["rigid"] = Property(rigid, "1/cm", "largest of the rigid motions (0)")
        if len(spectrum) and spectrum.min() < -IMAGINARY_INVCM:
            problems.append(
                f"A vibration is imaginary ({spectrum.min():.0f} 1/cm): the relaxed structure is "
                "not a minimum; displace it along that mode and relax again."
            )
        if rigid > IMAGINARY_INVCM:
            problems.append(
                f"Moving or turning the whole molecule costs energy ({rigid:.0f} 1/cm, "
                f"{IMAGINARY_INVCM:g} passes)."
            )
    if references:
        references.require_known(properties)
    name = relaxed.get_chemical_formula()
    return PropertiesReport(name, properties, problems, [], references, spectrum=spectrum)


def check_properties(
    atoms: Atoms,
    calc: Calculator,
    *,
    references: References | None = None,
    progress: Progress = _silent,
) -> PropertiesReport:
    """Properties of a crystal (periodic in three directions) or of a molecule (in none).

    Args:
        atoms: near a minimum of the model.
        calc: in float64.
        references: values to compare with (eqcalc.checks.references).
        progress: called with a line of text at each step.

    Raises:
        InputError: a slab or wire; no minimum; a reference of something that is not measured.
    """
    if atoms.pbc.all():
        return crystal_properties(atoms, calc, references=references, progress=progress)
    if not atoms.pbc.any():
        return molecule_properties(atoms, calc, references=references, progress=progress)
    raise InputError(
        f"The structure is periodic in some directions only (pbc = {atoms.pbc.tolist()}): "
        "properties are measured of crystals and molecules."
    )
