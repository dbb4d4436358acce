"""Molecules with parts pulled away along their bonds: what bonds cost, for a network to learn.

Frames of one molecule near rest have the same bonds in each of them, and a network may take any of
them for almost free (acetylacetone: 2.2 eV for C-C bonds, where GFN2-xTB says 5.3 to 7.7). Dynamics
do not get there before something breaks, so the frames are made: a bond that holds two parts
together is drawn, and the smaller part is moved along it; in two of five frames again, for one or
three more bonds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
from ase import Atoms
from ase.neighborlist import build_neighbor_list, natural_cutoffs

from eqcalc.errors import InputError

#: of the sum of two covalent radii: the longest bond
BOND = 1.15
#: Å: pairs that never come nearer in any start are kept that far apart
FAR = 4.0
#: how many bonds are pulled in a frame, and how often
TIMES, SHARE = (1, 2, 4), (0.6, 0.25, 0.15)
#: the shortest way over the longest; ways are drawn evenly on a logarithmic scale between them
SHORTEST = 0.05
#: by which directions deviate from that of the bond
SPREAD = 0.15
#: so many draws in turn that give no frame are one too many
PATIENCE = 200


def bonds(atoms: Atoms) -> list[tuple[int, int]]:
    """Pairs of atoms as near as the sum of their covalent radii, or little farther."""
    found = build_neighbor_list(
        atoms, natural_cutoffs(atoms, mult=BOND), self_interaction=False, bothways=False
    )
    return [(i, int(j)) for i in range(len(atoms)) for j in found.get_neighbors(i)[0]]


def part(pairs: Sequence[tuple[int, int]], i: int, j: int) -> list[int]:
    """Atoms that hang on j if the bond i-j is cut; i is among them if a ring holds the two."""
    joined: dict[int, list[int]] = {}
    for a, b in pairs:
        joined.setdefault(a, []).append(b)
        joined.setdefault(b, []).append(a)
    joined[j].remove(i)  # once: periodic images of i may hold j as well
    found, left = {j}, [j]
    while left:
        near = {*joined[left.pop()]} - found
        found |= near
        left += near
    return sorted(found)


def shortest(atoms: Atoms) -> dict[tuple[int, int], float]:
    """Å, the shortest distance of two elements Z <= Z', but FAR at most."""
    numbers = atoms.numbers
    distances = atoms.get_all_distances(mic=bool(atoms.pbc.any())) + FAR * np.eye(len(atoms))
    lower, higher = np.minimum.outer(numbers, numbers), np.maximum.outer(numbers, numbers)
    return {
        (int(a), int(b)): min(FAR, float(distances[(lower == a) & (higher == b)].min()))
        for a in set(numbers)
        for b in set(numbers)
        if a <= b
    }


def pull(atoms: Atoms, largest: float, rng: np.random.Generator) -> Atoms:
    """A copy with parts moved by up to `largest` Å; unmoved where all bonds drawn are in rings."""
    image = atoms.copy()
    pairs = bonds(image)
    for _ in range(rng.choice(TIMES, p=SHARE) if pairs else 0):
        i, j = pairs[rng.integers(len(pairs))]
        moved = part(pairs, i, j)
        if i in moved or len(moved) > len(image) // 2:
            i, j = j, i
            moved = part(pairs, i, j)
        if i in moved:
            continue
        way = image.get_distance(i, j, mic=bool(image.pbc.any()), vector=True)
        way /= np.linalg.norm(way)
        way += SPREAD * rng.normal(size=3)
        image.positions[moved] += way * largest * SHORTEST ** (1.0 - rng.random())
    return image


def pulled(starts: Sequence[Atoms], largest: float, rng: np.random.Generator) -> Iterator[Atoms]:
    """Frames without end, in none of which two atoms are nearer than such elements in the starts.

    Args:
        starts: molecules, as in the training frames.
        largest: Å, of one way.

    Raises:
        InputError: no start has bonds that can be pulled.
    """
    least: dict[tuple[int, int], float] = {}
    for atoms in starts:
        for pair, distance in shortest(atoms).items():
            least[pair] = min(distance, least.get(pair, FAR))
    vain = 0
    for _ in count():
        start = starts[rng.integers(len(starts))]
        image = pull(start, largest, rng)
        moved = not np.array_equal(image.positions, start.positions)
        if moved and all(d >= least[pair] for pair, d in shortest(image).items()):
            vain = 0
            yield image
            continue
        vain += 1
        if vain == PATIENCE:
            raise InputError(
                "The starts have no bonds to be pulled, which part one from the rest: pulling is "
                "for molecules; leave it out."
            )
