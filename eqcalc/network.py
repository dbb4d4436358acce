"""Features, Hessians and other outputs than the energy, whichever engine computes the forces.

They go through the file's TorchScript: a layer at a time, differentiated twice, and by its method
`outputs`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from eqcalc import derivatives
from eqcalc.errors import InputError
from eqcalc.export import PotentialFile
from eqcalc.neighbors import Pairs
from eqcalc.structure import as_array

if TYPE_CHECKING:
    from e3nn import o3


def feature_irreps(potential: PotentialFile, layer: int = -1) -> o3.Irreps:
    """Irreps of the features after a layer, counted from 0, or from the end with -1, -2, ..."""
    from e3nn import o3

    layers = list(potential.module.layers.children())
    if not -len(layers) <= layer < len(layers):
        raise InputError(
            f"layer = {layer}: {potential.path.name} has {len(layers)} layers, so it must lie "
            f"between {-len(layers)} and {len(layers) - 1}."
        )
    metadata = potential.metadata
    if "feature_irreps" in metadata:
        if not metadata["feature_irreps"][layer]:
            raise InputError(
                f"{potential.path.name} keeps no features of its last layer: export the model "
                "again with this eqcalc, or ask for another layer."
            )
        return o3.Irreps(metadata["feature_irreps"][layer])
    # files of eqcalc 0.1 that do not say: with natural parity alone, the widths do
    if metadata.get("hyperparameters", {}).get("parity", True):
        raise InputError(
            f"{potential.path.name} does not say what its features are: "
            "export the model again with this eqcalc."
        )
    blocks = [(mul, (dim - 1) // 2) for _, dim, mul, _, _ in layers[layer].gate._blocks]
    return o3.Irreps([(mul, (l, (-1) ** l)) for mul, l in blocks])  # noqa: E741


def _graph(
    potential: PotentialFile, numbers: np.ndarray, positions: np.ndarray, pairs: Pairs
) -> tuple[torch.Tensor, ...]:
    """species [N], positions [N, 3] Å; edge_src, edge_dst [E], shift [E, 3] Å within the cutoff."""
    vectors = pairs.vectors(positions)
    near = np.einsum("ij,ij->i", vectors, vectors) < potential.cutoff**2
    arrays = (
        potential.species_of(numbers),
        as_array(positions, (None, 3), "positions").copy(),
        pairs.edge_src[near],
        pairs.edge_dst[near],
        pairs.shift[near],
    )
    return tuple(torch.from_numpy(a).to(potential.device) for a in arrays)


def _vectors(
    positions: torch.Tensor, edge_src: torch.Tensor, edge_dst: torch.Tensor, shift: torch.Tensor
) -> torch.Tensor:
    return positions.index_select(0, edge_src) - positions.index_select(0, edge_dst) + shift


def features(
    potential: PotentialFile,
    numbers: np.ndarray,
    positions: np.ndarray,
    pairs: Pairs,
    layer: int = -1,
) -> np.ndarray:
    """Features after a layer [N, irreps.dim], in e3nn's order: channel by channel, m innermost.

    So a structure turned by R has features `x @ irreps.D_from_matrix(R).T` (to float32: e3nn makes
    its Wigner matrices in torch's default dtype).
    """
    irreps = feature_irreps(potential, layer)
    species, places, edge_src, edge_dst, shift = _graph(potential, numbers, positions, pairs)
    module, n = potential.module, len(species)
    with torch.no_grad():
        edges = module.edges(
            species, _vectors(places, edge_src, edge_dst, shift), edge_src, edge_dst
        )
        x = module.embed(species)
        layers = list(module.layers.children())
        for one in layers[: layer % len(layers) + 1]:
            x, _ = one(x, edges, n)
    columns, at = [], 0
    for mul, ir in irreps:
        block = x[:, at : at + mul * ir.dim].reshape(n, ir.dim, mul)
        columns.append(block.transpose(1, 2).reshape(n, mul * ir.dim))
        at += mul * ir.dim
    return torch.cat(columns, dim=1).cpu().numpy()


def hessian(
    potential: PotentialFile, numbers: np.ndarray, positions: np.ndarray, pairs: Pairs
) -> np.ndarray:
    """d2E / dr_ia dr_jb [3N, 3N] eV/Å^2, for displacements that are the same in every cell."""
    species, places, edge_src, edge_dst, shift = _graph(potential, numbers, positions, pairs)
    with torch.enable_grad():
        places.requires_grad_(True)
        edge_vec = _vectors(places, edge_src, edge_dst, shift)
        energies = potential.module(species, edge_vec, edge_src, edge_dst, len(species))
        return derivatives.hessian(energies, places).cpu().numpy()


def output_rows(
    potential: PotentialFile, numbers: np.ndarray, positions: np.ndarray, pairs: Pairs
) -> tuple[np.ndarray, np.ndarray]:
    """Energies [N] eV, and rows [N, columns] of the outputs (`eqcalc.outputs.cartesian`)."""
    species, places, edge_src, edge_dst, shift = _graph(potential, numbers, positions, pairs)
    edge_vec = _vectors(places, edge_src, edge_dst, shift)
    energies, rows = potential.rows(species, edge_vec, edge_src, edge_dst)
    return energies.cpu().numpy(), rows.cpu().numpy()
