"""Is the energy smooth where neighbours come and go, and is there no hole?

In molecular dynamics a jump of the energy is heat out of nothing, a jump of the force breaks the
second order of the integrator, and one of the force's slope spoils phonons. Towards short distance
a pair must only repel: a barrier with lower energies behind it is a hole into which a hot
trajectory falls. So must many atoms that are pressed together (`compression`), and a hot structure
must not fall below where it began (`hot`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator

from eqcalc.checks import compression, hot
from eqcalc.checks.compression import Compression, compress
from eqcalc.checks.hot import HotRun, hot_runs
from eqcalc.checks.report import Report, Table
from eqcalc.checks.scans import DEPTH, Crossing, Scan, approach, cross_in, scan_pairs
from eqcalc.checks.trained import MARGIN, Trained
from eqcalc.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: jumps that pass: energy (eV), force (eV/Å), slope of the force (eV/Å^2). Above what extrapolation
#: leaves of a smooth potential (1e-11, 1e-9, 1e-5 in hot silicon), below what weakly bound argon
#: shows where its Lennard-Jones potential ends at 7 Å with one derivative too few (4e-4, 5e-4)
TOLERANCE = {"energy": 1e-8, "force": 1e-6, "slope": 2e-4}
UNITS = {"energy": "eV", "force": "eV/Å", "slope": "eV/Å²"}


@dataclass(frozen=True)
class SmoothnessReport(Report):
    """Jumps at the cutoff, energies towards short distance, on compression and of hot runs."""

    cutoff: float
    num_atoms: int
    crossings: list[Crossing]
    scans: list[Scan]
    trained: Trained
    compressions: list[Compression]
    runs: list[HotRun]

    name: ClassVar[str] = "smoothness"
    title: ClassVar[str] = "Smoothness at the cutoff; no holes when atoms are pressed or hot"
    method: ClassVar[str] = (
        "At the cutoff: pairs alone in space, and single atoms moved through the structure so that "
        "distances cross the cutoff. One-sided limits of the energy, of the force along the path "
        "and of the force's slope, extrapolated from both sides, must agree to "
        + ", ".join(f"{TOLERANCE[k]:.0e} {UNITS[k]}" for k in TOLERANCE)
        + ".\nAt short distance: towards half the sum of the covalent radii the energy must rise "
        f"to the end, except for one bond; minima deeper than {1000 * DEPTH:g} meV are listed. A "
        "minimum behind a barrier fails in the structure itself; of a pair alone, which training "
        "data seldom contain, it is only listed.\n"
        "Under pressure: crystals, molecules and random packings are compressed until the closest "
        f"pair is at x = {compression.DENSEST:g} of its shortest distance in the training. From "
        f"x = {compression.RISING:g} on ({compression.RISING_MOLECULAR:g} for molecules, loose "
        "packings and clusters; of the sum of the covalent radii where that is shorter) the energy "
        f"must not fall by more than {compression.FALL:g} eV/atom. Nowhere may it lie below the "
        "lowest energy of the training by more than the range of the training's energies, or "
        f"{MARGIN:g} eV/atom if that is more.\n"
        f"In heat: the relaxed structure runs for {hot.STEPS} steps at {hot.HEAT:g} times the "
        f"highest temperature of the training, a molecule for {hot.STEPS_MOLECULE} more at "
        f"{hot.KELVIN_MOLECULE:g} K or above. Relaxed again, it must not lie below its start by "
        f"more than {hot.GAIN:g} eV or, if that is more, {hot.GAIN_MOLECULE:g} eV/atom of a "
        f"molecule, {hot.GAIN_PERIODIC:g} eV/atom of a crystal."
    )

    def largest(self) -> dict[str, float]:
        """The largest jump of each quantity."""
        return {k: max((getattr(c, k) for c in self.crossings), default=0.0) for k in TOLERANCE}

    @property
    def failures(self) -> list[str]:
        said = []
        for crossing in self.crossings:
            for quantity, allowed in TOLERANCE.items():
                jump = getattr(crossing, quantity)
                if not jump <= allowed:
                    what = "slope of the force" if quantity == "slope" else quantity
                    said.append(
                        f"{crossing.path}: the {what} jumps by {jump:.1e} {UNITS[quantity]} "
                        f"where a distance crosses the cutoff ({allowed:.0e} passes)."
                    )
        for scan in self.scans:
            said += [
                f"{scan.name}: inside of {r:.2f} Å the energy falls again: a hole, for which the "
                "model needs a core repulsion or data."
                for r in scan.holes
            ]
            if "in the structure" in scan.name and scan.trapped:
                where = ", ".join(f"{r:.2f}" for r in scan.trapped)
                said.append(f"{scan.name}: a spurious minimum at {where} Å, behind a barrier.")
        said += [f.failure[1] for f in self.compressions if f.failure]
        said += [run.failure for run in self.runs if run.failure]
        if not any("in the structure" in c.path for c in self.crossings) and self.num_atoms > 1:
            said.append(
                "No path through the structure crossed the cutoff: give one with more atoms."
            )
        return said

    def figures(self) -> dict[str, Any]:
        return {
            "cutoff_angstrom": self.cutoff,
            "largest_jump": {f"{k}_{UNITS[k]}": v for k, v in self.largest().items()},
            "crossings": [asdict(c) for c in self.crossings],
            "units": {"where": "Å", **UNITS},
            "scans": [
                {
                    "name": s.name,
                    "distance_angstrom": [round(float(r), 6) for r in s.distance],
                    "energy_eV": [round(float(e), 6) for e in s.energy],
                    "minima_angstrom": s.minima,
                    "minima_behind_a_barrier_angstrom": s.trapped,
                    "holes_angstrom": s.holes,
                }
                for s in self.scans
            ],
            "trained": {
                "symbols": self.trained.symbols,
                "shortest_angstrom": np.round(self.trained.shortest, 6).tolist(),
                "source": self.trained.source,
                "lowest_that_passes_eV_per_atom": self.trained.lowest,
                "temperature_K": self.trained.temperature,
            },
            "compression": [c.figures() for c in self.compressions],
            "hot_runs": [run.figures() for run in self.runs],
        }

    def tables(self) -> list[Table]:
        columns = ["path", "at, Å", *(f"jump of {k}, {UNITS[k]}" for k in TOLERANCE)]
        rows = [
            [c.path, f"{c.where:+.3f}", *(f"{getattr(c, k):.1e}" for k in TOLERANCE)]
            for c in self.crossings
        ]
        rows.append(["allowed", "", *(f"{v:.0e}" for v in TOLERANCE.values())])
        scans = [
            [
                s.name,
                f"{s.distance[0]:.2f} to {s.distance[-1]:.2f}",
                f"{s.energy[0]:.1f}",
                ", ".join(f"{r:.2f}" for r in s.minima) or "-",
                ", ".join(f"{r:.2f}" for r in s.holes) or "-",
            ]
            for s in self.scans
        ]
        names = ["scan", "distance, Å", "energy at the shortest, eV", "minima, Å", "holes, Å"]
        return [
            Table("Where distances cross the cutoff", columns, rows),
            Table("Towards short distance", names, scans),
            compression.table(self.compressions, str(self.trained)),
            hot.table(self.runs, known=bool(self.trained.temperature)),
        ]

    @property
    def holes(self) -> list[tuple[str, Atoms]]:
        found = [(c.failure[1], c.atoms(c.failure[0])) for c in self.compressions if c.failure]
        return found + [(run.failure, run.final) for run in self.runs if run.failure]

    def draw(self) -> Figure:
        """Scans, near their minima and to the end on a logarithmic scale; compressions."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 7.6), layout="constrained")
        (left, right), below = figure.subplots(2, 2)
        compression.draw(self.compressions, *below)
        for scan in self.scans:
            bottom = scan.energy.min()
            left.plot(scan.distance, scan.energy, label=scan.name)
            right.semilogy(scan.distance, scan.energy - bottom + 1e-3, label=scan.name)
        low = min(float(s.energy.min()) for s in self.scans)
        left.set_ylim(1.15 * low - 0.2, max(1.0, -low))
        left.axvline(self.cutoff, color="0.5", lw=0.8, ls=":")
        left.set(xlabel="distance (Å)", ylabel="energy - energy at the right end (eV)")
        right.set(xlabel="distance (Å)", ylabel="energy - lowest + 1 meV (eV)")
        left.legend(frameon=False, fontsize=8)
        for axis in (left, right, *below):
            axis.grid(alpha=0.3)
        return figure


def check_smoothness(
    atoms: Atoms,
    calc: Calculator,
    *,
    cutoff: float | None = None,
    symbols: list[str] | None = None,
    seed: int = 0,
    trained: Trained | None = None,
) -> SmoothnessReport:
    """Jumps where distances cross the cutoff; holes at short distance, compressed and hot.

    Args:
        atoms: a structure that the model knows, for the many-body paths.
        calc: an EquivariantCalculator in float64, or any other with the next two given.
        cutoff: Å; None takes the model's.
        symbols: elements of the pairs; None takes those of `atoms`.
        seed: of the paths, random structures and runs.
        trained: what the model was trained on; None takes what its file says, and what it does
            not say from `atoms`.
    """
    if cutoff is None:
        cutoff = calc.potential.cutoff
    if len(atoms) == 0:
        raise InputError("The structure has no atoms.")
    symbols = symbols or sorted(set(atoms.get_chemical_symbols()))
    crossings, scans = scan_pairs(symbols, calc, cutoff)
    crossings += cross_in(atoms, calc, cutoff, seed)
    scans += approach(atoms, calc)
    trained = trained or Trained.of(calc, atoms, symbols)
    if trained.lowest is None:
        trained = trained.with_lowest(atoms, calc)
    elements = dict.fromkeys(symbols, 1) | Counter(atoms.symbols)
    compressions = compress(calc, trained, elements, seed=seed)
    runs = hot_runs(atoms, calc, trained, seed=seed)
    return SmoothnessReport(cutoff, len(atoms), crossings, scans, trained, compressions, runs)
