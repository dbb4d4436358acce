"""Structures made for the checks: without constraints, primitive, repeated."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
from ase import Atoms


def bare(atoms: Atoms) -> Atoms:
    """A copy without constraints, which would hide forces, and without a calculator."""
    atoms = atoms.copy()
    atoms.set_constraint()
    return atoms


def primitive_cell(atoms: Atoms, tolerance: float = 1e-3) -> Atoms:
    """The smallest cell that repeats to the same crystal, in the same orientation.

    Args:
        tolerance: Å, within which atoms must coincide after a translation.
    """
    cell, inverse = atoms.cell.array, np.linalg.inv(atoms.cell.array)
    numbers, counts = np.unique(atoms.numbers, return_counts=True)
    same = np.flatnonzero(atoms.numbers == numbers[counts.argmin()])
    start = atoms.positions[same[0]]
    shifts = [t for t in atoms.positions[same] - start if _maps(atoms, t, inverse, tolerance)]
    if len(shifts) == 1:
        return atoms.copy()
    images = np.array(np.meshgrid(*[[-1, 0, 1]] * 3)).reshape(3, -1).T @ cell
    vectors = (np.array(shifts)[:, None] + images[None]).reshape(-1, 3)
    vectors = vectors[np.linalg.norm(vectors, axis=1) > tolerance]
    vectors = vectors[np.argsort(np.linalg.norm(vectors, axis=1).round(6), kind="stable")]
    volume = abs(np.linalg.det(cell)) / len(shifts)
    choices = np.array([vectors[list(c)] for c in combinations(range(min(len(vectors), 24)), 3)])
    found = np.linalg.det(choices)
    choices = [
        c * np.sign(v)
        for c, v in zip(choices, found, strict=True)
        if abs(abs(v) - volume) < 1e-3 * volume
    ]
    if not choices:
        return atoms.copy()
    return _fold(atoms, max(choices, key=lambda c: heights(c).min().round(6)), tolerance)


def _maps(atoms: Atoms, shift: np.ndarray, inverse: np.ndarray, tolerance: float) -> bool:
    """Does a translation bring every atom onto one of its kind? A few are asked first."""
    for chosen in (slice(0, 4), slice(4, None)):
        moved, numbers = atoms.positions[chosen] + shift, atoms.numbers[chosen]
        for number in set(numbers):
            others = atoms.positions[atoms.numbers == number]
            apart = (moved[numbers == number][:, None] - others[None]) @ inverse
            apart = (apart - np.round(apart)) @ atoms.cell.array
            if np.linalg.norm(apart, axis=2).min(axis=1).max() > tolerance:
                return False
    return True


def _fold(atoms: Atoms, cell: np.ndarray, tolerance: float) -> Atoms:
    """The atoms of one smaller cell."""
    inverse = np.linalg.inv(cell)
    kept: list[int] = []
    for k, position in enumerate(atoms.positions):
        apart = (atoms.positions[kept] - position) @ inverse
        apart = np.linalg.norm((apart - np.round(apart)) @ cell, axis=1)
        if not (apart < 10 * tolerance).any():
            kept.append(k)
    small = atoms[kept]
    small.set_cell(cell)
    small.wrap()
    return small


def supercell(atoms: Atoms, enough: Callable[[Atoms], bool]) -> Atoms:
    """Repeats along the lowest height until it is enough."""
    repeats = np.ones(3, dtype=int)
    while True:
        large = atoms.repeat(repeats)
        if enough(large):
            return large
        repeats[heights(large.cell.array).argmin()] += 1


def heights(cell: np.ndarray) -> np.ndarray:
    """Distances [3] between opposite faces of a cell [3, 3], Å."""
    return 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0)
