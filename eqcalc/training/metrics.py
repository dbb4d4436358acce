"""Labels beside predictions, by config_type, and their errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eqcalc.data.labels import Labels
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


def compare_outputs(
    labels: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Labels beside predictions of one structure's other outputs, as rows: {name: [2, n]}."""
    pairs = {name: np.stack([labels[name].ravel(), values[name].ravel()]) for name in labels}
    known = {name: pair[:, np.isfinite(pair).all(axis=0)] for name, pair in pairs.items()}
    return {name: pair for name, pair in known.items() if pair.size}


class Comparison:
    """Labels beside predictions of one quantity: sums of all, and a sample to be drawn.

    Up to `limit` of them are kept; when there are more, those of every second structure go, and
    only every second (fourth, eighth, ...) structure is kept from then on.
    """

    def __init__(self, limit: int = 1 << 18) -> None:
        self.limit = limit
        self.absolute = self.square = 0.0
        self.count = self.kept = 0
        self._structures, self._stride = 0, 1
        self._sample: list[np.ndarray] = []

    def add(self, pair: np.ndarray) -> None:
        """[2, n] of one structure."""
        difference = pair[1] - pair[0]
        self.absolute += float(np.abs(difference).sum())
        self.square += float(np.square(difference).sum())
        self.count += len(difference)
        if self._structures % self._stride == 0:
            self._sample.append(pair)
            self.kept += len(difference)
        self._structures += 1
        while self.kept > self.limit and len(self._sample) > 1:
            self._sample = self._sample[::2]
            self._stride *= 2
            self.kept = sum(part.shape[1] for part in self._sample)

    @property
    def sample(self) -> np.ndarray:
        """[2, n], all of them if there are no more than `limit`."""
        return np.concatenate([np.empty((2, 0)), *self._sample], axis=1)


@dataclass
class Comparisons:
    """Labels and predictions by config_type: groups[group][quantity].

    outputs: units of what is there beside `QUANTITIES`, by name.
    """

    outputs: dict[str, str] = field(default_factory=dict)
    groups: dict[str, dict[str, Comparison]] = field(default_factory=dict)

    def add(self, group: str, pairs: Mapping[str, np.ndarray]) -> None:
        """One structure, as from `compare`."""
        mine = self.groups.setdefault(group, {})
        for name, pair in pairs.items():
            mine.setdefault(name, Comparison()).add(pair)

    def _parts(self, quantity: str, group: str | None) -> list[Comparison]:
        chosen = self.groups.values() if group is None else [self.groups[group]]
        return [mine[quantity] for mine in chosen if quantity in mine]

    def sample(self, quantity: str, group: str | None = None) -> np.ndarray:
        """[2, n] labels and predictions (eV, Å) of a group, or of all; a sample if very many."""
        parts = [part.sample for part in self._parts(quantity, group)]
        return np.concatenate([np.empty((2, 0)), *parts], axis=1)

    def thinned(self) -> bool:
        """Whether a sample leaves anything out."""
        every = [part for mine in self.groups.values() for part in mine.values()]
        return any(part.kept < part.count for part in every)

    def _errors(self, group: str | None) -> dict[str, dict[str, Any]]:
        errors: dict[str, dict[str, Any]] = {}
        own = {name: (label, 1.0) for name, label in self.outputs.items()}
        for name, (written, unit) in (QUANTITIES | own).items():
            parts = self._parts(name, group)
            count = sum(part.count for part in parts)
            if count:
                errors[name] = {
                    "mae": unit * sum(part.absolute for part in parts) / count,
                    "rmse": unit * math.sqrt(sum(part.square for part in parts) / count),
                    "count": count,
                    "unit": written,
                }
        total, each = (errors.get(name, {}).get("count") for name in ("energy_total", "energy"))
        if total != each:  # molecules among crystals: energies per frame would mix sizes
            errors.pop("energy_total", None)
        return errors

    def summary(self) -> dict[str, Any]:
        """{"all": ..., config_type: ...}, each {quantity: {mae, rmse, count, unit}}.

        "all" are all frames, also where some have no config_type of their own.
        """
        groups = {group: self._errors(group) for group in self.groups if group != "all"}
        return {"all": self._errors(None)} | groups
