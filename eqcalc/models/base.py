"""The contract of every architecture: a network cut where MPI ranks must talk.

`forward` is nothing but `edges`, `embed`, the `layers` in a row and `finish`; a driver on many
ranks calls the same pieces and exchanges ghost features between layers. TorchScript carries all
of it, with the attributes below, so that C++ needs no other source of truth.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from eqcalc.contract import FORMAT_VERSION, ReferenceStructure
from eqcalc.nn.crowding import Crowding, CrowdingConstants
from eqcalc.nn.radial import InnerLimit


class Edges(NamedTuple):
    """What every layer needs of the edges; opaque to whoever drives the layers.

    species [M] of all atoms, ghosts included; src (neighbour), dst (centre) [E]; length [E] Å;
    attrs [E, (l_max + 1)^2] spherical harmonics; radial [E, num_radial] enveloped radial basis;
    calm [M] what messages to each atom are multiplied by, or [0] for 1 (`eqcalc.nn.crowding`).
    """

    species: Tensor
    src: Tensor
    dst: Tensor
    length: Tensor
    attrs: Tensor
    radial: Tensor
    calm: Tensor


class Potential(nn.Module):
    """Base of all architectures.

    A subclass sets `radial_basis`, `spherical_harmonics`, `layers` and `reference_energy`, and
    implements `embed` and `radial`. A layer is called as
    `layer(node_feats [M, width], edges, num_local) -> (node_feats [num_local, width'], energies
    [num_local])`; a layer without a readout returns zeros. `layer.irreps_out` names the features
    that it returns, each irrep once, channels innermost.

    Attributes:
        atomic_numbers: Z of each species, in the model's order.
        cutoff: Å.
        exchange_widths: columns of the features that layer k = 1, 2, ... takes.

    Precision: parameters and constants outside the submodules named `reference_*` take that of the
    calculation (`eqcalc.contract.set_precision`); the rest, and the energies, are float64.
    """

    format_version: int
    cutoff: float
    atomic_numbers: list[int]
    exchange_widths: list[int]

    def __init__(self, atomic_numbers: list[int], cutoff: float) -> None:
        super().__init__()
        self.format_version = FORMAT_VERSION
        self.cutoff = float(cutoff)
        self.atomic_numbers = [int(z) for z in atomic_numbers]
        self.exchange_widths = []
        self.inner_limit: InnerLimit | None = None
        self.crowding: Crowding | None = None
        self.reference_structure = ReferenceStructure({})

    def limit_crowding(self, constants: CrowdingConstants | None) -> None:
        """Lets messages to atoms fade that are more crowded than these constants say."""
        self.crowding = None if constants is None else Crowding(constants, self.cutoff)

    @torch.jit.export
    def edges(self, species: Tensor, edge_vec: Tensor, edge_src: Tensor, edge_dst: Tensor) -> Edges:
        """Species [M]; edge_vec [E, 3] Å, any float dtype; edge_src, edge_dst [E]."""
        vec = edge_vec.to(self.species_embedding.dtype)
        length = torch.linalg.vector_norm(vec, dim=1)
        told = length
        if self.inner_limit is not None:
            told = self.inner_limit(species, edge_src, edge_dst, length)
        calm = length[:0]
        if self.crowding is not None:
            calm = self.crowding(species, edge_src, edge_dst, length)
        return Edges(
            species,
            edge_src,
            edge_dst,
            length,
            self.spherical_harmonics(vec, length),
            self.radial_basis(told),
            calm,
        )

    @torch.jit.export
    def embed(self, species: Tensor) -> Tensor:
        """Species [M] -> node_feats [M, width of layer 0]."""
        raise NotImplementedError

    @torch.jit.export
    def radial(self, k: int, r: Tensor) -> Tensor:
        """Radial weights of layer k at distances r [E] Å -> [E, num_weights of that layer].

        r are those that `inner_limit` lets the network know, if there is one.
        """
        raise NotImplementedError

    @torch.jit.export
    def finish(self, species: Tensor, edges: Edges, energies: Tensor) -> Tensor:
        """Network energies [num_local] -> atomic energies [num_local] eV, float64."""
        return self.reference_energy(species, edges.src, edges.dst, edges.length, energies)

    def forward(
        self,
        species: Tensor,
        edge_vec: Tensor,
        edge_src: Tensor,
        edge_dst: Tensor,
        num_local: int,
    ) -> Tensor:
        """Atomic energies [num_local] eV, float64. For one process: num_local atoms, no ghosts."""
        edges = self.edges(species, edge_vec, edge_src, edge_dst)
        node_feats = self.embed(species)
        energies = torch.zeros(num_local, dtype=torch.float64, device=edge_vec.device)
        for layer in self.layers:
            node_feats, readout = layer(node_feats, edges, num_local)
            energies = energies + readout
        return self.finish(species, edges, energies)
