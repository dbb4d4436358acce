"""The ASE calculator."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import (
    Calculator,
    CalculatorSetupError,
    PropertyNotImplementedError,
    all_changes,
)
from ase.stress import full_3x3_to_voigt_6_stress

from eqcalc import export
from eqcalc.engine.backends import open_backend
from eqcalc.errors import InputError
from eqcalc.neighbors import VerletList


class EquivariantCalculator(Calculator):
    """A potential file behind ASE.

    Args:
        model: a potential file, or the name of a bundled model ("si").
        device: "cpu" (default), "cuda", "cuda:1", ...
        dtype: "float32" or "float64"; None takes the file's own. Edge vectors are formed, and
            energies summed, in float64 either way; take "float64" for tight relaxations, phonons
            and long NVE runs.
        engine: "fused" (generated C++, radial functions from tables that are exact to about 1e-10
            eV in float64), "exact" (the same without tables), "torch" (the file's own TorchScript,
            any device); "auto" takes "fused" on the CPU, or "torch" where that cannot be had.
        skin: Å, by which the neighbour list reaches beyond the cutoff so that it can be reused.
        threads: of the engine during a calculation; None takes as many as torch has.

    Properties: energy and free_energy (eV), energies [N] (eV), forces [N, 3] (eV/Å), and for
    structures periodic in three directions stress [6] (eV/Å^3, ASE's sign and order) and stresses
    [N, 6], each atom's share: minus its virial (eqcalc.derivatives) over the cell volume, made
    symmetric, so that they sum to the stress.

    Raises:
        InputError: at construction, when the file, device or precision does not fit; at
            calculation, for elements that the model lacks, positions that are not finite and
            overlapping atoms.
    """

    implemented_properties: ClassVar[list[str]] = [
        "energy",
        "free_energy",
        "energies",
        "forces",
        "stress",
        "stresses",
    ]

    def __init__(
        self,
        model: str | os.PathLike,
        *,
        device: str | None = None,
        dtype: str | None = None,
        engine: str = "auto",
        skin: float = 0.5,
        threads: int | None = None,
    ) -> None:
        super().__init__()
        if skin < 0.0:
            raise InputError(f"skin = {skin} Å: it must not be negative.")
        if threads is not None and threads < 1:
            raise InputError(f"threads = {threads}: it must be at least 1.")
        self._made_with = {
            "model": str(export.resolve(model)),
            "device": device,
            "dtype": dtype,
            "engine": engine,
            "skin": skin,
            "threads": threads,
        }
        self._load()

    def _load(self) -> None:
        options = {name: value for name, value in self._made_with.items() if name != "skin"}
        self.backend = open_backend(**options)
        self.potential = self.backend.potential
        self.neighbors = VerletList(self.potential.cutoff, self._made_with["skin"])

    def __getstate__(self) -> dict[str, Any]:
        """Pickles and deep copies carry the options and results, and open the file again."""
        state = self.__dict__.copy()
        del state["backend"], state["potential"], state["neighbors"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load()

    def set(self, **kwargs: Any) -> dict[str, Any]:
        """Options are fixed at construction; ASE's own `set` would take any name in silence."""
        if kwargs:
            raise CalculatorSetupError(
                f"EquivariantCalculator has no parameter to set ({', '.join(kwargs)}): "
                "make a new calculator instead."
            )
        return {}

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        atoms = self.atoms
        periodic = bool(atoms.pbc.all())
        if not periodic and {"stress", "stresses"} & set(properties):
            raise PropertyNotImplementedError(
                "Stress needs a volume: the structure is not periodic in all three directions "
                f"(pbc = {atoms.pbc.tolist()})."
            )
        species = self.potential.species_of(atoms.numbers)
        pairs = self.neighbors.candidates(atoms)
        got = self.backend.compute(species, atoms.positions, atoms.cell.array, pairs)
        energy = float(got.energies.sum())
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "energies": got.energies,
            "forces": got.forces,
        }
        if periodic:
            stresses = -got.virials / atoms.get_volume()
            stresses = 0.5 * (stresses + stresses.transpose(0, 2, 1))
            self.results["stresses"] = np.stack(
                [stresses[:, i, j] for i, j in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))],
                axis=1,
            )
            self.results["stress"] = full_3x3_to_voigt_6_stress(stresses.sum(axis=0))
