"""What the fused engine needs to know of a potential, read out of its file.

Rows of features are padded: every run of channels that the network treats alike (the channels of an
irrep, of one path in a message, of the gates of one irrep) is filled up with zeros to whole cache
lines, so that no kernel has a remainder. A `Layout` says where a column of the file's rows is then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from eqcalc.engine.build import EngineUnavailable

#: numbers of 64 bytes
PADDING = {"float": 16, "double": 8}


class NotCovered(EngineUnavailable):
    """The model is of a kind that the fused engine does not know."""


@dataclass(frozen=True)
class Layout:
    """Rows made of blocks [2l + 1, channels], the channels in separately padded runs.

    blocks: (2l + 1, channels of each run) of each block.
    """

    blocks: tuple[tuple[int, tuple[int, ...]], ...]
    padding: int

    def padded(self, runs: Sequence[int]) -> list[int]:
        return [-(-n // self.padding) * self.padding for n in runs]

    def stride(self, block: int) -> int:
        """Padded channels of a block."""
        return sum(self.padded(self.blocks[block][1]))

    def offset(self, block: int) -> int:
        """First padded column of a block."""
        return sum(dim * sum(self.padded(runs)) for dim, runs in self.blocks[:block])

    @property
    def width(self) -> int:
        return self.offset(len(self.blocks))

    def channels(self, block: int) -> np.ndarray:
        """Padded place of each channel of a block, relative to a row [stride]."""
        runs = self.blocks[block][1]
        starts = [0, *accumulate(self.padded(runs))]
        return np.concatenate(
            [np.arange(n) + at for n, at in zip(runs, starts, strict=False)] or [np.zeros(0, int)]
        ).astype(int)

    def block_at(self, column: int) -> int:
        """The block that begins at an unpadded column."""
        starts = [0, *accumulate(dim * sum(runs) for dim, runs in self.blocks)]
        return starts.index(column)


@dataclass(frozen=True)
class Path:
    """One coupling in padded rows.

    x, d1: first column and 2 l1 + 1 of the input; out, d3, stride: first column, 2 l3 + 1 and
    padded channels of the output; mul: padded channels; terms: (m1, place in Y, m3, coefficient).
    The radial weights are in the order in which a kernel reads them: a cache line of each path of
    the block, then the next. weight: the first of this path; weight_step: from line to line.
    """

    x: int
    d1: int
    out: int
    d3: int
    stride: int
    weight: int
    weight_step: int
    mul: int
    terms: tuple[tuple[int, int, int, float], ...]


@dataclass(frozen=True)
class ConvolutionPlan:
    """Equal plans share their kernels."""

    width_in: int
    width_out: int
    num_weights: int
    paths: tuple[Path, ...]


@dataclass
class LinearStep:
    """Rows [dim, stride_in] times a matrix, or one per species, added to rows of the output."""

    at_in: int
    stride_in: int
    dim: int
    at_out: int
    stride_out: int
    matrices: np.ndarray  # [species or 1, inputs, outputs], padded


@dataclass
class MessageProduct:
    """Products of messages with themselves (see eqcalc.nn.product), in padded rows.

    into: messages -> factors; out: products -> rows before the gate; channels: padded, of each
    factor; product[n] += coefficients[n] factor first[n] * factor second[n], by first columns.
    """

    width_factors: int
    width_products: int
    channels: int
    into: list[LinearStep]
    out: list[LinearStep]
    first: list[int]
    second: list[int]
    product: list[int]
    coefficients: np.ndarray


@dataclass
class GateBlock:
    """kind 0: SiLU, 1: tanh, 2 and 3: gated by sigmoid and SiLU; places in padded rows."""

    kind: int
    at_in: int
    dim: int
    mul: int
    gate: int
    at_out: int


@dataclass
class RadialWeights:
    """places: of the file's radial weights among the padded ones; scales: what they are multiplied
    by, so that most coefficients of a path are 1 or -1.
    """

    places: np.ndarray
    scales: np.ndarray


@dataclass
class RadialTable:
    """Splines on segments of distances that begin at `start` (Å) and are cut into equal intervals.

    segments: (start, intervals); coefficients: [intervals, degree + 1, padded weights], of powers
    of t = -1/2..1/2.
    """

    segments: list[tuple[float, int]]
    coefficients: np.ndarray


@dataclass
class LayerPlan:
    """One message-passing layer."""

    convolution: ConvolutionPlan
    weights: RadialWeights
    width_in: int
    width_pre: int
    width_out: int
    up: list[LinearStep]
    own: list[LinearStep]
    mix: list[LinearStep]
    product: MessageProduct | None
    gate: list[GateBlock]
    readout_in: np.ndarray | None  # [padded scalars, padded hidden]
    readout_out: np.ndarray | None  # [padded hidden]
    radial_network: list[np.ndarray]
    up_bias: np.ndarray | None = None  # [width_in]
    pre_bias: np.ndarray | None = None  # [width_pre]
    table: RadialTable | None = None

    @property
    def linear_maps(self) -> list[LinearStep]:
        of_messages = [] if self.product is None else [*self.product.into, *self.product.out]
        return [*self.up, *self.own, *self.mix, *of_messages]


@dataclass
class ActivationScales:
    """What activations are multiplied by."""

    silu: float
    tanh: float
    sigmoid: float


@dataclass
class BesselConstants:
    """Bessel functions in an envelope (eqcalc.nn.radial)."""

    orders: np.ndarray
    prefactor: float
    envelope_power: float
    envelope_onset: float  # Å, of XPLOR; 0: polynomial


@dataclass
class CoreTables:
    """That of eqcalc.nn.reference; arrays [species, species]."""

    charges: np.ndarray
    screening: np.ndarray
    cutoff: np.ndarray
    power: int


@dataclass
class CrowdingTables:
    """Where messages fade (eqcalc.nn.crowding)."""

    distances: np.ndarray  # [species, species] Å
    onset: np.ndarray  # [species]


@dataclass
class PairTables:
    """The pair potential of eqcalc.nn.reference."""

    rate: float
    cutoff: float
    coefficients: np.ndarray  # [species, species, terms]


@dataclass
class Plan:
    """A whole network; numbers in float64."""

    scalar: str
    cutoff: float
    num_species: int
    l_max: int
    harmonics: list[np.ndarray]  # couplings Y_1 x Y_l -> Y_{l+1}: [3, 2l + 1, 2l + 3]
    embedding: np.ndarray  # [species, width of layer 0]
    layers: list[LayerPlan]
    activation_scales: ActivationScales
    basis: BesselConstants
    scale: np.ndarray
    shift: np.ndarray
    core: CoreTables | None = None
    pair: PairTables | None = None
    inner_limits: np.ndarray | None = None  # [species, species]
    crowding: CrowdingTables | None = None


def as_array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().to(torch.float64).cpu().numpy()


def _children(module: Any) -> list[Any]:
    return [getattr(module, name) for name, _ in module.named_children()]


def _linear_maps(
    linear: Any, inputs: Layout, outputs: Layout, norm: np.ndarray | None = None
) -> list[LinearStep]:
    """The blocks of a (species) linear map between padded rows.

    `norm` multiplies the (unpadded) columns that come in, the same for a whole block.
    """
    maps = []
    for block, (at, dim, mul_in, mul_out, first) in enumerate(linear._blocks):
        if mul_in == 0:
            continue
        source = inputs.block_at(at)
        factor = 1.0 if norm is None else norm[at]
        weight = as_array(linear.weight)[:, first : first + mul_in * mul_out]
        padded = np.zeros((weight.shape[0], inputs.stride(source), outputs.stride(block)))
        rows, columns = inputs.channels(source), outputs.channels(block)
        padded[:, rows[:, None], columns[None, :]] = (
            weight.reshape(-1, mul_in, mul_out) * factor / math.sqrt(mul_in)
        )
        maps.append(
            LinearStep(
                inputs.offset(source),
                inputs.stride(source),
                dim,
                outputs.offset(block),
                outputs.stride(block),
                padded,
            )
        )
    return maps


def _clean(c: float) -> float:
    """1 and -1 without rounding noise: kernels leave them out."""
    return float(round(c)) if abs(abs(c) - 1.0) < 1e-12 else float(c)


def _convolution(module: Any, inputs: Layout) -> tuple[ConvolutionPlan, RadialWeights, Layout]:
    """Kernel plan, radial weights, layout of the messages."""
    padding = inputs.padding
    buffers = dict(module.named_buffers())
    outputs = Layout(
        tuple(
            (pieces[0][2], tuple(module._blocks[block][2] for block, _, _ in pieces))
            for pieces in module._pieces
        ),
        padding,
    )
    places = {}  # (block, first row) -> first column, stride
    for k, pieces in enumerate(module._pieces):
        starts = [0, *accumulate(outputs.padded(outputs.blocks[k][1]))]
        for (block, row, _), start in zip(pieces, starts, strict=False):
            places[block, row] = outputs.offset(k) + start, outputs.stride(k)

    paths = []
    weight_places: list[np.ndarray] = []
    scales: list[np.ndarray] = []
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
        weight += num_paths * padded
    plan = ConvolutionPlan(inputs.width, outputs.width, weight, tuple(paths))
    return plan, RadialWeights(np.concatenate(weight_places), np.concatenate(scales)), outputs


def _message_product(
    module: Any, messages: Layout, outputs: Layout, norm: np.ndarray
) -> MessageProduct:
    channel_product = module.channel_product
    channels, padding = int(channel_product.num_channels), messages.padding
    factors = Layout(tuple((dim, (channels,)) for dim, _ in messages.blocks), padding)
    pieces = channel_product._pieces
    products = Layout(tuple((dim, (channels,) * paths) for paths, dim in pieces), padding)
    row_of_factors = [
        factors.offset(block) + m * factors.stride(block)
        for block, (dim, _) in enumerate(factors.blocks)
        for m in range(dim)
    ]
    padded = factors.padded([channels])[0]
    row_of_products = [
        products.offset(block) + m * products.stride(block) + path * padded
        for block, (paths, dim) in enumerate(pieces)
        for path in range(paths)
        for m in range(dim)
    ]
    coupling = as_array(channel_product.coupling)
    first, second = channel_product.first.tolist(), channel_product.second.tolist()
    used = np.argwhere(np.abs(coupling) > 1e-12).tolist()
    return MessageProduct(
        width_factors=factors.width,
        width_products=products.width,
        channels=padded,
        into=_linear_maps(module.linear_in.linear, messages, factors, norm),
        out=_linear_maps(module.linear_out.linear, products, outputs),
        first=[row_of_factors[first[pair]] for _, pair in used],
        second=[row_of_factors[second[pair]] for _, pair in used],
        product=[row_of_products[row] for row, _ in used],
        coefficients=np.array([coupling[row, pair] for row, pair in used]),
    )


def _gate(module: Any, padding: int) -> tuple[Layout, Layout, list[GateBlock]]:
    """Layouts before and after, and what happens to each block."""
    blocks = module._blocks
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
        gate = next(gate_places) if kind >= 2 else 0
        mul = after.stride(k)
        plan.append(GateBlock(kind, before.offset(k), dim, mul, gate, after.offset(k)))
    return before, after, plan


def _padded_network(
    matrices: list[np.ndarray], weights: RadialWeights, num_weights: int, padding: int
) -> list[np.ndarray]:
    """Zeros fill up the hidden features, and the radial weights go to their places."""
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


def _linear_readout(out: np.ndarray, silu: float) -> tuple[np.ndarray, np.ndarray]:
    """Two hidden features that make a linear readout: x = silu(x) - silu(-x), but for a factor."""
    scale = math.sqrt(2.0) / silu
    return np.stack([out, -out], axis=1), np.array([scale, -scale])


def _bias(module: Any, name: str, layout: Layout) -> np.ndarray | None:
    """A row of constants for the even scalars, if the layer has such."""
    if name not in dict(module.named_children()):  # nor do older files
        return None
    term = getattr(module, name)
    block = layout.block_at(int(term.at))
    row = np.zeros(layout.width)
    values = as_array(term.bias)
    row[layout.offset(block) + layout.channels(block)[: len(values)]] = values
    return row


def _layer(module: Any, inputs: Layout, silu: float) -> tuple[LayerPlan, Layout]:
    convolution, weights, messages = _convolution(module.convolution, inputs)
    before, after, gate = _gate(module.gate, inputs.padding)
    readout_in = readout_out = None
    if module.has_readout:
        weight, out = as_array(module.readout_in), as_array(module.readout_out)
        if getattr(module, "linear_readout", False):  # older files lack it
            weight, out = _linear_readout(out, silu)
        scalars, hidden = after.stride(0), after.padded([len(out)])[0]
        readout_in = np.zeros((scalars, hidden))
        readout_in[: weight.shape[0], : len(out)] = weight / math.sqrt(weight.shape[0])
        readout_out = np.zeros(hidden)
        readout_out[: len(out)] = out / math.sqrt(len(out))
    network = [
        as_array(w) / math.sqrt(w.shape[0]) for w in module.radial_network.weights.parameters()
    ]
    norm = as_array(module.message_norm)
    product = getattr(module, "product", None)  # older files lack it
    plan = LayerPlan(
        convolution=convolution,
        weights=weights,
        width_in=inputs.width,
        width_pre=before.width,
        width_out=after.width,
        up=_linear_maps(module.linear_up.linear, inputs, inputs),
        own=_linear_maps(module.self_connection, inputs, before),
        mix=_linear_maps(module.linear_mix.linear, messages, before, norm),
        product=None if product is None else _message_product(product, messages, before, norm),
        gate=gate,
        readout_in=readout_in,
        readout_out=readout_out,
        radial_network=_padded_network(network, weights, convolution.num_weights, inputs.padding),
        up_bias=_bias(module, "up_bias", inputs),
        pre_bias=_bias(module, "gate_bias", before),
    )
    return plan, after


def _activation_scales(layers: list[Any]) -> ActivationScales:
    """What SiLU, tanh and the sigmoid of gates are multiplied by, measured on the file's gates."""
    one = torch.ones((), dtype=torch.float64)
    silu = torch.nn.functional.silu(one)
    plain = [silu, torch.tanh(one), torch.sigmoid(one), silu]
    scales = [1.0, 1.0, 1.0]
    for layer in layers:
        blocks = layer.gate._blocks
        width = max(at + dim * mul for at, dim, mul, _, _ in blocks)
        width = max([width, *(gate + mul for _, _, mul, gate, kind in blocks if kind >= 2)])
        out = layer.gate(torch.ones(1, width, dtype=torch.float64))[0]
        column = 0
        for _, dim, mul, _, kind in blocks:
            scales[kind % 3] = float(out[column] / plain[kind])
            column += dim * mul
    return ActivationScales(*scales)


def read_nequip(module: torch.jit.ScriptModule, scalar: str) -> Plan:
    """The plan of a scripted `eqcalc.models.nequip.NequIP` in float64."""
    padding = PADDING[scalar]
    weight = as_array(module.species_embedding)
    layout = Layout(((1, (weight.shape[1],)),), padding)
    embedding = np.zeros((len(weight), layout.width))
    embedding[:, layout.channels(0)] = weight
    layers = []
    scales = _activation_scales(_children(module.layers))
    for child in _children(module.layers):
        plan, layout = _layer(child, layout, scales.silu)
        layers.append(plan)
    reference = module.reference_energy
    core = None
    if reference.core_repulsion:
        parts = {name: as_array(buffer) for name, buffer in reference.repulsion.named_buffers()}
        core = CoreTables(
            charges=parts["charges"],
            screening=parts["screening"],
            cutoff=parts["pair_cutoff"],
            power=int(getattr(reference.repulsion, "power", 6)),  # not in older files
        )
    pair = None
    if "pair" in dict(reference.named_children()):  # not in older files
        term = reference.pair
        pair = PairTables(float(term.rate), float(term.cutoff), as_array(term.coefficients))
    inner = None
    if "inner_limit" in dict(module.named_children()):
        inner = as_array(module.inner_limit.distances)
    crowding = None
    if "crowding" in dict(module.named_children()):
        crowding = CrowdingTables(
            as_array(module.crowding.distances), as_array(module.crowding.onset)
        )
    l_max = int(module.spherical_harmonics.l_max)
    steps = _children(module.spherical_harmonics.steps)
    return Plan(
        scalar=scalar,
        cutoff=float(module.cutoff),
        num_species=len(module.atomic_numbers),
        l_max=l_max,
        harmonics=[as_array(s.coupling).reshape(3, -1, s.coupling.shape[1]) for s in steps],
        embedding=embedding,
        layers=layers,
        activation_scales=scales,
        basis=BesselConstants(
            orders=as_array(module.radial_basis.orders),
            prefactor=float(module.radial_basis.prefactor),
            envelope_power=float(module.radial_basis.power),
            envelope_onset=float(getattr(module.radial_basis, "onset", 0.0)),  # not in older files
        ),
        scale=as_array(reference.scale),
        shift=as_array(reference.shift),
        core=core,
        pair=pair,
        inner_limits=inner,
        crowding=crowding,
    )


#: by the architecture that the file's metadata names
READERS = {"NequIP": read_nequip}


def read(module: torch.jit.ScriptModule, architecture: str | None, scalar: str) -> Plan:
    """The plan of a potential in float64; `scalar` is that of the engine, "float" or "double".

    Raises:
        NotCovered: no reader for this architecture.
    """
    if architecture not in READERS:
        raise NotCovered(f"The fused engine does not know the architecture {architecture}.")
    return READERS[architecture](module, scalar)
