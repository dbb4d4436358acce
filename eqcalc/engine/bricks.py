"""From scripted bricks (eqcalc.nn) to steps of the fused engine and what else a plan is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from scipy.linalg import block_diag

from eqcalc.engine.arrays import as_array
from eqcalc.engine.contraction import contraction, terms_of
from eqcalc.engine.plan import (
    AgnesiConstants,
    BesselConstants,
    ContractionStep,
    ConvolutionPlan,
    CoreTables,
    CrowdingTables,
    GateBlock,
    LayerNormStep,
    LayerPlan,
    Layout,
    LinearStep,
    NormGateBlock,
    NormGateStep,
    NotCovered,
    PairTables,
    Path,
    Plan,
    RadialWeights,
    ReadoutStep,
    Row,
    Step,
)
from eqcalc.program.activations import SCALES


def children(module: Any) -> list[Any]:
    return [getattr(module, name) for name, _ in module.named_children()]


@dataclass(frozen=True)
class NamedLayout:
    """Name and columns of a row."""

    name: str
    layout: Layout

    def row(self, begin: np.ndarray | None = None) -> Row:
        return Row(self.name, self.layout.width, begin)


def linear_steps(
    linear: Any, inputs: NamedLayout, outputs: NamedLayout, norm: np.ndarray | None = None
) -> list[LinearStep]:
    """The blocks of a (species) linear map between padded rows.

    `norm` multiplies the (unpadded) columns that come in, the same for a whole block.
    """
    steps = []
    taken, made = inputs.layout, outputs.layout
    for block, (at, dim, mul_in, mul_out, first) in enumerate(linear._blocks):
        if mul_in == 0:
            continue
        source = taken.block_at(at)
        factor = 1.0 if norm is None else norm[at]
        weight = as_array(linear.weight)[:, first : first + mul_in * mul_out]
        padded = np.zeros((weight.shape[0], taken.stride(source), made.stride(block)))
        rows, columns = taken.channels(source), made.channels(block)
        padded[:, rows[:, None], columns[None, :]] = (
            weight.reshape(-1, mul_in, mul_out) * factor / math.sqrt(mul_in)
        )
        steps.append(
            LinearStep(
                source=inputs.name,
                target=outputs.name,
                at_in=taken.offset(source),
                stride_in=taken.stride(source),
                dim=dim,
                at_out=made.offset(block),
                stride_out=made.stride(block),
                matrices=padded,
            )
        )
    return steps


def of_species(steps: Sequence[LinearStep], x: np.ndarray, begin: np.ndarray) -> np.ndarray:
    """What linear maps of rows x [species, width] add to a row that begins so."""
    made = np.tile(begin, (len(x), 1))
    for s in steps:
        block = x[:, s.at_in : s.at_in + s.dim * s.stride_in].reshape(len(x), s.dim, s.stride_in)
        made[:, s.at_out : s.at_out + s.dim * s.stride_out] += np.matmul(block, s.matrices).reshape(
            len(x), -1
        )
    return made


def _clean(c: float) -> float:
    """1 and -1 without rounding noise: kernels leave them out."""
    return float(round(c)) if abs(abs(c) - 1.0) < 1e-12 else float(c)


def message_layout(module: Any, padding: int) -> Layout:
    """Of what a `Convolution` makes: the channels of each path are a run."""
    return Layout(
        tuple(
            (pieces[0][2], tuple(module._blocks[block][2] for block, _, _ in pieces))
            for pieces in module._pieces
        ),
        padding,
    )


def convolution(module: Any, inputs: Layout) -> tuple[ConvolutionPlan, RadialWeights, Layout]:
    """Kernel plan, radial weights, layout of the messages."""
    padding = inputs.padding
    buffers = dict(module.named_buffers())
    outputs = message_layout(module, padding)
    places = {}  # (block, first row) -> first column, stride
    for k, pieces in enumerate(module._pieces):
        starts = [0, *accumulate(outputs.padded(outputs.blocks[k][1]))]
        for (block, row, _), start in zip(pieces, starts, strict=False):
            places[block, row] = outputs.offset(k) + start, outputs.stride(k)

    paths = []
    weight_places: list[np.ndarray] = []
    scales: list[np.ndarray] = []
    degrees: list[np.ndarray] = []
    weight = 0
    for block, (at, dim, mul, _, num_paths, rows) in enumerate(module._blocks):
        coupling = as_array(buffers[f"coupling_{block}"]).reshape(-1, rows, dim)
        owner = buffers[f"weight_of_row_{block}"].cpu().numpy()
        source = inputs.block_at(at)
        padded = inputs.stride(source)
        channels = np.arange(mul)
        for n in range(num_paths):
            mine = np.flatnonzero(owner == n)
            part = coupling[:, mine]
            places_of_terms = np.argwhere(np.abs(part) > 1e-12)
            sizes = np.abs(part[tuple(places_of_terms.T)])
            scale = float(max(sizes, key=lambda size: np.isclose(sizes, size).sum()))
            terms = tuple(
                (int(m1), int(y), int(m3), _clean(part[y, m3, m1] / scale))
                for y, m3, m1 in places_of_terms
            )
            out, stride = places[block, int(mine[0])]
            first, step = weight + n * padding, num_paths * padding
            x = inputs.offset(source)
            paths.append(Path(x, dim, out, len(mine), stride, first, step, padded, terms))
            weight_places.append(first + channels // padding * step + channels % padding)
            scales.append(np.full(mul, scale))
            degrees.append(np.full(mul, math.isqrt(terms[0][1])))
        weight += num_paths * padded
    plan = ConvolutionPlan(inputs.width, outputs.width, weight, tuple(paths))
    weights = RadialWeights(*map(np.concatenate, (weight_places, scales, degrees)))
    return plan, weights, outputs


def product_layout(module: Any, padding: int) -> Layout:
    """Of what a `ChannelProduct` makes."""
    channels = int(module.num_channels)
    return Layout(tuple((dim, (channels,) * paths) for paths, dim in module._pieces), padding)


def product_step(module: Any, factors: NamedLayout, products: NamedLayout) -> ContractionStep:
    """A `ChannelProduct`."""
    padded = factors.layout.padded([int(module.num_channels)])[0]
    rows_out = [
        products.layout.offset(block) + (m * paths + path) * padded
        for block, (paths, dim) in enumerate(module._pieces)
        for path in range(paths)
        for m in range(dim)
    ]
    coupling = as_array(module.coupling)
    first, second = module.first.tolist(), module.second.tolist()
    used = np.argwhere(np.abs(coupling) > 1e-12).tolist()
    return contraction(
        factors.name,
        products.name,
        channels=padded,
        rows_in=factors.layout.rows(),
        rows_out=rows_out,
        terms=[(row, (first[pair], second[pair])) for row, pair in used],
        coefficients=np.array([[[coupling[row, pair] for row, pair in used]]]),
    )


def contraction_step(module: Any, source: NamedLayout, target: NamedLayout) -> ContractionStep:
    """A `Contraction`, the weights of its paths multiplied into coefficients of monomials."""
    terms, matrix = terms_of(module)
    weight = as_array(module.weight)  # [species, paths, channels]
    coefficients = np.einsum("spc,pt->sct", weight, matrix, optimize=True)
    padded = np.zeros((len(weight), source.layout.stride(0), len(terms)))
    padded[:, source.layout.channels(0)] = coefficients
    return contraction(
        source.name,
        target.name,
        channels=source.layout.stride(0),
        rows_in=source.layout.rows(),
        rows_out=target.layout.rows(),
        terms=terms,
        coefficients=padded,
    )


def norm_gate_step(module: Any, source: NamedLayout, target: NamedLayout) -> NormGateStep:
    """A `NormGate`."""
    layout, bias = source.layout, as_array(module.bias)
    scales = activation_scale("silu"), activation_scale("sigmoid")
    blocks = []
    for block, (_, dim, mul, first) in enumerate(module._blocks):
        at, stride = layout.offset(block), layout.stride(block)
        if first < 0:
            blocks.append(NormGateBlock("silu", scales[0], at, dim, stride))
            continue
        padded = np.zeros(stride)
        padded[:mul] = bias[first : first + mul]
        blocks.append(NormGateBlock("sigmoid", scales[1], at, dim, stride, padded))
    return NormGateStep(source.name, target.name, blocks, float(module._square))


def spread(values: np.ndarray, layout: Layout) -> np.ndarray:
    """Of unpadded columns, to padded ones; zero between them."""
    row, start = np.zeros(layout.width), 0
    for block, (dim, _) in enumerate(layout.blocks):
        channels = layout.channels(block)
        for m in range(dim):
            at = layout.offset(block) + m * layout.stride(block)
            row[at + channels] = values[start : start + len(channels)]
            start += len(channels)
    return row


def layer_norm_step(module: Any, source: NamedLayout, target: str) -> LayerNormStep:
    """A `LayerNorm`."""
    layout, gains = source.layout, 1.0 + as_array(module.gains)
    columns, shares, first = [], [], 0
    for _, width, mul in module._blocks:
        columns.append(np.tile(gains[first : first + mul], width // mul))
        shares.append(np.full(width, 1.0 / (width * len(module._blocks))))
        first += mul
    padded = (spread(np.concatenate(part), layout) for part in (columns, shares))
    return LayerNormStep(source.name, target, *padded, float(module._square))


def activation_scale(name: str) -> float:
    """What a function is multiplied by."""
    return SCALES[name]


def gate(module: Any, padding: int) -> tuple[Layout, Layout, list[GateBlock]]:
    """Layouts before and after, and what happens to each block."""
    blocks = module._blocks
    scales = activation_scales(module)
    gates = tuple(mul for _, _, mul, _, kind in blocks if kind >= 2)
    before = Layout(
        tuple((dim, (mul, *gates) if kind == 0 else (mul,)) for _, dim, mul, _, kind in blocks),
        padding,
    )
    after = Layout(tuple((dim, (mul,)) for _, dim, mul, _, _ in blocks), padding)
    even = next(k for k, block in enumerate(blocks) if block[4] == 0)
    starts = [0, *accumulate(before.padded(before.blocks[even][1]))]
    gate_places = iter(before.offset(even) + start for start in starts[1:])
    plan = []
    for k, (_, dim, _, _, kind) in enumerate(blocks):
        plan.append(
            GateBlock(
                activation=ACTIVATIONS[kind],
                scale=scales[kind],
                at_in=before.offset(k),
                dim=dim,
                mul=after.stride(k),
                at_out=after.offset(k),
                gate=next(gate_places) if kind >= 2 else None,
            )
        )
    return before, after, plan


#: of the kinds of a gate's blocks (eqcalc.nn.gate)
ACTIVATIONS = ("silu", "tanh", "sigmoid", "silu")


def activation_scales(gate: Any) -> dict[int, float]:
    """What a gate multiplies the activations of its kinds of blocks by, measured on it."""
    one = torch.ones((), dtype=torch.float64)
    silu = torch.nn.functional.silu(one)
    plain = [silu, torch.tanh(one), torch.sigmoid(one), silu]
    blocks = gate._blocks
    width = max(at + dim * mul for at, dim, mul, _, _ in blocks)
    width = max([width, *(first + mul for _, _, mul, first, kind in blocks if kind >= 2)])
    out = gate(torch.ones(1, width, dtype=torch.float64))[0]
    scales, column = {}, 0
    for _, dim, mul, _, kind in blocks:
        scales[kind] = float(out[column] / plain[kind])
        column += dim * mul
    return scales


def radial_matrices(network: Any, weights: RadialWeights, num_weights: int, padding: int) -> Any:
    """Of a `RadialNetwork`: hidden features filled up with zeros, weights in their places."""
    matrices = [as_array(w) / math.sqrt(w.shape[0]) for w in network.weights.parameters()]
    padded = []
    for n, matrix in enumerate(matrices):
        last = n + 1 == len(matrices)
        rows, columns = (-(-size // padding) * padding for size in matrix.shape)
        filled = np.zeros((rows, num_weights if last else columns))
        if last:
            filled[: len(matrix), weights.places] = matrix * weights.scales
        else:
            filled[: len(matrix), : matrix.shape[1]] = matrix
        padded.append(filled)
    return padded


def side_by_side(networks: list[list[np.ndarray]]) -> list[np.ndarray]:
    """Perceptrons of the same input as one: hidden features in a row, outputs added."""
    if len(networks) == 1 or len(networks[0]) == 1:
        return [np.sum(layer, axis=0) for layer in zip(*networks, strict=True)]
    layers = list(zip(*networks, strict=True))
    hidden = [block_diag(*layer) for layer in layers[1:-1]]
    return [np.concatenate(layers[0], axis=1), *hidden, np.concatenate(layers[-1])]


def bias(term: Any, layout: Layout) -> np.ndarray:
    """The row of constants of a `ScalarBias`."""
    block = layout.block_at(int(term.at))
    row = np.zeros(layout.width)
    values = as_array(term.bias)
    row[layout.offset(block) + layout.channels(block)[: len(values)]] = values
    return row


def readout_steps(
    source: NamedLayout,
    inner: np.ndarray,
    outer: np.ndarray,
    scale: np.ndarray,
    silu: float,
    name: str,
    feature: int = 0,
) -> tuple[list[Row], list[Step]]:
    """From even scalars, a row's first block, to the energy: new rows, steps.

    Args:
        inner: [scalars, hidden], empty if the readout is linear.
        outer: [hidden], or [scalars].
        silu: what it is multiplied by.
        name: of the row of hidden features.
        feature: how many features of an atom other readouts have made.
    """
    width = source.layout.padded([len(outer)])[0]
    weights = np.zeros(width)
    weights[: len(outer)] = outer / math.sqrt(len(outer))
    if not len(inner):
        return [], [ReadoutStep(source.name, weights, scale, feature, len(outer))]
    scalars = source.layout.stride(0)
    matrices = np.zeros((1, scalars, width))
    matrices[0, : inner.shape[0], : inner.shape[1]] = inner / math.sqrt(inner.shape[0])
    into = LinearStep(source.name, name, 0, scalars, 1, 0, width, matrices)
    out = ReadoutStep(name, weights, scale, feature, len(outer), "silu", silu)
    return [Row(name, width)], [into, out]


def _core(reference: Any) -> CoreTables | None:
    if not reference.core_repulsion:
        return None
    parts = {name: as_array(buffer) for name, buffer in reference.repulsion.named_buffers()}
    older = reference.repulsion  # files lack what was the same for all
    return CoreTables(
        charges=parts["charges"],
        screening=parts["screening"],
        cutoff=parts["pair_cutoff"],
        power=int(getattr(older, "power", 6)),
        amplitudes=np.array(getattr(older, "amplitudes", (0.18175, 0.50986, 0.28022, 0.02817))),
        decays=np.array(getattr(older, "decays", (3.19980, 0.94229, 0.40290, 0.20162))),
    )


def _crowding(term: Any) -> CrowdingTables:
    if "onset" in dict(term.named_buffers()):  # an older file
        ends = np.array([1.0, 2.0])
        return CrowdingTables(as_array(term.distances), as_array(term.onset), ends)
    crowded, counted, close = (
        np.array([getattr(term, f"{name}_from"), getattr(term, f"{name}_to")])
        for name in ("crowded", "counted", "close")
    )
    return CrowdingTables(
        as_array(term.distances),
        as_array(term.coordination),
        crowded,
        float(term.cost),
        counted,
        close,
        as_array(term.closest),
    )


def network_plan(
    module: Any, scalar: str, padding: int, rows: list[Row], layers: list[LayerPlan], silu: float
) -> Plan:
    """The rest of a plan, which all architectures have (eqcalc.models.base).

    Args:
        silu: what SiLU is multiplied by in radial networks.
    """
    reference = module.reference_energy
    parts = dict(module.named_children())  # older files lack some
    pair = inner = stretch = crowding = agnesi = None
    if "pair" in dict(reference.named_children()):
        term = reference.pair
        pair = PairTables(float(term.rate), float(term.cutoff), as_array(term.coefficients))
    if "inner_limit" in parts:
        inner = as_array(module.inner_limit.distances)
    if "pair_cutoffs" in parts:
        stretch = as_array(module.pair_cutoffs.stretch)
    if "crowding" in parts:
        crowding = _crowding(module.crowding)
    if "distance_transform" in parts:
        term = module.distance_transform
        bonds, kinds = np.unique(as_array(term.bonds), return_inverse=True)
        kinds = kinds.reshape(term.bonds.shape)
        agnesi = AgnesiConstants(kinds, bonds, *map(float, term.constants))
    solid = bool(getattr(module.spherical_harmonics, "solid", False))
    if solid and inner is not None:
        raise NotCovered("of a network with solid harmonics, limits of distances are not covered")
    return Plan(
        scalar=scalar,
        padding=padding,
        cutoff=float(module.cutoff),
        num_species=len(module.atomic_numbers),
        l_max=int(module.spherical_harmonics.l_max),
        harmonics=[
            as_array(s.coupling).reshape(3, -1, s.coupling.shape[1])
            for s in children(module.spherical_harmonics.steps)
        ],
        rows=rows,
        layers=layers,
        basis=BesselConstants(
            orders=as_array(module.radial_basis.orders),
            prefactor=float(module.radial_basis.prefactor),
            envelope_power=float(module.radial_basis.power),
            envelope_onset=float(getattr(module.radial_basis, "onset", 0.0)),  # not in older files
            silu=silu,
        ),
        shift=as_array(reference.shift),
        core=_core(reference),
        pair=pair,
        inner_limits=inner,
        stretch=stretch,
        crowding=crowding,
        agnesi=agnesi,
        solid=solid,
    )
