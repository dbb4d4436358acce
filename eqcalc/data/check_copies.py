"""Frames that are there twice, turned or reordered or not, and test frames that are training ones.

Frames are compared by `check_geometry.environments`, which rotations, reflections, translations
and the order of atoms leave alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.spatial import KDTree

from eqcalc.data.check_geometry import Geometry, environments
from eqcalc.data.findings import Finding, count
from eqcalc.data.frames import Frame

#: Å by which distances of one and the same structure may differ, and of almost the same
SAME, NEAR = 3e-4, 0.01

#: copies of a frame that are looked for
MOST_EACH = 5

#: differences between labels of one structure that different k-points or settings explain:
#: eV/atom, eV/Å, eV/Å^3 (0.5 GPa)
ENERGY, FORCE, STRESS = 5e-3, 0.1, 0.5 / 160.2


class Twins(NamedTuple):
    """Two frames by index, first < second, and the largest difference between distances, Å."""

    first: int
    second: int
    difference: float


def _matched(a: np.ndarray, b: np.ndarray) -> float:
    """The largest distance from an atom's environment to the most similar one, both ways, Å."""
    return max(float(KDTree(y).query(x, p=np.inf)[0].max()) for x, y in ((a, b), (b, a)))


def _nearest(pairs: np.ndarray, distance: np.ndarray, num_train: int) -> np.ndarray:
    """Which pairs [P, 2] to look at: for the later frame of each, the nearest MOST_EACH earlier
    training frames and as many earlier test frames.
    """
    first, second = pairs.min(axis=1), pairs.max(axis=1)
    bucket = 2 * second + (first >= num_train)
    order = np.lexsort((first, distance, bucket))
    ranked = bucket[order]
    return np.sort(order[np.arange(len(order)) - np.searchsorted(ranked, ranked) < MOST_EACH])


def find_twins(
    frames: Sequence[Frame],
    shapes: Sequence[Geometry],
    cutoff: float,
    num_train: int,
    within: float = NEAR,
) -> list[Twins]:
    """Pairs of frames of one composition and periodicity that differ by less than `within` (Å).

    The first `num_train` frames are training frames; of many copies the nearest are listed.
    """
    groups: dict[tuple, list[int]] = {}
    for n, frame in enumerate(frames):
        key = (*sorted(frame.atoms.numbers.tolist()), bool(frame.atoms.pbc.any()))
        groups.setdefault(key, []).append(n)

    @lru_cache(maxsize=2000)
    def around(n: int) -> dict[int, np.ndarray]:
        numbers, values = frames[n].atoms.numbers, environments(frames[n], cutoff)
        return {z: values[numbers == z] for z in np.unique(numbers).tolist()}

    twins = []
    for members in groups.values():
        signatures = np.array([shapes[n].signature for n in members])
        tree = KDTree(signatures[:, : signatures.shape[1] // 3])
        candidates = tree.query_pairs(within, p=np.inf, output_type="ndarray")
        near = np.abs(signatures[candidates[:, 0]] - signatures[candidates[:, 1]]).max(axis=1)
        candidates, near = candidates[near <= within], near[near <= within]
        place = np.array(members)
        for p, q in candidates[_nearest(place[candidates], near, num_train)]:
            first, second = sorted((members[p], members[q]))
            volume = [
                f.atoms.get_volume() if f.atoms.pbc.all() else 1.0
                for f in (frames[first], frames[second])
            ]
            if abs(np.log(volume[1] / volume[0])) > within:
                continue
            a, b = around(first), around(second)
            difference = max(_matched(a[z], b[z]) for z in a)
            if difference <= within:
                twins.append(Twins(first, second, difference))
    return sorted(twins)


def contradiction(a: Frame, b: Frame) -> str:
    """How the labels of two copies of a structure differ beyond what settings explain; or ''."""
    size = len(a.atoms)
    energy = abs(a.energy - b.energy) / size
    if energy > ENERGY:
        return f"energies differ by {1e3 * energy:.3g} meV/atom"
    if a.forces is not None and b.forces is not None:
        # sorted lengths do not change by rotations and permutations
        lengths = [np.sort(np.linalg.norm(f.forces, axis=1)) for f in (a, b)]
        force = float(np.abs(lengths[0] - lengths[1]).max())
        if force > FORCE:
            return f"forces differ by {force:.3g} eV/Å"
    if a.stress is not None and b.stress is not None:
        principal = [np.linalg.eigvalsh(0.5 * (f.stress + f.stress.T)) for f in (a, b)]
        stress = float(np.abs(principal[0] - principal[1]).max())
        if stress > STRESS:
            return f"stresses differ by {160.2 * stress:.3g} GPa"
    return ""


def _name(frames: Sequence[Frame], twin: Twins) -> str:
    return f"{frames[twin.second].source} = {frames[twin.first].source}"


def _both(frames: Sequence[Frame], twins: Sequence[Twins]) -> tuple[str, ...]:
    return tuple(frames[n].source for t in twins for n in t[:2])


def _list(frames: Sequence[Frame], twins: Sequence[Twins]) -> str:
    """The first three copies, each with the first frame that it repeats."""
    originals = list({t.second: t for t in reversed(twins)}.values())[::-1]
    shown = "; ".join(_name(frames, t) for t in originals[:3])
    return shown + (f"; and {len(originals) - 3} more" if len(originals) > 3 else "")


def copies(frames: Sequence[Frame], num_train: int, twins: Sequence[Twins]) -> list[Finding]:
    """Copies within the training frames, leaks into the test frames, contradictory labels.

    Args:
        frames: the training frames, then the test frames.
        num_train: how many are training frames.
        twins: of all frames.
    """
    same = [t for t in twins if t.difference <= SAME]
    clashes = {t: c for t in same if (c := contradiction(frames[t.first], frames[t.second]))}
    findings = []
    if clashes:
        worst = next(iter(clashes))
        findings.append(
            Finding(
                "error",
                "contradiction",
                f"{count(len(clashes), 'pair')} of frames are one structure with different labels: "
                f"{_name(frames, worst)}, but {clashes[worst]}; keep the right one.",
                _both(frames, list(clashes)),
            )
        )

    def inside(twin: Twins) -> bool:
        return twin.second < num_train

    def across(twin: Twins) -> bool:
        return twin.first < num_train <= twin.second

    for name, level, pick, where, advice in (
        ("duplicate", "warning", inside, "training", "each counts twice in training."),
        (
            "leak",
            "warning",
            across,
            "training and test",
            "errors on them are not those of new structures.",
        ),
    ):
        exact = [t for t in same if pick(t)]
        almost = [t for t in twins if t.difference > SAME and pick(t)]
        if exact:
            number = len({t.second for t in exact})
            findings.append(
                Finding(
                    level,
                    name,
                    f"{count(number, 'frame')} of {where.split()[-1]} "
                    f"{'repeats' if number == 1 else 'repeat'} training frames (turned, mirrored "
                    f"or reordered copies included): {_list(frames, exact)}; {advice}",
                    _both(frames, exact),
                )
            )
        if almost:
            number = len({t.second for t in almost})
            findings.append(
                Finding(
                    "note",
                    f"near_{name}",
                    f"{count(number, 'frame')} of {where.split()[-1]} within {NEAR:g} Å of a "
                    f"training frame, such as {_name(frames, almost[0])}: they teach or test "
                    "little that is new.",
                    _both(frames, almost),
                )
            )
    return findings
