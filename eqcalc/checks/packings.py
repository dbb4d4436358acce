"""Structures at one scale: their closest pair is as near as the training's closest.

`base(...)` of a family is scaled so that min over pairs of distance / shortest distance is 1, with
the shortest distance of the training for each pair of elements; compressed by x, it is x.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations

import numpy as np
from ase import Atoms
from ase.build import bulk
from scipy.optimize import minimize

from eqcalc.checks.trained import Trained
from eqcalc.neighbors import neighbor_list

#: atoms of a random packing, at least
PACKING_ATOMS = 24

#: volume of spheres as wide as the shortest distance, over the volume. Equal spheres pack at random
#: up to 0.64 (Bernal and Mason, Nature 188, 910 (1960)); 0.3 is half of that, with some close pairs
DENSE, LOOSE = 0.6, 0.3

#: random packings of each density
NUM_PACKINGS = 4

#: pairs of elements whose compounds are tried
MOST_PAIRS = 10

CRYSTALS = {"sc": 1.0, "bcc": 2 / 3**0.5, "fcc": 2**0.5, "diamond": 4 / 3**0.5}
COMPOUNDS = {"rocksalt": 2.0, "cesiumchloride": 2 / 3**0.5, "zincblende": 4 / 3**0.5}


@dataclass(frozen=True)
class Family:
    """One structure that is compressed.

    Attributes:
        kind: molecules, crystals, dense packings, loose packings or clusters.
        name: for a reader.
        base: scaled to x = 1.
        composed: it has the composition that the training had, as far as is known.
    """

    kind: str
    name: str
    base: Atoms
    composed: bool = False

    @property
    def molecular(self) -> bool:
        """Few neighbours, so that multiple bonds may form, shorter than any in dense matter."""
        return self.kind in ("molecules", "loose packings", "clusters")


def closest(atoms: Atoms, symbols: Sequence[str], lengths: np.ndarray) -> float:
    """min over pairs of distance / the pair's length, [S, S] Å."""
    reach = 4.0 * lengths.max()
    found = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, reach)
    distance = np.linalg.norm(found.vectors(atoms.positions, atoms.cell.array), axis=1)
    kind = np.array([symbols.index(s) for s in atoms.symbols])
    return float((distance / lengths[kind[found.edge_src], kind[found.edge_dst]]).min())


def scaled(atoms: Atoms, factor: float) -> Atoms:
    """All distances times a factor, in a periodic cell or without one."""
    result = atoms.copy()
    result.set_cell(atoms.cell.array * factor)
    result.set_positions(atoms.positions * factor)
    return result


def at_contact(atoms: Atoms, trained: Trained) -> Atoms:
    """Scaled to x = 1."""
    return scaled(atoms, 1.0 / closest(atoms, trained.symbols, trained.shortest))


def composition(fractions: Mapping[str, float], count: int) -> list[str]:
    """`count` symbols, as near to the fractions as whole atoms come, each element at least once."""
    total = sum(fractions.values())
    wanted = {s: max(1.0, count * f / total) for s, f in fractions.items()}
    counts = {s: int(w) for s, w in wanted.items()}
    rest = sorted(wanted, key=lambda s: counts[s] - wanted[s])
    for k in range(max(0, count - sum(counts.values()))):
        counts[rest[k % len(rest)]] += 1
    return [s for s, n in counts.items() for _ in range(n)]


def random_packing(
    symbols: Sequence[str], trained: Trained, fraction: float, rng: np.random.Generator
) -> Atoms:
    """Random points in a periodic cube, pushed apart by soft spheres, scaled to x = 1.

    The energy sum (1 - r / d)^2 over pairs nearer than their shortest distance d is minimised;
    what overlap is left in the end is taken away by the scaling.

    Args:
        symbols: of the atoms; repeated until the cube is as wide as two spheres.
        fraction: volume of the spheres over the volume of the cube, before the scaling.
    """
    symbols = list(symbols)
    while True:
        atoms = Atoms(symbols)
        kind = [trained.symbols.index(s) for s in symbols]
        apart = trained.shortest[np.ix_(kind, kind)]
        volume = np.pi / 6 * (np.diag(apart) ** 3).sum() / fraction
        edge = float(np.cbrt(volume))
        if edge >= 2.0 * apart.max():
            break
        symbols = symbols * 2
    first, second = np.triu_indices(len(symbols), 1)
    limit = apart[first, second]

    def overlap(flat: np.ndarray) -> tuple[float, np.ndarray]:
        x = flat.reshape(-1, 3)
        vector = x[first] - x[second]
        vector -= edge * np.round(vector / edge)
        length = np.linalg.norm(vector, axis=1) + 1e-12
        deep = np.clip(1.0 - length / limit, 0.0, None)
        slope = (-2.0 * deep / (limit * length))[:, None] * vector
        gradient = np.zeros_like(x)
        np.add.at(gradient, first, slope)
        np.add.at(gradient, second, -slope)
        return float((deep**2).sum()), gradient.ravel()

    start = rng.uniform(0.0, edge, size=3 * len(symbols))
    found = minimize(overlap, start, jac=True, method="L-BFGS-B", options={"maxiter": 500})
    atoms = Atoms(symbols, found.x.reshape(-1, 3), cell=[edge] * 3, pbc=True)
    atoms.wrap()
    return at_contact(atoms, trained)


def _molecules(symbols: Sequence[str]) -> dict[str, Atoms]:
    """Dimers and trimers of one or two elements, bonds of length 1."""
    a, b = symbols[0], symbols[-1]
    line = [[-1, 0, 0], [0, 0, 0], [1, 0, 0]]
    corner = [[0, 1, 0], [0, 0, 0], [1, 0, 0]]
    half = 3**0.5 / 2
    triangle = [[-0.5, half, 0], [0, 0, 0], [0.5, half, 0]]
    shapes = {"linear": line, "bent": corner, "triangle": triangle}
    found = {f"{a}-{b} dimer": Atoms([a, b], [[0, 0, 0], [1, 0, 0]])}
    for x, y in {(a, b), (b, a)}:
        found |= {f"{x}-{y}-{x} {name}": Atoms([x, y, x], at) for name, at in shapes.items()}
    return dict(sorted(found.items()))


#: kind, name, structure of any size, whether it has the composition of the training
_Made = Iterator[tuple[str, str, Atoms, bool]]


def _ordered(symbols: Sequence[str], rng: np.random.Generator) -> _Made:
    """Molecules and crystals of each element and of pairs of elements."""
    for s in symbols:
        for name, atoms in _molecules([s]).items():
            yield "molecules", name, atoms, len(symbols) == 1
        for lattice, a in CRYSTALS.items():
            yield "crystals", f"{lattice} {s}", bulk(s, lattice, a=a), len(symbols) == 1
    pairs = list(combinations(symbols, 2))
    if len(pairs) > MOST_PAIRS:
        pairs = [pairs[k] for k in np.sort(rng.choice(len(pairs), MOST_PAIRS, replace=False))]
    for pair in pairs:
        for name, atoms in _molecules(pair).items():
            yield "molecules", name, atoms, False
        for lattice, a in COMPOUNDS.items():
            yield (
                "crystals",
                f"{lattice} {'-'.join(pair)}",
                bulk("".join(pair), lattice, a=a),
                False,
            )


def _disordered(trained: Trained, elements: Mapping[str, float], rng: np.random.Generator) -> _Made:
    """Random decorations of crystals, random packings, and clusters cut out of space."""
    if len(elements) > 1:
        for lattice in ("bcc", "fcc"):
            cell = bulk("X", lattice, a=CRYSTALS[lattice], cubic=True).repeat((2, 2, 4))
            cell.symbols = rng.permutation(composition(elements, len(cell))[: len(cell)])
            yield "crystals", f"{lattice}, random {cell.get_chemical_formula()}", cell, True
    mixture = composition(elements, PACKING_ATOMS)
    for kind, fraction in (("dense", DENSE), ("loose", LOOSE)):
        for k in range(NUM_PACKINGS):
            atoms = random_packing(mixture, trained, fraction, rng)
            name = f"{kind} packing {k + 1} {atoms.get_chemical_formula()}"
            yield f"{kind} packings", name, atoms, True
            if kind == "dense" and k % 2 == 0:
                cluster = Atoms(atoms.symbols, atoms.positions)
                yield "clusters", f"cluster of {name}", cluster, True


def families(trained: Trained, elements: Mapping[str, float], *, seed: int = 0) -> list[Family]:
    """Molecules, crystals and random packings of the elements and of their mixture, at x = 1.

    Args:
        elements: atoms of each element, in the composition of the training.
        seed: of decorations and packings.
    """
    rng = np.random.default_rng(seed)
    elements = {s: elements[s] for s in sorted(elements)}
    made = chain(_ordered([*elements], rng), _disordered(trained, elements, rng))
    return [
        Family(kind, name, at_contact(atoms, trained), composed)
        for kind, name, atoms, composed in made
    ]
