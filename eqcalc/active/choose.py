"""Which frames of a pool say most that is new: choice by the features of their atoms.

Symbols: X_f [atoms of one element in frame f, D] features, T those of all training atoms of the
element. A frame's atoms count one by one, since forces tell of each of them, and elements apart.

D-optimal choice (Fedorov, Theory of Optimal Experiments (1972); for potentials Podryabinkin and
Shapeev, Comput. Mater. Sci. 140, 171 (2017)): the frame that adds most to

    sum over elements of log det (1 + T^T T + sum over chosen f of X_f^T X_f),

one after the other. What it adds never grows as others are chosen, so that frames which have added
little before need no second look (Minoux, in Optimization Techniques (1978), p. 234).

Farthest-point choice (Gonzalez, Theor. Comput. Sci. 38, 293 (1985)): the frame with the atom that
is farthest from all atoms of its element in training and chosen frames.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence

import numpy as np

#: of one frame: features [atoms, D] by atomic number
Features = Mapping[int, np.ndarray]

#: variances below this share of the largest one are rounding of float32
ROUNDING = 1e-9

#: rows of a table of distances
ROWS = 4096


def _elements(frames: Sequence[Features]) -> list[int]:
    return sorted({z for frame in frames for z in frame})


def _stacked(frames: Sequence[Features], z: int) -> np.ndarray:
    return np.concatenate([frame[z] for frame in frames if z in frame])


def whitened(
    pool: Sequence[Features], train: Sequence[Features]
) -> tuple[list[Features], list[Features]]:
    """Features of mean zero and unit covariance over all atoms of an element.

    The volume that D-optimality asks for does not depend on it, but the 1 beside T^T T does.
    """
    maps = {}
    everything = [*pool, *train]
    for z in _elements(everything):
        x = _stacked(everything, z).astype(float)
        mean = x.mean(axis=0)
        variance, axes = np.linalg.eigh((x - mean).T @ (x - mean) / len(x))
        kept = variance > ROUNDING * max(variance[-1], 1e-300)
        maps[z] = mean, axes[:, kept] / np.sqrt(variance[kept])
    changed = [{z: (x - maps[z][0]) @ maps[z][1] for z, x in f.items()} for f in everything]
    return changed[: len(pool)], changed[len(pool) :]


def d_optimal(pool: Sequence[Features], train: Sequence[Features], count: int) -> list[int]:
    """Places in the pool of at most `count` frames, the most telling first."""
    pool, train = whitened(pool, train)
    inverse = {}
    for z in _elements([*pool, *train]):
        x = _stacked([*pool, *train], z)
        known = [f[z] for f in train if z in f]
        moment = sum((t.T @ t for t in known), start=np.eye(x.shape[1]))
        inverse[z] = np.linalg.inv(moment)

    def gain(frame: Features) -> float:
        total = 0.0
        for z, x in frame.items():
            total += np.linalg.slogdet(np.eye(len(x)) + x @ inverse[z] @ x.T)[1]
        return float(total)

    heap = [(-gain(frame), place) for place, frame in enumerate(pool)]
    heapq.heapify(heap)
    chosen: list[int] = []
    while heap and len(chosen) < count:
        _, place = heapq.heappop(heap)
        now = (-gain(pool[place]), place)
        if heap and now > heap[0]:
            heapq.heappush(heap, now)
            continue
        chosen.append(place)
        for z, x in pool[place].items():  # Sherman, Morrison and Woodbury
            ax = inverse[z] @ x.T
            inverse[z] = inverse[z] - ax @ np.linalg.solve(np.eye(len(x)) + x @ ax, ax.T)
    return chosen


def _nearest(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[rows of x] distances to the nearest row of y."""
    square = np.square(y).sum(axis=1)
    found = np.empty(len(x))
    for start in range(0, len(x), ROWS):
        part = x[start : start + ROWS]
        table = np.square(part).sum(axis=1)[:, None] + square - 2.0 * part @ y.T
        found[start : start + ROWS] = np.sqrt(np.maximum(table.min(axis=1), 0.0))
    return found


def novelty(
    pool: Sequence[Features], known: Sequence[Features], before: np.ndarray | None = None
) -> np.ndarray:
    """[frames] distance in features of the frame's farthest atom from the nearest known one.

    Where nothing of its element is known, from the mean of the pool's; `before`: [atoms in the
    pool's order] what the distances are if no known atom is nearer, changed in place.
    """
    distances = np.full(sum(len(x) for f in pool for x in f.values()), np.inf)
    if before is not None:
        distances = before
    at, places = 0, {z: ([], []) for z in _elements(pool)}
    owner = np.empty(len(distances), int)
    for n, frame in enumerate(pool):
        for z, x in frame.items():
            places[z][0].append(x)
            places[z][1].append(np.arange(at, at + len(x)))
            owner[at : at + len(x)] = n
            at += len(x)
    for z, (features, rows) in places.items():
        x, row = np.concatenate(features), np.concatenate(rows)
        there = [f[z] for f in known if z in f]
        if there or np.isinf(distances[row]).all():
            y = np.concatenate(there) if there else x.mean(axis=0)[None]
            distances[row] = np.minimum(distances[row], _nearest(x, y))
    result = np.zeros(len(pool))
    np.maximum.at(result, owner, distances)
    return result


def farthest(pool: Sequence[Features], train: Sequence[Features], count: int) -> list[int]:
    """Places in the pool of at most `count` frames, the farthest first."""
    distances = np.full(sum(len(x) for f in pool for x in f.values()), np.inf)
    far = novelty(pool, train, distances)
    chosen: list[int] = []
    while len(chosen) < min(count, len(pool)):
        far[chosen] = -np.inf
        chosen.append(int(far.argmax()))
        far = novelty(pool, [pool[chosen[-1]]], distances)
    return chosen


def at_random(pool: Sequence[Features], count: int, seed: int) -> list[int]:
    """What the other choices are measured against."""
    return np.random.default_rng(seed).permutation(len(pool))[:count].tolist()


#: by name, as functions of pool, training, number and seed
METHODS: dict[str, Callable[[Sequence[Features], Sequence[Features], int, int], list[int]]] = {
    "d-optimal": lambda pool, train, count, _: d_optimal(pool, train, count),
    "farthest": lambda pool, train, count, _: farthest(pool, train, count),
    "random": lambda pool, _, count, seed: at_random(pool, count, seed),
}
