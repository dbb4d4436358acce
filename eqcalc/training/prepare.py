"""From a config to data sets and an untrained network."""

from __future__ import annotations

import contextlib
import ctypes
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from eqcalc.contract import set_precision
from eqcalc.data.dataset import Batch, FrameDataset
from eqcalc.data.frames import Frame, read_frames
from eqcalc.data.statistics import gather, suspicious
from eqcalc.engine.training import fuse
from eqcalc.errors import InputError, did_you_mean
from eqcalc.graph import Graph
from eqcalc.models.nequip import NequIP
from eqcalc.training.finetune import (
    adopt,
    continued,
    freeze,
    known_energies,
    read_source,
    species_tables,
    unfixed_elements,
)
from eqcalc.training.folder import Constants, build_model, data_hash
from eqcalc.training.options import Config, TrainingConfig

#: the name of validation frames that were not named
UNNAMED = "validation"

#: glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD, in bytes
MALLOC_OPTIONS = ((-3, 32 * 1024**2), (-1, 2**31 - 1))


@dataclass(frozen=True)
class Prepared:
    """All that training needs.

    Attributes:
        config: as it is used; the [model] section is that of a model to fine-tune.
        model: not trained yet, in the precision of training.
        train: frames and graphs.
        val: the same by name of the set.
        setup: what is written to setup.json.
        undecayed: parameters without weight decay: tables with rows of elements that the training
            frames lack, which nothing else would hold in place.
    """

    config: Config
    model: NequIP
    train: FrameDataset
    val: dict[str, FrameDataset]
    setup: dict[str, Any]
    undecayed: Sequence[str] = ()


def split(frames: list[Frame], fraction: float, seed: int) -> tuple[list[Frame], list[Frame]]:
    """Training and held-out frames, at random but repeatable; every config_type gives its share."""
    if len(frames) < 2:
        raise InputError("A single frame cannot be split: give validation frames with data.val.")
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(frames))
    wanted = min(max(1, round(fraction * len(frames))), len(frames) - 1)
    # systematic sampling from the list sorted by group keeps the groups' shares
    by_group = sorted(order, key=lambda n: frames[n].config_type)
    picks = {by_group[int((k + 0.5) * len(frames) / wanted)] for k in range(wanted)}
    train = [f for n, f in enumerate(frames) if n not in picks]
    return train, [frames[n] for n in sorted(picks)]


def _keys(config: Config) -> dict[str, str]:
    names = ("energy_key", "forces_key", "stress_key", "weight_key")
    return {name: getattr(config.data, name) for name in names}


def load_frames(config: Config) -> tuple[list[Frame], dict[str, list[Frame]]]:
    """Training frames, and validation frames by name of the set."""
    data = config.data
    if not data.train:
        raise InputError("No training frames: name at least one file in data.train.")
    frames = read_frames(data.train, **_keys(config))
    if isinstance(data.val, dict):
        return frames, {k: read_frames(files, **_keys(config)) for k, files in data.val.items()}
    if data.val:
        return frames, {UNNAMED: read_frames(data.val, **_keys(config))}
    seed = config.training.seed if data.split_seed is None else data.split_seed
    train, val = split(frames, data.val_fraction, seed)
    return train, {UNNAMED: val}


def weighted(frames: Sequence[Frame], factors: dict[str, float]) -> list[Frame]:
    """Frames whose weights are multiplied by the factor of their config_type."""
    return [replace(f, weight=f.weight * factors.get(f.config_type, 1.0)) for f in frames]


def _check_names(config: Config, train: list[Frame], val: dict[str, list[Frame]]) -> None:
    """InputError for a config_type or a validation set that does not exist."""
    groups = {f.config_type for frames in (train, *val.values()) for f in frames}
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


def typical_graph(frames: FrameDataset, limit: int = 32) -> Graph:
    """Up to `limit` frames, evenly spread over the set, side by side."""
    count = min(limit, len(frames))
    return Batch.collate([frames[k * len(frames) // count] for k in range(count)]).graph


def prepare(config: Config) -> Prepared:
    """Reads the data and makes the network.

    Raises:
        InputError: what is wrong with the data or the options.
    """
    source = read_source(config.fine_tune.model) if config.fine_tune.model else None
    if source:
        config = adopt(config, source)
    train, val = load_frames(config)
    _check_names(config, train, val)
    all_val = [f for frames in val.values() for f in frames]
    path, given = config.data.isolated_atoms, config.data.reference_energies
    isolated = read_frames(path, **_keys(config)) if path else []
    if source:
        given = known_energies(source, isolated) | given
    statistics = gather(train, given=given, isolated=isolated)
    for sentence in suspicious([*train, *all_val], statistics):
        warnings.warn(sentence, stacklevel=3)

    factors = config.training.config_weights
    cutoff = config.model.cutoff
    seen = {int(z) for frame in train for z in frame.atoms.numbers}
    elements = {*statistics.atomic_numbers, *(source.constants.atomic_numbers if source else ())}
    train_set = FrameDataset(weighted(train, factors), sorted(elements), cutoff)
    if source:
        free = unfixed_elements(config, source, train, isolated)
        model, constants = continued(config, source, statistics, train_set, free)
        freeze(model, config.fine_tune.freeze)
    else:
        scale = [statistics.force_rms] * len(elements)
        neighbors = train_set.avg_num_neighbors
        constants = Constants(statistics.atomic_numbers, neighbors, scale, statistics.shift)
        model = build_model(config, constants)
        typical = typical_graph(train_set)
        model.calibrate(typical.species, typical.edge_vec, typical.edge_src, typical.edge_dst)
    numbers = constants.atomic_numbers
    setup = {
        "atomic_numbers": numbers,
        "reference_energies": constants.shift,
        "force_rms": statistics.force_rms,
        "avg_num_neighbors": constants.avg_num_neighbors,
        "message_scales": model.message_scales(),
        "train_frames": len(train),
        "val_frames": len(all_val),
        "train_hash": data_hash(train),
        "val_hash": data_hash(all_val),
    }
    if list(val) != [UNNAMED]:
        setup["val_sets"] = {name: len(frames) for name, frames in val.items()}
    if source:
        setup["scale"] = constants.scale
    return Prepared(
        config=config,
        model=set_precision(model, getattr(torch, config.training.precision)),
        train=train_set,
        val={
            name: FrameDataset(weighted(frames, factors), numbers, cutoff)
            for name, frames in val.items()
        },
        setup=setup,
        undecayed=species_tables(model) if elements - seen else (),
    )


def keep_freed_memory() -> None:
    """Lets this process reuse blocks of memory from step to step.

    By default glibc hands blocks of hundreds of kilobytes back to the kernel, which clears them
    again at the next use: a fifth of a training step. Other systems' allocators are left alone.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in MALLOC_OPTIONS:
            mallopt(option, value)


def ready(model: NequIP, options: TrainingConfig) -> NequIP:
    """Compiled kernels, where they are wanted and possible, and nothing to train in empty tensors.

    In place; the parameters stay what they are.
    """
    for parameter in model.parameters():
        if not parameter.numel():  # of readouts that inner layers do not have
            parameter.requires_grad_(False)
    if options.device != "cpu" and torch.cuda.is_available():
        return model
    keep_freed_memory()
    if options.fused:
        try:
            fuse(model)
        except InputError as error:
            warnings.warn(
                f"Training without compiled kernels, several times slower: {error}", stacklevel=3
            )
    return model
