"""The frames that a config names: read, corrected, split, and made graphs of."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from eqcalc.data.check_units import measured_pressure
from eqcalc.data.dataset import FrameDataset, GraphDataset, split_indices
from eqcalc.data.frames import Frame, read_frames
from eqcalc.data.isolated import named_atoms
from eqcalc.data.labels import LabelKeys, add_pressure, asked_by_name
from eqcalc.data.packed import PackedDataset
from eqcalc.data.store import is_store, packed_outputs
from eqcalc.data.tables import FrameList
from eqcalc.errors import InputError
from eqcalc.training.options import Config

#: the name of validation frames that were not named
UNNAMED = "validation"

#: frames before the elements of the model are known: read, or left on disk
AnyFrames = FrameList | PackedDataset


class Loaded(NamedTuple):
    """Training frames, validation frames by name of the set, and GPa added to all stresses.

    isolated: the frames among them that are called isolated atoms, which are neither.
    """

    train: AnyFrames
    val: dict[str, AnyFrames]
    pressure: float
    isolated: list[Frame]


def load_frames(config: Config) -> Loaded:
    """The frames that a config names, corrected and split as it says."""
    data = config.data
    if not data.train:
        raise InputError("No training frames: name at least one file in data.train.")
    if data.pulay_pressure == "measured":
        frames, pressure = _measured(config)
    else:
        pressure = float(data.pulay_pressure)
        frames = _load(data.train, "data.train", config, pressure)
    frames, isolated = _apart(frames, "data.train")
    if data.val:
        named = data.val if isinstance(data.val, dict) else {UNNAMED: data.val}
        val = {}
        for name, paths in named.items():
            option = f"data.val.{name}" if isinstance(data.val, dict) else "data.val"
            val[name], more = _apart(_load(paths, option, config, pressure), option)
            isolated += more
        return Loaded(frames, val, pressure, isolated)
    seed = config.training.seed if data.split_seed is None else data.split_seed
    train, held_out = split_indices(frames.config_types(), data.val_fraction, seed)
    return Loaded(frames.subset(train), {UNNAMED: frames.subset(held_out)}, pressure, isolated)


def dataset(frames: AnyFrames, atomic_numbers: Sequence[int], config: Config) -> GraphDataset:
    """Batches for a model of these species, weights as the config has them."""
    cutoff, factors = config.model.cutoff, config.training.config_weights
    if isinstance(frames, PackedDataset):
        return frames.for_model(atomic_numbers, cutoff, factors, config.model.outputs)
    return FrameDataset(frames.frames, atomic_numbers, cutoff, factors, config.model.outputs)


def label_keys(config: Config, pressure: float) -> LabelKeys:
    """How labels are found, and the GPa that are added to stresses."""
    data = config.data
    return {
        "energy_key": data.energy_key,
        "forces_key": data.forces_key,
        "stress_key": data.stress_key,
        "virial_key": data.virial_key,
        "weight_key": data.weight_key,
        "pulay_pressure": pressure,
        "outputs": config.model.outputs,
        "without_energy": not config.model.energy,
    }


def _load(paths: list[str], option: str, config: Config, pressure: float) -> AnyFrames:
    """The frames of files, or those of a store, which are left on disk."""
    stores = [path for path in paths if is_store(path)]
    if not stores:
        return FrameList(read_frames(paths, **label_keys(config, pressure)))
    if len(paths) > 1:
        raise InputError(
            f"{option} names the store '{stores[0]}' and {len(paths) - 1} more: a store stands "
            "alone, so pack all frames into one with 'eqcalc data pack'."
        )
    return _store(stores[0], option, config)


def _store(path: str, option: str, config: Config) -> PackedDataset:
    """InputError unless it holds the labels that the config asks for."""
    store = PackedDataset(path, cutoff=config.model.cutoff, outputs=config.model.outputs)
    if config.model.energy and store.header.get("without_energy"):
        raise InputError(
            f"{option} names the store '{path}', which was packed for a network without an energy: "
            "pack again with the configuration of this one."
        )
    _check_output_keys(store, option)
    packed, asked = store.header.get("pulay_pressure", 0.0), config.data.pulay_pressure
    if asked == "measured":
        raise InputError(
            f"{option} names the store '{path}', whose stresses are as they were packed: no "
            "pulay_pressure can be \"measured\" there; give it to 'eqcalc data pack' and here."
        )
    if packed != asked:
        raise InputError(
            f"{option}: the store '{path}' was packed with a pulay_pressure of {packed:g} GPa, "
            f"data.pulay_pressure is {asked:g}: change that or pack again."
        )
    if store.lacks_slab_stress():
        warnings.warn(
            f"{option}: the store '{path}' was packed by an older eqcalc, which left out the "
            "stress of slabs: pack again to train on it.",
            stacklevel=2,
        )
    named = asked_by_name(label_keys(config, 0.0))
    packed_as = store.header.get("labels")
    for label, key in named.items():
        if packed_as is None:  # by a version that did not note it
            warnings.warn(
                f"{option}: the store '{path}' does not say under which names its labels were "
                f"read: data.{label}_key = '{key}' changes nothing in it.",
                stacklevel=2,
            )
        elif packed_as[label] != key:
            raise InputError(
                f"{option}: the store '{path}' was packed with --{label}-key "
                f"'{packed_as[label]}', data.{label}_key is '{key}': change that or pack again."
            )
    return store


def _check_output_keys(store: PackedDataset, option: str) -> None:
    """InputError for an output whose labels were read under another name than is asked for."""
    packed = {output.name: output.key for output in packed_outputs(store.header)}
    for output in store.outputs:
        if output.key and output.key != packed[output.name]:
            raise InputError(
                f"{option}: the store '{store.path}' was packed with key = "
                f"'{packed[output.name]}' for the output {output.name}, here it is "
                f"'{output.key}': change that or pack again."
            )


def _apart(frames: AnyFrames, option: str) -> tuple[AnyFrames, list[Frame]]:
    """Frames without those that are called isolated atoms, and these."""
    atoms, others = named_atoms(frames)
    if not others:
        raise InputError(f"{option} has isolated atoms only: name frames of something larger.")
    return (frames.subset(others) if atoms else frames), atoms


def _measured(config: Config) -> tuple[AnyFrames, float]:
    """Training frames, and the pressure that has been added to their stresses."""
    frames = _load(config.data.train, "data.train", config, 0.0)
    pressure, sentence = measured_pressure(frames.frames)
    warnings.warn(sentence, stacklevel=2)
    if not pressure:
        return frames, 0.0
    corrected = (replace(f, stress=add_pressure(f.stress, pressure)) for f in frames.frames)
    return FrameList(corrected), pressure
