"""What the potential says of a crystal or a molecule, beside reference values if there are any."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator

from eqcalc.checks import crystal, molecule
from eqcalc.checks.crystal import Bands, EnergyVolume
from eqcalc.checks.report import Report, Table
from eqcalc.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from eqcalc.checks.references import Reference, References

#: relative difference between the bulk modulus from energies and from stresses; the fit of E(V)
#: and the central differences each err by a few tenths of a per cent
BULK_MODULUS_AGREES = 0.03

#: THz and 1/cm, of imaginary modes that pass: finite differences and the acoustic sum rule leave
#: some hundredths near Γ, and floppy molecules some tens of 1/cm
IMAGINARY_THZ = 0.1
IMAGINARY_INVCM = 20.0

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Property:
    """A measured value with its unit, and what it is."""

    value: float
    unit: str
    meaning: str


@dataclass(frozen=True)
class PropertiesReport(Report):
    """properties: {name: Property}; problems: what physics forbids; references to compare with."""

    system: str
    properties: dict[str, Property]
    problems: list[str]
    notes: list[str]
    references: References | None = None
    scan: EnergyVolume | None = None
    bands: Bands | None = None
    spectrum: np.ndarray | None = None
    matrices: dict[str, np.ndarray] = field(default_factory=dict)

    name: ClassVar[str] = "properties"
    title: ClassVar[str] = "Properties"
    method: ClassVar[str] = (
        "Crystals: the cell is relaxed; E(V) of the evenly scaled cell with a Birch-Murnaghan fit "
        "between 0.94 and 1.06 V0; elastic constants from central differences of the stress at "
        "±0.1 % strain, ions clamped and relaxed; a vacancy at constant volume; phonons from "
        "displacements of 0.01 Å in a supercell. They pass if the crystal is stable (elastic "
        "matrix positive, no imaginary phonons), E(V) has one minimum between 0.8 and 1.3 V0, and "
        f"the bulk moduli from energies and from stresses agree to {BULK_MODULUS_AGREES:.0%}. "
        "Molecules: relaxed, with harmonic vibrations, none of them imaginary. References with a "
        "tolerance must be met."
    )

    @property
    def failures(self) -> list[str]:
        said = list(self.problems)
        for name, reference in (self.references.values if self.references else {}).items():
            found, allowed = self.properties[name], reference.tolerance
            if allowed is not None and not abs(found.value - reference.value) <= allowed:
                said.append(
                    f"{name} is {found.value:.4g} {found.unit}, but {reference.value:g} ± "
                    f"{allowed:g} is expected."
                )
        return said

    def figures(self) -> dict[str, Any]:
        values = {
            name: {"value": float(p.value), "unit": p.unit, "meaning": p.meaning}
            for name, p in self.properties.items()
        }
        if self.references:
            for name, reference in self.references.values.items():
                values[name] |= {"reference": reference.value, "tolerance": reference.tolerance}
        document: dict[str, Any] = {"system": self.system, "properties": values}
        document["notes"] = self.notes
        if self.references:
            document["references"] = self.references.source
        if self.scan:
            document["E(V)"] = {
                "V_over_V0": [round(float(x), 6) for x in self.scan.ratio],
                "energy_eV_per_atom": [round(float(e), 6) for e in self.scan.energy],
            }
        for name, matrix in self.matrices.items():
            document[f"elastic constants, {name}, GPa"] = matrix.round(3).tolist()
        if self.spectrum is not None:
            document["vibrations_invcm"] = [round(float(v), 3) for v in self.spectrum]
        return document

    def tables(self) -> list[Table]:
        known = self.references.values if self.references else {}
        columns = ["name", "property", "value", "unit"]
        columns += ["reference", "difference"] if known else []
        rows = []
        for name, p in self.properties.items():
            row = [name, p.meaning, f"{p.value:.4f}" if abs(p.value) < 100 else f"{p.value:.2f}"]
            row.append(p.unit)
            if known:
                reference = known.get(name)
                row += ["", ""] if reference is None else [
                    _allowed(reference),
                    f"{p.value - reference.value:+.3f}",
                ]  # fmt: skip
            rows.append(row)
        note = "\n".join(self.notes)
        if known and self.references.source:
            note = "\n".join(filter(None, (f"References: {self.references.source}", note)))
        return [Table(self.system, columns, rows, note)]

    def draw(self) -> Figure | None:
        """E(V) and phonon bands, or the spectrum of a molecule."""
        from matplotlib.figure import Figure

        if self.scan is None and self.spectrum is None:
            return None
        figure = Figure(figsize=(10 if self.bands else 5.5, 3.8), layout="constrained")
        axes = list(np.atleast_1d(figure.subplots(1, 2 if self.bands else 1)))
        if self.scan is not None:
            axis = axes.pop(0)
            axis.plot(self.scan.ratio, self.scan.energy, "o-", ms=2.5)
            axis.set(xlabel="V / V0", ylabel="energy (eV/atom)", title=f"{self.system}: E(V)")
            axis.grid(alpha=0.3)
        if self.bands is not None:
            draw_bands(self.bands, axes.pop(0))
        if self.spectrum is not None:
            axis = axes.pop(0)
            axis.vlines(self.spectrum, 0.0, 1.0)
            axis.set(xlabel="wavenumber (1/cm)", yticks=[], title=f"{self.system}: vibrations")
        return figure


def _allowed(reference: Reference) -> str:
    if reference.tolerance is None:
        return f"{reference.value:g}"
    return f"{reference.value:g} ± {reference.tolerance:g}"


def draw_bands(bands: Bands, axis: Any) -> None:
    """Frequencies along the path, with its special points."""
    axis.plot(bands.x, bands.frequency, color="C0", lw=1.1)
    names: dict[float, str] = {}
    for x, name in bands.ticks:
        label = "Γ" if name == "G" else name
        names[x] = f"{names[x]}|{label}" if x in names else label
    for x in names:
        axis.axvline(x, color="0.7", lw=0.6)
    axis.set_xticks(list(names), list(names.values()))
    axis.axhline(0.0, color="k", lw=0.6)
    axis.set(ylabel="frequency (THz)", xlim=(bands.x[0], bands.x[-1]))
    axis.set_title("phonons, supercell of " + " x ".join(map(str, bands.repeats)))


def _silent(_: str) -> None:
    pass


def _lattice(atoms: Atoms) -> dict[str, Property]:
    """Lengths of the conventional cell of the Bravais lattice, and the volume."""
    lattice = atoms.cell.get_bravais_lattice(eps=1e-3)
    lengths = {n: v for n, v in lattice.vars().items() if n in ("a", "b", "c")}
    found = {
        name: Property(value, "Å", f"lattice constant, {lattice.longname}")
        for name, value in lengths.items()
    }
    per_atom = atoms.get_volume() / len(atoms)
    return found | {"volume": Property(per_atom, "Å³/atom", "equilibrium volume")}


def _elastic(clamped: np.ndarray, relaxed: np.ndarray) -> dict[str, Property]:
    """Independent constants of a cubic crystal, or every one that is not zero."""
    found = {}
    cubic = crystal.is_cubic(relaxed)
    for ending, how, matrix in (("", "relaxed-ion", relaxed), ("_clamped", "clamped-ion", clamped)):
        if cubic:
            values = dict(zip(("C11", "C12", "C44"), crystal.cubic_constants(matrix), strict=True))
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
    found["shear_modulus"] = Property(_hill_shear(relaxed), "GPa", "Voigt-Reuss-Hill mean")
    return found


def _hill_shear(c: np.ndarray) -> float:
    """Shear modulus (GPa) of a polycrystal: the mean of Voigt's and Reuss's.

    R. Hill, Proc. Phys. Soc. A 65, 349 (1952); C [6, 6] in GPa, S its inverse:
        15 G_V     = d(C) + 3 (C44 + C55 + C66)
        15 / G_R   = 4 d(S) + 3 (S44 + S55 + S66)
        d(M)       = M11 + M22 + M33 - M12 - M13 - M23
    """

    def d(m: np.ndarray) -> float:
        return np.trace(m[:3, :3]) - (m[0, 1] + m[0, 2] + m[1, 2])

    s = np.linalg.pinv(c)
    voigt = (d(c) + 3.0 * np.trace(c[3:, 3:])) / 15.0
    reuss = 15.0 / (4.0 * d(s) + 3.0 * np.trace(s[3:, 3:]))
    return float(0.5 * (voigt + reuss))


def crystal_properties(
    atoms: Atoms,
    calc: Calculator,
    *,
    references: References | None = None,
    progress: Progress = _silent,
) -> PropertiesReport:
    """Lattice, E(V), elastic constants, vacancy (of elements) and phonons of a periodic crystal."""
    progress("relaxing the crystal")
    cell = crystal.relax(crystal.primitive_cell(atoms), calc, cell=True, fmax=crystal.TIGHT)
    progress("energy over volume")
    scan = crystal.energy_volume(cell, calc)
    properties = _lattice(cell)
    properties["energy"] = Property(scan.equilibrium_energy, "eV/atom", "energy at equilibrium")
    properties["bulk_modulus"] = Property(scan.bulk_modulus, "GPa", "bulk modulus from E(V)")
    progress("elastic constants")
    matrices = {
        "clamped-ion": crystal.elastic_constants(cell, calc, relaxed=False),
        "relaxed-ion": crystal.elastic_constants(cell, calc, relaxed=True),
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
        f"{name}, {cell.cell.get_bravais_lattice(eps=1e-3).longname}",
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
    relaxed = crystal.relax(atoms, calc, cell=False, fmax=crystal.TIGHT)
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
        progress: told what is being done.

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
