"""What engines say of a structure as results under ASE's names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from eqcalc.engine.backends import Outcome
from eqcalc.outputs import OutputConfig, cartesian

#: of one model whose file has an uncertainty (`eqcalc.uncertainty`)
OF_ONE = ("energies_std", "grade", "energy_std")

#: columns of a flat 3x3 matrix, and of its transpose, in ASE's order xx yy zz yz xz xy
_VOIGT, _VOIGT_TURNED = np.array([[0, 4, 8, 5, 2, 1], [0, 4, 8, 7, 6, 3]])


def of_outcome(
    outcome: Outcome, volume: float | None, outputs: Sequence[OutputConfig] = ()
) -> dict[str, Any]:
    """Results of one structure from one model.

    volume: Å^3 that a stress refers to; outputs: of the model, beside the energy.
    """
    results: dict[str, Any] = {}
    if outcome.rows is not None:
        results = cartesian(outputs, outcome.rows)
    if outcome.energies is not None:
        energy = float(outcome.energies.sum())
        results |= {"energy": energy, "free_energy": energy, "energies": outcome.energies}
    if outcome.grades is not None:
        results |= {"grade": outcome.grades, "energies_std": outcome.energies_std}
    if outcome.forces is not None:
        results["forces"] = outcome.forces
    if outcome.virials is not None and volume is not None:
        rows = outcome.virials.reshape(-1, 9)
        stresses = rows.take(_VOIGT, axis=1) + rows.take(_VOIGT_TURNED, axis=1)
        stresses *= -0.5 / volume
        results["stresses"] = stresses
        results["stress"] = stresses.sum(axis=0)
    return results


def seal(results: dict[str, Any]) -> None:
    """Makes arrays read-only: ASE answers from them again, and a change in place would stay."""
    for value in results.values():
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
