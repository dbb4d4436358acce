"""From a config to data sets and an untrained network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from eqcalc.contract import set_precision
from eqcalc.data.dataset import GraphDataset
from eqcalc.data.frames import Frame
from eqcalc.data.statistics import Statistics, gather
from eqcalc.data.tables import FrameList, FrameTable, Joined
from eqcalc.models.assembled import WithOutputs
from eqcalc.models.base import Potential
from eqcalc.nn.output_constants import OutputConstants
from eqcalc.training import data_checks
from eqcalc.training.distributed import World
from eqcalc.training.domain import measure, temperature
from eqcalc.training.finetune import (
    Source,
    adopt,
    continued,
    freeze,
    read_source,
    reduced,
    species_tables,
)
from eqcalc.training.frames import UNNAMED, Loaded, dataset, load_frames
from eqcalc.training.network import measured_constants, new_network
from eqcalc.training.options import Config, usual_epochs
from eqcalc.training.reference_energies import given_energies
from eqcalc.training.setup import Constants, RunSetup


@dataclass(frozen=True)
class Prepared:
    """All that training needs.

    Attributes:
        config: as it is used; the [model] section is that of a model to fine-tune.
        model: not trained yet, in the precision of training.
        train: frames and graphs.
        val: the same by name of the set.
        setup: what is written to RUN/setup.json.
        undecayed: parameters without weight decay: tables with rows of elements that the training
            frames lack, which nothing else would hold in place.
    """

    config: Config
    model: Potential
    train: GraphDataset
    val: dict[str, GraphDataset]
    setup: RunSetup
    undecayed: Sequence[str] = ()


def completed(config: Config, train: FrameTable, isolated: Sequence[Frame]) -> Config:
    """With what follows from the data where it is not given.

    Epochs and frames per step are as many as so many training frames need. Isolated atoms are
    exact where there is one of each element, among frames called so or in data.isolated_atoms.
    """
    epochs = config.training.epochs or usual_epochs(len(train))
    batch = config.training.batch_size or World.from_environment().usual_batch(len(train))
    config = replace(config, training=replace(config.training, epochs=epochs, batch_size=batch))
    decided = "model.exact_isolated_atoms" in config.given or config.fine_tune.model
    if decided or not config.model.energy:
        return config
    known = {int(frame.atoms.numbers[0]) for frame in isolated}
    if not known.issuperset(train.elements()):
        return config
    return replace(config, model=replace(config.model, exact_isolated_atoms=True))


def prepare(config: Config, outputs: OutputConstants | None = None) -> Prepared:
    """Reads the data and makes the network.

    Args:
        config: of the run.
        outputs: constants of the outputs beside the energy that are not to be measured on these
            frames, which may then be without labels of some: these outputs are left as they are.

    Raises:
        InputError: what is wrong with the data or the options.
    """
    source = read_source(config.fine_tune.model) if config.fine_tune.model else None
    if source:
        config = adopt(config, source)
    loaded = load_frames(config)
    train, all_val = loaded.train, Joined([*loaded.val.values()])
    data_checks.check_names(config, train, loaded.val)
    if source and config.fine_tune.drop_elements:
        source = reduced(source, train.elements())
    data_checks.check_stresses(config, [train, *loaded.val.values()])
    given = given_energies(config, source, train, loaded.isolated)
    config = completed(config, train, given.isolated)
    untaught = data_checks.check_outputs(config, train, without=outputs is not None)
    statistics = gather(train, given=given.energies, isolated=given.isolated)
    seen = set(train.elements())
    elements = {*statistics.atomic_numbers, *(source.constants.atomic_numbers if source else ())}
    data_checks.check_elements(all_val, elements)
    train_set = dataset(train, sorted(elements), config)
    if config.model.energy:
        data_checks.warn_of_doubts(train, all_val, train_set, statistics)
    if source:
        model, constants = continued(config, source, statistics, train_set, given.free)
        freeze(model, config.fine_tune.freeze)
    else:
        constants = measured_constants(
            config, train_set, statistics, given.energies, given.isolated, outputs
        )
        model = new_network(config, constants, train_set)
        if isinstance(model, WithOutputs) and untaught:
            for parameter in model.only_for(untaught):
                parameter.requires_grad_(False)
    constants = replace(constants, message_scales=model.message_scales())
    numbers = constants.atomic_numbers
    return Prepared(
        config=config,
        model=set_precision(model, getattr(torch, config.training.precision)),
        train=train_set,
        val={name: dataset(frames, numbers, config) for name, frames in loaded.val.items()},
        setup=_setup(constants, statistics, loaded, train_set, source),
        undecayed=species_tables(model) if elements - seen else (),
    )


def _setup(
    constants: Constants,
    statistics: Statistics,
    loaded: Loaded,
    train_set: GraphDataset,
    source: Source | None,
) -> RunSetup:
    """What the run folder keeps."""
    train, all_val = loaded.train, Joined([*loaded.val.values()])
    named = list(loaded.val) != [UNNAMED]
    highest = None
    if isinstance(train, FrameList):
        highest = temperature((f.atoms, f.config_type) for f in train.frames)
    numbers, shift = constants.atomic_numbers, constants.shift
    return RunSetup(
        constants=constants,
        force_rms=statistics.force_rms,
        train_frames=len(train),
        val_frames=len(all_val),
        train_hash=train.hash,
        val_hash=all_val.hash,
        val_sets={name: len(frames) for name, frames in loaded.val.items()} if named else {},
        pulay_pressure=loaded.pressure,
        origin=source.origin | {"changed": "fine-tuned since"} if source and source.origin else {},
        domain=measure(train_set, numbers, shift, highest).document,
    )
