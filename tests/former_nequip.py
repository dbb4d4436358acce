"""NequIP written out by hand, as its modules were before they came from its program.

What programs are compared with, and how files and run folders of that time are made.
"""

import math
from itertools import pairwise

import torch
from e3nn import o3
from torch import Tensor, nn

from eqcalc.models.base import Edges, Potential
from eqcalc.models.nequip import NequIPConfig, layer_features
from eqcalc.nn.activations import silu
from eqcalc.nn.angular import SphericalHarmonics
from eqcalc.nn.convolution import Convolution
from eqcalc.nn.gate import Gate
from eqcalc.nn.linear import ScalarBias, SpeciesLinear, block_offsets
from eqcalc.nn.product import ChannelProduct
from eqcalc.nn.radial import PairCutoffs, RadialNetwork
from eqcalc.nn.reference import PairConstants


class Linear(nn.Module):
    """One matrix for all species, unless `num_species` says otherwise: then `linear` is called."""

    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, num_species: int = 1) -> None:
        super().__init__()
        self.linear = SpeciesLinear(irreps_in, irreps_out, num_species)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x, torch.empty(0, dtype=torch.int64))


class MessageProduct(nn.Module):
    """W_out (A (x) A), A = W_in m, with `num_channels` of each irrep in A."""

    def __init__(
        self, irreps_in: o3.Irreps, irreps_target: o3.Irreps, num_channels: int, l_max: int
    ) -> None:
        super().__init__()
        factors = o3.Irreps([(num_channels, ir) for _, ir in irreps_in])
        products = o3.Irreps([(mul, ir) for mul, ir in irreps_target if ir.l <= l_max])
        self.linear_in = Linear(irreps_in, factors)
        self.channel_product = ChannelProduct(factors, products)
        self.linear_out = Linear(self.channel_product.irreps_out, irreps_target)

    def forward(self, messages: Tensor) -> Tensor:
        return self.linear_out(self.channel_product(self.linear_in(messages)))


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
        sent = num_species if config.species_messages else 1
        self.linear_up = Linear(irreps_in, irreps_in, sent)
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

    def radial(self, basis: Tensor) -> Tensor:
        return self.radial_network(basis)

    def messages(self, node_feats: Tensor, edges: Edges, num_local: int) -> Tensor:
        """node_feats [M, irreps_in.dim] -> [num_local, convolution.irreps_out.dim]."""
        x = self.linear_up.linear(node_feats, edges.species)
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


class FormerNequIP(Potential):
    """Arguments are those of `eqcalc.models.registry.build`."""

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
        self.program = config.program()
        num_species = len(atomic_numbers)
        self.radial_basis = config.radial_basis()
        self.spherical_harmonics = SphericalHarmonics(config.l_max)
        features = layer_features(config)
        self.species_embedding = nn.Parameter(torch.randn(num_species, features[0].dim))
        layers = []
        for k, ends in enumerate(pairwise(features)):
            last = k + 1 == config.num_layers
            layers.append(
                InteractionLayer(*ends, config, num_species, avg_num_neighbors, readout=last)
            )
        self.exchange_widths = [irreps.dim for irreps in features[1:-1]]
        self.layers = nn.ModuleList(layers)
        self.species_self_connection = config.species_self_connection
        self.species_messages = config.species_messages
        if config.pair_cutoffs:
            cutoffs = config.pair_cutoffs_of(self.atomic_numbers)
            self.pair_cutoffs = PairCutoffs(cutoffs, config.cutoff)
        if config.species_correlation > 0.0:
            self.correlate_species(config.species_correlation)
        if config.exact_isolated_atoms:
            nn.init.zeros_(self.layers[0].self_connection.weight).requires_grad_(False)
        self.add_pair_terms(config, scale, shift, pair_constants)

    def species_tables(self) -> list[nn.Parameter]:
        own = [x.self_connection for x in self.layers if self.species_self_connection]
        sent = [x.linear_up.linear for x in self.layers if self.species_messages]
        return [self.species_embedding, *(x.weight for x in (*own, *sent))]

    def message_scales(self) -> list[list[float]]:
        return [
            [
                float(layer.message_norm[at])
                for at in block_offsets(layer.convolution.irreps_out)[:-1]
            ]
            for layer in self.layers
        ]

    def set_message_scales(self, scales: list[list[float]]) -> None:
        for layer, values in zip(self.layers, scales, strict=True):
            dims = [mul * ir.dim for mul, ir in layer.convolution.irreps_out]
            norm = torch.tensor(values, dtype=layer.message_norm.dtype)
            layer.message_norm.copy_(norm.repeat_interleave(torch.tensor(dims)))

    def message_sizes(
        self, layer: nn.Module, node_feats: Tensor, edges: Edges, num_local: int
    ) -> list[float]:
        messages = layer.messages(node_feats, edges, num_local)
        widths = [mul * ir.dim for mul, ir in layer.convolution.irreps_out]
        return [float(part.square().mean().sqrt()) for part in messages.split(widths, dim=1)]
