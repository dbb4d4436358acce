"""From a config to data sets and an untrained network."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from ase.data import atomic_numbers as number_of
from ase.data import chemical_symbols

from eqcalc.contract import set_precision
from eqcalc.data.check_magnitude import frame_row, magnitude, store_rows
from eqcalc.data.check_units import contradictions, measured_pressure
from eqcalc.data.cohesive import isolated_energies
from eqcalc.data.dataset import (
    Batch,
    FrameDataset,
    GraphDataset,
    split_indices,
)
from eqcalc.data.frames import Frame, iter_images, read_frames
from eqcalc.data.isolated import chosen_atoms, named_atoms
from eqcalc.data.labels import LabelKeys, add_pressure, asked_by_name, without_output
from eqcalc.data.packed import PackedDataset
from eqcalc.data.statistics import Statistics, gather, statistics_of, suspicious
from eqcalc.data.store import is_store
from eqcalc.data.tables import FrameList, FrameTable, Joined
from eqcalc.engine.training import fuse
from eqcalc.errors import InputError, did_you_mean
from eqcalc.graph import Graph
from eqcalc.models.base import Potential
from eqcalc.training.domain import crowding_of, measure, temperature
from eqcalc.training.finetune import (
    Source,
    adopt,
    continued,
    freeze,
    known_energies,
    read_source,
    reduced,
    species_tables,
    unfixed_elements,
)
from eqcalc.training.folder import Constants, build_model
from eqcalc.training.options import Config, TrainingConfig, usual_epochs
from eqcalc.training.output_statistics import output_constants
from eqcalc.training.pairs import fit_pairs

#: the name of validation frames that were not named
UNNAMED = "validation"

#: frames before the elements of the model are known
Unprepared = FrameList | PackedDataset


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
    model: Potential
    train: GraphDataset
    val: dict[str, GraphDataset]
    setup: dict[str, Any]
    undecayed: Sequence[str] = ()


def _keys(config: Config, pressure: float) -> LabelKeys:
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


def _store(path: str, option: str, config: Config) -> PackedDataset:
    """InputError unless it holds the labels that the config asks for."""
    if config.model.outputs:
        raise InputError(
            f"{option} names the store '{path}', and stores have no labels of model.outputs: name "
            "the files that it was packed from."
        )
    store = PackedDataset(path, cutoff=config.model.cutoff)
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
    named = asked_by_name(_keys(config, 0.0))
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


def _load(paths: list[str], option: str, config: Config, pressure: float) -> Unprepared:
    """The frames of files, or those of a store, which are left on disk."""
    stores = [path for path in paths if is_store(path)]
    if not stores:
        return FrameList(read_frames(paths, **_keys(config, pressure)))
    if len(paths) > 1:
        raise InputError(
            f"{option} names the store '{stores[0]}' and {len(paths) - 1} more: a store stands "
            "alone, so pack all frames into one with 'eqcalc data pack'."
        )
    return _store(stores[0], option, config)


class Loaded(NamedTuple):
    """Training frames, validation frames by name of the set, and GPa added to all stresses.

    isolated: the frames among them that are called isolated atoms, which are neither.
    """

    train: Unprepared
    val: dict[str, Unprepared]
    pressure: float
    isolated: list[Frame]


def _apart(frames: Unprepared, option: str) -> tuple[Unprepared, list[Frame]]:
    """Frames without those that are called isolated atoms, and these."""
    atoms, others = named_atoms(frames)
    if not others:
        raise InputError(f"{option} has isolated atoms only: name frames of something larger.")
    return (frames.subset(others) if atoms else frames), atoms


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


def _measured(config: Config) -> tuple[Unprepared, float]:
    """Training frames, and the pressure that has been added to their stresses."""
    frames = _load(config.data.train, "data.train", config, 0.0)
    pressure, sentence = measured_pressure(frames.frames)
    warnings.warn(sentence, stacklevel=2)
    if not pressure:
        return frames, 0.0
    corrected = (replace(f, stress=add_pressure(f.stress, pressure)) for f in frames.frames)
    return FrameList(corrected), pressure


def dataset(frames: Unprepared, atomic_numbers: Sequence[int], config: Config) -> GraphDataset:
    """Batches for a model of these species, weights as the config has them."""
    cutoff, factors = config.model.cutoff, config.training.config_weights
    if isinstance(frames, PackedDataset):
        return frames.for_model(atomic_numbers, cutoff, factors)
    return FrameDataset(frames.frames, atomic_numbers, cutoff, factors, config.model.outputs)


def _check_names(config: Config, train: Unprepared, val: dict[str, Unprepared]) -> None:
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


def _check_elements(frames: FrameTable, known: set[int]) -> None:
    """InputError for the first frame of an element that the model will not know."""
    unknown = sorted(set(frames.elements()) - known)
    if unknown:
        n, k = np.argwhere(frames.composition(unknown))[0]
        raise InputError(
            f"{frames.source(int(n))} contains {chemical_symbols[unknown[k]]}, which no training "
            "frame has."
        )


def _check_outputs(config: Config, train: FrameList) -> None:
    """InputError for an output of which no training frame has a label; a warning for dipoles of
    periodic structures, which have branches.
    """
    for output in config.model.outputs:
        labelled = [frame for frame in train.frames if output.name in frame.outputs]
        if not labelled:
            images = (atoms for atoms, _ in islice(iter_images(config.data.train), 20))
            raise InputError(without_output(images, output, _keys(config, 0.0)))
        periodic = [frame for frame in labelled if frame.atoms.pbc.any()]
        if output.name == "dipole" and periodic:
            warnings.warn(
                f"{len(periodic)} training frames with a dipole (first {periodic[0].source}) are "
                "periodic: along such directions a dipole is known up to multiples of e times the "
                "cell vector, so all labels must be of one branch.",
                stacklevel=4,
            )


def _check_stresses(config: Config, tables: Sequence[Unprepared]) -> None:
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


def _isolated_atoms(config: Config, named: Sequence[Frame]) -> list[Frame]:
    """One of each element that data.isolated_atoms or frames called so have; says which."""
    data = config.data
    keys: LabelKeys = {"energy_key": data.energy_key, "forces_key": "", "stress_key": ""}
    file = read_frames(data.isolated_atoms, **keys) if data.isolated_atoms else []
    isolated, sentence = chosen_atoms(named, file, data.reference_energies)
    if sentence:
        warnings.warn(sentence, stacklevel=4)
    return isolated


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


def _unknown(train: FrameTable, given: Mapping[str, float], isolated: list[Frame]) -> list[int]:
    """Z of the elements whose reference energies neither options nor isolated atoms give."""
    known = {number_of.get(symbol) for symbol in given}
    known |= {int(frame.atoms.numbers[0]) for frame in isolated}
    return [z for z in train.elements() if z not in known]


def _cohesive(
    config: Config, train: FrameTable, given: Mapping[str, float], isolated: list[Frame]
) -> dict[str, float]:
    """Reference energies [eV] that follow from data.cohesive_energies."""
    cohesive = config.data.cohesive_energies
    if not cohesive:
        return {}
    return isolated_energies(train, _unknown(train, given, isolated), cohesive)


def _check_isolated(
    config: Config, train: FrameTable, given: Mapping[str, float], isolated: list[Frame]
) -> None:
    """InputError where exact isolated atoms would have energies from a fit to something else."""
    unknown = _unknown(train, given, isolated)
    if config.model.exact_isolated_atoms and unknown:
        symbols = ", ".join(chemical_symbols[z] for z in unknown)
        raise InputError(
            f"model.exact_isolated_atoms needs the energy of an isolated atom of {symbols}: give "
            "data.isolated_atoms, data.reference_energies or data.cohesive_energies."
        )


def typical_graph(frames: GraphDataset, limit: int = 32) -> Graph:
    """Up to `limit` frames, evenly spread over the set, side by side."""
    count = min(limit, len(frames))
    return Batch.collate([frames[k * len(frames) // count] for k in range(count)]).graph


def _constants(
    config: Config,
    frames: GraphDataset,
    statistics: Statistics,
    given: dict[str, float],
    isolated: Sequence[Frame],
) -> Constants:
    """Of a new network: scale and reference energies are of what a pair potential leaves."""
    numbers, neighbors = statistics.atomic_numbers, frames.avg_num_neighbors
    crowding = None
    if config.model.crowding_limit:
        crowding = crowding_of(frames, numbers, config.model.cutoff)
    outputs = None
    if config.model.outputs:
        outputs = output_constants(frames, numbers, config.model.outputs)
    rest = {"crowding": crowding, "outputs": outputs}
    if not config.model.pair_potential:
        scale = [statistics.force_rms] * len(numbers)
        return Constants(numbers, neighbors, scale, statistics.shift, **rest)
    fit = fit_pairs(frames, numbers, statistics.shift, config.model.cutoff)
    left = statistics_of(fit.counts, fit.energies, numbers, fit.force_rms, given, isolated)
    scale = [left.force_rms] * len(numbers)
    shift, pairs = left.shift, fit.constants
    return Constants(numbers, neighbors, scale, shift, pair_constants=pairs, **rest)


def _setup(
    constants: Constants,
    statistics: Statistics,
    train: Unprepared,
    val: dict[str, Unprepared],
    model: Potential,
) -> dict[str, Any]:
    """The content of setup.json: facts about the data, and the constants of the network."""
    all_val = Joined([*val.values()])
    setup = {
        "atomic_numbers": constants.atomic_numbers,
        "reference_energies": constants.shift,
        "force_rms": statistics.force_rms,
        "avg_num_neighbors": constants.avg_num_neighbors,
        "message_scales": model.message_scales(),
        "train_frames": len(train),
        "val_frames": len(all_val),
        "train_hash": train.hash,
        "val_hash": all_val.hash,
    }
    if list(val) != [UNNAMED]:
        setup["val_sets"] = {name: len(frames) for name, frames in val.items()}
    if constants.pair_constants:
        setup["pair_potential"] = asdict(constants.pair_constants)
    if constants.crowding:
        setup["crowding"] = asdict(constants.crowding)
    if constants.outputs:
        setup["outputs"] = asdict(constants.outputs)
    return setup


def _given_energies(
    config: Config, source: Source | None, train: Unprepared, isolated: list[Frame]
) -> tuple[dict[str, float], dict[str, float]]:
    """Reference energies [eV] by symbol that are not to be fitted; of these, cohesive ones."""
    if not config.model.energy:
        return {chemical_symbols[z]: 0.0 for z in train.elements()}, {}
    given = config.data.reference_energies
    if source:
        given = known_energies(source, isolated) | given
    cohesive = _cohesive(config, train, given, isolated)
    return cohesive | given, cohesive


def _say_doubts(
    train: Unprepared, val: FrameTable, train_set: GraphDataset, statistics: Statistics
) -> None:
    """Warnings about energies and forces."""
    doubts = suspicious(Joined([train, val]), statistics)
    if isinstance(train, FrameList):
        doubts += contradictions(train.frames)
    for sentence in doubts:
        warnings.warn(sentence, stacklevel=4)
    _point_at_oddities(train_set)


def _new_network(config: Config, constants: Constants, train_set: GraphDataset) -> Potential:
    """Untrained, calibrated on typical frames."""
    model = build_model(config, constants)
    typical = typical_graph(train_set)
    edges = typical.edge_vec, typical.edge_src, typical.edge_dst
    model.calibrate(typical.species, *edges, target=config.model.initial_messages)
    return model


def prepare(config: Config) -> Prepared:
    """Reads the data and makes the network.

    Raises:
        InputError: what is wrong with the data or the options.
    """
    source = read_source(config.fine_tune.model) if config.fine_tune.model else None
    if source:
        config = adopt(config, source)
    train, val, pressure, named = load_frames(config)
    if not config.training.epochs:
        training = replace(config.training, epochs=usual_epochs(len(train)))
        config = replace(config, training=training)
    _check_names(config, train, val)
    if source and config.fine_tune.drop_elements:
        source = reduced(source, train.elements())
    _check_stresses(config, [train, *val.values()])
    all_val = Joined([*val.values()])
    isolated = _isolated_atoms(config, named)
    given, cohesive = _given_energies(config, source, train, isolated)
    _check_outputs(config, train)
    _check_isolated(config, train, given, isolated)
    statistics = gather(train, given=given, isolated=isolated)
    seen = set(train.elements())
    elements = {*statistics.atomic_numbers, *(source.constants.atomic_numbers if source else ())}
    _check_elements(all_val, elements)
    train_set = dataset(train, sorted(elements), config)
    if config.model.energy:
        _say_doubts(train, all_val, train_set, statistics)
    if source:
        free = unfixed_elements(config, source, train, isolated) if config.model.energy else []
        free = [z for z in free if chemical_symbols[z] not in cohesive]
        model, constants = continued(config, source, statistics, train_set, free)
        freeze(model, config.fine_tune.freeze)
    else:
        constants = _constants(config, train_set, statistics, given, isolated)
        model = _new_network(config, constants, train_set)
    numbers = constants.atomic_numbers
    setup = _setup(constants, statistics, train, val, model)
    if pressure:
        setup["pulay_pressure"] = pressure
    if source and source.origin:
        setup["origin"] = source.origin | {"changed": "fine-tuned since"}
    if source or constants.pair_constants:
        setup["scale"] = constants.scale
    highest = None
    if isinstance(train, FrameList):
        highest = temperature((f.atoms, f.config_type) for f in train.frames)
    domain = measure(train_set, numbers, constants.shift, highest)
    setup["domain"] = domain.document
    return Prepared(
        config=config,
        model=set_precision(model, getattr(torch, config.training.precision)),
        train=train_set,
        val={name: dataset(frames, numbers, config) for name, frames in val.items()},
        setup=setup,
        undecayed=species_tables(model) if elements - seen else (),
    )


def ready(model: Potential, options: TrainingConfig) -> Potential:
    """Compiled kernels, where they are wanted and possible, and nothing to train in empty tensors.

    In place; the parameters stay what they are.
    """
    for parameter in model.parameters():
        if not parameter.numel():  # of readouts that inner layers do not have
            parameter.requires_grad_(False)
    if options.device != "cpu" and torch.cuda.is_available():
        return model
    if options.fused:
        try:
            fuse(model)
        except InputError as error:
            warnings.warn(
                f"Training without compiled kernels, several times slower: {error}", stacklevel=3
            )
    return model
