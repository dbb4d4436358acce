"""The uncertainty of a potential file (`eqcalc.uncertainty`), made from frames."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from ase.data import chemical_symbols

from eqcalc import export, uncertainty
from eqcalc.data.dataset import FrameDataset, GraphDataset
from eqcalc.data.frames import Frame
from eqcalc.engine.build import EngineUnavailable
from eqcalc.engine.fused import EdgeArrays, FusedPotential, fuse
from eqcalc.errors import InputError
from eqcalc.graph import Graph
from eqcalc.models.base import Potential
from eqcalc.runtime import own_torch
from eqcalc.uncertainty import Coverage, FrameFeatures, Uncertainty

#: atoms of the training that are looked at, of frames spread evenly over it
MOST_ATOMS = 300_000

#: of frames without others for their errors, one in so many is held out for them
HELD_OUT = 10


class FeatureSource(Protocol):
    """Energies [N] eV and features [N, H] of the atoms of a graph."""

    def __call__(self, graph: Graph) -> tuple[np.ndarray, np.ndarray]: ...


def of_module(model: Potential) -> FeatureSource:
    """Those of a network in training."""
    names = uncertainty.last_weights(model, model.program)

    def source(graph: Graph) -> tuple[np.ndarray, np.ndarray]:
        parts = graph.species, graph.edge_vec, graph.edge_src, graph.edge_dst
        device = next(model.parameters()).device
        got, rows = uncertainty.module_features(
            model, names, *(part.to(device) for part in parts), gradient=False
        )
        return got.energies.cpu().numpy(), rows.cpu().numpy()

    return source


def of_file(path: Path, engine: str = "auto") -> FeatureSource:
    """Those of a potential file, on the engine that runs it: the compiled one if there is one."""
    if engine != "torch":
        radial = "network" if engine == "exact" else "table"
        try:
            return _compiled(fuse(path, radial=radial))
        except EngineUnavailable:
            if engine != "auto":
                raise
    potential = export.load(path)

    def source(graph: Graph) -> tuple[np.ndarray, np.ndarray]:
        parts = graph.species, graph.edge_vec, graph.edge_src, graph.edge_dst
        with own_torch():
            got, rows = uncertainty.evaluate_with_features(potential, *parts, gradient=False)
        return got.energies.numpy(), rows.numpy()

    return source


def _compiled(potential: FusedPotential) -> FeatureSource:
    def source(graph: Graph) -> tuple[np.ndarray, np.ndarray]:
        edges = EdgeArrays(graph.edge_src.numpy(), graph.edge_dst.numpy(), graph.edge_vec.numpy())
        energies, _, atomic = potential.run_with(
            graph.species.numpy(), edges, torch.get_num_threads(), gradient=False, features=True
        )
        assert atomic.features is not None  # asked for
        return energies, atomic.features

    return source


def frame_features(
    source: FeatureSource, frames: GraphDataset, indices: Sequence[int]
) -> Iterator[FrameFeatures]:
    """Features, and errors of energies, of frames of a set."""
    for n in indices:
        batch = frames[n]
        energies, rows = source(batch.graph)
        error = float(energies.sum()) - float(batch.energy[0])
        known = error if np.isfinite(error) else None
        yield FrameFeatures(batch.graph.species.numpy(), rows, known)


def _spread(frames: GraphDataset, most: int) -> list[int]:
    """Frames of at most so many atoms, evenly over a set."""
    atoms = int(frames.atom_counts().sum())
    step = max(1.0, atoms / most)
    return sorted({int(k * step) for k in range(int(len(frames) / step))}) or [0]


def _without_offsets(frames: Sequence[FrameFeatures]) -> list[FrameFeatures]:
    """Errors less what least squares by element leave of them: labels of another method."""
    known = [frame for frame in frames if frame.error is not None]
    count = 1 + max(int(frame.species.max()) for frame in known)
    numbers = np.array([np.bincount(frame.species, minlength=count) for frame in known], float)
    errors = np.array([frame.error for frame in known])
    left = errors - numbers @ np.linalg.lstsq(numbers, errors, rcond=None)[0]
    pairs = zip(known, left, strict=True)
    return [dataclasses.replace(frame, error=float(error)) for frame, error in pairs]


def coverage(known: Uncertainty, frames: Sequence[FrameFeatures]) -> Coverage:
    """Errors of the energies of frames beside their deviations."""
    chosen = [f for f in frames if f.error is not None]
    return Coverage.of(
        [len(f.species) for f in chosen],
        [f.error for f in chosen if f.error is not None],
        [known.energy_std(f.species, f.features) for f in chosen],
        [known.grades(f.species, f.features) for f in chosen],
    )


def describe(
    known: Uncertainty,
    calibration: uncertainty.Calibration,
    validation: Sequence[FrameFeatures],
    numbers: Sequence[int],
) -> dict[str, Any]:
    """For the metadata: how it was made, and what the frames say that it was fitted to.

    coverage: errors and deviations of these frames (`eqcalc.uncertainty.coverage`);
    validation_grade: the median and the largest of their atoms, by element.
    """
    document: dict[str, Any] = {
        "version": uncertainty.UNCERTAINTY_VERSION,
        "elements": [chemical_symbols[numbers[s]] for s in known.species],
        "features": known.width,
        **{k: v for k, v in dataclasses.asdict(calibration).items() if v is not None},
    }
    if calibration.errors:
        document["coverage"] = coverage(known, validation).document()
    if validation:
        species = np.concatenate([f.species for f in validation])
        grades = np.concatenate([known.grades(f.species, f.features) for f in validation])
        document["validation_grade"] = {
            chemical_symbols[numbers[s]]: [
                float(f"{value:.4g}")
                for value in (np.median(grades[species == s]), grades[species == s].max())
            ]
            for s in known.species
            if (species == s).any()
        }
    return document


def add_to(
    path: str | os.PathLike,
    target: str | os.PathLike,
    source: FeatureSource,
    train: GraphDataset,
    validation: Sequence[GraphDataset] = (),
    *,
    refit_energies: bool = False,
) -> dict[str, Any]:
    """Copies a potential file with the uncertainty that follows from these frames.

    Args:
        path: of the file; target: where the copy goes, the same or another place.
        source: of its features and energies.
        train: what it was trained on.
        validation: unseen frames; without any, one in ten of `train` is held out, whose errors are
            smaller than those of unseen frames if the network learned from them.
        refit_energies: errors of energies are those up to a constant for each element.

    Returns:
        What the metadata say of it.
    """
    chosen = _spread(train, MOST_ATOMS)
    held: list[FrameFeatures] = []
    if any(map(len, validation)):
        for frames in validation:
            held += frame_features(source, frames, _spread(frames, MOST_ATOMS))
    elif len(chosen) >= 2 * HELD_OUT:
        held = list(frame_features(source, train, chosen[HELD_OUT // 2 :: HELD_OUT]))
        chosen = sorted({*chosen} - {*chosen[HELD_OUT // 2 :: HELD_OUT]})
    if refit_energies and any(frame.error is not None for frame in held):
        held = _without_offsets(held)
    known, calibration = uncertainty.fit(list(frame_features(source, train, chosen)), held)
    document = describe(known, calibration, held, export.load(path).atomic_numbers)
    uncertainty.write(path, target, known, document)
    return document


def calibrate(
    path: str | os.PathLike,
    target: str | os.PathLike,
    train: Sequence[Frame],
    validation: Sequence[Frame] = (),
    *,
    refit_energies: bool = False,
    engine: str = "auto",
) -> dict[str, Any]:
    """As `add_to`, for a potential file and labelled frames.

    Raises:
        InputError: no frames; an element that the file does not know; a network without an energy.
    """
    potential = export.load(path)
    if not potential.has_energy:
        raise InputError(f"{potential.path.name} has no energy, and so no uncertainty of it.")
    if not train:
        raise InputError("There are no frames to calibrate with: give those of the training.")
    for frame in (*train, *validation):
        try:
            potential.species_of(frame.atoms.numbers)
        except InputError as error:
            raise InputError(f"{frame.source}: {error}") from None
    sets = [
        FrameDataset(frames, potential.atomic_numbers, potential.cutoff)
        for frames in (train, validation)
    ]
    source = of_file(Path(path), engine)
    return add_to(path, target, source, sets[0], sets[1:], refit_energies=refit_energies)
