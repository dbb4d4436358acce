"""Do forces and stresses belong to the energies? Differences between similar frames tell.

With fractional coordinates s [N, 3], cell h (rows) and metric G = h h^T the energy changes by

    dE = 1/2 S : dG - sum F h^T : ds,    S = V h^-T sigma h^-1,

which no rotation of the cell can disturb. Over a pair of frames the trapezoid of the right side is
the work W, exact to second order; energies over works have slope one if units and signs are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eqcalc.data.frames import Frame

#: a strain test takes pairs between these strains; up to the first distance (Å) atoms are at the
#: same places in the cell, up to the second the work of their forces is taken into account
STRAINS, SAME_PLACE, SIMILAR_PLACE = (5e-4, 0.04), 0.01, 0.15

#: a force test takes pairs whose atoms moved by less than the first distance (Å) if there are as
#: many, otherwise those up to the second, for which the trapezoid is rough
MOVED, ENOUGH, MOVED_FAR = 0.35, 8, 1.0

#: frames of one system that are compared with each other: so many that frames^2 * atoms is this
MOST_COMPARED = 3e7

#: a slope within this factor of one is right, within the second where the trapezoid is rough
TOLERANCE, ROUGH = 1.25, 2.0

#: pairs without more work (eV) say nothing; constant pressures (GPa) that deserve a warning
LEAST_WORK, PULAY = 5e-5, 0.5

#: pairs from which a pressure is measured
FEWEST_PAIRS = 6

#: eV/Å^3
GPA = 0.00624151


@dataclass(frozen=True)
class Slope:
    """Energy differences over works.

    Attributes:
        work, energy: [P] eV; of strained pairs without the part of the forces.
        frames: [P, 2] indices of the two frames of each pair.
        volume: [P] Å^3, mean of the pair; 0 for molecules.
        swelling: [P] Å^3, by how much it changes.
        slope: median of energy over work, weighted by `_weights`; NaN without pairs.
        spread: median relative distance of pairs from it, weighted by their work.
        tolerance: a slope within this factor of one is right.
    """

    work: np.ndarray
    energy: np.ndarray
    frames: np.ndarray
    volume: np.ndarray
    swelling: np.ndarray
    slope: float
    spread: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        """No slope contradicts the units and the sign."""
        return bool(1 / self.tolerance < self.slope < self.tolerance)

    @property
    def tells_pressure(self) -> bool:
        """Whether there are enough pairs of different volumes to tell a pressure from a slope."""
        return len(self.work) >= FEWEST_PAIRS and float(np.ptp(self.swelling)) >= 1e-6

    def with_pressure(self) -> tuple[float, float]:
        """Slope if all stresses lack one and the same pressure, and that pressure (GPa).

        Least squares of energy = slope * work - pressure * swelling; the slope as it is, and 0,
        where there are too few pairs to tell.
        """
        if not self.tells_pressure:
            return self.slope, 0.0
        scale = (_weights(self.work) / np.maximum(np.abs(self.work), LEAST_WORK))[:, None]
        matrix = np.column_stack([self.work, -self.swelling]) * scale
        slope, pressure = np.linalg.lstsq(matrix, self.energy * scale[:, 0], rcond=None)[0]
        return float(slope), float(pressure / GPA)

    @property
    def missing_pressure(self) -> float:
        """GPa that all stresses lack, where one and the same pressure makes them fit; else 0."""
        slope, pressure = self.with_pressure()
        fits = 1 / TOLERANCE < slope < TOLERANCE
        return pressure if fits and abs(pressure) > PULAY else 0.0


def weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, 0.5 * total[-1])])


def _weights(work: np.ndarray) -> np.ndarray:
    """The size of the work (large ones say more), but none more than twice the typical one."""
    size = np.abs(work)
    return np.minimum(size, 2.0 * np.median(size))


def _fit(rows: list[tuple[float, ...]], tolerance: float = TOLERANCE) -> Slope:
    """Rows: work, energy difference, two frames, volume, its change."""
    table = np.array(rows).reshape(-1, 6)
    table = table[np.maximum(np.abs(table[:, 0]), np.abs(table[:, 1])) > LEAST_WORK]
    work, energy, first, second, volume, swelling = table.T
    pairs = np.column_stack([first, second]).astype(int)
    known = np.abs(work) > 0.0
    slope = spread = np.nan
    if known.any():
        weight, ratio = _weights(work[known]), energy[known] / work[known]
        slope = weighted_median(ratio, weight)
        spread = weighted_median(np.abs(ratio - slope), weight) / max(abs(slope), 1e-300)
    return Slope(work, energy, pairs, volume, swelling, slope, spread, tolerance)


def _groups(frames: Sequence[Frame], *, same_cell: bool) -> list[list[int]]:
    """Frames of the same atoms in the same order, and in the same cell or not."""
    groups: dict[tuple, list[int]] = {}
    for n, frame in enumerate(frames):
        atoms = frame.atoms
        key = (atoms.numbers.tobytes(), *atoms.pbc.tolist())
        if same_cell:
            key += (np.round(atoms.cell.array, 5).tobytes() if atoms.pbc.any() else b"",)
        groups.setdefault(key, []).append(n)
    most = {key: int(np.sqrt(MOST_COMPARED / len(frames[m[0]].atoms))) for key, m in groups.items()}
    return [m[: max(30, most[key])] for key, m in groups.items() if len(m) > 1]


def strain_test(frames: Sequence[Frame], *, forces_known: bool = True) -> Slope:
    """Energies of strained copies of a structure over the work of their stresses.

    Each frame is paired with the two others of least but sufficient strain between them.

    Args:
        frames: labelled structures.
        forces_known: the forces are right, so that they may tell the part of displaced atoms.
    """
    reach = SIMILAR_PLACE if forces_known else SAME_PLACE
    rows, done = [], set()
    usable = [n for n, f in enumerate(frames) if f.stress is not None and np.isfinite(f.energy)]
    for members in _groups([frames[n] for n in usable], same_cell=False):
        group = [usable[n] for n in members]
        cell = np.array([frames[n].atoms.cell.array for n in group])
        if np.allclose(cell, cell[0], atol=1e-6):
            continue
        scaled = np.array([frames[n].atoms.get_scaled_positions(wrap=False) for n in group])
        metric = cell @ cell.transpose(0, 2, 1)
        inverse = np.linalg.inv(cell)
        volume = np.abs(np.linalg.det(cell))
        stress = np.array([frames[n].stress for n in group])
        conjugate = volume[:, None, None] * inverse.transpose(0, 2, 1) @ stress @ inverse
        for a, n in enumerate(group):
            change = metric - metric[a]
            strain = np.linalg.norm(0.5 * inverse[a] @ change @ inverse[a].T, axis=(1, 2))
            shift = scaled - scaled[a]
            shift -= np.round(shift - shift[:, :1]) + shift[:, :1]
            shift -= shift.mean(axis=1, keepdims=True)
            moved = np.sqrt(np.square(shift @ cell[a]).sum(axis=2).max(axis=1))
            fits = (strain > STRAINS[0]) & (strain < STRAINS[1]) & (moved < reach)
            near = np.flatnonzero(fits)
            closeness = strain[near] + 0.1 * moved[near]
            for b in near[np.argsort(closeness, kind="stable")][:2]:
                other = frames[group[b]]
                pair = tuple(sorted((n, group[b])))
                if pair in done:
                    continue
                done.add(pair)
                energy = other.energy - frames[n].energy
                if moved[b] > SAME_PLACE:
                    if frames[n].forces is None or other.forces is None:
                        continue
                    drive = 0.5 * (frames[n].forces @ cell[a].T + other.forces @ cell[b].T)
                    energy += np.sum(drive * shift[b])
                work = 0.25 * np.sum((conjugate[a] + conjugate[b]) * change[b])
                swelling = volume[b] - volume[a]
                rows.append((work, energy, *pair, 0.5 * (volume[a] + volume[b]), swelling))
    return _fit(rows)


def _turned(reference: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Rotations [n, 3, 3] that bring centred positions [n, N, 3] nearest to the reference."""
    u, _, vt = np.linalg.svd(np.einsum("nia,ib->nab", positions, reference))
    sign = np.sign(np.linalg.det(u @ vt))
    u[:, :, 2] *= sign[:, None]
    return u @ vt


def force_test(frames: Sequence[Frame]) -> Slope:
    """Energies of snapshots of a system over the work of their forces.

    Each frame is paired with the one whose atoms are nearest; molecules are turned onto each other
    first.
    """
    rows, done = [], set()
    usable = [n for n, f in enumerate(frames) if f.forces is not None and np.isfinite(f.energy)]
    for members in _groups([frames[n] for n in usable], same_cell=True):
        group = [usable[n] for n in members]
        pbc = frames[group[0]].atoms.pbc
        cell = frames[group[0]].atoms.cell.complete().array
        positions = np.array([frames[n].atoms.positions for n in group])
        forces = np.array([frames[n].forces for n in group])
        volume = abs(np.linalg.det(cell)) if pbc.all() else 0.0
        if not pbc.any():
            positions = positions - positions.mean(axis=1, keepdims=True)
        inverse = np.linalg.inv(cell)
        for a in range(len(group)):
            if pbc.any():
                change = (positions - positions[a]) @ inverse
                change[..., pbc] -= np.round(change[..., pbc])
                change = change @ cell
                change -= change.mean(axis=1, keepdims=True)
                other = forces
            else:
                turn = _turned(positions[a], positions)
                change = positions @ turn - positions[a]
                other = forces @ turn
            moved = np.sqrt(np.square(change).sum(axis=2).max(axis=1))
            moved[moved < 1e-3] = np.inf  # itself, or a copy of it
            b = int(moved.argmin())
            pair = tuple(sorted((group[a], group[b])))
            if moved[b] > MOVED_FAR or pair in done:
                continue
            done.add(pair)
            work = -0.5 * np.sum((forces[a] + other[b]) * change[b])
            energy = frames[group[b]].energy - frames[group[a]].energy
            rows.append((moved[b], (work, energy, *pair, volume, 0.0)))
    near = [row for distance, row in rows if distance <= MOVED]
    if len(near) >= ENOUGH:
        return _fit(near)
    return _fit([row for _, row in rows], ROUGH)


def physical_tests(frames: Sequence[Frame]) -> dict[str, Slope]:
    """Of "forces" and of "stress", which takes account of the forces where they are right."""
    forces = force_test(frames)
    known = forces.agrees or not np.isfinite(forces.slope)
    return {"forces": forces, "stress": strain_test(frames, forces_known=known)}
