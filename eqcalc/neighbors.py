"""Neighbour lists with all periodic images, for any cell.

matscipy builds them; this module prepares what matscipy does not take (cells without three
vectors, left-handed or skewed cells, atoms outside the cell), looks itself where atoms are lost in
space, and keeps a list alive between steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.geometry import complete_cell
from matscipy.neighbours import neighbour_list
from scipy.spatial import KDTree

from eqcalc.structure import Structure, check_structure

#: matscipy divides the box into bins as wide as the cutoff; beyond these many it would fill the
#: memory with empty ones (an atom that left a cluster, a molecule in a huge cell)
MOST_BINS = 20_000


class Pairs(NamedTuple):
    """Directed pairs, centres ascending, of one structure or of several side by side.

    edge_dst (centre i), edge_src (neighbour j): [P] int64. shift: [P, 3] Å, what periodicity adds,
    so that r_ij = r_j - r_i + shift.
    """

    edge_dst: np.ndarray
    edge_src: np.ndarray
    shift: np.ndarray

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """r_ij [P, 3] Å for positions [N, 3] Å."""
        positions = np.asarray(positions, dtype=np.float64)
        return positions[self.edge_src] - positions[self.edge_dst] + self.shift

    @staticmethod
    def side_by_side(parts: Sequence[Pairs], num_atoms: Sequence[int]) -> Pairs:
        """One list of all structures; the atoms of a structure follow those of the one before."""
        first = np.cumsum([0, *num_atoms])
        return Pairs(
            np.concatenate([p.edge_dst + n for p, n in zip(parts, first, strict=False)]),
            np.concatenate([p.edge_src + n for p, n in zip(parts, first, strict=False)]),
            np.concatenate([p.shift for p in parts]),
        )


class NeighborList(NamedTuple):
    """Directed pairs, both directions listed, centres ascending.

    edge_dst (centre i), edge_src (neighbour j): [E] int64. cell_shift: [E, 3] int64, such that
    r_ij = r_j - r_i + cell_shift @ cell.
    """

    edge_dst: np.ndarray
    edge_src: np.ndarray
    cell_shift: np.ndarray

    def vectors(self, positions: np.ndarray, cell: np.ndarray) -> np.ndarray:
        """r_ij [E, 3] Å for positions [N, 3] Å and cell vectors as rows [3, 3] Å."""
        positions = np.asarray(positions, dtype=np.float64)
        return positions[self.edge_src] - positions[self.edge_dst] + self.cell_shift @ cell

    def pair_numbers(self) -> np.ndarray:
        """[E] int64: one number for r_ij and its reverse r_ji, in order of first appearance."""
        low = np.minimum(self.edge_src, self.edge_dst)
        high = np.maximum(self.edge_src, self.edge_dst)
        # the direction that both edges agree on: from the lower atom; between images of one atom,
        # the shift whose first nonzero entry is positive
        leading = np.take_along_axis(
            self.cell_shift, (self.cell_shift != 0).argmax(axis=1)[:, None], axis=1
        )[:, 0]
        forward = np.where(low == high, leading > 0, self.edge_dst < self.edge_src)
        shift = np.where(forward[:, None], self.cell_shift, -self.cell_shift)
        key = np.column_stack([low, high, shift])
        _, first, which = np.unique(key, axis=0, return_index=True, return_inverse=True)
        rank = np.empty(len(first), dtype=np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        return rank[which.reshape(-1)]

    def in_space(self, cell: np.ndarray) -> Pairs:
        """The same pairs with their shifts in Å, for cell vectors as rows [3, 3] Å."""
        return Pairs(self.edge_dst, self.edge_src, self.cell_shift @ cell)

    def within(
        self, cutoff: float, positions: np.ndarray, cell: np.ndarray
    ) -> tuple[NeighborList, np.ndarray]:
        """The pairs closer than `cutoff` (Å), and their vectors [E, 3] Å."""
        vectors = self.vectors(positions, cell)
        near = np.einsum("ij,ij->i", vectors, vectors) < cutoff**2
        if near.all():
            return self, vectors
        return NeighborList(*(column[near] for column in self)), vectors[near]


def neighbor_list(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> NeighborList:
    """All pairs closer than `cutoff`, images of an atom itself included.

    Args:
        positions: [N, 3] Å, inside the cell or not.
        cell: [3, 3] Å, vectors as rows, zero allowed where not periodic; any shape or handedness.
        pbc: [3] bool.
        cutoff: Å.

    Raises:
        InputError: arrays of another shape or kind, positions or cell that are not finite, or
            periodic vectors that are missing.
    """
    positions, cell, pbc = check_structure(positions, cell, pbc)
    if len(positions) == 0:
        return NeighborList(
            np.empty(0, dtype=np.int64),
            np.empty(0, dtype=np.int64),
            np.empty((0, 3), dtype=np.int64),
        )

    # A box for the search: the periodic vectors are kept; the others are replaced by vectors
    # normal to them that hold all atoms with room to spare, so that no image is met across them.
    box = np.where(pbc[:, None], cell, 0.0)
    box = complete_cell(box)
    scaled = np.linalg.solve(box.T, positions.T).T
    for axis in np.flatnonzero(~pbc):
        extent = np.ptp(scaled[:, axis]) * np.linalg.norm(box[axis])
        box[axis] *= (extent + 2.0 * cutoff + 1.0) / np.linalg.norm(box[axis])
    scaled = np.linalg.solve(box.T, positions.T).T
    scaled[:, ~pbc] -= scaled[:, ~pbc].min(axis=0)
    wraps = np.where(pbc, np.floor(scaled), 0.0)
    inside = (scaled - wraps) @ box

    heights = 1.0 / np.linalg.norm(np.linalg.inv(box), axis=0)
    bins = np.prod(np.maximum(heights / cutoff, 1.0))
    search = _search_tree if bins > max(MOST_BINS, 10 * len(positions)) else _search_bins
    dst, src, shift = search(inside, box, pbc, float(cutoff))
    wraps = wraps.astype(np.int64)
    return NeighborList(dst, src, shift - wraps[src] + wraps[dst])


#: centres, neighbours [E] and cell shifts [E, 3] of positions inside a box
_Found = tuple[np.ndarray, np.ndarray, np.ndarray]


def _search_bins(inside: np.ndarray, box: np.ndarray, pbc: np.ndarray, cutoff: float) -> _Found:
    found = neighbour_list("ijS", positions=inside, cell=box, pbc=pbc, cutoff=cutoff)
    return tuple(column.astype(np.int64) for column in found)


def _search_tree(inside: np.ndarray, box: np.ndarray, pbc: np.ndarray, cutoff: float) -> _Found:
    """A tree of all images that are near enough to the box to matter."""
    inverse = np.linalg.inv(box)
    margin = cutoff * np.linalg.norm(inverse, axis=0)  # of the box, in its own coordinates
    reach = np.where(pbc, np.ceil(margin + 1e-9).astype(int), 0)
    shifts = np.array(list(itertools.product(*(range(-n, n + 1) for n in reach))))
    owners, of_images, positions = [], [], []
    for s in shifts:
        image = inside + s @ box
        scaled = image @ inverse
        near = ((scaled > -margin - 1e-9) & (scaled < 1.0 + margin + 1e-9))[:, pbc].all(axis=1)
        owners.append(np.flatnonzero(near))
        of_images.append(np.broadcast_to(s, (len(owners[-1]), 3)))
        positions.append(image[near])
    owner, shift, places = map(np.concatenate, (owners, of_images, positions))
    lists = KDTree(places).query_ball_point(inside, cutoff, return_sorted=True)
    dst = np.repeat(np.arange(len(inside)), [len(found) for found in lists])
    image = np.concatenate([np.asarray(found, dtype=np.int64) for found in lists])
    vectors = places[image] - inside[dst]
    real = np.einsum("ij,ij->i", vectors, vectors) < cutoff**2
    real &= (owner[image] != dst) | shift[image].any(axis=1)
    dst, image = dst[real], image[real]
    return dst, owner[image], shift[image]


class VerletList:
    """A list with a skin, rebuilt only when it may have missed a pair.

    A pair that is not listed was at least `cutoff + skin` apart when the list was made. Let F map
    the cell then onto the cell now, s be the smallest singular value of F, and u the largest
    displacement of an atom beyond F. The pair is now at least (cutoff + skin) s - 2 u apart, so
    the list is complete while that is not below the cutoff. Wrapped atoms show up as large u.

    Args:
        cutoff: Å.
        skin: Å; 0 rebuilds at every step.
    """

    def __init__(self, cutoff: float, skin: float) -> None:
        self.cutoff = cutoff
        self.skin = skin
        self.num_builds = 0
        self._list: NeighborList | None = None
        self._pairs: tuple[NeighborList | None, np.ndarray, Pairs | None] = None, np.empty(0), None

    def _complete(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> bool:
        if (
            self._list is None
            or len(positions) != len(self._positions)
            or pbc.tobytes() != self._pbc.tobytes()
        ):
            return False
        smallest = 1.0
        carried = self._positions
        if cell.tobytes() != self._cell.tobytes():  # cheaper than np.array_equal
            if not pbc.all():
                return False
            map_ = np.linalg.solve(self._cell, cell)
            smallest = np.linalg.svd(map_, compute_uv=False)[-1]
            carried = self._positions @ map_
        beyond = positions - carried
        largest = np.sqrt(np.einsum("ij,ij->i", beyond, beyond).max(initial=0.0))
        return bool((self.cutoff + self.skin) * smallest - 2.0 * largest >= self.cutoff)

    def candidates(self, atoms: Atoms | Structure) -> NeighborList:
        """All pairs within the cutoff now, and some beyond it; the same object while it lasts."""
        _, positions, cell, pbc = Structure.of(atoms)
        if not self._complete(positions, cell, pbc):
            self._list = neighbor_list(positions, cell, pbc, self.cutoff + self.skin)
            self._positions, self._cell = positions.copy(), cell.copy()
            self._pbc = pbc.copy()
            self.num_builds += 1
        assert self._list is not None  # it is complete
        return self._list

    def pairs(self, atoms: Atoms | Structure) -> Pairs:
        """`candidates` with their shifts in Å; the same object while list and cell last."""
        structure = Structure.of(atoms)
        candidates, cell = self.candidates(structure), structure.cell
        made_of, of_cell, pairs = self._pairs
        if pairs is None or made_of is not candidates or of_cell.tobytes() != cell.tobytes():
            pairs = candidates.in_space(cell)
            self._pairs = candidates, cell.copy(), pairs
        return pairs

    def update(self, atoms: Atoms | Structure) -> tuple[NeighborList, np.ndarray]:
        """The pairs within the cutoff now, and their vectors [E, 3] Å."""
        structure = Structure.of(atoms)
        return self.candidates(structure).within(self.cutoff, structure.positions, structure.cell)
