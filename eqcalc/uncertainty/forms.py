"""Quadratic forms of features, and the extra file that holds them (see `eqcalc.uncertainty`)."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from eqcalc.errors import InputError
from eqcalc.files import replacing, user_path

UNCERTAINTY_FILE = "uncertainty.bin"
UNCERTAINTY_VERSION = 1

#: follows the name of a file
MISSING = "has no uncertainty: run 'eqcalc calibrate MODEL frames.xyz' with its training frames"

_INTEGER, _NUMBER = "<i8", "<f8"


class Atomic(NamedTuple):
    """What a potential says of atoms beside their energies; None is what nobody wanted.

    features [N, H] eV; energies_std [N] eV; grades [N].
    """

    features: np.ndarray | None = None
    energies_std: np.ndarray | None = None
    grades: np.ndarray | None = None


@dataclass(frozen=True)
class QuadraticForm:
    """|(f - centre) factor|^2 + constant, of each of K species.

    Attributes:
        centre: [K, H].
        factor: [K, H, H], rows are features.
        constant: [K].
    """

    centre: np.ndarray
    factor: np.ndarray
    constant: np.ndarray

    def rows(self, row: int, features: np.ndarray) -> np.ndarray:
        """(f - centre) factor of features [N, H] of one species: [N, H]."""
        return (features - self.centre[row]) @ self.factor[row]

    def values(self, row: int, features: np.ndarray) -> np.ndarray:
        """Of features [N, H] of one species: [N]."""
        rows = self.rows(row, features)
        return np.einsum("nc,nc->n", rows, rows) + self.constant[row]


@dataclass(frozen=True)
class Uncertainty:
    """Both forms of a potential.

    Attributes:
        species: [K] ascending, numbers in the model of those that the training had.
        energy: the variance of an atom's energy, eV^2.
        grade: the square of its extrapolation grade.
    """

    species: np.ndarray
    energy: QuadraticForm
    grade: QuadraticForm

    @property
    def width(self) -> int:
        """H, the number of features."""
        return self.energy.centre.shape[1]

    def _values(self, form: QuadraticForm, species: np.ndarray, features: np.ndarray) -> np.ndarray:
        values = np.full(len(species), np.inf)
        for row, s in enumerate(self.species):
            mine = species == s
            if mine.any():
                values[mine] = form.values(row, features[mine])
        return values

    def energies_std(self, species: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Standard deviations [N] eV of the energies of atoms; species [N], features [N, H]."""
        return np.sqrt(self._values(self.energy, species, features))

    def grades(self, species: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Extrapolation grades [N]; species [N], features [N, H]."""
        return np.sqrt(self._values(self.grade, species, features))

    def of_atoms(self, species: np.ndarray, features: np.ndarray) -> Atomic:
        """All of it; species [N], features [N, H]."""
        return Atomic(
            features, self.energies_std(species, features), self.grades(species, features)
        )

    def energy_std(self, species: np.ndarray, features: np.ndarray) -> float:
        """Standard deviation (eV) of the energy of a structure.

        Errors of atoms of one species come from the same weights, so that they add up before they
        are squared; those of different species are taken for independent.
        """
        variance = 0.0
        for s in np.unique(species):
            found = np.flatnonzero(self.species == s)
            if not len(found):
                return float("inf")
            row, mine = int(found[0]), species == s
            summed = self.energy.rows(row, features[mine]).sum(axis=0)
            variance += summed @ summed + mine.sum() ** 2 * self.energy.constant[row]
        return float(np.sqrt(variance))

    def content(self) -> bytes:
        """What `uncertainty.bin` holds."""
        count, width = self.energy.centre.shape
        header = np.array([UNCERTAINTY_VERSION, width, count, *self.species], dtype=_INTEGER)
        parts = [header.tobytes()]
        for row in range(count):
            for form in (self.energy, self.grade):
                numbers = (form.centre[row], form.factor[row], form.constant[row])
                parts += [np.asarray(n, dtype=_NUMBER).tobytes() for n in numbers]
        return b"".join(parts)

    @classmethod
    def from_content(cls, content: bytes) -> Uncertainty:
        """What `content` of this or an older version returned.

        Raises:
            InputError: it is of a newer version, or cut short.
        """
        version, width, count = np.frombuffer(content[:24], dtype=_INTEGER).tolist()
        if version > UNCERTAINTY_VERSION:
            raise InputError(
                "The file's uncertainty is of a newer eqcalc than this one: update eqcalc."
            )
        begin = 24 + 8 * count
        each = 2 * (width + width**2 + 1)
        if len(content) != begin + 8 * count * each:
            raise InputError("The file's uncertainty is cut short: run 'eqcalc calibrate' again.")
        species = np.frombuffer(content[24:begin], dtype=_INTEGER).astype(np.int64)
        numbers = np.frombuffer(content[begin:], dtype=_NUMBER).astype(np.float64)
        forms = []
        for block in np.moveaxis(numbers.reshape(count, 2, each // 2), 1, 0):
            factor = block[:, width:-1].reshape(count, width, width)
            forms.append(QuadraticForm(block[:, :width].copy(), factor.copy(), block[:, -1].copy()))
        return cls(species, *forms)


def read(path: str | os.PathLike) -> Uncertainty | None:
    """The uncertainty that a potential file carries, if it has one."""
    with zipfile.ZipFile(user_path(path)) as archive:
        names = [n for n in archive.namelist() if n.endswith(f"extra/{UNCERTAINTY_FILE}")]
        return Uncertainty.from_content(archive.read(names[0])) if names else None


def write(
    path: str | os.PathLike,
    target: str | os.PathLike,
    uncertainty: Uncertainty,
    summary: dict[str, Any],
) -> None:
    """Copies a potential file with this uncertainty; all else in it stays as it is, byte for byte.

    summary: for people, goes into the metadata as `uncertainty`.
    """
    with zipfile.ZipFile(user_path(path)) as archive:
        entries = [(item, archive.read(item)) for item in archive.infolist()]
    with replacing(target) as partial, zipfile.ZipFile(partial, "w") as kept:
        for item, content in entries:
            if item.filename.endswith(f"extra/{UNCERTAINTY_FILE}"):
                continue
            if item.filename.endswith("extra/eqcalc.json"):
                document = json.loads(content) | {"uncertainty": summary}
                kept.writestr(item, json.dumps(document, indent=1))
                folder = item.filename.removesuffix("eqcalc.json")
                kept.writestr(folder + UNCERTAINTY_FILE, uncertainty.content())
            else:
                kept.writestr(item, content)
