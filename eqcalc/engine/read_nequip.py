"""The plan of a NequIP, read out of its scripted module (eqcalc.models.nequip).

Layer k of an atom: messages m_k of features up_k x_k; then

    before the gate   p_k = own_k x_k + mix_k m_k + out_k B_k,   B_k = products of into_k m_k
    after it          x_{k+1} = gate(p_k)

of which the energy is read in the last layer. What the first layer makes of the species alone is
worked out here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from eqcalc.engine.arrays import as_array
from eqcalc.engine.contraction import contraction
from eqcalc.engine.plan import (
    PADDING,
    BesselConstants,
    ConvolutionPlan,
    CoreTables,
    CrowdingTables,
    GateBlock,
    GateStep,
    LayerPlan,
    Layout,
    LinearStep,
    PairTables,
    Path,
    Plan,
    RadialWeights,
    ReadoutStep,
    Row,
    Step,
)


def _children(module: Any) -> list[Any]:
    return [getattr(module, name) for name, _ in module.named_children()]


@dataclass(frozen=True)
class _Rows:
    """A row and what it is made of."""

    name: str
    layout: Layout

    def row(self, begin: np.ndarray | None = None) -> Row:
        return Row(self.name, self.layout.width, begin)


def _linear_steps(
    linear: Any, inputs: _Rows, outputs: _Rows, norm: np.ndarray | None = None
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


def _of_species(steps: Sequence[LinearStep], x: np.ndarray, begin: np.ndarray) -> np.ndarray:
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


def _product_steps(
    module: Any, messages: _Rows, outputs: _Rows, norm: np.ndarray, number: int
) -> tuple[list[_Rows], list[Step]]:
    """Products of messages with themselves (eqcalc.nn.product): new rows, steps."""
    channel_product = module.channel_product
    channels, padding = int(channel_product.num_channels), messages.layout.padding
    pieces = channel_product._pieces
    factors = _Rows(
        f"factors_{number}",
        Layout(tuple((dim, (channels,)) for dim, _ in messages.layout.blocks), padding),
    )
    products = _Rows(
        f"products_{number}",
        Layout(tuple((dim, (channels,) * paths) for paths, dim in pieces), padding),
    )
    padded = factors.layout.padded([channels])[0]
    rows_in = [
        factors.layout.offset(block) + m * padded
        for block, (dim, _) in enumerate(factors.layout.blocks)
        for m in range(dim)
    ]
    rows_out = [
        products.layout.offset(block) + (m * paths + path) * padded
        for block, (paths, dim) in enumerate(pieces)
        for path in range(paths)
        for m in range(dim)
    ]
    coupling = as_array(channel_product.coupling)
    first, second = channel_product.first.tolist(), channel_product.second.tolist()
    used = np.argwhere(np.abs(coupling) > 1e-12).tolist()
    steps = [
        *_linear_steps(module.linear_in.linear, messages, factors, norm),
        contraction(
            factors.name,
            products.name,
            channels=padded,
            rows_in=rows_in,
            rows_out=rows_out,
            terms=[(row, (first[pair], second[pair])) for row, pair in used],
            coefficients=np.array([[[coupling[row, pair] for row, pair in used]]]),
        ),
        *_linear_steps(module.linear_out.linear, products, outputs),
    ]
    return [factors, products], steps


def _gate(module: Any, padding: int) -> tuple[Layout, Layout, list[GateBlock]]:
    """Layouts before and after, and what happens to each block."""
    blocks = module._blocks
    scales = _activation_scales(module)
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


def _activation_scales(gate: Any) -> dict[int, float]:
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


def _bias(module: Any, name: str, layout: Layout) -> np.ndarray:
    """A row of constants on the even scalars; zeros if the layer has none."""
    row = np.zeros(layout.width)
    if name in dict(module.named_children()):  # older files lack them
        term = getattr(module, name)
        block = layout.block_at(int(term.at))
        values = as_array(term.bias)
        row[layout.offset(block) + layout.channels(block)[: len(values)]] = values
    return row


def _readout_steps(
    module: Any, after: _Rows, scale: np.ndarray, silu: float
) -> tuple[list[_Rows], list[Step]]:
    """New rows, steps."""
    weights = as_array(module.readout_out)
    scalars = after.layout.stride(0)
    width = after.layout.padded([len(weights)])[0]
    padded = np.zeros(width)
    padded[: len(weights)] = weights / math.sqrt(len(weights))
    if getattr(module, "linear_readout", False):  # older files lack it
        return [], [ReadoutStep(after.name, padded, scale)]
    matrix = as_array(module.readout_in)
    hidden = _Rows("hidden", Layout(((1, (len(weights),)),), after.layout.padding))
    matrices = np.zeros((1, scalars, width))
    matrices[0, : matrix.shape[0], : matrix.shape[1]] = matrix / math.sqrt(matrix.shape[0])
    into = LinearStep(after.name, hidden.name, 0, scalars, 1, 0, width, matrices)
    return [hidden], [into, ReadoutStep(hidden.name, padded, scale, "silu", silu)]


def _core(reference: Any) -> CoreTables | None:
    if not reference.core_repulsion:
        return None
    parts = {name: as_array(buffer) for name, buffer in reference.repulsion.named_buffers()}
    return CoreTables(
        charges=parts["charges"],
        screening=parts["screening"],
        cutoff=parts["pair_cutoff"],
        power=int(getattr(reference.repulsion, "power", 6)),  # not in older files
    )


def read_nequip(module: torch.jit.ScriptModule, scalar: str) -> Plan:
    """The plan of a scripted `eqcalc.models.nequip.NequIP` in float64."""
    padding = PADDING[scalar]
    reference = module.reference_energy
    modules = _children(module.layers)
    silu = next(s[0] for s in (_activation_scales(m.gate) for m in modules) if 0 in s)
    weight = as_array(module.species_embedding)
    inputs = Layout(((1, (weight.shape[1],)),), padding)
    embedding = np.zeros((len(weight), inputs.width))
    embedding[:, inputs.channels(0)] = weight

    rows: list[Row] = []
    layers: list[LayerPlan] = []
    after = _Rows("embedding", inputs)
    for k, layer in enumerate(modules):
        x = _Rows(f"features_{k}", after.layout)
        convolution, weights, outputs = _convolution(layer.convolution, x.layout)
        before, gated, blocks = _gate(layer.gate, padding)
        messages, before = _Rows(f"messages_{k}", outputs), _Rows(f"before_gate_{k}", before)
        up = _linear_steps(layer.linear_up.linear, after, x)
        own = _linear_steps(layer.self_connection, after, before)
        begins = _bias(layer, "up_bias", x.layout), _bias(layer, "gate_bias", before.layout)
        if k == 0:
            begins = _of_species(up, embedding, begins[0]), _of_species(own, embedding, begins[1])
        else:
            layers[-1].steps += [*up, *own]
            begins = begins[0][None], begins[1][None]
        after = _Rows(f"after_gate_{k}", gated)
        norm = as_array(layer.message_norm)
        steps: list[Step] = [*_linear_steps(layer.linear_mix.linear, messages, before, norm)]
        made: list[_Rows] = [messages, after]
        if getattr(layer, "product", None) is not None:  # older files lack it
            of_products = _product_steps(layer.product, messages, before, norm, k)
            made, steps = made + of_products[0], steps + of_products[1]
        steps.append(GateStep(before.name, after.name, blocks))
        if layer.has_readout:
            of_readout = _readout_steps(layer, after, as_array(reference.scale), silu)
            made, steps = made + of_readout[0], steps + of_readout[1]
        rows += [x.row(begins[0]), before.row(begins[1]), *(r.row() for r in made)]
        network = [
            as_array(w) / math.sqrt(w.shape[0]) for w in layer.radial_network.weights.parameters()
        ]
        layers.append(
            LayerPlan(
                convolution,
                weights,
                _padded_network(network, weights, convolution.num_weights, padding),
                x.name,
                messages.name,
                steps,
            )
        )

    parts = dict(module.named_children())  # older files lack some
    pair = inner = stretch = crowding = None
    if "pair" in dict(reference.named_children()):
        term = reference.pair
        pair = PairTables(float(term.rate), float(term.cutoff), as_array(term.coefficients))
    if "inner_limit" in parts:
        inner = as_array(module.inner_limit.distances)
    if "pair_cutoffs" in parts:
        stretch = as_array(module.pair_cutoffs.stretch)
    if "crowding" in parts:
        term = module.crowding
        crowding = CrowdingTables(as_array(term.distances), as_array(term.onset))
    return Plan(
        scalar=scalar,
        cutoff=float(module.cutoff),
        num_species=len(module.atomic_numbers),
        l_max=int(module.spherical_harmonics.l_max),
        harmonics=[
            as_array(s.coupling).reshape(3, -1, s.coupling.shape[1])
            for s in _children(module.spherical_harmonics.steps)
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
    )
