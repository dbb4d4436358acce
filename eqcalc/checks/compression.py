"""Structures of many kinds pressed together: does the energy rise, as it must?

Dense matter of the training's composition must rise all the way: where its energy falls it
collapses under pressure. Molecules, clusters and other compositions are under no pressure, or the
training says nothing of them between being bound and being pressed; they must not end up lower than
they were before, so that nothing falls into them.

x is the least of distance / shortest distance of the training over the pairs of a structure. Below
x = 1 every structure has pairs that are nearer than any of the training; what the potential says of
them is its own invention, and only repulsion is physical. Crystals, molecules and random packings
are scaled from LOOSEST to DENSEST.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator

from eqcalc.checks.packings import Family, closest, families, scaled
from eqcalc.checks.report import Table
from eqcalc.checks.trained import Trained, energies

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: x, from the loosest to the densest, and its steps
LOOSEST, DENSEST, NUM_STEPS = 1.2, 0.6, 25

#: the energy must rise inwards of this x; of molecules, whose multiple bonds are shorter (a triple
#: bond is a fifth shorter than a single one), inwards of the other. Distances count in the shorter
#: of the training's and the sum of the covalent radii (`Trained.bonded`)
RISING, RISING_MOLECULAR = 0.95, 0.9

#: eV per atom by which it may fall all the same. Phase changes on compression gain less, and at 0.9
#: of a bond's length repulsion costs some eV per atom
FALL = 0.1

#: eV per atom: energies above are not told apart. Collision cascades begin with 10 keV; what lies
#: behind such a wall does not matter
WALL = 1e4


@dataclass(frozen=True)
class Compression:
    """One structure's energies.

    Attributes:
        family: the structure at x = 1.
        x: [n], falling.
        energy: [n] eV per atom above the reference energies; nan where it is not finite.
        rising: x inwards of which the energy must rise.
        lowest: eV per atom, what no sound energy is below; None: unknown.
    """

    family: Family
    x: np.ndarray
    energy: np.ndarray
    rising: float
    lowest: float | None

    @property
    def fall(self) -> np.ndarray:
        """[n] eV per atom, inwards of `rising`; 0 outwards of it.

        Of dense matter of the training's composition below what it was before, of all else below
        all that it was outwards.
        """
        inside = self.x <= self.rising + 1e-9
        energy = np.minimum(self.energy, WALL)
        if self.family.composed and not self.family.molecular:
            before = np.fmax.accumulate(np.where(inside, energy, -np.inf))
        else:
            before = np.fmin.reduce(energy[~inside], initial=energy[0])
        return np.where(inside, np.maximum(before - energy, 0.0), 0.0)

    @property
    def failure(self) -> tuple[int, str] | None:
        """Index of the worst structure, and why it is one."""
        if not np.isfinite(self.energy).all():
            k = int(np.argmin(np.isfinite(self.energy)))
            return k, f"{self.family.name} at x = {self.x[k]:.3f}: the energy is not finite."
        k = int(self.energy.argmin())
        if self.lowest is not None and self.energy[k] < self.lowest:
            said = (
                f"{self.family.name} at x = {self.x[k]:.3f}: {self.energy[k]:.4g} eV/atom from "
                f"the reference energies, far below the training ({self.lowest:.4g} passes)."
            )
            return k, said
        fall = self.fall
        k = int(fall.argmax())
        if fall[k] > FALL:
            said = (
                f"{self.family.name}, compressed to x = {self.x[k]:.3f} of the shortest distance: "
                f"the energy falls by {fall[k]:.3g} eV/atom ({FALL:g} passes): a hole, for which "
                "the model needs a repulsion or data."
            )
            return k, said
        return None

    def atoms(self, k: int) -> Atoms:
        """The structure of one energy."""
        return scaled(self.family.base, float(self.x[k]))

    def figures(self) -> dict[str, Any]:
        """For a program; energies that are not finite are null."""
        return {
            "name": self.family.name,
            "kind": self.family.kind,
            "x": [round(float(x), 6) for x in self.x],
            "energy_eV_per_atom": [
                float(f"{e:.8g}") if np.isfinite(e) else None for e in self.energy
            ],
            "rises_inwards_of": round(self.rising, 6),
            "lowest_that_passes_eV_per_atom": self.lowest,
            "passed": self.failure is None,
        }


def compress(
    calc: Calculator, trained: Trained, elements: Mapping[str, float], *, seed: int = 0
) -> list[Compression]:
    """Energies of all families.

    Args:
        elements: atoms of each element, in the composition of the training.
        seed: of random structures.
    """
    x = np.linspace(LOOSEST, DENSEST, NUM_STEPS)
    every = families(trained, elements, seed=seed)
    values = energies([scaled(f.base, step) for f in every for step in x], calc)
    found = []
    for family, energy in zip(every, values.reshape(len(every), -1), strict=True):
        bonded = closest(family.base, trained.symbols, trained.bonded)
        above = energy / len(family.base) - trained.reference_of(family.base)
        rising = (RISING_MOLECULAR if family.molecular else RISING) / bonded
        above = np.where(np.isfinite(above), above, np.nan)
        lowest = trained.lowest_of(composed=family.composed)
        found.append(Compression(family, x, above, rising, lowest))
    return found


def table(compressions: list[Compression], note: str) -> Table:
    """One row for each kind of structure."""
    rows = []
    for kind in _kinds(compressions):
        mine = [c for c in compressions if c.family.kind == kind]
        lowest = min(mine, key=lambda c: np.nanmin(c.energy, initial=np.inf))
        rows.append(
            [
                kind,
                str(len(mine)),
                f"{np.nanmin(lowest.energy, initial=np.inf):.4g} ({lowest.family.name})",
                f"{max(float(np.nanmax(c.fall, initial=0.0)) for c in mine):.3g}",
                str(sum(c.failure is not None for c in mine)),
            ]
        )
    columns = ["structures", "number", "lowest energy, eV/atom", "largest fall, eV/atom", "failed"]
    title = f"Compressed from x = {LOOSEST:g} to {DENSEST:g} of the shortest distance"
    return Table(title, columns, rows, note)


def _kinds(compressions: list[Compression]) -> list[str]:
    return list(dict.fromkeys(c.family.kind for c in compressions))


def draw(compressions: list[Compression], molecular: Axes, dense: Axes) -> None:
    """Energy per atom against x, a colour for each kind; what failed is thick."""
    for axes, wanted in ((molecular, True), (dense, False)):
        mine = [c for c in compressions if c.family.molecular == wanted]
        low = min((float(np.nanmin(c.energy, initial=0.0)) for c in mine), default=0.0)
        for n, kind in enumerate(_kinds(mine)):
            for k, c in enumerate(c for c in mine if c.family.kind == kind):
                style = {"lw": 2.0} if c.failure else {"lw": 0.9, "alpha": 0.7}
                energy = np.clip(c.energy, -WALL, WALL)
                axes.plot(c.x, energy, color=f"C{n}", label=None if k else kind, **style)
        axes.axvline(RISING_MOLECULAR if wanted else RISING, color="0.5", lw=0.8, ls=":")
        axes.set_yscale("symlog", linthresh=1.0)
        axes.set_ylim(max(1.5 * low, -WALL) - 1.0, WALL)
        axes.set(xlabel="closest pair / shortest distance of the training")
        axes.set(ylabel="energy above the reference (eV/atom)")
        axes.legend(frameon=False, fontsize=8)
