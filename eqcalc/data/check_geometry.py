"""Atoms that overlap, atoms alone, cells: what can be said of structures without their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols, covalent_radii

from eqcalc.data.findings import Finding, count, sources, such_as
from eqcalc.data.frames import Frame
from eqcalc.neighbors import neighbor_list

#: neighbours of each element whose distances make up the description of an atom
NEAREST = 12

#: distance over the sum of covalent radii, below which it is odd, and below which it is wrong
CLOSE, OVERLAPPING = 0.6, 0.3


@dataclass(frozen=True)
class Geometry:
    """Of one frame.

    Attributes:
        nearest: [N] Å to the nearest neighbour, inf where there is none within the cutoff.
        neighbors: [N] how many there are.
        closest: the lowest distance over the sum of covalent radii; inf without neighbours.
        pair: the two atoms of `closest`.
        signature: as of `signature`.
    """

    nearest: np.ndarray
    neighbors: np.ndarray
    closest: float
    pair: tuple[int, int]
    signature: np.ndarray

    @property
    def free_atom(self) -> bool:
        """One atom that sees no other."""
        return len(self.neighbors) == 1 and not self.neighbors.any()


def environments(frame: Frame, cutoff: float) -> np.ndarray:
    """What surrounds each atom, whatever the orientation and the order of atoms: [N, S * NEAREST].

    For each of the frame's S elements the ascending distances (Å) to the NEAREST atoms of it, none
    longer than the cutoff; in molecules and clusters there is no cutoff. No entry changes by more
    than the distances themselves do.
    """
    return _distances(frame, *_edges(frame, cutoff), cutoff)


def _edges(frame: Frame, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres, neighbours, distances of all pairs within the cutoff."""
    atoms = frame.atoms
    pairs = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
    vectors = pairs.vectors(atoms.positions, atoms.cell.array)
    return pairs.edge_dst, pairs.edge_src, np.sqrt(np.einsum("ij,ij->i", vectors, vectors))


def _distances(
    frame: Frame, dst: np.ndarray, src: np.ndarray, length: np.ndarray, cutoff: float
) -> np.ndarray:
    numbers = frame.atoms.numbers
    size = len(numbers)
    if not frame.atoms.pbc.any() and size <= 200:
        positions = frame.atoms.positions
        dst, src = np.nonzero(~np.eye(size, dtype=bool))
        length = np.linalg.norm(positions[src] - positions[dst], axis=1)
        cutoff = np.inf
    elements = np.unique(numbers)
    kind = np.searchsorted(elements, numbers)[src]
    order = np.lexsort((length, kind, dst))
    cell = dst[order] * len(elements) + kind[order]  # ascending: one cell per atom and element
    rank = np.arange(len(cell)) - np.searchsorted(cell, cell)
    few = rank < NEAREST
    filled = np.full((size * len(elements), NEAREST), 100.0 if np.isinf(cutoff) else cutoff)
    filled[cell[few], rank[few]] = length[order][few]
    return filled.reshape(size, -1)


def signature(frame: Frame, around: np.ndarray) -> np.ndarray:
    """Mean, lowest and highest of the `environments` over the atoms of each element, flat, Å.

    Two frames whose atoms can be matched so that no distance differs by more than d have
    signatures that differ nowhere by more than d.
    """
    numbers = frame.atoms.numbers
    parts = [around[numbers == z] for z in np.unique(numbers)]
    return np.stack([f(p, axis=0) for f in (np.mean, np.min, np.max) for p in parts]).ravel()


def measure(frame: Frame, cutoff: float) -> Geometry:
    """Distances of a frame, cutoff in Å."""
    dst, src, length = _edges(frame, cutoff)
    size = len(frame.atoms)
    nearest = np.full(size, np.inf)
    np.minimum.at(nearest, dst, length)
    closest, pair = np.inf, (0, 0)
    if len(length):
        radii = covalent_radii[frame.atoms.numbers]
        ratio = length / (radii[dst] + radii[src])
        worst = int(ratio.argmin())
        closest, pair = float(ratio[worst]), (int(dst[worst]), int(src[worst]))
    return Geometry(
        nearest,
        np.bincount(dst, minlength=size),
        closest,
        pair,
        signature(frame, _distances(frame, dst, src, length, cutoff)),
    )


def overlaps(frames: Sequence[Frame], shapes: Sequence[Geometry]) -> list[Finding]:
    """Pairs of atoms much nearer than a bond."""
    findings = []
    both = list(zip(frames, shapes, strict=True))
    for level, low, high in (("error", -1.0, OVERLAPPING), ("warning", OVERLAPPING, CLOSE)):
        found = sorted((x for x in both if low <= x[1].closest < high), key=lambda x: x[1].closest)
        if not found:
            continue
        frame, shape = found[0]
        i, j = shape.pair
        bond = "-".join(chemical_symbols[frame.atoms.numbers[k]] for k in (i, j))
        what = "atoms that overlap" if level == "error" else "atoms closer than any usual bond"
        findings.append(
            Finding(
                level,
                "overlap",
                f"{count(len(found), 'frame')} with {what}; worst {frame.source}, atoms {i} and "
                f"{j}: {bond} {shape.nearest[i]:.3g} Å, {shape.closest:.2f} of the sum of their "
                "covalent radii: "
                + ("remove them." if level == "error" else "fine if they were meant."),
                sources(x[0] for x in found),
            )
        )
    return findings


def lone_atoms(frames: Sequence[Frame], shapes: Sequence[Geometry], cutoff: float) -> list[Finding]:
    """Atoms that see no other; frames of one free atom are pointed at: reference energies.

    A file of nothing else is that of data.isolated_atoms: a note.
    """
    single = [f for f, s in zip(frames, shapes, strict=True) if s.free_atom]
    lost = [
        (f, int(np.flatnonzero(s.neighbors == 0)[0]))
        for f, s in zip(frames, shapes, strict=True)
        if len(f.atoms) > 1 and not s.neighbors.all()
    ]
    findings = []
    if single:
        findings.append(
            Finding(
                "note" if len(single) == len(frames) else "warning",
                "lone_atoms",
                f"{count(len(single), 'frame')} of one free atom ({such_as(sources(single))}): "
                "its energy belongs into data.isolated_atoms, since no network learns from it; or "
                "give it config_type=IsolatedAtom.",
                sources(single),
            )
        )
    if lost:
        frame, atom = lost[0]
        findings.append(
            Finding(
                "warning",
                "lone_atoms",
                f"{count(len(lost), 'frame')} with an atom that has no neighbour within "
                f"{cutoff:g} Å, first {frame.source}, atom {atom}: a model of this cutoff gives it "
                "no force; check the structure or take a longer cutoff.",
                sources(f for f, _ in lost),
            )
        )
    return findings


def few_neighbors(
    frames: Sequence[Frame], shapes: Sequence[Geometry], cutoff: float
) -> list[Finding]:
    """Too few neighbours on average for the cutoff; molecules that fit into it are excused."""
    wanted = np.concatenate([np.full(len(f.atoms), len(f.atoms) - 1) for f in frames])
    periodic = np.concatenate([np.full(len(f.atoms), f.atoms.pbc.any()) for f in frames])
    wanted = np.where(periodic, 8, np.minimum(wanted, 8)).mean()
    have = float(np.concatenate([s.neighbors for s in shapes]).mean())
    if have >= wanted:
        return []
    sentence = (
        f"Atoms have {have:.1f} neighbours within {cutoff:g} Å on average: too few for a good "
        "model; take a longer cutoff."
    )
    return [Finding("warning", "neighbors", sentence)]


def cells(frames: Sequence[Frame], cutoff: float) -> list[Finding]:
    """Atoms outside the cell, and cells narrower than the cutoff: both are fine, and noted."""
    outside, narrow = [], []
    for frame in frames:
        pbc = frame.atoms.pbc
        if not pbc.any():
            continue
        cell = frame.atoms.cell.complete()
        scaled = np.linalg.solve(cell.T, frame.atoms.positions.T).T[:, pbc]
        if scaled.min() < -0.01 or scaled.max() > 1.01:
            outside.append(frame)
        heights = 1.0 / np.linalg.norm(np.linalg.inv(cell.array), axis=0)
        if heights[pbc].min() < cutoff:
            narrow.append(frame)
    findings = []
    if outside:
        findings.append(
            Finding(
                "note",
                "cell",
                f"{count(len(outside), 'frame')} with atoms outside the cell: harmless, all images "
                "are taken into account.",
                sources(outside),
            )
        )
    if narrow:
        findings.append(
            Finding(
                "note",
                "cell",
                f"{count(len(narrow), 'frame')} with a cell narrower than {cutoff:g} Å, where "
                "atoms see their own images: harmless, they are counted.",
                sources(narrow),
            )
        )
    return findings
