"""NequIP: E(3)-equivariant message passing (Batzner et al., Nat. Commun. 13, 2453 (2022)).

Layer: x' = Gate( W_sc[species] x + W_mix m + W_out (W_in m (x) W_in m) ), where
m = s_l sum_j R(r_ij) (W_up x_j (x) Y(r_ij)), with one constant s_l per irrep: 1 / sqrt(average
number of neighbours), or what `NequIP.calibrate` measures. Messages to crowded atoms fade
(`eqcalc.nn.crowding`). Batzner et al. have no products of
messages; they are MACE's (see eqcalc.nn.product) and can be left out.
"""

import math

import torch
from e3nn import o3
from torch import Tensor, nn

from eqcalc.models.base import Edges, Potential
from eqcalc.models.nequip_config import NequIPConfig, target_irreps
from eqcalc.nn.activations import silu
from eqcalc.nn.angular import SphericalHarmonics
from eqcalc.nn.convolution import Convolution, allowed_paths
from eqcalc.nn.gate import Gate
from eqcalc.nn.linear import Linear, ScalarBias, SpeciesLinear, block_offsets
from eqcalc.nn.product import MessageProduct
from eqcalc.nn.radial import BesselBasis, InnerLimit, RadialNetwork, XplorBesselBasis
from eqcalc.nn.reference import PairConstants, ReferenceEnergy, no_pairs


class InteractionLayer(nn.Module):
    """One message-passing layer; `readout` makes it the last one.

    forward: node_feats [M, irreps_in.dim] -> ([num_local, irreps_out.dim], [num_local] energies).
    """

    def __init__(
        self,
        irreps_in: o3.Irreps,
        irreps_out: o3.Irreps,
        config: NequIPConfig,
        num_species: int,
        avg_num_neighbors: float,
        *,
        readout: bool,
    ) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out = irreps_in, irreps_out
        self.gate = Gate(irreps_out, config.gate_activation)
        self.linear_up = Linear(irreps_in, irreps_in)
        self.convolution = Convolution(irreps_in, config.l_max, irreps_out, so3=config.so3)
        self.radial_network = RadialNetwork(
            [config.num_radial, *config.radial_mlp, self.convolution.num_weights]
        )
        self.linear_mix = Linear(self.convolution.irreps_out, self.gate.irreps_in)
        self.product: MessageProduct | None = None
        if config.product_channels:
            self.product = MessageProduct(
                self.convolution.irreps_out,
                self.gate.irreps_in,
                config.product_channels,
                config.product_l_max,
            )
        own = num_species if config.species_self_connection else 1
        self.self_connection = SpeciesLinear(irreps_in, self.gate.irreps_in, own)
        self.up_bias: ScalarBias | None = None
        self.gate_bias: ScalarBias | None = None
        if config.scalar_bias:
            self.up_bias = ScalarBias(irreps_in)
            self.gate_bias = ScalarBias(self.gate.irreps_in)
        norm = torch.full((self.convolution.irreps_out.dim,), 1.0, dtype=torch.float64)
        self.register_buffer("message_norm", norm / math.sqrt(avg_num_neighbors))
        self.num_scalars = irreps_out[0].mul
        self.has_readout = readout
        width = config.readout or self.num_scalars  # a linear one has no matrix
        self.linear_readout = config.readout == 0
        rows = self.num_scalars if readout and not self.linear_readout else 0
        self.readout_in = nn.Parameter(torch.randn(rows, width))
        self.readout_out = nn.Parameter(torch.randn(width if readout else 0))

    def messages(self, node_feats: Tensor, edges: Edges, num_local: int) -> Tensor:
        """node_feats [M, irreps_in.dim] -> [num_local, convolution.irreps_out.dim]."""
        x = self.linear_up(node_feats)
        if self.up_bias is not None:
            x = self.up_bias(x)
        return self.convolution(
            x,
            edges.attrs,
            self.radial_network(edges.radial),
            edges.src,
            edges.dst,
            num_local,
        )

    def forward(self, node_feats: Tensor, edges: Edges, num_local: int) -> tuple[Tensor, Tensor]:
        messages = self.messages(node_feats, edges, num_local)
        own = self.self_connection(node_feats[:num_local], edges.species[:num_local])
        messages = messages * self.message_norm.to(messages.dtype)
        if edges.calm.shape[0] > 0:
            messages = messages * edges.calm[:num_local].unsqueeze(1)
        mixed = own + self.linear_mix(messages)
        if self.product is not None:
            mixed = mixed + self.product(messages)
        if self.gate_bias is not None:
            mixed = self.gate_bias(mixed)
        x = self.gate(mixed)
        if not self.has_readout:
            return x, torch.zeros(num_local, dtype=torch.float64, device=x.device)
        scalars = x[:, : self.num_scalars]
        if self.linear_readout:
            hidden = scalars
        else:
            hidden = silu(scalars @ (self.readout_in / math.sqrt(self.readout_in.shape[0])))
        energies = hidden @ (self.readout_out / math.sqrt(self.readout_out.shape[0]))
        return x, energies.to(torch.float64)


@torch.no_grad()
def _correlate(table: Tensor, correlation: float) -> None:
    """Rows of independent normal numbers become correlated ones, in place."""
    common = torch.randn_like(table[:1])
    table.mul_(math.sqrt(1.0 - correlation)).add_(common, alpha=math.sqrt(correlation))


def _radial_basis(config: NequIPConfig) -> BesselBasis:
    shape = config.cutoff, config.num_radial
    if config.envelope_onset:
        basis = XplorBesselBasis(*shape, config.envelope_onset, config.radial_scale)
    else:
        basis = BesselBasis(*shape, config.envelope_power, config.radial_scale)
    if config.bessel_frequencies:
        basis.orders.copy_(torch.tensor(config.bessel_frequencies, dtype=torch.float64))
    return basis


class NequIP(Potential):
    """The default architecture.

    Args:
        config: hyperparameters.
        atomic_numbers: Z of each species.
        avg_num_neighbors: over all atoms of the training set; messages are divided by its root
            until `calibrate` finds better.
        scale, shift: eV, one per species (see ReferenceEnergy).
        pair_constants: of the pair potential, if the config has one; None: it is zero.
    """

    def __init__(
        self,
        config: NequIPConfig,
        atomic_numbers: list[int],
        avg_num_neighbors: float,
        scale: list[float],
        shift: list[float],
        pair_constants: PairConstants | None = None,
    ) -> None:
        super().__init__(atomic_numbers, config.cutoff)
        num_species = len(atomic_numbers)
        self.radial_basis = _radial_basis(config)
        self.spherical_harmonics = SphericalHarmonics(config.l_max)
        targets = target_irreps(config)
        scalars = next(mul for mul, ir in targets[0] if ir == o3.Irrep("0e"))
        irreps = o3.Irreps([(config.embedding or scalars, "0e")])
        self.species_embedding = nn.Parameter(torch.randn(num_species, irreps.dim))
        layers = []
        for k, target in enumerate(targets):
            last = k + 1 == config.num_layers
            paths = allowed_paths(irreps, config.l_max, target, so3=config.so3)
            ends = {path.ir_out for path in paths}
            reached = o3.Irreps([(mul, ir) for mul, ir in target if ir in ends])
            layers.append(
                InteractionLayer(
                    irreps, reached, config, num_species, avg_num_neighbors, readout=last
                )
            )
            if k > 0:
                self.exchange_widths.append(irreps.dim)
            irreps = reached
        self.layers = nn.ModuleList(layers)
        self.species_self_connection = config.species_self_connection
        if config.species_correlation > 0.0:
            for table in self.species_tables():
                _correlate(table, config.species_correlation)
        if config.exact_isolated_atoms:
            nn.init.zeros_(self.layers[0].self_connection.weight).requires_grad_(False)
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
        own = [x.self_connection for x in self.layers if self.species_self_connection]
        return [self.species_embedding, *(x.weight for x in own)]

    def message_scales(self) -> list[list[float]]:
        """The constants s_l by layer and irrep of its messages."""
        return [
            [
                float(layer.message_norm[at])
                for at in block_offsets(layer.convolution.irreps_out)[:-1]
            ]
            for layer in self.layers
        ]

    def set_message_scales(self, scales: list[list[float]]) -> None:
        """Takes what `message_scales` of a network of the same shape returned."""
        for layer, values in zip(self.layers, scales, strict=True):
            dims = [mul * ir.dim for mul, ir in layer.convolution.irreps_out]
            norm = torch.tensor(values, dtype=layer.message_norm.dtype)
            layer.message_norm.copy_(norm.repeat_interleave(torch.tensor(dims)))

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
            messages = layer.messages(node_feats, edges, len(species))
            widths = [mul * ir.dim for mul, ir in layer.convolution.irreps_out]
            rms = [float(part.square().mean().sqrt()) for part in messages.split(widths, dim=1)]
            if max(rms) > 0.0:  # not for isolated atoms
                scales[k] = [float(f"{target / max(x, 0.1 * max(rms)):.4g}") for x in rms]
            self.set_message_scales(scales)
            node_feats, _ = layer(node_feats, edges, len(species))

    @torch.jit.export
    def embed(self, species: Tensor) -> Tensor:
        return self.species_embedding.index_select(0, species)

    @torch.jit.export
    def radial(self, k: int, r: Tensor) -> Tensor:
        basis = self.radial_basis(r.to(self.species_embedding.dtype))
        weights = basis
        for n, layer in enumerate(self.layers):
            if n == k:
                weights = layer.radial_network(basis)
        return weights
