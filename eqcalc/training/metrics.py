"""Labels beside predictions, by config_type, and their errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eqcalc.data.frames import Labels
from eqcalc.training.loss import UNITS

#: reported unit of each quantity, and what one eV-Å unit is in it; "energy" is per atom
QUANTITIES = UNITS | {"stress_offdiagonal": UNITS["stress"], "energy_total": ("meV", 1e3)}

_DIAGONAL, _OFF_DIAGONAL = ([0, 1, 2], [0, 1, 2]), ([1, 0, 0], [2, 2, 1])


def compare(label: Labels, value: Labels, *, molecule: bool) -> dict[str, np.ndarray]:
    """Labels beside predictions of one structure: {quantity: [2, n]} of what is labelled.

    The six independent stress components count once each, three of them again as
    "stress_offdiagonal"; "energy_total" is for molecules, energy is per atom.
    """
    found = {}
    size = len(value.forces)
    if label.energy is not None and np.isfinite(label.energy):
        energies = np.array([[label.energy], [value.energy]])
        found["energy"] = energies / size
        if molecule:
            found["energy_total"] = energies
    if label.forces is not None:
        found["forces"] = np.stack([label.forces.ravel(), value.forces.ravel()])
    if label.stress is not None and value.stress is not None:
        both = np.stack([label.stress, value.stress])
        off = both[:, *_OFF_DIAGONAL]
        found["stress"] = np.concatenate([both[:, *_DIAGONAL], off], axis=1)
        found["stress_offdiagonal"] = off
    known = {name: np.isfinite(pair).all(axis=0) for name, pair in found.items()}
    return {name: pair[:, known[name]] for name, pair in found.items() if known[name].any()}


@dataclass
class Evaluation:
    """Labels and predictions, kept by config_type: groups[group][quantity] is a list of [2, n]."""

    groups: dict[str, dict[str, list[np.ndarray]]] = field(default_factory=dict)

    def add(self, group: str, pairs: Mapping[str, np.ndarray]) -> None:
        """One structure, as from `compare`."""
        mine = self.groups.setdefault(group, {})
        for name, pair in pairs.items():
            mine.setdefault(name, []).append(pair)

    def pairs(self, quantity: str, group: str | None = None) -> np.ndarray:
        """[2, n] labels and predictions (eV, Å) of a group, or of all."""
        chosen = self.groups.values() if group is None else [self.groups[group]]
        parts = [pair for mine in chosen for pair in mine.get(quantity, [])]
        return np.concatenate([np.empty((2, 0)), *parts], axis=1)

    def _errors(self, group: str | None) -> dict[str, dict[str, float]]:
        errors = {}
        for name, (_, unit) in QUANTITIES.items():
            label, value = self.pairs(name, group)
            difference = unit * (value - label)
            if len(difference):
                errors[name] = {
                    "mae": float(np.abs(difference).mean()),
                    "rmse": math.sqrt(float(np.square(difference).mean())),
                    "count": len(difference),
                }
        total, each = (errors.get(name, {}).get("count") for name in ("energy_total", "energy"))
        if total != each:  # molecules among crystals: energies per frame would mix sizes
            errors.pop("energy_total", None)
        return errors

    def summary(self) -> dict[str, Any]:
        """{"all": ..., config_type: ...}, each {quantity: {mae, rmse, count}} in QUANTITIES.

        "all" are all frames, also where some have no config_type of their own.
        """
        groups = {group: self._errors(group) for group in self.groups if group != "all"}
        return {"all": self._errors(None)} | groups
