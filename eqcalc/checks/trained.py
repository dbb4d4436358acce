"""What the training has seen, as far as a file tells: distances, energies, temperature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.data import atomic_numbers, covalent_radii

from eqcalc.calculator import EquivariantCalculator
from eqcalc.domain import Domain, where_unmet
from eqcalc.neighbors import neighbor_list

#: of a distance at rest: as near as hot atoms come, where only a structure at rest is known
HOT = 0.9

#: eV per atom: no other arrangement of the same atoms is so far below the training's lowest energy.
#: A molecule and the most stable ones of the same atoms, or a liquid and its crystal, are nearer.
#: Where the training's energies range wider, the range is taken
MARGIN = 0.5

#: eV per atom: what any matter may lie below another of other composition. Nothing is bound more
#: strongly than tungsten, 8.9 eV (Kittel, Introduction to Solid State Physics, chapter 3)
STRONGEST = 9.0


def covalent_sums(symbols: Sequence[str]) -> np.ndarray:
    """Sums of covalent radii (Cordero et al. 2008), [S, S] Å."""
    radii = np.array([covalent_radii[atomic_numbers[s]] for s in symbols])
    return radii[:, None] + radii[None, :]


def energies(structures: list[Atoms], calc: Calculator) -> np.ndarray:
    """eV, of many structures."""
    if isinstance(calc, EquivariantCalculator):
        # dense structures have hundreds of neighbours: few atoms go together
        return np.array([r["energy"] for r in calc.evaluate(structures, batch_atoms=100)])
    found = []
    for atoms in structures:
        atoms.calc = calc
        found.append(atoms.get_potential_energy())
        atoms.calc = None
    return np.array(found, dtype=float)


@dataclass(frozen=True)
class Trained:
    """What is known of the frames that a potential was trained on.

    Attributes:
        symbols: of the elements, S of them.
        shortest: shortest distance of each pair of elements, [S, S] Å.
        source: where that and the energies come from, for a reader.
        reference: eV by element, subtracted before energies are compared; 0 where not named.
        lowest: eV per atom above the reference: the training's lowest less its margin; None:
            unknown.
        temperature: K, the highest; None: unknown.
    """

    symbols: list[str]
    shortest: np.ndarray
    source: str = "as given"
    reference: Mapping[str, float] = field(default_factory=dict)
    lowest: float | None = None
    temperature: float | None = None

    @classmethod
    def of(cls, calc: Calculator, atoms: Atoms, symbols: Sequence[str]) -> Trained:
        """From the file of an EquivariantCalculator; of any other, from a structure."""
        if isinstance(calc, EquivariantCalculator):
            return cls.read(calc.potential.metadata, atoms, symbols)
        return cls.from_structure(atoms, symbols)

    @classmethod
    def read(cls, metadata: Mapping[str, Any], atoms: Atoms, symbols: Sequence[str]) -> Trained:
        """From an export's metadata; where that has no domain, from a structure."""
        symbols, reference = sorted(symbols), metadata["reference_energies"]
        domain = Domain.read(dict(metadata))
        if domain is None:
            return cls.from_structure(atoms, symbols, reference=reference)
        shortest, lowest = domain.shortest_training(symbols), None
        if "energy_per_atom" in domain.document:
            low, high = domain.document["energy_per_atom"]["training"]
            lowest = low - max(MARGIN, high - low)
        met = np.isfinite(shortest)
        return cls(
            symbols,
            where_unmet(shortest, covalent_sums(symbols)),
            "of the training" + ("" if met.all() else "; means where two elements never met"),
            reference,
            lowest,
            domain.document.get("temperature"),
        )

    @classmethod
    def from_structure(
        cls, atoms: Atoms, symbols: Sequence[str], reference: Mapping[str, float] | None = None
    ) -> Trained:
        """From one structure at rest, for potentials that carry no training domain."""
        symbols = sorted(symbols)
        table, kind = covalent_sums(symbols), np.array([symbols.index(s) for s in atoms.symbols])
        reach = 1.5 * table.max()
        found = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, reach)
        lengths = np.linalg.norm(found.vectors(atoms.positions, atoms.cell.array), axis=1)
        nearest = np.full_like(table, np.inf)
        np.minimum.at(nearest, (kind[found.edge_src], kind[found.edge_dst]), HOT * lengths)
        source = (
            f"the training's are unknown: {HOT:g} of those of the given structure, or the sum of "
            "covalent radii"
        )
        table = np.where(np.isfinite(nearest), nearest, table)
        return cls(symbols, table, source, reference or {})

    def with_lowest(self, atoms: Atoms, calc: Calculator) -> Trained:
        """Takes the energy of a structure for the training's lowest."""
        (energy,) = energies([atoms], calc)
        lowest = energy / len(atoms) - self.reference_of(atoms) - MARGIN
        source = f"{self.source}; the lowest energy is that of the given structure"
        return replace(self, lowest=float(lowest), source=source)

    @property
    def bonded(self) -> np.ndarray:
        """Where a pair is repelled for sure, [S, S] Å: nearer than in the training and than a bond.

        Two hydrogens of a methyl group do not come nearer than 1.4 Å; at 0.74 Å they bind.
        """
        return np.minimum(self.shortest, covalent_sums(self.symbols))

    def reference_of(self, atoms: Atoms) -> float:
        """eV per atom."""
        return float(np.mean([self.reference.get(s, 0.0) for s in atoms.symbols]))

    def lowest_of(self, *, composed: bool) -> float | None:
        """eV per atom: a sound energy above the reference is not lower; None: unknown."""
        comparable = bool(self.reference) or len(self.symbols) == 1
        if self.lowest is None or not comparable:
            return None
        return self.lowest if composed else self.lowest - STRONGEST

    def __str__(self) -> str:
        count = range(len(self.symbols))
        pairs = ((a, b) for a in count for b in count if a <= b)
        said = ", ".join(
            f"{self.symbols[a]}-{self.symbols[b]} {self.shortest[a, b]:.2f}" for a, b in pairs
        )
        return f"Shortest distances: {said} Å ({self.source})."
