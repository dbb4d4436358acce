"""Labels that are there but not read: other spellings, a second set, a stress without a volume."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from ase import Atoms

from eqcalc.data.labels import (
    DEFAULT_KEYS,
    LabelKeys,
    asked_by_name,
    config_type,
    find_label,
    is_isolated_atom,
    key_of,
    places,
    stress_matrix,
)
from eqcalc.derivatives import stress_volume

#: the word in a name that says what it is
_NOUNS = {
    **dict.fromkeys(("force", "forces"), "forces"),
    **dict.fromkeys(("energy", "etot", "toten"), "energy"),
    **dict.fromkeys(("stress", "stresses"), "stress"),
    **dict.fromkeys(("virial", "virials"), "virial"),
}

#: words of names that are something else: masks, errors, our own predictions, parts of an energy
_OTHER_THINGS = """
eqcalc mask weight weights sigma std error errors rmse mae uncertainty variance constraint
constraints max min mean norm rms scale unit units key atomic local per free kinetic formation
binding adsorption cohesive cohesion reaction interaction correction dispersion zero point one body
electronic nuclear core surface strain elastic cutoff hull gap bandgap fermi vdw d3 d4 disp ewald
coulomb electrostatic solvation external field entropy smearing repulsion hartree rydberg kcal kj
"""

#: eV, eV/Å and eV/Å^3 by which two labels differ that are not the same
_TOLERANCE = {"energy": 1e-3, "forces": 1e-3, "stress": 1e-4}
_UNITS = {"energy": "eV", "forces": "eV/Å", "stress": "eV/Å^3"}


@lru_cache(maxsize=4096)
def label_of(name: str) -> str | None:
    """Which label a name such as "REF_forces", "dft_stress" or "virials" stands for, if any."""
    words = [word.lower() for word in re.split(r"[^A-Za-z0-9]+|(?<=[a-z])(?=[A-Z])", name)]
    nouns = {_NOUNS[word] for word in words if word in _NOUNS}
    if not nouns or not set(words).isdisjoint(_OTHER_THINGS.split()):
        return None
    return "virial" if nouns == {"virial", "stress"} else nouns.pop() if len(nouns) == 1 else None


def drop_labels(atoms: Atoms) -> None:
    """Removes energies, forces and stresses of whatever name, and the calculator."""
    atoms.calc = None
    for place in (atoms.info, atoms.arrays):
        for name in [name for name in place if label_of(name)]:
            del place[name]


def _value(atoms: Atoms, label: str, value: Any, source: str) -> np.ndarray | None:
    """A label as an array in the units of training; None if it has not the label's shape."""
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        return None
    if label in {"energy", "forces"}:
        shape = () if label == "energy" else (len(atoms), 3)
        return array.astype(np.float64) if array.shape == shape else None
    volume = stress_volume(atoms.cell.array, atoms.pbc)
    if array.shape not in {(6,), (9,), (3, 3)} or volume is None:
        return None
    return stress_matrix(array, source) * (1.0 if label == "stress" else -1.0 / volume)


@dataclass
class _Other:
    """A label under a name that is not read.

    Attributes:
        lacking: frames that have it, and not the one that is read.
        difference: the largest one from the label that is read.
    """

    lacking: int = 0
    difference: float = 0.0


class LabelSurvey:
    """What is said of names after all structures of a data set have been seen.

    Args:
        keys: the names that are read.
    """

    def __init__(self, keys: LabelKeys) -> None:
        self.keys = keys
        self.asked = asked_by_name(keys)
        self.frames = 0
        self.read = Counter[str]()
        self.unused_stress: list[str] = []
        self._others: dict[tuple[str, str], _Other] = {}

    def _used(self, label: str) -> str:
        """The name under which a label is read; the stress may be read as a virial."""
        return (label == "stress" and key_of("virial", self.keys)) or key_of(label, self.keys)

    def add(self, atoms: Atoms, source: str) -> None:
        """A structure as it was read, with all that came with it."""
        if is_isolated_atom(config_type(atoms)):
            return
        self.frames += 1
        used = {}
        for label in ("energy", "forces", "stress"):
            value = find_label(atoms, self._used(label))
            if value is not None:
                self.read[label] += 1
                kind = "virial" if label == "stress" and key_of("virial", self.keys) else label
                used[label] = _value(atoms, kind, value, source)
                if label == "stress" and used[label] is None and np.any(value):
                    self.unused_stress.append(source)
        names = {name for place in places(atoms) for name in place}
        for name in names - {self._used(label) for label in _UNITS}:
            kind = label_of(name)
            label = "stress" if kind == "virial" else kind
            if kind is None or not self._used(label):
                continue
            value = _value(atoms, kind, find_label(atoms, name), source)
            if value is None:
                continue
            other = self._others.setdefault((label, name), _Other())
            if label not in used:
                other.lacking += 1
            elif used[label] is not None:
                apart = float(np.abs(value - used[label]).max(initial=0.0))
                other.difference = max(other.difference, apart)

    def absent(self) -> list[str]:
        """A sentence for each label that was asked for by name and is in no frame."""
        return [
            f"No frame has {'a ' * (label == 'virial')}{label} under the key '{key}': correct "
            f"data.{label}_key.{self._instead(label)}"
            for label, key in self.asked.items()
            if self.frames and not self.read["stress" if label == "virial" else label]
        ]

    def _instead(self, label: str) -> str:
        label = "stress" if label == "virial" else label
        names = sorted(f"'{name}'" for known, name in self._others if known == label)
        return f" There is {', '.join(names)}." if names else ""

    def sentences(self) -> list[str]:
        """What is there and is not read, and the options that read it."""
        return [*self.missing(), *self._two_sets(), *self._without_volume()]

    def missing(self) -> list[str]:
        """Labels that some frames have under another name alone."""
        found = []
        for (label, name), other in sorted(self._others.items()):
            if other.lacking:
                option = f"{label_of(name)}_key"
                found.append(
                    f"{other.lacking} of {self.frames} frames have no {label} under the key "
                    f"'{self._used(label)}' but '{name}', which is not read: data.{option} = "
                    f'"{name}" or --{option.replace("_", "-")} {name} reads it.'
                )
        return found

    def _two_sets(self) -> list[str]:
        """Only of labels whose names nobody chose."""
        found = [
            (label, name, other.difference)
            for (label, name), other in sorted(self._others.items())
            if other.difference > _TOLERANCE[label] and self._used(label) == DEFAULT_KEYS[label]
        ]
        if not found:
            return []
        used = " and ".join(dict.fromkeys(f"'{self._used(label)}'" for label, _, _ in found))
        others = " and ".join(
            f"'{name}' (up to {difference:.3g} {_UNITS[label]} away)"
            for label, name, difference in found
        )
        options = " ".join(f"--{label_of(name)}-key {name}" for _, name, _ in found)
        settings = ", ".join(dict.fromkeys(f"data.{label_of(name)}_key" for _, name, _ in found))
        verb = "are" if " and " in used else "is"
        sentence = (
            f"Two sets of labels: {used} {verb} used, and {others} left out: choose with "
            f"{settings} ({options}), or remove what is not meant."
        )
        return [sentence]

    def _without_volume(self) -> list[str]:
        number = len(self.unused_stress)
        if not number:
            return []
        sentence = (
            f"The stress of {number} frame{'s' if number > 1 else ''} is left out (first "
            f"{self.unused_stress[0]}): periodic in no direction, or in a cell without volume, "
            "where a stress has no meaning."
        )
        return [sentence]
