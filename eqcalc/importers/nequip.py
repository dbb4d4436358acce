"""Networks of NequIP (Batzner et al., Nat. Commun. 13, 2453 (2022)) in the terms of e3nn.

What its versions have in common, however their files keep it (`eqcalc.importers.nequip_files`), and
how it becomes a network of ours. With e3nn's uvu product, messages are ours; beside that

- e3nn's gate takes its scalars, gates and gated features sorted by irrep, and multiplies SiLU and
  tanh by constants of its own;
- a self-connection is a product of features with what embeds the species, a one-hot vector or a
  trained one, and so a matrix per species;
- of the last layer, only even scalars are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from ase.data import atomic_numbers, chemical_symbols
from e3nn import o3
from torch import Tensor

from eqcalc.errors import InputError
from eqcalc.importers.interactions import Interaction, interactions
from eqcalc.importers.weights import (
    E3NN_SILU,
    E3NN_TANH,
    OUR_SILU,
    OUR_TANH,
    fill_linear,
    fill_radial,
    linear_blocks,
    wigner_signs,
)
from eqcalc.models.assembled import Assembled
from eqcalc.models.nequip import NequIPConfig
from eqcalc.models.registry import build
from eqcalc.nn.convolution import Coupling, allowed_paths
from eqcalc.nn.linear import SpeciesLinear
from eqcalc.nn.reference import COULOMB

CITATION = "Batzner et al., Nat. Commun. 13, 2453 (2022), doi:10.1038/s41467-022-29939-5"
AUTHORS = (
    "whoever trained it; NequIP is by S. Batzner, A. Musaelian, B. Kozinsky and others, Harvard"
)

SCALAR = o3.Irrep("0e")

#: degrees l1, l2, l3 -> the Wigner 3j symbol that a file goes with, None: it does not say
Symbols = Callable[[int, int, int], Tensor | None]


@dataclass
class Layer:
    """One interaction block and its gate.

    Attributes:
        hidden: irreps asked for after the gate; those that no path reaches are left out.
        up, mix: weights of the two linear maps, flat.
        own: of the self-connection, flat; None: there is none.
        radial: matrices [in, out] of the radial network, whose SiLU is not scaled.
        norm: what an atom sends is multiplied by it; [1], or [species].
        symbols: see `Symbols`.
    """

    hidden: o3.Irreps
    up: Tensor
    mix: Tensor
    own: Tensor | None
    radial: list[Tensor]
    norm: Tensor
    symbols: Symbols


@dataclass
class Network:
    """A network as its file has it; lengths in Å, energies in eV.

    Attributes:
        source: name of the file, for sentences.
        types: names of the species, in order.
        cutoff: of all edges.
        harmonics: irreps of the spherical harmonics.
        frequencies, prefactor: of the Bessel functions, prefactor sin(frequency r) / r.
        power: p of the polynomial envelope.
        features: [species, width] that the first layer takes.
        attributes: [species, width] that self-connections take.
        layers: in order.
        readout: matrices [in, out] of the readout, with an unscaled SiLU in between.
        scale, shift: by species.
        coulomb: e^2 / (4 pi epsilon_0) of the ZBL repulsion, eV Å; 0: there is none.
        core_power: p of its envelope.
        pair_cutoffs: [species of the centre, species of the neighbour] Å, if pairs have their own.
    """

    source: str
    types: list[str]
    cutoff: float
    harmonics: o3.Irreps
    frequencies: Tensor
    prefactor: float
    power: float
    features: Tensor
    attributes: Tensor
    layers: list[Layer]
    readout: list[Tensor]
    scale: Tensor
    shift: Tensor
    coulomb: float = 0.0
    core_power: float = 6.0
    pair_cutoffs: Tensor | None = None

    def refuse(self, name: str, value: object) -> InputError:
        """For `raise`."""
        return refuse(self.source, name, value)


def refuse(source: str, name: str, value: object) -> InputError:
    """What to raise where an option is not covered."""
    return InputError(f"{source}: its option {name} = {value!r} is not covered.")


def species(source: str, types: Sequence[str], keep: list[int] | None) -> tuple[list[int], list]:
    """Atomic numbers of the species kept, ascending, and their places among the types.

    Raises:
        InputError: a type is no element, or one to keep is not there.
    """
    unknown = [t for t in types if atomic_numbers.get(t, 0) == 0]
    if unknown or len(set(types)) != len(types):
        raise InputError(
            f"{source}: its types {' '.join(types)} are not different elements: it is not covered."
        )
    known = {atomic_numbers[t]: n for n, t in enumerate(types)}
    numbers = sorted(known if keep is None else keep)
    lacking = [chemical_symbols[z] for z in numbers if z not in known]
    if lacking:
        raise InputError(f"{source} does not know {', '.join(lacking)}.")
    return numbers, [known[z] for z in numbers]


def _ignores_parity(n: Network) -> bool:
    """Whether all harmonics are called even; others than all of them up to l_max are refused."""
    full = o3.Irreps.spherical_harmonics(n.harmonics.lmax)
    if n.harmonics == full:
        return False
    if n.harmonics != o3.Irreps.spherical_harmonics(n.harmonics.lmax, p=1):
        raise n.refuse("irreps_edge_sh", str(n.harmonics))
    return True


def _reached(n: Network, *, so3: bool) -> list[o3.Irreps]:
    """Features after each layer: scalars, then the others."""
    layers = []
    irreps = o3.Irreps([(n.features.shape[1], SCALAR)])
    for layer in n.layers:
        paths = allowed_paths(irreps, n.harmonics.lmax, layer.hidden, so3=so3)
        ends = {path.ir_out for path in paths}
        kept = [(mul, ir) for mul, ir in layer.hidden if ir in ends]
        irreps = o3.Irreps([x for x in kept if x[1].l == 0] + [x for x in kept if x[1].l > 0])
        if len(irreps) != len({ir for _, ir in irreps}) or SCALAR not in irreps:
            raise n.refuse("feature_irreps_hidden", str(layer.hidden))
        layers.append(irreps)
    return layers


def _pair_cutoffs(n: Network) -> dict[str, dict[str, float]]:
    """By symbols of centre and neighbour."""
    if n.pair_cutoffs is None:
        return {}
    shorter = {}
    for a, row in zip(n.types, n.pair_cutoffs.tolist(), strict=True):
        if pairs := {b: r for b, r in zip(n.types, row, strict=True) if r < n.cutoff}:
            shorter[a] = pairs
    return shorter


def _config(n: Network, layers: list[o3.Irreps], *, so3: bool) -> NequIPConfig:
    widths = [[w.shape[1] for w in layer.radial[:-1]] for layer in n.layers]
    if any(w != widths[0] for w in widths):
        raise n.refuse("radial_mlp_width", widths)
    if n.power != int(n.power) or n.core_power != int(n.core_power):
        raise n.refuse("polynomial_cutoff_p", (n.power, n.core_power))
    if len(n.readout) > 2:
        raise n.refuse("readout_mlp_hidden_layers_depth", len(n.readout) - 1)
    by_degree = {ir.l: mul for mul, ir in layers[0]}
    return NequIPConfig(
        crowding_limit=False,  # it is measured on frames
        cutoff=n.cutoff,
        num_layers=len(layers),
        l_max=n.harmonics.lmax,
        num_channels=[by_degree.get(l, 1) for l in range(n.harmonics.lmax + 1)],  # noqa: E741
        so3=so3,
        layer_irreps=[str(irreps) for irreps in layers],
        embedding=n.features.shape[1],
        gate_activation="silu",
        species_messages=any(len(layer.norm) > 1 for layer in n.layers),
        num_radial=len(n.frequencies),
        bessel_frequencies=n.frequencies.tolist(),
        radial_scale=n.prefactor / (n.cutoff * math.sqrt(2.0 / 3.0)),
        radial_mlp=widths[0],
        envelope_power=int(n.power),
        pair_cutoffs=_pair_cutoffs(n),
        exact_isolated_atoms=n.layers[0].own is None,
        product_channels=0,
        readout=n.readout[0].shape[1] if len(n.readout) == 2 else 0,
        core_repulsion=bool(n.coulomb),
        core_cutoff=n.cutoff if n.coulomb else 0.0,
        core_envelope_power=int(n.core_power),
    )


def _by_irrep(
    weight: Tensor, irreps_in: o3.Irreps, irreps_out: o3.Irreps
) -> dict[o3.Irrep, Tensor]:
    """Matrices [in, out] of an e3nn Linear, the irreps of which are all different."""
    blocks = linear_blocks(weight, irreps_in, irreps_out)
    return {irreps_out[k].ir: matrix for (_, k), matrix in blocks.items()}


def _own(weight: Tensor, irreps_in: o3.Irreps, irreps_out: o3.Irreps, attributes: Tensor) -> dict:
    """Matrices [species, in, out] of a FullyConnectedTensorProduct with scalar attributes."""
    pairs = [(i, k) for i in irreps_in for k in irreps_out if i.ir == k.ir]
    width = attributes.shape[1]
    sizes = [i.mul * width * k.mul for i, k in pairs]
    if len(weight) != sum(sizes):
        raise InputError(f"a self-connection has {len(weight)} weights instead of {sum(sizes)}.")
    matrices = {}
    for (i, k), part in zip(pairs, weight.split(sizes), strict=True):
        by_species = torch.einsum("uvw,sv->suw", part.view(i.mul, width, k.mul), attributes)
        matrices[i.ir] = by_species / math.sqrt(i.mul * width)
    return matrices


def _columns(paths: list[Coupling], kept: list[Coupling]) -> list[int]:
    """Columns of the radial weights of `paths` that belong to those kept."""
    starts, at = {}, 0
    for path in paths:
        starts[path] = at
        at += path.mul
    return [starts[path] + c for path in kept for c in range(path.mul)]


def _fill_layer(
    layer: Interaction,
    theirs: Layer,
    after: o3.Irreps,
    attributes: Tensor,
    norm: Tensor,
    ratios: dict[o3.Irrep, float],
    *,
    so3: bool,
) -> None:
    """Weights of one layer.

    Args:
        layer: ours; the last one makes only even scalars.
        theirs: what it is filled with.
        after: features behind their gate.
        attributes, norm: see `Network` and `Layer`; of the species kept.
        ratios: of their features to ours.
        so3: parity is ignored.
    """
    irreps = layer.irreps_in
    paths = allowed_paths(irreps, layer.convolution.l_max, after, so3=so3)
    kept = layer.convolution.paths
    middle = {ir: sum(p.mul for p in paths if p.ir_out == ir) for _, ir in after}
    middle = o3.Irreps([(mul, ir) for ir, mul in middle.items()]).sort().irreps
    gates = sum(mul for mul, ir in after if ir.l > 0)
    before = [(mul + gates if ir == SCALAR else mul, ir) for mul, ir in after]
    before = o3.Irreps(before).sort().irreps
    widths = {ir: mul for mul, ir in layer.gate.irreps_in}

    def put(linear: SpeciesLinear, matrices: dict, out: o3.Irreps, factors: dict) -> None:
        # gates are the last of the scalars: the last layer, which has none, leaves them out
        cut = {ir: factors.get(ir, 1.0) * m[..., : widths.get(ir)] for ir, m in matrices.items()}
        fill_linear(linear, cut, out)

    up = _by_irrep(theirs.up, irreps, irreps)
    fill_linear(layer.up, {ir: ratios[ir] * m for ir, m in up.items()}, irreps)
    put(layer.mix, _by_irrep(theirs.mix, middle, before), layer.gate.irreps_in, {})
    if theirs.own is None and layer.own is not None:
        layer.own.weight.data.zero_()
    elif theirs.own is not None:
        own = _own(theirs.own, irreps, before, attributes)
        put(layer.own, own, layer.gate.irreps_in, ratios)
    if layer.up.num_species > 1:
        layer.up.weight.mul_(norm.unsqueeze(1))
        norm = torch.ones(1)
    layer.norm.fill_(float(norm[0]))
    *hidden, last = theirs.radial
    scaled = [m * math.sqrt(m.shape[0]) for m in (*hidden, last[:, _columns(paths, kept)])]
    # `fill_radial` expects the SiLU of e3nn
    scaled = [scaled[0], *(m / E3NN_SILU for m in scaled[1:])]
    signs = wigner_signs(kept, irreps, theirs.symbols)
    fill_radial(layer, scaled, list(range(len(kept))), signs)


def convert(n: Network, keep: list[int] | None) -> tuple[Assembled, NequIPConfig]:
    """The network in float64, and its options.

    Args:
        n: as its file has it.
        keep: Z of the elements to keep; None: all.

    Raises:
        InputError: it has something that ours has not.
    """
    numbers, rows = species(n.source, n.types, keep)
    so3 = _ignores_parity(n)
    reached = _reached(n, so3=so3)
    config = _config(n, reached, so3=so3)
    scale, shift = (values[rows].tolist() for values in (n.scale, n.shift))
    model = build(config, numbers, 1.0, scale, shift).double()
    ratios = {SCALAR: 1.0}
    with torch.no_grad():
        model.species_embedding.copy_(n.features[rows])
        for layer, theirs, after in zip(interactions(model), n.layers, reached, strict=True):
            norm = theirs.norm.expand(len(n.types))[rows]
            _fill_layer(layer, theirs, after, n.attributes[rows], norm, ratios, so3=so3)
            ratios = {ir: E3NN_SILU / OUR_SILU for _, ir in after}
            if o3.Irrep("0o") in ratios:
                ratios[o3.Irrep("0o")] = E3NN_TANH / OUR_TANH
        last = interactions(model)[-1].readout
        first, out = n.readout[0] * ratios[SCALAR], n.readout[-1]
        if len(n.readout) == 2:
            last.inner.copy_(first * math.sqrt(len(first)))
            last.outer.copy_(out.flatten() * math.sqrt(len(out)) / OUR_SILU)
        else:
            last.outer.copy_(first.flatten() * math.sqrt(len(first)))
        repulsion = model.reference_energy.repulsion
        repulsion.charges.mul_(n.coulomb / COULOMB)
        if n.coulomb and n.pair_cutoffs is not None:
            repulsion.limit(n.pair_cutoffs[rows][:, rows].tolist())
    return model, config
