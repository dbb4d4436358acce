"""Graph: the only thing a potential sees of an atomistic structure.

Units: Å, eV, amu. Conventions (the same in the C++ pair style):

| name       | shape  | meaning                                                     |
|------------|--------|-------------------------------------------------------------|
| `species`  | [N]    | index of the element in the model's list, not Z             |
| `edge_src` | [E]    | neighbour j                                                 |
| `edge_dst` | [E]    | centre i, ascending                                         |
| `edge_vec` | [E, 3] | r_j - r_i + cell_shift · cell (Å), from centre to neighbour |
| `batch`    | [N]    | which structure an atom belongs to                          |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Graph:
    """One structure, or several side by side (disconnected), as tensors.

    Attributes:
        species: [N] int64.
        edge_vec: [E, 3] float64, Å.
        edge_src, edge_dst: [E] int64.
        batch: [N] int64, ascending.
        volume: [B] float64, Å^3, that a stress refers to; 0 where there is none
            (`derivatives.stress_volume`).
        pair: [E] int64, one number for r_ij and its reverse r_ji, counted from 0 in the order in
            which pairs first appear; or None. It lets training do radial work once per pair.
    """

    species: Tensor
    edge_vec: Tensor
    edge_src: Tensor
    edge_dst: Tensor
    batch: Tensor
    volume: Tensor
    pair: Tensor | None = None

    @property
    def num_atoms(self) -> int:
        return int(self.species.shape[0])

    @property
    def num_edges(self) -> int:
        return int(self.edge_src.shape[0])

    @property
    def num_graphs(self) -> int:
        return int(self.volume.shape[0])

    @property
    def num_pairs(self) -> int:
        return int(self.pair.max()) + 1 if self.pair is not None and self.num_edges else 0

    def to(self, device: torch.device | str) -> Graph:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in tensors.items() if v is not None})

    @staticmethod
    def collate(graphs: Sequence[Graph]) -> Graph:
        """Structures side by side in one graph, without padding."""
        atoms = torch.tensor([0] + [g.num_atoms for g in graphs]).cumsum(0)
        structures = torch.tensor([0] + [g.num_graphs for g in graphs]).cumsum(0)
        paired = all(g.pair is not None for g in graphs)
        pairs = torch.tensor([0] + [g.num_pairs for g in graphs]).cumsum(0)
        return Graph(
            species=torch.cat([g.species for g in graphs]),
            edge_vec=torch.cat([g.edge_vec for g in graphs]),
            edge_src=torch.cat([g.edge_src + n for g, n in zip(graphs, atoms, strict=False)]),
            edge_dst=torch.cat([g.edge_dst + n for g, n in zip(graphs, atoms, strict=False)]),
            batch=torch.cat([g.batch + n for g, n in zip(graphs, structures, strict=False)]),
            volume=torch.cat([g.volume for g in graphs]),
            pair=torch.cat([g.pair + n for g, n in zip(graphs, pairs, strict=False)])
            if paired
            else None,
        )
