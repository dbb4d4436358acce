"""Training that starts from a trained network: its options, weights and constants, and what stays.

Elements that the network does not know get rows of their own in every table of species, the mean of
the known rows, so that a new element begins as an average one. Species are in ascending order of Z,
so known elements may move to other rows; elements that the new data lack are kept unless they are
dropped.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eqcalc import export, names
from eqcalc.contract import set_precision
from eqcalc.data.dataset import GraphDataset
from eqcalc.data.statistics import Statistics
from eqcalc.errors import InputError
from eqcalc.files import user_path
from eqcalc.models.base import Potential
from eqcalc.models.config import ModelConfig
from eqcalc.models.registry import build, model_config
from eqcalc.nn.crowding import CrowdingConstants
from eqcalc.nn.output_constants import OutputConstants
from eqcalc.nn.reference import PairConstants, no_pairs
from eqcalc.program.former import former_name
from eqcalc.training.domain import crowding_of
from eqcalc.training.folder import load_run
from eqcalc.training.former import present_state
from eqcalc.training.network import build_model
from eqcalc.training.options import Config
from eqcalc.training.pairs import relimited
from eqcalc.training.setup import Constants

#: what names of the buffers that `Potential.calibrate` measures end in
NORM = ".norm"


@dataclass(frozen=True)
class Source:
    """A trained network: its hyperparameters, its constants, its weights by name.

    origin: what an imported one comes from; else empty.
    """

    name: str
    model: ModelConfig
    constants: Constants
    weights: dict[str, Tensor]
    origin: dict[str, Any] = field(default_factory=dict)


def read_source(name: str) -> Source:
    """From a potential file, a bundled model's name, a run folder (its best epoch) or a checkpoint.

    Raises:
        InputError: there is no such thing, or it does not say how it was made.
    """
    path = user_path(name)
    if path.is_dir() or path.suffix == ".ckpt":
        folder = (path, "best.ckpt") if path.is_dir() else (path.parent, path.name)
        run = load_run(*folder)
        weights = {k: p.detach() for k, p in run.model.named_parameters()}
        return Source(name, run.config.model, run.setup.constants, weights, run.setup.origin)
    file = export.load(names.find(name), dtype="float64")  # constants as they are in the file
    hyper = dict(file.metadata.get("hyperparameters", {}))
    if "avg_num_neighbors" not in hyper:
        raise InputError(
            f"{name} does not say its hyperparameters, so it cannot be fine-tuned: "
            "take one that 'eqcalc train' or 'eqcalc export' has written."
        )
    neighbors = hyper.pop("avg_num_neighbors")
    reference = file.module.reference_energy
    scale, shift = reference.scale.tolist(), reference.shift.tolist()
    blank = build(model_config(hyper), file.atomic_numbers, neighbors, scale, shift)
    kept = present_state(dict(file.module.named_buffers()))
    for place, buffer in blank.named_buffers():
        if place.endswith(NORM):
            buffer.copy_(kept[place])
    constants = Constants(
        file.atomic_numbers,
        neighbors,
        scale,
        shift,
        blank.message_scales(),
        _pairs(file.module),
        _crowding(file.module),
        _outputs(file.module),
    )
    weights = {
        k: p.detach() for k, p in present_state(dict(file.module.named_parameters())).items()
    }
    origin = file.metadata.get("origin", {})
    source = Source(name, model_config(hyper), constants, weights, origin)
    _check_rebuilt(source, file)
    return source


def _check_rebuilt(source: Source, file: export.PotentialFile) -> None:
    """InputError if what training makes of the source is not the network of the file."""
    old = source.constants
    rest = old.atomic_numbers, old.avg_num_neighbors, old.scale, old.shift, old.pair_constants
    model = build(source.model, *rest)
    model.set_message_scales(old.message_scales)
    model.limit_crowding(old.crowding)
    if old.outputs:
        model.set_output_constants(old.outputs)
    graft(model, source)
    set_precision(model, torch.float64)
    model.reference_structure = file.module.reference_structure
    if max(export.deviation(model).values()) > export.TOLERANCE[torch.float64]:
        raise InputError(
            f"{source.name} has something that training does not have (an imported MACE's form of "
            "the core repulsion, for one), so it cannot be fine-tuned."
        )


def reduced(source: Source, elements: Iterable[int]) -> Source:
    """The source without the elements that are not among these (Z).

    Raises:
        InputError: it knows none of them.
    """
    old = source.constants
    rows = [n for n, z in enumerate(old.atomic_numbers) if z in set(elements)]
    if not rows:
        raise InputError(
            f"{source.name} knows none of the elements of the data, and fine_tune.drop_elements "
            "would leave nothing of it."
        )

    def of_species(values: list) -> list:
        return [values[n] for n in rows]

    def of_pairs(values: list) -> list:
        return [of_species(row) for row in of_species(values)]

    pairs, crowding = old.pair_constants, old.crowding
    constants = dataclasses.replace(
        old,
        atomic_numbers=of_species(old.atomic_numbers),
        scale=of_species(old.scale),
        shift=of_species(old.shift),
        pair_constants=pairs
        and PairConstants(
            *map(of_pairs, (pairs.coefficients, pairs.core_cutoffs, pairs.inner_limits))
        ),
        crowding=crowding
        and CrowdingConstants(
            of_pairs(crowding.distances),
            of_pairs(crowding.closest),
            of_species(crowding.coordination),
        ),
        outputs=old.outputs
        and dataclasses.replace(old.outputs, shift=of_species(old.outputs.shift)),
    )
    tables = species_tables(build(source.model, old.atomic_numbers, 1.0, old.scale, old.shift))
    weights = {k: w[rows] if k in tables else w for k, w in source.weights.items()}
    return dataclasses.replace(source, constants=constants, weights=weights)


def _pairs(module: torch.jit.ScriptModule) -> PairConstants | None:
    """The pair potential of a file, if it has one."""
    reference = module.reference_energy
    if "pair" not in dict(reference.named_children()):
        return None
    return PairConstants(
        reference.pair.coefficients.tolist(),
        reference.repulsion.pair_cutoff.tolist(),
        [[round(r, 4) for r in row] for row in module.inner_limit.distances.tolist()],
    )


def _outputs(module: torch.jit.ScriptModule) -> OutputConstants | None:
    """Scales and shifts of a file's outputs beside the energy, if it has any."""
    if "reference_outputs" not in dict(module.named_children()):
        return None
    buffers = dict(module.reference_outputs.named_buffers())
    return OutputConstants(**{name: value.tolist() for name, value in buffers.items()})


def _extend_outputs(old: Constants, numbers: list[int]) -> OutputConstants | None:
    """Those of `old` for the species `numbers`; new elements have the mean of the known shifts."""
    if old.outputs is None:
        return None
    rows = dict(zip(old.atomic_numbers, old.outputs.shift, strict=True))
    mean = np.mean(old.outputs.shift, axis=0).tolist()
    return dataclasses.replace(old.outputs, shift=[rows.get(z, mean) for z in numbers])


def _crowding(module: torch.jit.ScriptModule) -> CrowdingConstants | None:
    """What makes an atom of a file crowded, if it says so."""
    if "crowding" not in dict(module.named_children()):
        return None
    six = np.vectorize(lambda x: float(f"{x:.6g}"))  # as they were measured
    names = {"distances", "closest", "coordination"}
    buffers = {k: b for k, b in module.crowding.named_buffers() if k in names}
    return CrowdingConstants.read({k: six(b.numpy()).tolist() for k, b in buffers.items()})


def _extend_crowding(old: Constants, numbers: list[int]) -> CrowdingConstants | None:
    """That of `old` for the species `numbers`; what new elements have is to be measured."""
    if old.crowding is None:
        return None
    distances, coordination = np.full(2 * [len(numbers)], np.inf), np.zeros(len(numbers))
    rows = [numbers.index(z) for z in old.atomic_numbers]
    distances[np.ix_(rows, rows)] = old.crowding.distances
    closest = distances.copy()
    closest[np.ix_(rows, rows)] = old.crowding.closest
    coordination[rows] = old.crowding.coordination
    return CrowdingConstants(distances.tolist(), closest.tolist(), coordination.tolist())


def _extend_pairs(old: Constants, numbers: list[int]) -> PairConstants | None:
    """The pair potential of `old` for the species `numbers`; zero for pairs with new elements."""
    if old.pair_constants is None:
        return None
    blank = no_pairs(numbers)
    rows = [numbers.index(z) for z in old.atomic_numbers]
    for i, a in enumerate(rows):
        for k, b in enumerate(rows):
            blank.coefficients[a][b] = old.pair_constants.coefficients[i][k]
            blank.core_cutoffs[a][b] = old.pair_constants.core_cutoffs[i][k]
            blank.inner_limits[a][b] = old.pair_constants.inner_limits[i][k]
    return blank


def adopt(config: Config, source: Source) -> Config:
    """`config` with the [model] section of the source.

    Raises:
        InputError: an option of [model] that was given has another value there.
    """
    default = type(config.model)()
    for option in dataclasses.fields(config.model):
        mine = getattr(config.model, option.name)
        theirs = getattr(source.model, option.name, f"no {option.name}")
        written = f"model.{option.name}" in config.given or mine != getattr(default, option.name)
        if written and mine != theirs:
            raise InputError(
                f"model.{option.name} = {mine}, but {source.name} has {theirs}: a network keeps "
                "its shape when it is fine-tuned, so leave the [model] section out."
            )
    return dataclasses.replace(config, model=source.model)


def extend(source: Source, statistics: Statistics) -> Constants:
    """Constants for the elements of the source and of the new data.

    Reference energies are those of the statistics. A new element's scale is the mean of the known.
    """
    old = source.constants
    numbers = sorted({*old.atomic_numbers, *statistics.atomic_numbers})
    scale = dict.fromkeys(numbers, float(np.mean(old.scale)))
    scale.update(zip(old.atomic_numbers, old.scale, strict=True))
    shift = dict(zip(old.atomic_numbers, old.shift, strict=True))
    shift.update(zip(statistics.atomic_numbers, statistics.shift, strict=True))
    return Constants(
        numbers,
        old.avg_num_neighbors,
        [scale[z] for z in numbers],
        [shift[z] for z in numbers],
        old.message_scales,
        _extend_pairs(old, numbers),
        _extend_crowding(old, numbers),
        _extend_outputs(old, numbers),
    )


def graft(model: Potential, source: Source) -> None:
    """Puts the source's weights, in their precision, into a model of the same hyperparameters.

    Tables of species [species, ...] are the parameters whose number of rows differs; their rows of
    new elements become the mean of the source's.
    """
    rows = {z: n for n, z in enumerate(source.constants.atomic_numbers)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.numel():
                continue
            weight = source.weights[name]
            if weight.shape != parameter.shape:
                mean = weight.mean(dim=0)
                table = [weight[rows[z]] if z in rows else mean for z in model.atomic_numbers]
                weight = torch.stack(table)
            parameter.data = weight.clone()


def fitted_shift(model: Potential, frames: GraphDataset, free: Sequence[int]) -> list[float]:
    """Reference energies [eV] of all species, those of the elements `free` (Z) fitted anew.

    They take up, by least squares per atom (the smallest change where that leaves a choice), what
    the model as it is leaves of the energies. Rounded to 1e-6 eV, so that a run that is resumed on
    another machine finds the same. `model` is in float64.
    """
    numbers = model.atomic_numbers
    counts = frames.composition(numbers)
    left = []
    with torch.no_grad():
        for item in frames:
            graph = item.graph
            edges = graph.edge_vec, graph.edge_src, graph.edge_dst
            energy = model(graph.species, *edges, graph.num_atoms).sum()
            left.append(float(item.energy - energy))
    columns = [numbers.index(z) for z in free]
    atoms = counts.sum(axis=1)
    matrix = counts[:, columns] / atoms[:, None]
    change = np.linalg.lstsq(matrix, np.array(left) / atoms, rcond=1e-10)[0]
    shift = model.reference_energy.shift.clone()
    shift[columns] += torch.from_numpy(change)
    return [
        round(value, 6) if z in free else value
        for z, value in zip(numbers, shift.tolist(), strict=True)
    ]


def continued(
    config: Config,
    source: Source,
    statistics: Statistics,
    frames: GraphDataset,
    free: Sequence[int],
) -> tuple[Potential, Constants]:
    """The network that training starts from, and its constants.

    Args:
        config: with the [model] section of the source.
        source: the trained network.
        statistics: of the training frames, with the reference energies that are given.
        frames: training frames, for the elements of both.
        free: Z of the elements whose reference energies are to be fitted.
    """
    constants = extend(source, statistics)
    if constants.pair_constants:
        pairs = relimited(
            constants.pair_constants,
            frames,
            constants.atomic_numbers,
            anew=config.fine_tune.refit_energies,
        )
        constants = dataclasses.replace(constants, pair_constants=pairs)
    if config.model.crowding_limit:
        known = None if config.fine_tune.refit_energies else constants.crowding
        crowding = crowding_of(frames, constants.atomic_numbers, config.model.cutoff, known)
        constants = dataclasses.replace(constants, crowding=crowding)
    model = build_model(config, constants)
    graft(model, source)
    if free:
        model = set_precision(model, torch.float64)
        constants = dataclasses.replace(constants, shift=fitted_shift(model, frames, free))
        model = build_model(config, constants)
        graft(model, source)
    return model, constants


def species_tables(model: Potential) -> list[str]:
    """Names of the parameters [species, ...]."""
    tables = {id(p) for p in model.species_tables()}
    return [name for name, p in model.named_parameters() if id(p) in tables]


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Excludes parameters from training, by name (or former name) with * and ?.

    Raises:
        InputError: a pattern that fits no parameter.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.numel()}
    for pattern in patterns:
        chosen = [
            p
            for name, p in parameters.items()
            if fnmatch(name, pattern) or fnmatch(former_name(name), pattern)
        ]
        if not chosen:
            words = [name.split(".") for name in parameters]
            groups = {".".join([*w[:n], "*"]) for w in words for n in range(1, len(w))}
            near = difflib.get_close_matches(pattern, sorted({*parameters, *groups}), 3, cutoff=0.0)
            raise InputError(
                f"fine_tune.freeze: no parameter is called '{pattern}'; the nearest are "
                f"{', '.join(near)}."
            )
        for parameter in chosen:
            parameter.requires_grad_(False)
