"""The contract of every architecture: a network cut where MPI ranks must talk.

`forward` is nothing but `edges`, `embed`, the `layers` in a row and `finish`; a driver on many
ranks calls the same pieces and exchanges ghost features between layers. TorchScript carries all
of it, with the attributes below, so that C++ needs no other source of truth.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from eqcalc.contract import FORMAT_VERSION, ReferenceStructure
from eqcalc.models.config import ModelConfig
from eqcalc.nn.crowding import Crowding, CrowdingConstants
from eqcalc.nn.frames import EdgeFrames
from eqcalc.nn.radial import InnerLimit, PairCutoffs
from eqcalc.nn.reference import PairConstants, ReferenceEnergy, no_pairs
from eqcalc.nn.transform import AgnesiTransform
from eqcalc.program import Program


class Edges(NamedTuple):
    """What every layer needs of the edges; opaque to whoever drives the layers.

    species [M] of all atoms, ghosts included; src (neighbour), dst (centre) [E]; length [E] Å;
    attrs [E, (l_max + 1)^2] spherical harmonics; radial [E, num_radial] enveloped radial basis;
    calm [M] what messages to each atom are multiplied by, or [0] for 1 (`eqcalc.nn.crowding`);
    envelope [E] of the distances in `radial`; frames [E, width] Wigner matrices
    (`eqcalc.nn.frames`), width 0 where no operation is in frames.
    """

    species: Tensor
    src: Tensor
    dst: Tensor
    length: Tensor
    attrs: Tensor
    radial: Tensor
    calm: Tensor
    envelope: Tensor
    frames: Tensor


class Potential(nn.Module):
    """Base of all architectures.

    A subclass sets `radial_basis`, `spherical_harmonics`, `species_embedding` and `layers`, calls
    `add_pair_terms`, and says what its messages are. A layer is called as
    `layer(node_feats [M, width], edges, num_local) -> (node_feats [num_local, width'], energies
    [num_local])`; a layer without a readout returns zeros. `layer.irreps_out` names the features
    that it returns, each irrep once, channels innermost; `layer.radial(basis [E, num_radial])` are
    its radial weights.

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
        self.program: Program | None = None  # the network as data
        self.output_configs = ()  # what it has beside the energy
        self.has_energy = True
        self.inner_limit: InnerLimit | None = None
        self.pair_cutoffs: PairCutoffs | None = None
        self.crowding: Crowding | None = None
        self.distance_transform: AgnesiTransform | None = None
        self.edge_frames: EdgeFrames | None = None
        self.reference_structure = ReferenceStructure({})

    def add_pair_terms(
        self,
        config: ModelConfig,
        scale: list[float],
        shift: list[float],
        pair_constants: PairConstants | None,
    ) -> None:
        """What the network's energies are multiplied by and added to, and inner limits.

        Args:
            config: with a pair potential or without.
            scale, shift: eV, one per species (see ReferenceEnergy).
            pair_constants: of the pair potential; None: it is zero.
        """
        if not config.pair_potential:
            pair_constants = None
        elif pair_constants is None:
            pair_constants = no_pairs(self.atomic_numbers)
        if pair_constants is not None:
            self.inner_limit = InnerLimit(pair_constants.inner_limits)
        self.reference_energy = ReferenceEnergy(
            self.atomic_numbers,
            scale,
            shift,
            core_repulsion=config.core_repulsion,
            pair_constants=pair_constants,
            cutoff=config.cutoff,
            core_cutoff=config.core_cutoff,
            core_power=config.core_envelope_power,
        )

    def species_tables(self) -> list[nn.Parameter]:
        """The parameters [species, ...]."""
        raise NotImplementedError

    def message_scales(self) -> list[list[float]]:
        """The constants s_l by layer and irrep of its messages."""
        raise NotImplementedError

    def set_message_scales(self, scales: list[list[float]]) -> None:
        """Takes what `message_scales` of a network of the same shape returned."""
        raise NotImplementedError

    def message_sizes(
        self, layer: nn.Module, node_feats: Tensor, edges: Edges, num_local: int
    ) -> list[float]:
        """Root mean square of a layer's messages by irrep, before they are scaled."""
        raise NotImplementedError

    @torch.no_grad()
    def correlate_species(self, correlation: float) -> None:
        """Rows of independent normal numbers in tables of species become correlated ones."""
        for table in self.species_tables():
            common = torch.randn_like(table[:1])
            table.mul_(math.sqrt(1.0 - correlation)).add_(common, alpha=math.sqrt(correlation))

    @torch.no_grad()
    def calibrate(
        self,
        species: Tensor,
        edge_vec: Tensor,
        edge_src: Tensor,
        edge_dst: Tensor,
        target: float = 1.0,
    ) -> None:
        """Sets s_l so that messages of every layer and irrep have root mean square `target`.

        Neighbours do not add up at random, as 1 / sqrt(n) supposes: in a molecule, features grow
        tenfold with every layer and the forces of the untrained network are hundreds of eV/Å,
        while the vectors and tensors of a crystal cancel. Layer by layer, as in Mishkin and Matas,
        ICLR 2016 (arXiv:1511.06422). An irrep is raised by no more than ten times what the layer's
        strongest would be, for other structures may excite what symmetry forbids in these. Rounded
        to four digits, so that machines agree on them.
        """
        edges = self.edges(species, edge_vec, edge_src, edge_dst)
        node_feats = self.embed(species)
        scales = self.message_scales()
        for k, layer in enumerate(self.layers):
            rms = self.message_sizes(layer, node_feats, edges, len(species))
            if max(rms) > 0.0:  # not for isolated atoms
                scales[k] = [float(f"{target / max(x, 0.1 * max(rms)):.4g}") for x in rms]
            self.set_message_scales(scales)
            node_feats, _ = layer(node_feats, edges, len(species))

    def limit_crowding(self, constants: CrowdingConstants | None) -> None:
        """Lets messages to atoms fade that are more crowded than these constants say."""
        self.crowding = None if constants is None else Crowding(constants)

    @torch.jit.export
    def edges(self, species: Tensor, edge_vec: Tensor, edge_src: Tensor, edge_dst: Tensor) -> Edges:
        """Species [M]; edge_vec [E, 3] Å, any float dtype; edge_src, edge_dst [E]."""
        vec = edge_vec.to(self.species_embedding.dtype)
        length = torch.linalg.vector_norm(vec, dim=1)
        seen = length
        if self.inner_limit is not None:
            seen = self.inner_limit(species, edge_src, edge_dst, length)
        if self.pair_cutoffs is not None:
            seen = self.pair_cutoffs(species, edge_src, edge_dst, seen)
        if self.distance_transform is not None:
            changed = self.distance_transform(species, edge_src, edge_dst, seen)
            radial = self.radial_basis.transformed(changed, seen)
        else:
            radial = self.radial_basis(seen)
        calm = length[:0]
        if self.crowding is not None:
            calm = self.crowding(species, edge_src, edge_dst, length)
        frames = vec[:, :0]
        if self.edge_frames is not None:
            frames = self.edge_frames(vec, length)
        return Edges(
            species,
            edge_src,
            edge_dst,
            length,
            self.spherical_harmonics(vec, length),
            radial,
            calm,
            self.radial_basis.envelope(seen),
            frames,
        )

    @torch.jit.export
    def embed(self, species: Tensor) -> Tensor:
        """Species [M] -> node_feats [M, width of layer 0]."""
        return self.species_embedding.index_select(0, species)

    @torch.jit.export
    def radial(self, k: int, r: Tensor) -> Tensor:
        """Radial weights of layer k at distances r [E] Å -> [E, num_weights of that layer].

        r are those that `inner_limit` and `pair_cutoffs` let the network know. RuntimeError where a
        distance transform gives each pair of species functions of its own.
        """
        if self.distance_transform is not None:
            raise RuntimeError("radial functions of this network depend on the species")
        basis = self.radial_basis(r.to(self.species_embedding.dtype))
        weights = basis
        for n, layer in enumerate(self.layers):
            if n == k:
                weights = layer.radial(basis)
        return weights

    @torch.jit.export
    def finish(self, species: Tensor, edges: Edges, energies: Tensor) -> Tensor:
        """Network energies [num_local] -> atomic energies [num_local] eV, float64."""
        num_local = energies.shape[0]
        energies = self.reference_energy(species, edges.src, edges.dst, edges.length, energies)
        if self.crowding is not None and edges.calm.shape[0] > 0:
            energies = energies + self.crowding.cost * (1.0 - edges.calm[:num_local].double())
        return energies

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
