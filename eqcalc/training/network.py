"""The network of a run: its constants, measured on training frames, and its making."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch

from eqcalc.data.dataset import Batch, GraphDataset
from eqcalc.data.frames import Frame
from eqcalc.data.statistics import Statistics, statistics_of
from eqcalc.engine.cuda.training import fuse_convolutions
from eqcalc.engine.training import fuse
from eqcalc.errors import InputError
from eqcalc.graph import Graph
from eqcalc.models.assembled import WithOutputs
from eqcalc.models.base import Potential
from eqcalc.models.registry import build
from eqcalc.nn.output_constants import OutputConstants
from eqcalc.training.domain import crowding_of
from eqcalc.training.options import Config, TrainingConfig
from eqcalc.training.output_statistics import output_constants
from eqcalc.training.pairs import fit_pairs
from eqcalc.training.setup import Constants


def build_model(config: Config, constants: Constants) -> Potential:
    """The untrained network, weights drawn from the config's seed, constants in float64."""
    state = torch.random.get_rng_state()
    try:
        torch.manual_seed(config.training.seed)
        model = build(
            config.model,
            constants.atomic_numbers,
            constants.avg_num_neighbors,
            constants.scale,
            constants.shift,
            constants.pair_constants,
        )
    finally:
        torch.random.set_rng_state(state)
    if constants.message_scales:
        model.set_message_scales(constants.message_scales)
    model.limit_crowding(constants.crowding)
    if constants.outputs:
        assert isinstance(model, WithOutputs)  # what outputs are built as
        model.set_output_constants(constants.outputs)
    return model


def measured_constants(
    config: Config,
    frames: GraphDataset,
    statistics: Statistics,
    given: Mapping[str, float],
    isolated: Sequence[Frame],
    outputs: OutputConstants | None = None,
) -> Constants:
    """Of a new network: scale and reference energies are of what a pair potential leaves.

    outputs: those of the outputs beside the energy, where they are known.
    """
    numbers, neighbors = statistics.atomic_numbers, frames.avg_num_neighbors
    crowding = None
    if config.model.crowding_limit:
        crowding = crowding_of(frames, numbers, config.model.cutoff)
    if config.model.outputs and outputs is None:
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


def new_network(config: Config, constants: Constants, train_set: GraphDataset) -> Potential:
    """Untrained, calibrated on typical frames."""
    model = build_model(config, constants)
    typical = typical_graph(train_set)
    edges = typical.edge_vec, typical.edge_src, typical.edge_dst
    model.calibrate(typical.species, *edges, target=config.model.initial_messages)
    return model


def typical_graph(frames: GraphDataset, limit: int = 32) -> Graph:
    """Up to `limit` frames, evenly spread over the set, side by side."""
    count = min(limit, len(frames))
    return Batch.collate([frames[k * len(frames) // count] for k in range(count)]).graph


def ready(model: Potential, options: TrainingConfig) -> Potential:
    """Compiled kernels, where they are wanted and possible, and nothing to train in empty tensors.

    In place; the parameters stay what they are.
    """
    for parameter in model.parameters():
        if not parameter.numel():  # of readouts that inner layers do not have
            parameter.requires_grad_(False)
    if options.fused:
        try:
            if options.device != "cpu" and torch.cuda.is_available():
                fuse_convolutions(model)
            else:
                fuse(model)
        except InputError as error:
            warnings.warn(
                f"Training without compiled kernels, several times slower: {error}", stacklevel=3
            )
    return model
