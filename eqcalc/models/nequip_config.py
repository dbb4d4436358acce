"""The options of `eqcalc.models.nequip`, and the irreps of the features that they ask for."""

from dataclasses import dataclass, field

from e3nn import o3

from eqcalc.errors import InputError


@dataclass(frozen=True)
class NequIPConfig:
    """Hyperparameters. Lengths in Å.

    Attributes:
        cutoff: neighbours farther than this are not seen.
        num_layers: message-passing layers; the receptive field is num_layers * cutoff.
        l_max: highest degree of spherical harmonics and features.
        num_channels: channels of the features of degree 0, 1, ..., l_max.
        parity: keep features of both parities; otherwise only those of natural parity, (-1)^l.
        so3: ignore parity: every path that rotations allow, all features called even. The network
            is then SO(3)- instead of O(3)-equivariant: mirror images may differ in energy.
        layer_irreps: features after each layer in e3nn's notation, such as "32x0e+16x1o", instead
            of those that num_channels, parity and so3 make; of the last layer, only its even
            scalars are used.
        embedding: width of the species' embedding; 0: that of the first layer's even scalars.
        gate_activation: of the gates of features with l > 0, sigmoid or silu.
        species_self_connection: an atom's own features pass through a matrix of its species, as in
            Batzner et al. (2022); otherwise through one for all.
        scalar_bias: add trainable constants to the even scalars that messages are made of, and to
            those before the gate.
        num_radial: Bessel functions.
        bessel_frequencies: 1/Å, one for each Bessel function, instead of n pi / cutoff: as training
            elsewhere has left them.
        radial_scale: factor on the Bessel functions where they enter the radial network. Below 1,
            less of its nonlinearity is used and messages vary more slowly with distance: at 0.3
            molybdenum was learned sooner, with hardly different errors at the end; acetylacetone
            worse, but for the frames farthest from those of the training.
        radial_mlp: hidden widths of the radial network.
        envelope_power: p of the polynomial envelope; 6 is twice continuously differentiable.
        envelope_onset: Å, where an XPLOR envelope begins to fall, in the place of the polynomial
            one; its curvature jumps there, and so do the second derivatives of the energy. 0: the
            polynomial one.
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
        readout: hidden width of the readout of the last layer's scalars; 0: it is linear.
        core_repulsion: add the ZBL repulsion at short distance.
        core_cutoff: Å, where that ends; 0: at the sum of the covalent radii.
        core_envelope_power: p of its polynomial envelope.
        pair_potential: add a repulsion of pairs that is fitted to the labels before training; the
            network learns the rest. It sees no distances much shorter than all of the training
            (`eqcalc.training.pairs`). The core repulsion ends inside of the training's distances,
            and at the sum of the covalent radii at most.
        crowding_limit: messages to atoms that are more crowded than any of the training fade, so
            that dense structures have no energy but that of the pair terms, which repel
            (`eqcalc.nn.crowding`). No number of the training frames changes by it.
    """

    cutoff: float = 5.0
    num_layers: int = 3
    l_max: int = 2
    num_channels: list[int] = field(default_factory=lambda: [128, 64, 32])
    parity: bool = False
    so3: bool = False
    layer_irreps: list[str] = field(default_factory=list)
    embedding: int = 0
    gate_activation: str = "sigmoid"
    species_self_connection: bool = True
    scalar_bias: bool = False
    num_radial: int = 8
    bessel_frequencies: list[float] = field(default_factory=list)
    radial_scale: float = 1.0
    radial_mlp: list[int] = field(default_factory=lambda: [64, 64])
    envelope_power: int = 6
    envelope_onset: float = 0.0
    product_channels: int = 0
    product_l_max: int = 0
    species_correlation: float = 0.0
    initial_messages: float = 1.0
    exact_isolated_atoms: bool = False
    readout: int = 32
    core_repulsion: bool = True
    core_cutoff: float = 0.0
    core_envelope_power: int = 6
    pair_potential: bool = False
    crowding_limit: bool = True

    def __post_init__(self) -> None:
        for wrong, sentence in _problems(self):
            if wrong:
                raise InputError(sentence)
        if self.layer_irreps:
            _checked_irreps(self)


def _problems(c: NequIPConfig) -> list[tuple[bool, str]]:
    """Whether something is wrong, and the sentence that says so, for each rule."""
    positive = ("cutoff", "num_layers", "num_radial", "radial_scale", "initial_messages")
    not_negative = ("readout", "embedding", "product_channels")
    degrees = len(c.num_channels)
    return [
        (
            degrees != c.l_max + 1,
            (
                f"num_channels has {degrees} entries, but l_max = {c.l_max} needs {c.l_max + 1}: "
                "one for each degree 0 .. l_max."
            ),
        ),
        (
            min(c.num_channels, default=0) <= 0,
            f"num_channels = {min(c.num_channels, default=0)}: it must be positive.",
        ),
        *(
            (getattr(c, name) <= 0, f"{name} = {getattr(c, name)}: it must be positive.")
            for name in positive
        ),
        *(
            (
                getattr(c, name) < 0,
                f"{name} = {getattr(c, name)}: it must be positive, or 0 for none.",
            )
            for name in not_negative
        ),
        (
            bool(c.product_l_max) and not c.product_channels,
            (
                f"product_l_max = {c.product_l_max}, but there are no products: give "
                "product_channels as well."
            ),
        ),
        (
            not 0 <= c.product_l_max <= c.l_max,
            f"product_l_max = {c.product_l_max}: it must be 0 .. l_max = {c.l_max}.",
        ),
        (
            not 0.0 <= c.species_correlation <= 1.0,
            f"species_correlation = {c.species_correlation}: it must be 0 .. 1.",
        ),
        (
            min(c.envelope_power, c.core_envelope_power) < 3,
            (
                "envelope_power and core_envelope_power must be at least 3, or forces jump at the "
                "cutoff."
            ),
        ),
        (
            not 0.0 <= c.envelope_onset < c.cutoff,
            (
                f"envelope_onset = {c.envelope_onset}: it must lie below the cutoff, {c.cutoff} Å, "
                "or be 0 for the polynomial envelope."
            ),
        ),
        (
            not 0.0 <= c.core_cutoff <= c.cutoff,
            f"core_cutoff = {c.core_cutoff}: it must be 0 .. cutoff = {c.cutoff} Å.",
        ),
        (
            bool(c.core_cutoff) and c.pair_potential,
            (
                "core_cutoff is given, but with pair_potential the distances of the training say "
                "where the core repulsion ends: leave one of the two out."
            ),
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
            len(c.bessel_frequencies) not in (0, c.num_radial),
            (
                f"bessel_frequencies has {len(c.bessel_frequencies)} entries, but num_radial = "
                f"{c.num_radial}: one for each."
            ),
        ),
    ]


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
        if config.parity:
            irreps.append((mul, (l, -natural)))
    return o3.Irreps(irreps)


def target_irreps(config: NequIPConfig) -> list[o3.Irreps]:
    """The features after each layer, as far as paths reach them; after the last, even scalars."""
    if config.layer_irreps:
        layers = _checked_irreps(config)
    else:
        layers = [hidden_irreps(config)] * config.num_layers
    scalars = next(mul for mul, ir in layers[-1] if ir == o3.Irrep("0e"))
    return [*layers[:-1], o3.Irreps([(scalars, "0e")])]
