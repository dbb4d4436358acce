"""NequIP: E(3)-equivariant message passing (Batzner et al., Nat. Commun. 13, 2453 (2022)).

Layer: x' = Gate( W_sc[species] x + W_mix m + W_out (W_in m (x) W_in m) ), where
m = s_l sum_j R(r_ij) (W_up x_j (x) Y(r_ij)), with one constant s_l per irrep: 1 / sqrt(average
number of neighbours), or what `NequIP.calibrate` measures. Batzner et al. have no products of
messages; they are MACE's (see eqcalc.nn.product) and can be left out.
"""

import math
from dataclasses import dataclass, field

import torch
from e3nn import o3
from torch import Tensor, nn

from eqcalc.errors import InputError
from eqcalc.models.base import Edges, Potential
from eqcalc.nn.activations import silu
from eqcalc.nn.angular import SphericalHarmonics
from eqcalc.nn.convolution import Convolution, allowed_paths
from eqcalc.nn.gate import Gate
from eqcalc.nn.linear import Linear, SpeciesLinear, block_offsets
from eqcalc.nn.product import MessageProduct
from eqcalc.nn.radial import BesselBasis, InnerLimit, RadialNetwork
from eqcalc.nn.reference import PairConstants, ReferenceEnergy, no_pairs


@dataclass(frozen=True)
class NequIPConfig:
    """Hyperparameters. Lengths in Å.

    Attributes:
        cutoff: neighbours farther than this are not seen.
        num_layers: message-passing layers; the receptive field is num_layers * cutoff.
        l_max: highest degree of spherical harmonics and features.
        num_channels: channels of the features of degree 0, 1, ..., l_max.
        parity: keep features of both parities; otherwise only those of natural parity, (-1)^l.
        num_radial: Bessel functions.
        radial_scale: factor on the Bessel functions where they enter the radial network. Below 1,
            less of its nonlinearity is used and messages vary more slowly with distance: at 0.3
            molybdenum was learned sooner, with hardly different errors at the end; acetylacetone
            worse, but for the frames farthest from those of the training.
        radial_mlp: hidden widths of the radial network.
        envelope_power: p of the polynomial envelope; 6 is twice continuously differentiable.
        product_channels: of the products of a layer's messages with themselves; 0: no products.
        product_l_max: highest degree of these products. 0: scalars alone, which the gates bring to
            the other degrees.
        species_correlation: 0 to 1, of the initial weights of different species. Near 1, species
            stay alike where the data do not tell them apart: a model of several elements that has
            never seen them side by side is then of use for their mixtures.
        initial_messages: root mean square of the messages of the untrained network; an atom's own
            features have 1. Several layers of 1 make a rough function of the positions
            (with products in five layers, forces of 200 eV/Å on acetylacetone), which training
            must forget; 0.5 makes a smooth one.
        exact_isolated_atoms: the energy of an atom without neighbours is its reference energy, as
            in MACE: the first layer's self-connection is zero (its matrices stay, untrained), so
            that no feature is left where there is no message. Atoms of low coordination, at
            surfaces and in clusters, are then between what is known; the reference energies must
            be those of atoms.
        readout: hidden width of the readout of the last layer's scalars.
        core_repulsion: add the ZBL repulsion at short distance.
        pair_potential: add a pair potential that is fitted to the labels before training; the
            network learns the rest, which is smaller. At distances much shorter than all of the
            training, where networks may do anything, it is told no shorter ones, and the pair
            potential is repulsive (`eqcalc.training.pairs`). The core repulsion ends inside of the
            training's distances, and at the sum of the covalent radii at most.
    """

    cutoff: float = 5.0
    num_layers: int = 3
    l_max: int = 2
    num_channels: list[int] = field(default_factory=lambda: [128, 64, 32])
    parity: bool = False
    num_radial: int = 8
    radial_scale: float = 1.0
    radial_mlp: list[int] = field(default_factory=lambda: [64, 64])
    envelope_power: int = 6
    product_channels: int = 0
    product_l_max: int = 0
    species_correlation: float = 0.0
    initial_messages: float = 1.0
    exact_isolated_atoms: bool = False
    readout: int = 32
    core_repulsion: bool = True
    pair_potential: bool = False

    def __post_init__(self) -> None:
        if len(self.num_channels) != self.l_max + 1:
            raise InputError(
                f"num_channels has {len(self.num_channels)} entries, but l_max = {self.l_max} "
                f"needs {self.l_max + 1}: one for each degree 0 .. l_max."
            )
        positive = {
            "cutoff": self.cutoff,
            "num_layers": self.num_layers,
            "num_radial": self.num_radial,
            "radial_scale": self.radial_scale,
            "num_channels": min(self.num_channels),
            "readout": self.readout,
            "initial_messages": self.initial_messages,
        }
        for name, value in positive.items():
            if value <= 0:
                raise InputError(f"{name} = {value}: it must be positive.")
        if self.product_channels < 0:
            raise InputError(
                f"product_channels = {self.product_channels}: it must be positive, or 0 for none."
            )
        if self.product_l_max and not self.product_channels:
            raise InputError(
                f"product_l_max = {self.product_l_max}, but there are no products: give "
                "product_channels as well."
            )
        if not 0 <= self.product_l_max <= self.l_max:
            raise InputError(
                f"product_l_max = {self.product_l_max}: it must be 0 .. l_max = {self.l_max}."
            )
        if not 0.0 <= self.species_correlation <= 1.0:
            raise InputError(
                f"species_correlation = {self.species_correlation}: it must be 0 .. 1."
            )
        if self.envelope_power < 3:
            raise InputError("envelope_power must be at least 3, or forces jump at the cutoff.")


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
        self.gate = Gate(irreps_out)
        self.linear_up = Linear(irreps_in, irreps_in)
        self.convolution = Convolution(irreps_in, config.l_max, irreps_out)
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
        self.self_connection = SpeciesLinear(irreps_in, self.gate.irreps_in, num_species)
        norm = torch.full((self.convolution.irreps_out.dim,), 1.0, dtype=torch.float64)
        self.register_buffer("message_norm", norm / math.sqrt(avg_num_neighbors))
        self.num_scalars = irreps_out[0].mul
        self.has_readout = readout
        width = config.readout
        self.readout_in = nn.Parameter(torch.randn(self.num_scalars if readout else 0, width))
        self.readout_out = nn.Parameter(torch.randn(width if readout else 0))

    def messages(self, node_feats: Tensor, edges: Edges, num_local: int) -> Tensor:
        """node_feats [M, irreps_in.dim] -> [num_local, convolution.irreps_out.dim]."""
        return self.convolution(
            self.linear_up(node_feats),
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
        mixed = own + self.linear_mix(messages)
        if self.product is not None:
            mixed = mixed + self.product(messages)
        x = self.gate(mixed)
        if not self.has_readout:
            return x, torch.zeros(num_local, dtype=torch.float64, device=x.device)
        scalars = x[:, : self.num_scalars]
        hidden = silu(scalars @ (self.readout_in / math.sqrt(self.readout_in.shape[0])))
        energies = hidden @ (self.readout_out / math.sqrt(self.readout_out.shape[0]))
        return x, energies.to(torch.float64)


@torch.no_grad()
def _correlate(table: Tensor, correlation: float) -> None:
    """Rows of independent normal numbers become correlated ones, in place."""
    common = torch.randn_like(table[:1])
    table.mul_(math.sqrt(1.0 - correlation)).add_(common, alpha=math.sqrt(correlation))


def hidden_irreps(config: NequIPConfig) -> o3.Irreps:
    """The features of the inner layers: natural parity, or both."""
    irreps = []
    for l, mul in enumerate(config.num_channels):  # noqa: E741
        natural = (-1) ** l
        irreps.append((mul, (l, natural)))
        if config.parity:
            irreps.append((mul, (l, -natural)))
    return o3.Irreps(irreps)


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
        self.radial_basis = BesselBasis(
            config.cutoff, config.num_radial, config.envelope_power, config.radial_scale
        )
        self.spherical_harmonics = SphericalHarmonics(config.l_max)
        self.species_embedding = nn.Parameter(torch.randn(num_species, config.num_channels[0]))

        target = hidden_irreps(config)
        irreps = o3.Irreps([(config.num_channels[0], "0e")])
        layers = []
        for k in range(config.num_layers):
            last = k + 1 == config.num_layers
            if last:
                reached = o3.Irreps([(config.num_channels[0], "0e")])
            else:
                ends = {path.ir_out for path in allowed_paths(irreps, config.l_max, target)}
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
        )

    def species_tables(self) -> list[nn.Parameter]:
        """The parameters [species, ...]."""
        return [self.species_embedding, *(x.self_connection.weight for x in self.layers)]

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
