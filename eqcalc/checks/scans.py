"""Paths through configurations: distances that cross the cutoff, pairs pushed together.

A path x(t) moves one atom along a unit vector u, so that its distances to others cross the cutoff.
With E(t), the force along the path f(t) = F.u = -dE/dt and its slope f'(t), the jump of each at a
crossing t* is the difference of one-sided limits, extrapolated from either side with a cubic. It is
measured with points ever closer: what extrapolation leaves of a smooth function falls with the cube
of their spacing h (in the slope), a jump stays. So two spacings give the slope's jump without that
error (Richardson), J = (8 J(h/2) - J(h)) / 7.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.data import atomic_numbers, covalent_radii

from eqcalc.checks.structures import bare
from eqcalc.neighbors import neighbor_list

#: points on either side of a crossing, and their spacings in Å, each half of the one before: at the
#: first, extrapolation errs by 1e-5 eV/Å^2 at worst in hot silicon, by 5e-2 where an atom of a
#: molecule is pushed into others; rounding rises below the last
NUM_POINTS = 6
SPACINGS = (2e-4, 1e-4, 5e-5)

#: Å to the next crossing on the path, at least: twice what the points take
MIN_GAP = 2 * NUM_POINTS * SPACINGS[0]

#: eV: a minimum shallower than this is ripple of the fit, not a place to be trapped in at 300 K
DEPTH = 0.01

#: of the sum of covalent radii (Cordero et al. 2008): where scans towards short distance end. At
#: this distance a bond costs tens of eV, more than any thermal collision brings
SHORTEST = 0.5

MAX_CROSSINGS = 8

#: Å, how far atoms are moved in search of crossings: no further than need be
REACHES = (0.3, 0.6, 1.2, 2.4, 4.8)


@dataclass(frozen=True)
class Crossing:
    """Jumps of energy (eV), force (eV/Å) and its slope (eV/Å^2) where a distance is the cutoff.

    where: Å along the path; of a pair, its distance.
    """

    path: str
    where: float
    energy: float
    force: float
    slope: float


@dataclass(frozen=True)
class Scan:
    """Energy (eV, from its last value) over the distance (Å) of a pair, alone or in a structure.

    minima: distances of minima deeper than DEPTH, that of the bond included.
    trapped: those of them that a barrier parts from the largest distance.
    holes: distances shorter than the innermost minimum, or the start, behind which the energy
        falls again by more than DEPTH.
    """

    name: str
    distance: np.ndarray
    energy: np.ndarray
    minima: list[float]
    trapped: list[float]
    holes: list[float]


def _limits(t: np.ndarray, values: np.ndarray, degree: int = 3) -> tuple[float, float]:
    """Value and slope at t = 0 of a polynomial through the points."""
    scale = np.abs(t).max()
    slope, value = np.polyfit(t / scale, values, degree)[-2:]
    return float(value), float(slope / scale)


def _jumps(
    along: Callable[[float], tuple[float, float]], where: float, spacing: float
) -> list[float]:
    """Of energy, force and its slope at `where`, with signs, from points on both sides."""
    sides = []
    for sign in (-1.0, 1.0):
        t = sign * spacing * np.arange(1, NUM_POINTS + 1)
        energy, force = np.array([along(where + dt) for dt in t]).T
        value, slope = _limits(t, force)
        sides.append((_limits(t, energy - energy[0])[0] + energy[0], value, slope))
    return [b - a for a, b in zip(*sides, strict=True)]


def _crossing(along: Callable[[float], tuple[float, float]], where: float, path: str) -> Crossing:
    """Jumps at `where` that are left at the spacing that shows least of them."""
    jumps = np.array([_jumps(along, where, spacing) for spacing in SPACINGS])
    energy, force, slope = jumps.T
    slope = (8.0 * slope[1:] - slope[:-1]) / 7.0
    return Crossing(path, where, *(float(np.abs(j).min()) for j in (energy, force, slope)))


def extrema(energy: np.ndarray) -> tuple[list[int], list[int]]:
    """Indices of minima, and of maxima, that are separated by more than DEPTH in energy."""
    minima, maxima = [], []
    low = high = 0
    rising = None
    for k, value in enumerate(energy):
        low = k if value < energy[low] else low
        high = k if value > energy[high] else high
        if rising is not True and value - energy[low] > DEPTH:
            if rising is False or low > 0:
                minima.append(low)
            rising, high = True, k
        elif rising is not False and energy[high] - value > DEPTH:
            if rising is True:
                maxima.append(high)
            rising, low = False, k
    return minima, maxima


def _scan(name: str, distance: np.ndarray, energy: np.ndarray) -> Scan:
    """distance rises; a maximum inside of every minimum, or of all, is the rim of a hole."""
    minima, maxima = extrema(energy)
    innermost = minima[0] if minima else len(energy)
    falling_inwards = len(energy) > 1 and bool(maxima) and maxima[0] < innermost
    holes = [float(distance[maxima[0]])] if falling_inwards else []
    rising = int(np.argmax(energy))
    if not holes and rising > 0 and energy[rising] - energy[0] > DEPTH:
        holes = [float(distance[rising])]
    trapped = [k for k in minima if any(m > k for m in maxima)]
    places = ([float(distance[k]) for k in which] for which in (minima, trapped))
    return Scan(name, distance, energy - energy[-1], *places, holes)


def _along(atoms: Atoms, index: int, direction: np.ndarray) -> Callable[[float], tuple]:
    """t (Å) -> energy (eV) and force along the path (eV/Å) of one atom moved by t."""
    start = atoms.positions[index].copy()

    def at(t: float) -> tuple[float, float]:
        atoms.positions[index] = start + t * direction
        value = atoms.get_potential_energy(), float(atoms.get_forces()[index] @ direction)
        atoms.positions[index] = start
        return value

    return at


def _pair(symbols: tuple[str, str], calc: Calculator) -> tuple[Callable, float]:
    """distance -> energy and force of a pair alone in space; and where to end."""
    pair = Atoms(symbols, positions=np.zeros((2, 3)))
    pair.calc = calc
    tilted = np.array([2.0, 3.0, 6.0]) / 7.0
    radii = [covalent_radii[atomic_numbers[s]] for s in symbols]
    return _along(pair, 1, tilted), SHORTEST * sum(radii)


def scan_pairs(
    symbols: list[str], calc: Calculator, cutoff: float, num_points: int = 240
) -> tuple[list[Crossing], list[Scan]]:
    """All pairs of the elements alone in space: the crossing, and the scan inwards of it."""
    crossings, scans = [], []
    for pair in combinations_with_replacement(symbols, 2):
        along, shortest = _pair(pair, calc)
        name = "-".join(pair)
        crossings.append(_crossing(along, cutoff, f"{name} alone"))
        distance = np.linspace(shortest, cutoff, num_points)
        energy = np.array([along(r)[0] for r in distance])
        scans.append(_scan(f"{name} alone", distance, energy))
    return crossings, scans


def find_crossings(
    atoms: Atoms, index: int, direction: np.ndarray, cutoff: float, reach: float
) -> list[tuple[float, float]]:
    """Where neighbours of an atom that moves by -reach to reach (Å) cross the cutoff.

    Returns:
        (t, gap) of each: gap (Å) to the nearest other crossing.
    """
    found = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, cutoff + reach + 0.1)
    mine = (found.edge_dst == index) & (found.edge_src != index)
    vectors = found.vectors(atoms.positions, atoms.cell.array)[mine]
    # |r - t u|^2 = cutoff^2
    along = vectors @ direction
    square = along**2 - (vectors**2).sum(axis=1) + cutoff**2
    root = np.sqrt(square[square >= 0.0])
    t = np.concatenate([along[square >= 0.0] - root, along[square >= 0.0] + root])
    t = np.sort(t[np.abs(t) < reach + 0.1])
    gaps = np.diff(t, prepend=-np.inf, append=np.inf)
    pairs = [(float(x), float(min(gaps[k], gaps[k + 1]))) for k, x in enumerate(t)]
    return [(x, gap) for x, gap in pairs if abs(x) < reach]


def cross_in(atoms: Atoms, calc: Calculator, cutoff: float, seed: int = 0) -> list[Crossing]:
    """Crossings that are well apart from others, on paths of single atoms through a structure."""
    rng = np.random.default_rng(seed)
    atoms = bare(atoms)
    atoms.calc = calc
    crossings: list[Crossing] = []
    for reach in REACHES:
        for _ in range(8):
            index = int(rng.integers(len(atoms)))
            direction = rng.normal(size=3)
            direction /= np.linalg.norm(direction)
            along = _along(atoms, index, direction)
            apart = find_crossings(atoms, index, direction, cutoff, reach)
            apart = sorted((p for p in apart if p[1] > MIN_GAP), key=lambda p: -p[1])
            for t, _ in apart[: MAX_CROSSINGS // 3]:
                name = f"atom {index} ({atoms.symbols[index]}) in the structure"
                crossings.append(_crossing(along, t, name))
        if len(crossings) >= MAX_CROSSINGS:
            break
    return crossings[:MAX_CROSSINGS]


def approach(atoms: Atoms, calc: Calculator, num_points: int = 120) -> list[Scan]:
    """Each kind of atom in the structure pushed towards its nearest neighbour."""
    atoms = bare(atoms)
    atoms.calc = calc
    found = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, 6.0)
    vectors = found.vectors(atoms.positions, atoms.cell.array)
    scans = []
    for element in sorted(set(atoms.symbols)):
        index = int(np.flatnonzero(np.array(atoms.symbols) == element)[0])
        mine = np.flatnonzero((found.edge_dst == index) & (found.edge_src != index))
        if not len(mine):
            continue
        lengths = np.linalg.norm(vectors[mine], axis=1)
        nearest = mine[lengths.argmin()]
        length = float(lengths.min())
        other = atoms.symbols[found.edge_src[nearest]]
        radii = covalent_radii[atomic_numbers[element]] + covalent_radii[atomic_numbers[other]]
        along = _along(atoms, index, vectors[nearest] / length)
        distance = np.linspace(min(SHORTEST * radii, 0.9 * length), length, num_points)
        energy = np.array([along(length - r)[0] for r in distance])
        scans.append(_scan(f"{element} towards {other} in the structure", distance, energy))
    return scans
