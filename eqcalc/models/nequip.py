"""NequIP: E(3)-equivariant message passing (Batzner et al., Nat. Commun. 13, 2453 (2022)).

Layer: x' = Gate( W_own[species] x + W_mix m + W_more (W_factors m (x) W_factors m) ), where
m = s_l sum_j R(r_ij) (W_up x_j (x) Y(r_ij)), with one constant s_l per irrep: 1 / sqrt(average
number of neighbours), or what `Potential.calibrate` measures. Messages to crowded atoms fade
(`eqcalc.nn.crowding`). Batzner et al. have no products of
messages; they are MACE's (see eqcalc.nn.product) and can be left out.
"""

from dataclasses import dataclass, field
from itertools import pairwise

from ase.data import atomic_numbers, chemical_symbols
from e3nn import o3

from eqcalc.errors import InputError
from eqcalc.models.config import ModelConfig, Problems
from eqcalc.models.outputs import (
    Features,
    last_features,
    needs_both_parities,
    output_operations,
)
from eqcalc.nn.convolution import allowed_paths, reached_irreps
from eqcalc.nn.gate import gate_input
from eqcalc.nn.product import product_irreps
from eqcalc.program import (
    Add,
    Bias,
    Convolution,
    Embedding,
    Gate,
    Linear,
    Normalization,
    Output,
    Product,
    Program,
    Radial,
    Readout,
)
from eqcalc.program.operations import Operation


@dataclass(frozen=True)
class NequIPConfig(ModelConfig):
    """Hyperparameters. Lengths in Å.

    Attributes:
        num_layers: message-passing layers; the receptive field is num_layers * cutoff.
        l_max: highest degree of spherical harmonics and features.
        num_channels: channels of the features of degree 0, 1, ..., l_max.
        parity: keep features of both parities; otherwise only those of natural parity, (-1)^l.
        so3: ignore parity: every path that rotations allow, all features called even. The network
            is then SO(3)- instead of O(3)-equivariant: mirror images may differ in energy.
        solid_harmonics: messages take r^l Y_lm, with r in Å, instead of Y_lm.
        layer_irreps: features after each layer in e3nn's notation, such as "32x0e+16x1o", instead
            of those that num_channels, parity and so3 make; of the last layer, only its even
            scalars are used.
        embedding: width of the species' embedding; 0: that of the first layer's even scalars.
        gate_activation: of the gates of features with l > 0, sigmoid or silu.
        species_self_connection: an atom's own features pass through a matrix of its species, as in
            Batzner et al. (2022); otherwise through one for all.
        species_messages: what an atom sends to its neighbours passes through a matrix of its
            species; otherwise through one for all.
        pair_cutoffs: Å, by the symbols of the atom at the centre and of its neighbour, where the
            network stops to see such pairs, as in {"O": {"H": 3.0}, "H": {"O": 3.0}}; others end at
            the cutoff. Radial functions are stretched accordingly.
        scalar_bias: add trainable constants to the even scalars that messages are made of, and to
            those before the gate.
        product_channels: of the products of a layer's messages with themselves; 0: no products;
            unset: half as many as the scalars of num_channels. With them unseen frames of molecules
            are better: aspirin, 50 frames, by 11 %; a step takes 1.3 times as long.
        product_l_max: highest degree of these products. 0: scalars alone, which the gates bring to
            the other degrees.
        readout: hidden width of the readout of the last layer's scalars; 0: it is linear.
    """

    architecture: str = "nequip"
    num_layers: int = 3
    l_max: int = 2
    num_channels: list[int] = field(default_factory=lambda: [128, 64, 32])
    parity: bool = False
    so3: bool = False
    solid_harmonics: bool = False
    layer_irreps: list[str] = field(default_factory=list)
    embedding: int = 0
    gate_activation: str = "sigmoid"
    species_self_connection: bool = True
    species_messages: bool = False
    pair_cutoffs: dict[str, dict[str, float]] = field(default_factory=dict)
    scalar_bias: bool = False
    product_channels: int | None = None
    product_l_max: int = 0
    readout: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer_irreps:
            _checked_irreps(self)

    def problems(self) -> Problems:
        c = self
        return [
            *super().problems(),
            *self.not_positive("num_layers"),
            *self.negative("readout", "embedding"),
            *(self.negative("product_channels") if c.product_channels is not None else ()),
            *self.not_by_degree(),
            (
                bool(c.product_l_max) and not c.products,
                (
                    f"product_l_max = {c.product_l_max}, but there are no products: give "
                    "product_channels as well."
                ),
            ),
            (
                not 0 <= c.product_l_max <= c.l_max,
                f"product_l_max = {c.product_l_max}: it must be 0 .. l_max = {c.l_max}.",
            ),
            *(
                (
                    not 0.0 < r <= c.cutoff or not {a, b} <= set(atomic_numbers),
                    (
                        f"pair_cutoffs.{a}.{b} = {r}: it must be 0 .. cutoff = {c.cutoff} Å, of "
                        "two elements."
                    ),
                )
                for a, row in c.pair_cutoffs.items()
                for b, r in row.items()
            ),
            (
                c.gate_activation not in ("sigmoid", "silu"),
                f"gate_activation = {c.gate_activation!r}: it must be sigmoid or silu.",
            ),
            (
                c.so3 and c.parity,
                "so3 ignores parity, and parity keeps features of both: give one of the two.",
            ),
            (
                bool(c.outputs) and (c.so3 or c.solid_harmonics or bool(c.pair_cutoffs)),
                (
                    "networks with outputs have no so3, solid_harmonics or pair_cutoffs: leave "
                    "these out."
                ),
            ),
            (
                c.solid_harmonics and bool(c.pair_cutoffs),
                "solid_harmonics and pair_cutoffs do not go together: give one of the two.",
            ),
        ]

    @property
    def products(self) -> int:
        """Channels of the products of messages, given or not."""
        if self.product_channels is None:
            return self.num_channels[0] // 2 if self.num_channels else 0
        return self.product_channels

    def program(self) -> Program:
        return nequip_program(self)

    def pair_cutoffs_of(self, numbers: list[int]) -> list[list[float]]:
        symbols = [chemical_symbols[z] for z in numbers]
        rows = [self.pair_cutoffs.get(a, {}) for a in symbols]
        return [[row.get(b, self.cutoff) for b in symbols] for row in rows]


def _checked_irreps(config: NequIPConfig) -> list[o3.Irreps]:
    """`layer_irreps`, parsed.

    Raises:
        InputError: they cannot be the features of a network.
    """
    name, given = "layer_irreps", config.layer_irreps
    if len(given) != config.num_layers:
        raise InputError(
            f"{name} has {len(given)} entries, but num_layers = {config.num_layers}: one for each."
        )
    layers = []
    for text in given:
        try:
            irreps = o3.Irreps(text)
        except ValueError:
            raise InputError(f"{name}: {text!r} are no irreps; write 32x0e+16x1o.") from None
        if len({ir for _, ir in irreps}) != len(irreps) or o3.Irrep("0e") not in irreps:
            raise InputError(f"{name}: {text!r} needs 0e, and every irrep once.")
        if config.so3 and any(ir.p < 0 for _, ir in irreps):
            raise InputError(f"{name}: {text!r} has odd irreps, but so3 ignores parity.")
        layers.append(irreps)
    return layers


def hidden_irreps(config: NequIPConfig) -> o3.Irreps:
    """The features of the inner layers: natural parity, or both, or parity ignored."""
    irreps = []
    for l, mul in enumerate(config.num_channels):  # noqa: E741
        natural = 1 if config.so3 else (-1) ** l
        irreps.append((mul, (l, natural)))
        if config.parity or needs_both_parities(config.outputs):
            irreps.append((mul, (l, -natural)))
    return o3.Irreps(irreps)


def target_irreps(config: NequIPConfig) -> list[o3.Irreps]:
    """The features after each layer; after the last, even scalars and what outputs are."""
    if config.layer_irreps:
        layers = _checked_irreps(config)
    else:
        layers = [hidden_irreps(config)] * config.num_layers
    return [*layers[:-1], last_features(config.outputs, layers[-1])]


def layer_features(config: NequIPConfig) -> list[o3.Irreps]:
    """The features before the first layer and after each one, as far as paths reach them."""
    targets = target_irreps(config)
    scalars = next(mul for mul, ir in targets[0] if ir == o3.Irrep("0e"))
    features = [o3.Irreps([(config.embedding or scalars, "0e")])]
    for target in targets:
        paths = allowed_paths(features[-1], config.l_max, target, so3=config.so3)
        ends = {path.ir_out for path in paths}
        features.append(o3.Irreps([(mul, ir) for mul, ir in target if ir in ends]))
    return features


def nequip_program(config: NequIPConfig) -> Program:
    """The network as data."""
    features = layer_features(config)
    operations: list[Operation] = [Embedding("x_0", features[0].dim)]
    for k, (before, after) in enumerate(pairwise(features)):
        operations += _layer(config, k, before, after)
    x = Features(f"x_{config.num_layers}", features[-1])
    if config.energy:
        operations.append(Readout("energies", x.name, str(x.irreps), config.readout))
        operations.append(Output("energy", ("energies",)))
    return Program((*operations, *output_operations(config.outputs, [x], config.readout)))


def _layer(config: NequIPConfig, k: int, before: o3.Irreps, after: o3.Irreps) -> list[Operation]:
    x, irreps, gated = f"x_{k}", str(before), str(gate_input(after))
    made = reached_irreps(before, config.l_max, after, so3=config.so3)
    messages = str(made)
    up, mixed = f"up_{k}", f"mixed_{k}"
    operations: list[Operation] = [Linear(up, x, irreps, irreps, config.species_messages)]
    if config.scalar_bias:
        operations.append(Bias(f"up_bias_{k}", up, irreps))
        up = f"up_bias_{k}"
    sums = [f"own_{k}", f"mix_{k}"]
    if config.exact_isolated_atoms and k == 0:
        sums = [f"mix_{k}"]
    transform = "pair_cutoffs" if config.pair_cutoffs else ""
    operations += [
        Radial(f"r_{k}", tuple(config.radial_mlp), transform),
        Convolution(
            *(f"sum_{k}", up, f"r_{k}", irreps, config.l_max, messages),
            so3=config.so3,
            solid=config.solid_harmonics,
        ),
        Normalization(f"m_{k}", f"sum_{k}", messages),
        Linear(f"mix_{k}", f"m_{k}", messages, gated),
    ]
    if config.products:
        factors = o3.Irreps([(config.products, ir) for _, ir in made])
        wanted = [(mul, ir) for mul, ir in gate_input(after) if ir.l <= config.product_l_max]
        target = o3.Irreps(wanted)
        products = str(product_irreps(factors, target))
        operations += [
            Linear(f"factors_{k}", f"m_{k}", messages, str(factors)),
            Product(f"products_{k}", f"factors_{k}", str(factors), str(target), products),
            Linear(f"more_{k}", f"products_{k}", products, gated),
        ]
        sums.append(f"more_{k}")
    if f"own_{k}" in sums:  # behind the others: initial weights are drawn in this order
        operations.append(Linear(f"own_{k}", x, irreps, gated, config.species_self_connection))
    operations.append(Add(mixed, tuple(sums), gated))
    if config.scalar_bias:
        operations.append(Bias(f"gate_bias_{k}", mixed, gated))
        mixed = f"gate_bias_{k}"
    operations.append(Gate(f"x_{k + 1}", mixed, str(after), config.gate_activation))
    return operations
