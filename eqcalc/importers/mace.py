"""MACE models (Batatia et al., arXiv:2206.07697): files of torch.save that hold the whole module.

Read without mace-torch, and without running its code. Kinds: MACE and ScaleShiftMACE; interaction
blocks RealAgnostic, RealAgnosticResidual, and both with densities (MACE-MP-0b and later); ZBL; the
Agnesi transform; several heads, of which one is taken.

Their edges point at the centre, so that harmonics of odd degree have the other sign; radial weights
are sorted by what paths end in; products have bases of their own, which are projected on ours.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from ase.data import chemical_symbols
from e3nn import o3
from torch import Tensor

from eqcalc.errors import InputError, did_you_mean
from eqcalc.importers.modules import Modules, irreps_of
from eqcalc.importers.weights import (
    E3NN_SILU,
    OUR_SILU,
    Weights,
    fill_linear,
    linear_blocks,
)
from eqcalc.models.assembled import Assembled
from eqcalc.models.mace import MACEConfig
from eqcalc.models.registry import build
from eqcalc.nn.contraction import Contraction, monomial_places
from eqcalc.nn.convolution import Convolution
from eqcalc.nn.linear import SpeciesLinear
from eqcalc.nn.radial import RadialNetwork
from eqcalc.nn.reference import CoreRepulsion

CITATION = "Batatia et al., Adv. Neural Inf. Process. Syst. 35, 11423 (2022), arXiv:2206.07697"

#: kinds of interaction: whether atoms keep their own features, whether messages are divided by a
#: density
BLOCKS = {
    "RealAgnosticInteractionBlock": (False, False),
    "RealAgnosticResidualInteractionBlock": (True, False),
    "RealAgnosticDensityInteractionBlock": (False, True),
    "RealAgnosticDensityResidualInteractionBlock": (True, True),
}
#: of their ZBL: eV Å, Å, and of the screening function
COULOMB, BOHR = 14.3996, 0.529
DECAYS = (3.2, 0.9423, 0.4028, 0.2016)
#: how far a projection on our basis of products may be from the original
INEXACT = 1e-6


def is_model(modules: Modules) -> bool:
    """Whether a tree of modules is one."""
    return modules.kinds.get("", "") in ("MACE", "ScaleShiftMACE") or (
        {"interactions", "products", "readouts"} <= modules.kinds.keys()
    )


class _File:
    """What a file says."""

    def __init__(self, modules: Modules, source: str, keep: list[int] | None, head: str | None):
        self.modules, self.source = modules, source
        kind = modules.kinds[""]
        if kind not in ("MACE", "ScaleShiftMACE"):
            raise InputError(f"{source} holds a {kind}: only MACE and ScaleShiftMACE are covered.")
        self.weights = Weights(modules.tensors, source)
        self.known = [int(z) for z in self.weights.take("atomic_numbers").tolist()]
        self.numbers = self.known if keep is None else keep
        if lacking := [chemical_symbols[z] for z in self.numbers if z not in self.known]:
            raise InputError(f"{source} does not know {', '.join(lacking)}.")
        self.rows = [self.known.index(z) for z in self.numbers]
        self.layers = int(self.weights.take("num_interactions"))
        self.head, self.heads = self._heads(head)

    def _heads(self, wanted: str | None) -> tuple[int, list[str]]:
        heads = self.modules.values.get("heads") or ["default"]
        heads = [str(name) for name in heads]
        if wanted is None and len(heads) > 1:
            raise InputError(
                f"{self.source} has the heads {', '.join(heads)}: choose one with --task."
            )
        if wanted is not None and wanted not in heads:
            raise InputError(f"{self.source} has no head '{wanted}'{did_you_mean(wanted, heads)}.")
        return (heads.index(wanted) if wanted else 0), heads

    def irreps(self, name: str) -> o3.Irreps:
        return irreps_of(self.modules.values[name])

    def by_head(self, tensor: Tensor) -> Tensor:
        """The row of the head; of what does not depend on it, all."""
        rows = tensor.reshape(len(self.heads), -1) if len(self.heads) > 1 else tensor
        return rows[self.head] if len(self.heads) > 1 and len(rows) > 1 else tensor


def _block(file: _File, k: int) -> tuple[bool, bool]:
    kind = file.modules.kinds[f"interactions.{k}"]
    if kind not in BLOCKS:
        raise InputError(
            f"{file.source} has the interaction {kind}, which is not covered "
            f"(covered: {', '.join(BLOCKS)})."
        )
    return BLOCKS[kind]


def _config(file: _File) -> MACEConfig:
    """The options of the network."""
    values, source = file.modules.values, file.source
    blocks = [_block(file, k) for k in range(file.layers)]
    if len({density for _, density in blocks}) > 1:
        raise InputError(f"{source} has a density in some layers only: it is not covered.")
    harmonics = file.irreps("interactions.0.edge_attrs_irreps")
    channels = file.irreps("interactions.0.node_feats_irreps")[0].mul
    features = [file.irreps(f"interactions.{k}.hidden_irreps") for k in range(file.layers)]
    for irreps in [harmonics, *features]:
        if any(ir.p != (-1) ** ir.l for _, ir in irreps):
            raise InputError(f"{source} has {irreps}: only natural parity is covered.")
    l_features = max((irreps.lmax for irreps in features[:-1]), default=0)
    natural = o3.Irreps([(channels, (l, (-1) ** l)) for l in range(l_features + 1)])  # noqa: E741
    if any(irreps != natural for irreps in features[:-1]) or features[-1] != natural[:1]:
        raise InputError(f"{source} has features {features[0]} to {features[-1]}: not covered.")
    transform = file.modules.kinds.get("radial_embedding.distance_transform", "")
    if transform not in ("", "AgnesiTransform"):
        raise InputError(f"{source} has a {transform}: only AgnesiTransform is covered.")
    if file.modules.kinds["radial_embedding.bessel_fn"] != "BesselBasis":
        kind = file.modules.kinds["radial_embedding.bessel_fn"]
        raise InputError(f"{source} has a {kind}: only BesselBasis is covered.")
    bessel = file.weights.take("radial_embedding.bessel_fn.bessel_weights").tolist()
    last = f"readouts.{file.layers - 1}"
    hidden = 0
    if file.modules.kinds[last] == "NonLinearReadoutBlock":
        hidden = file.irreps(f"{last}.hidden_irreps").dim // len(file.heads)
    widths = {tuple(values[f"interactions.{k}.radial_MLP"]) for k in range(file.layers)}
    if len(widths) > 1:
        raise InputError(f"{source} has radial networks of different shapes: not covered.")
    cutoff = float(file.weights.take("r_max"))
    prefactor = float(file.weights.take("radial_embedding.bessel_fn.prefactor"))
    core = "pair_repulsion_fn" in file.modules.kinds
    return MACEConfig(
        cutoff=cutoff,
        num_layers=file.layers,
        num_channels=channels,
        l_max=harmonics.lmax,
        feature_l_max=l_features,
        correlation=_correlation(file),
        readout=hidden,
        self_connections=[own for own, _ in blocks],
        density_normalization=blocks[0][1],
        distance_transform="agnesi" if transform else "",
        num_radial=len(bessel),
        radial_scale=prefactor / (cutoff * math.sqrt(2.0 / 3.0)),
        bessel_frequencies=bessel,
        radial_mlp=list(next(iter(widths))),
        envelope_power=int(file.weights.take("radial_embedding.cutoff_fn.p")),
        core_repulsion=core,
        core_envelope_power=int(file.weights.take("pair_repulsion_fn.p")) if core else 6,
        crowding_limit=False,
    )


def _correlation(file: _File) -> int:
    found = set()
    for k in range(file.layers):
        prefix = f"products.{k}.symmetric_contractions.contractions.0.U_matrix_"
        found.add(
            max(int(n.removeprefix(prefix)) for n in file.modules.tensors if n.startswith(prefix))
        )
    if len(found) > 1:
        raise InputError(f"{file.source} has correlations {sorted(found)}: one for all is covered.")
    return found.pop()


def _fill_simple(linear: SpeciesLinear, weight: Tensor, inputs: o3.Irreps, out: o3.Irreps) -> None:
    blocks = linear_blocks(weight, inputs, out)
    by_irrep = {out[b].ir: matrix for (_, b), matrix in blocks.items()}
    fill_linear(linear, by_irrep, out)


def _fill_by_species(
    linear: SpeciesLinear, weight: Tensor, inputs: o3.Irreps, out: o3.Irreps, file: _File
) -> None:
    """A product of features with the one-hot species: [in, species, out] by irrep."""
    matrices, at, count = {}, 0, len(file.known)
    for mul_in, ir in inputs:
        for mul_out, other in out:
            if ir == other:
                size = mul_in * count * mul_out
                part = weight[at : at + size].view(mul_in, count, mul_out).permute(1, 0, 2)
                matrices[ir] = part[file.rows] / math.sqrt(count * mul_in)
                at += size
    if at != len(weight):
        raise InputError(f"{file.source} has self-connections of another shape: not covered.")
    fill_linear(linear, matrices, out)


def _fill_radial(
    network: RadialNetwork, convolution: Convolution, matrices: list[Tensor], target: o3.Irreps
) -> None:
    """Columns by path: theirs are sorted by the irrep out, ours by the irrep in."""
    paths = convolution.paths
    place = {ir: n for n, (_, ir) in enumerate(target)}
    order = sorted(range(len(paths)), key=lambda n: (place[paths[n].ir_out], n))
    starts, at = {}, 0
    for n in order:
        starts[n] = at
        at += paths[n].mul
    columns = [
        matrices[-1][:, starts[n] : starts[n] + p.mul] * (-1.0) ** p.l2 for n, p in enumerate(paths)
    ]
    ratio = E3NN_SILU / OUR_SILU
    with torch.no_grad():
        for n, weight in enumerate(network.weights):
            theirs = matrices[n] if n + 1 < len(matrices) else torch.cat(columns, dim=1)
            weight.copy_(theirs * (ratio if n else 1.0))


def _polynomials(coupling: Tensor, degree: int) -> Tensor:
    """[2l + 1, rows, .., rows, paths] -> coefficients of monomials [paths, 2l + 1, monomials]."""
    dim, rows, paths = coupling.shape[0], coupling.shape[1], coupling.shape[-1]
    places = monomial_places(rows, degree)
    flat = coupling.reshape(dim, rows**degree, paths).permute(2, 0, 1)
    out = coupling.new_zeros(paths, dim, int(places.max()) + 1)
    return out.index_add(2, places.flatten(), flat)


def _fill_contraction(contraction: Contraction, file: _File, k: int) -> None:
    """Weights of our basis that make their polynomials."""
    for c, (_, ir) in enumerate(contraction.irreps_out):
        prefix = f"products.{k}.symmetric_contractions.contractions.{c}."
        degrees = range(1, contraction.correlation + 1)
        for degree in degrees:
            coupling = file.weights.take(f"{prefix}U_matrix_{degree}")
            if ir.l == 0:
                coupling = coupling.unsqueeze(0)
            last = degree == contraction.correlation
            name = "weights_max" if last else f"weights.{contraction.correlation - 1 - degree}"
            zeroed = f"{prefix}{name.replace('.', '_')}_zeroed"
            if zeroed in file.weights and bool(file.weights.take(zeroed)):
                file.weights.take(prefix + name)
                contraction.set_weights(ir, degree, torch.zeros(()))
                continue
            weights = file.weights.take(prefix + name)[file.rows]  # [species, paths, channels]
            theirs = _polynomials(coupling, degree)
            mixing, left = contraction.expand(theirs, ir, degree)
            if left > INEXACT:
                raise InputError(
                    f"{file.source}: products of degree {degree} into {ir} are no polynomials of "
                    f"ours (off by {left:.1e}): it is not covered."
                )
            contraction.set_weights(ir, degree, torch.einsum("kp,skc->spc", mixing, weights))


def _fill_layer(model: Assembled, config: MACEConfig, file: _File, k: int) -> None:
    theirs, layer = f"interactions.{k}.", model.layers[k]
    ours = dict(layer.named_children())
    features = file.irreps(f"{theirs}node_feats_irreps")
    hidden = file.irreps(f"{theirs}hidden_irreps")
    target = file.irreps(f"{theirs}target_irreps")
    convolution = ours[f"sum_{k}"]
    take = file.weights.take
    _fill_simple(ours[f"up_{k}"], take(f"{theirs}linear_up.weight"), features, features)
    matrices = [
        take(f"{theirs}conv_tp_weights.layer{n}.weight") for n in range(len(config.radial_mlp) + 1)
    ]
    _fill_radial(ours[f"r_{k}"], convolution, matrices, target)
    made = convolution.irreps_out
    factors = ours[f"b_{k}"].irreps_in
    _fill_simple(ours[f"a_{k}"], take(f"{theirs}linear.weight"), made, factors)
    norm = ours[f"m_{k}"]
    if config.density_normalization:
        weight = take(f"{theirs}density_fn.layer0.weight")
        with torch.no_grad():
            ours[f"density_{k}"].network.weights[0].copy_(weight)
        norm.set_scales([1.0] * len(made))
    else:
        average = float(file.modules.values[f"{theirs}avg_num_neighbors"])
        norm.set_scales([1.0 / average] * len(made))
    skip = take(f"{theirs}skip_tp.weight")
    if config.self_connections[k]:
        _fill_by_species(ours[f"own_{k}"], skip, features, hidden, file)
    else:
        _fill_by_species(ours[f"a_{k}_of_species"], skip, factors, factors, file)
    _fill_contraction(ours[f"b_{k}"], file, k)
    _fill_simple(ours[f"out_{k}"], take(f"products.{k}.linear.weight"), hidden, hidden)
    _fill_readout(ours[f"energies_{k}"], file, k, config)


def _fill_readout(readout: Any, file: _File, k: int, config: MACEConfig) -> None:
    count, scalars = len(file.heads), config.num_channels
    with torch.no_grad():
        if readout.linear:
            weight = file.weights.take(f"readouts.{k}.linear.weight").view(scalars, count)
            readout.outer.copy_(weight[:, file.head])
            return
        inner = file.weights.take(f"readouts.{k}.linear_1.weight").view(scalars, -1)
        width = inner.shape[1]
        outer = file.weights.take(f"readouts.{k}.linear_2.weight").view(width, count)
        mine = slice(file.head * config.readout, (file.head + 1) * config.readout)
        readout.inner.copy_(inner[:, mine])
        ratio = E3NN_SILU / OUR_SILU * math.sqrt(config.readout / width)
        readout.outer.copy_(outer[mine, file.head] * ratio)


def _fill_core(core: CoreRepulsion, file: _File, scale: float) -> None:
    """Their ZBL, which their energy scale multiplies."""
    prefix = "pair_repulsion_fn."
    z = torch.tensor(file.numbers, dtype=torch.float64)
    power = float(file.weights.take(f"{prefix}a_exp"))
    length = float(file.weights.take(f"{prefix}a_prefactor")) * BOHR
    core.amplitudes = file.weights.take(f"{prefix}c").tolist()
    core.decays = list(DECAYS)
    core.screening.copy_(length / (z.pow(power)[:, None] + z.pow(power)[None, :]))
    core.charges.copy_(scale * COULOMB * z[:, None] * z[None, :])
    radii = file.weights.take(f"{prefix}covalent_radii")[file.numbers]
    core.pair_cutoff.copy_(radii[:, None] + radii[None, :])


def convert(
    modules: Modules, source: str, keep: list[int] | None, head: str | None
) -> tuple[Assembled, MACEConfig, dict[str, Any]]:
    """The network in float64, its options, and what metadata say of its origin.

    Args:
        modules: of the file.
        source: its name, for sentences.
        keep: Z of the elements to keep; None: all.
        head: of a model with several.

    Raises:
        InputError: an option or a kind of block that is not covered.
    """
    file = _File(modules, source, keep, head)
    config = _config(file)
    scale = shift = 0.0
    if modules.kinds[""] == "ScaleShiftMACE":
        scale = float(file.by_head(file.weights.take("scale_shift.scale")))
        shift = float(file.by_head(file.weights.take("scale_shift.shift")))
    else:
        scale = 1.0
    energies = file.weights.take("atomic_energies_fn.atomic_energies")
    atoms = file.by_head(energies).flatten()[file.rows] + shift
    model = build(config, file.numbers, 1.0, [scale] * len(file.rows), atoms.tolist()).double()
    with torch.no_grad():
        table = file.weights.take("node_embedding.linear.weight").view(len(file.known), -1)
        model.species_embedding.copy_(table[file.rows] / math.sqrt(len(file.known)))
        for k in range(config.num_layers):
            _fill_layer(model, config, file, k)
        if config.core_repulsion:
            _fill_core(model.reference_energy.repulsion, file, scale)
        if config.distance_transform:
            _fill_transform(model, file)
    file.weights.finish(_is_constant)
    origin = {
        "package": "MACE",
        "package_version": "version not said",
        "authors": "I. Batatia, D. P. Kovács, G. N. C. Simm, C. Ortner, G. Csányi and others",
        "citation": CITATION,
        **({"task": file.heads[file.head]} if len(file.heads) > 1 else {}),
    }
    return model, config, origin


def _fill_transform(model: Assembled, file: _File) -> None:
    prefix = "radial_embedding.distance_transform."
    model.distance_transform.constants = [
        float(file.weights.take(prefix + name)) for name in ("a", "q", "p")
    ]
    radii = file.weights.take(f"{prefix}covalent_radii")[file.numbers]
    model.distance_transform.bonds.copy_(0.5 * (radii[:, None] + radii[None, :]))


def _is_constant(name: str) -> bool:
    """Buffers of e3nn and copies of what is known otherwise."""
    return name.rpartition(".")[2] in ("r_max", "output_mask", "p") or "_w3j_" in name
