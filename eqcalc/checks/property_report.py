"""Properties with their units, beside references, as tables and pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from eqcalc.checks.report import Report, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from eqcalc.checks.crystal import Bands, EnergyVolume
    from eqcalc.checks.references import Reference, References

#: relative difference between the bulk modulus from energies and from stresses; the fit of E(V)
#: and the central differences each err by a few tenths of a per cent
BULK_MODULUS_AGREES = 0.03

#: THz and 1/cm, of imaginary modes that pass: finite differences and the acoustic sum rule leave
#: some hundredths near Γ, and floppy molecules some tens of 1/cm
IMAGINARY_THZ = 0.1
IMAGINARY_INVCM = 20.0


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
        "matrix positive, no imaginary phonons beyond "
        f"{IMAGINARY_THZ:g} THz), E(V) has one minimum between 0.8 and 1.3 V0, and "
        f"the bulk moduli from energies and from stresses agree to {BULK_MODULUS_AGREES:.0%}. "
        "Molecules: relaxed, with harmonic vibrations, none of them imaginary (a negative "
        f"wavenumber) beyond {IMAGINARY_INVCM:g} 1/cm. References with a tolerance must be met."
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
