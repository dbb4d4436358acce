"""Features of atoms: what the network knows of an atom's surroundings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from eqcalc.errors import InputError
from eqcalc.export import PotentialFile

if TYPE_CHECKING:
    from e3nn import o3


def _layer_of(potential: PotentialFile, layer: int) -> int:
    count = len(list(potential.module.layers.children()))
    if not -count <= layer < count:
        raise InputError(f"layer {layer}: {potential.path.name} has layers 0 to {count - 1}.")
    return layer % count


def feature_irreps(potential: PotentialFile, layer: int) -> o3.Irreps:
    """Irreps of the features after a layer, in the order of their columns.

    Raises:
        InputError: no such layer; an architecture whose features are not known here.
    """
    from e3nn import o3  # heavy, and needed here only

    if potential.metadata.get("architecture") != "NequIP":
        raise InputError(
            f"Descriptors of the architecture '{potential.metadata.get('architecture')}' are not "
            "known to this eqcalc."
        )
    gate = list(potential.module.layers.children())[_layer_of(potential, layer)].gate
    irreps: list[tuple[int, o3.Irrep]] = []
    for _, dim, mul, _, kind in gate._blocks:
        degree = (dim - 1) // 2
        natural = (-1) ** degree
        # of each degree the natural parity, (-1)^l, comes first; scalars tell theirs by their kind
        second = any(ir.l == degree for _, ir in irreps)
        parity = (-1 if kind == 1 else 1) if degree == 0 else (-natural if second else natural)
        irreps.append((mul, o3.Irrep(degree, parity)))
    return o3.Irreps(irreps)


def invariant_columns(potential: PotentialFile, layer: int) -> np.ndarray:
    """[dim] bool: which columns of the features are scalars that a reflection leaves alone."""
    irreps = feature_irreps(potential, layer)
    return np.concatenate([np.full(mul * ir.dim, ir.l == 0 and ir.p == 1) for mul, ir in irreps])


def node_features(
    potential: PotentialFile,
    species: Tensor,
    edge_vec: Tensor,
    edge_src: Tensor,
    edge_dst: Tensor,
    layer: int,
) -> Tensor:
    """Features [N, dim] after a layer, in e3nn's layout (each block [channels, 2l + 1])."""
    module = potential.module
    last = _layer_of(potential, layer)
    with torch.no_grad():
        edges = module.edges(species, edge_vec, edge_src, edge_dst)
        features = module.embed(species)
        for k, step in enumerate(module.layers.children()):
            features, _ = step(features, edges, len(species))
            if k == last:
                break
    columns, at = [], 0
    for mul, ir in feature_irreps(potential, layer):
        block = features[:, at : at + mul * ir.dim].view(-1, ir.dim, mul)
        columns.append(block.transpose(1, 2).reshape(len(species), mul * ir.dim))
        at += mul * ir.dim
    return torch.cat(columns, dim=1)
