"""What training refuses in its data, or warns of: names, elements, labels, units, doubts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import islice

import numpy as np
from ase.data import chemical_symbols

from eqcalc.data.check_magnitude import frame_row, magnitude, store_rows
from eqcalc.data.check_units import contradictions
from eqcalc.data.dataset import GraphDataset
from eqcalc.data.frames import iter_images
from eqcalc.data.labels import without_output
from eqcalc.data.packed import PackedDataset
from eqcalc.data.statistics import Statistics, suspicious
from eqcalc.data.tables import FrameList, FrameTable, Joined
from eqcalc.errors import InputError, did_you_mean
from eqcalc.training.frames import AnyFrames, label_keys
from eqcalc.training.options import Config


def check_names(config: Config, train: AnyFrames, val: Mapping[str, AnyFrames]) -> None:
    """InputError for a config_type or a validation set that does not exist."""
    groups = {name for frames in (train, *val.values()) for name in frames.config_types()}
    for name in config.training.config_weights:
        if name not in groups:
            raise InputError(
                f"training.config_weights: no frame has the config_type '{name}'"
                f"{did_you_mean(name, sorted(groups))}."
            )
    for name in config.training.monitor:
        if name not in val:
            raise InputError(
                f"training.monitor: there is no validation set '{name}'{did_you_mean(name, val)}."
            )


def check_elements(frames: FrameTable, known: set[int]) -> None:
    """InputError for the first frame of an element that the model will not know."""
    unknown = sorted(set(frames.elements()) - known)
    if unknown:
        n, k = np.argwhere(frames.composition(unknown))[0]
        raise InputError(
            f"{frames.source(int(n))} contains {chemical_symbols[unknown[k]]}, which no training "
            "frame has."
        )


def check_outputs(config: Config, train: AnyFrames, *, without: bool = False) -> list[str]:
    """Names of the outputs of which no training frame has a label: an InputError unless they may be
    `without`; a warning for dipoles of periodic structures, which have branches.
    """
    missing = []
    for output in config.model.outputs:
        labelled = [n for n in range(len(train)) if train.has_output(n, output.name)]
        if not labelled and without:
            missing.append(output.name)
        elif not labelled:
            some = () if isinstance(train, PackedDataset) else iter_images(config.data.train)
            images = (atoms for atoms, _ in islice(some, 20))
            raise InputError(without_output(images, output, label_keys(config, 0.0)))
        periodic = [n for n in labelled if train.periodic(n)]
        if output.name == "dipole" and periodic:
            warnings.warn(
                f"{len(periodic)} training frames with a dipole (first "
                f"{train.source(periodic[0])}) are periodic: along such directions a dipole is "
                "known up to multiples of e times the cell vector, so all labels must be of one "
                "branch.",
                stacklevel=4,
            )
    return missing


def check_stresses(config: Config, tables: Sequence[AnyFrames]) -> None:
    """InputError for stresses that cannot be in eV/Å^3; a warning where the loss has none."""
    used = any(stage.weights["stress"] for stage in config.training.stages)
    for frames in tables:
        if isinstance(frames, PackedDataset):
            findings = magnitude(store_rows(frames, frames.atomic_numbers))
        else:
            findings = magnitude(frame_row(frame) for frame in frames.frames)
        for finding in findings:
            if used:
                raise InputError(finding.sentence)
            warnings.warn(finding.sentence, stacklevel=4)


def warn_of_doubts(
    train: AnyFrames, val: FrameTable, train_set: GraphDataset, statistics: Statistics
) -> None:
    """Warnings about energies and forces."""
    doubts = suspicious(Joined([train, val]), statistics)
    if isinstance(train, FrameList):
        doubts += contradictions(train.frames)
    for sentence in doubts:
        warnings.warn(sentence, stacklevel=4)
    _point_at_oddities(train_set)


def _point_at_oddities(frames: GraphDataset) -> None:
    """Warnings: no forces at all; frames of one free atom that are not called isolated atoms."""
    if next(frames.known_forces(), None) is None:
        warnings.warn(
            "No training frame has forces: energies alone make a poor potential; name the right "
            "key with data.forces_key or --forces-key if there are any.",
            stacklevel=4,
        )
    alone = np.flatnonzero((frames.atom_counts() == 1) & (frames.edge_counts() == 0))
    if len(alone):
        warnings.warn(
            f"{len(alone)} training frame{'s' if len(alone) > 1 else ''} of one free atom (first "
            f"{frames.source(int(alone[0]))}): a network learns nothing from it; move it to a file "
            "named in data.isolated_atoms, or give it config_type=IsolatedAtom, and its energy is "
            "the reference energy.",
            stacklevel=4,
        )
