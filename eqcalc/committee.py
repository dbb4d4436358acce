"""Several potentials for one system: their mean, and how far they disagree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms

from eqcalc.errors import InputError

#: what a committee gives the standard deviation of
DEVIATIONS = ("energy", "energies", "forces", "stress")


def combine(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean of every property, and NAME_std for those in DEVIATIONS, of several members' results.

    The standard deviation is that of a sample, sum (x - mean)^2 / (members - 1), component by
    component and in the property's unit.
    """
    combined: dict[str, Any] = {}
    for name in results[0]:
        values = np.array([r[name] for r in results])
        mean = values.mean(axis=0)
        combined[name] = float(mean) if mean.ndim == 0 else mean
        if name in DEVIATIONS:
            deviation = values.std(axis=0, ddof=1)
            combined[f"{name}_std"] = float(deviation) if deviation.ndim == 0 else deviation
    return combined


def largest_deviation(atoms: Atoms) -> tuple[float, int]:
    """The largest disagreement about a force, |std F_i| in eV/Å, and the atom it is about.

    Raises:
        InputError: the calculator of `atoms` is not a committee.
    """
    atoms.get_forces()
    deviation = getattr(atoms.calc, "results", {}).get("forces_std")
    if deviation is None:
        raise InputError(
            "The calculator is not a committee: give EquivariantCalculator a list of models."
        )
    lengths = np.linalg.norm(deviation, axis=1)
    atom = int(lengths.argmax())
    return float(lengths[atom]), atom


class UncertainError(InputError):
    """The members of a committee disagree by more than was allowed."""


class UncertaintyStop:
    """Stops dynamics where a committee's members disagree about a force.

        dynamics.attach(UncertaintyStop(atoms, limit=0.3))

    Observers run in the order in which they are attached: with the trajectory attached before, the
    structure in question is its last frame.

    Args:
        atoms: what moves.
        limit: eV/Å, of the length of an atom's standard deviation of the force.

    Raises:
        UncertainError: when called, with the atom and its deviation.
    """

    def __init__(self, atoms: Atoms, limit: float) -> None:
        if not limit > 0.0:
            raise InputError(f"limit = {limit} eV/Å: it must be positive.")
        self.atoms, self.limit = atoms, limit

    def __call__(self) -> None:
        deviation, atom = largest_deviation(self.atoms)
        if not deviation <= self.limit:
            raise UncertainError(
                f"The committee disagrees about the force on atom {atom} "
                f"({self.atoms.symbols[atom]}) by {deviation:.3g} eV/Å (allowed {self.limit:g}): "
                "the structure has left what the models know; label it and train on it."
            )
