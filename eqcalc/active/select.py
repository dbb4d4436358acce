"""Frames of a pool that are worth a label: uncertain enough, unlike each other and the training.

A frame is left out where it is a copy, turned or reordered or not, of a training frame or of one
earlier in the pool, where the model cannot compute it (atoms that overlap, elements that it lacks),
and where its uncertainty is outside of a window: below, the model knows it; above, it is no matter
that anybody wants to simulate. Of the rest `eqcalc.active.choose` takes some, by the features that
the (first) model has of every atom after its last layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms

from eqcalc.active.choose import METHODS, Features, novelty
from eqcalc.calculator import EquivariantCalculator
from eqcalc.committee import FORCES_DEVIATION
from eqcalc.data.check_copies import NEAR, find_twins
from eqcalc.data.check_geometry import measure
from eqcalc.data.frames import make_frame
from eqcalc.data.labels import Labels
from eqcalc.data.spellings import drop_labels
from eqcalc.errors import InputError, did_you_mean

#: of uncertainties, for people
TITLES = {
    FORCES_DEVIATION: "largest deviation of a force over the members (eV/Å)",
    "grade": "largest extrapolation grade of an atom",
}

#: usual windows: within a grade of 1 a frame is like those of the training
WINDOWS = {"grade": (1.0, np.inf)}

Images = Sequence[tuple[Atoms, str]]


@dataclass(frozen=True)
class Measure:
    """What tells how uncertain a model is of a frame.

    Attributes:
        name: as in the info of chosen frames, one of TITLES.
        values: [frames], the largest of a frame's atoms.
    """

    name: str
    values: np.ndarray


@dataclass
class Selection:
    """What was chosen, and what was left out and why.

    Attributes:
        chosen: places in the pool, the most telling frame first.
        copies_of_training, copies: places of copies of training frames and of other pool frames.
        impossible: what the model cannot compute: what the frame is called, and why.
        below, above: places outside of the window.
        measure: uncertainty of the pool's frames, NaN where it was not computed; None if the model
            has none.
        novelty: [pool frames] of `choose.novelty`, NaN as above.
        pool_points, train_points: [frames, 2] the mean features of frames on their two principal
            axes.
        window: of the uncertainty.
    """

    chosen: list[int]
    copies_of_training: list[int]
    copies: list[int]
    impossible: dict[str, str]
    below: list[int]
    above: list[int]
    measure: Measure | None
    novelty: np.ndarray
    pool_points: np.ndarray
    train_points: np.ndarray
    window: tuple[float, float]
    sources: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{len(self.chosen)} of {len(self.sources)} frames"
        reasons = [
            (len(self.copies_of_training), "are copies of training frames"),
            (len(self.copies), "are copies of others in the pool"),
            (len(self.impossible), "cannot be computed"),
            (len(self.below), f"are below the window ({self.window[0]:g})"),
            (len(self.above), f"are above the window ({self.window[1]:g})"),
        ]
        parts = [f"{number} {what}" for number, what in reasons if number]
        return f"{text}; left out: {', '.join(parts)}." if parts else f"{text}."


def copies(pool: Images, train: Images, cutoff: float) -> tuple[list[int], list[int]]:
    """Places in the pool of copies of training frames, and of copies of earlier pool frames.

    Copies are frames whose distances differ by less than NEAR Å.
    """
    bare = [make_frame(a, Labels(None, None, None), source) for a, source in (*train, *pool)]
    twins = find_twins(bare, [measure(f, cutoff) for f in bare], cutoff, len(train), NEAR)
    size = len(train)
    known = {t.second - size for t in twins if t.first < size <= t.second}
    others: set[int] = set()
    for twin in twins:  # in the order of the pool: a copy of what is left out is no reason
        first, second = twin.first - size, twin.second - size
        if first >= 0 and first not in known | others and second not in known:
            others.add(second)
    return sorted(known), sorted(others)


def uncertainty(results: Mapping[str, Any]) -> tuple[str, float] | None:
    """Its name and value by what a calculator says of a frame; None if it says nothing of it.

    A committee's deviation of forces (eV/Å) or the grade of one model, the largest of the frame's
    atoms.
    """
    if FORCES_DEVIATION in results:
        return FORCES_DEVIATION, float(results[FORCES_DEVIATION].max())
    if "grade" in results:
        return "grade", float(np.max(results["grade"]))
    return None


def _computed(
    calc: EquivariantCalculator, images: Images
) -> tuple[dict[int, tuple[str, float] | None], dict[str, str]]:
    """Uncertainties by place of the frames that a model can compute, and why not the others."""
    values, impossible = {}, {}
    graded = len(calc.members) == 1 and "grade" in calc.implemented_properties
    for place, (atoms, source) in enumerate(images):
        try:
            (results,) = calc.evaluate([atoms], uncertainty=graded)
        except InputError as error:
            impossible[source] = str(error).removeprefix("Structure 0 of the list: ")
        else:
            values[place] = uncertainty(results)
    return values, impossible


def features_of(calc: EquivariantCalculator, frames: Sequence[Atoms]) -> list[Features]:
    """Invariant features after the last layer of one model."""
    found = []
    for atoms in frames:
        bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        x = calc.get_descriptors(bare, invariants_only=True)
        elements = np.unique(atoms.numbers).tolist()
        found.append({z: x[atoms.numbers == z].astype(float) for z in elements})
    return found


def _means(frames: Sequence[Features], axes: dict[int, int], width: int) -> np.ndarray:
    """[frames, width] the sum over elements of mean features, each with its share of atoms."""
    found = np.zeros((len(frames), width))
    for n, frame in enumerate(frames):
        size = sum(len(x) for x in frame.values())
        for z, x in frame.items():
            start = axes[z]
            found[n, start : start + x.shape[1]] = x.sum(axis=0) / size
    return found


def _projected(
    pool: Sequence[Features], train: Sequence[Features]
) -> tuple[np.ndarray, np.ndarray]:
    """[frames, 2] each: mean features of frames on the two principal axes of all."""
    elements = sorted({z for f in (*pool, *train) for z in f})
    dim = next(x.shape[1] for x in pool[0].values())
    axes = {z: k * dim for k, z in enumerate(elements)}
    x = _means([*pool, *train], axes, dim * len(elements))
    x -= x.mean(axis=0)
    points = np.zeros((len(x), 2))
    _, _, principal = np.linalg.svd(x, full_matrices=False)
    points[:, : len(principal[:2])] = x @ principal[:2].T
    return points[: len(pool)], points[len(pool) :]


def _placed(values: np.ndarray, places: Sequence[int], size: int) -> np.ndarray:
    """Values of some places among all, NaN elsewhere."""
    found = np.full((size, *values.shape[1:]), np.nan)
    found[list(places)] = values
    return found


def select(
    calc: EquivariantCalculator,
    pool: Images,
    train: Images = (),
    *,
    number: int,
    method: str = "d-optimal",
    window: tuple[float | None, float | None] = (None, None),
    seed: int = 1,
) -> Selection:
    """At most `number` frames of a pool.

    Args:
        calc: a model, or a committee, whose first member has the features.
        pool, train: structures, each with what to call it; labels are not looked at.
        method: of `choose.METHODS`.
        window: of the uncertainty, None for its usual or no bound.
        seed: of the method random; the others have no chance in them.

    Raises:
        InputError: no frames, an unknown method, a window without an uncertainty, nothing left.
    """
    if not pool:
        raise InputError("There are no frames to choose from.")
    if number < 1:
        raise InputError(f"The number of frames is {number}: it must be at least 1.")
    if method not in METHODS:
        raise InputError(f"There is no method '{method}'{did_you_mean(method, METHODS)}.")
    size = len(pool)
    found, impossible = _computed(calc, pool)
    possible = list(found)
    in_training, twice = copies([pool[n] for n in possible], train, calc.cutoff)
    left_out = {*in_training, *twice}
    places = [n for k, n in enumerate(possible) if k not in left_out]
    told = [found[n] for n in places]
    measure_of = None
    if places and told[0] is not None:
        measure_of = Measure(told[0][0], np.array([value for _, value in told]))
    if window != (None, None) and places and measure_of is None:
        raise InputError(
            "This model does not say how uncertain it is of a frame: run 'eqcalc calibrate' for "
            "it first, give a committee, or leave the window out."
        )
    usual = WINDOWS.get(measure_of.name if measure_of else "", (-np.inf, np.inf))
    low, high = (u if w is None else w for w, u in zip(window, usual, strict=True))
    if not low < high:
        raise InputError(f"The window {low:g} to {high:g} is empty: its lower bound comes first.")
    values = np.zeros(len(places)) if measure_of is None else measure_of.values
    inside = [k for k, v in enumerate(values) if low <= v <= high]
    if not inside:
        raise InputError(
            f"None of the {size} frames is left to choose from: {len(impossible)} cannot be "
            f"computed, {len(in_training)} are copies of training frames, {len(twice)} of each "
            f"other, {int((values < low).sum())} are below and {int((values > high).sum())} above "
            "the window."
        )
    alone = calc
    if len(calc.members) > 1:
        alone = EquivariantCalculator(calc.potential.path, engine=calc.engine)
    features = features_of(alone, [pool[n][0] for n in places])
    elements = set(alone.elements)  # files have isolated atoms, of others too
    known = features_of(alone, [a for a, _ in train if elements.issuperset(a.symbols)])
    order = METHODS[method]([features[k] for k in inside], known, number, seed)
    pool_points, train_points = _projected(features, known)
    return Selection(
        chosen=[places[inside[k]] for k in order],
        copies_of_training=[possible[k] for k in in_training],
        copies=[possible[k] for k in twice],
        impossible=impossible,
        below=[places[k] for k, v in enumerate(values) if v < low],
        above=[places[k] for k, v in enumerate(values) if v > high],
        measure=measure_of and Measure(measure_of.name, _placed(values, places, size)),
        novelty=_placed(novelty(features, known), places, size),
        pool_points=_placed(pool_points, places, size),
        train_points=train_points,
        window=(low, high),
        sources=[source for _, source in pool],
    )


def written(selection: Selection, pool: Images, *, keep_labels: bool = False) -> Iterator[Atoms]:
    """The chosen frames, each with its uncertainty and with where it comes from in its info."""
    for place in selection.chosen:
        atoms, source = pool[place]
        frame = atoms.copy()
        if keep_labels:
            frame.calc = atoms.calc
        else:
            drop_labels(frame)
        frame.info["selected_from"] = source
        if selection.measure:
            frame.info[selection.measure.name] = float(selection.measure.values[place])
        yield frame
