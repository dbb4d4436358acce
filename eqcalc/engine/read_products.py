"""Operations on edges without frames, lowered for `eqcalc.engine.read_messages`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from eqcalc.engine import bricks
from eqcalc.engine import message_plan as plans
from eqcalc.engine.bricks import NamedLayout
from eqcalc.engine.plan import Layout, NotCovered
from eqcalc.program import messages as ops
from eqcalc.program import transpose
from eqcalc.program.operations import Gate, Linear

if TYPE_CHECKING:
    from eqcalc.engine.read_messages import MessageReader


def pair_sum(reader: MessageReader, op: ops.PairSum) -> plans.PairSumStep:
    reader.layouts[op.name] = reader.features.layout
    return plans.PairSumStep(op.name)


def pair_sum_back(_: MessageReader, op: ops.PairSum, g: transpose.Gradient) -> plans.PairBackStep:
    del op
    return plans.PairBackStep(g.source)


def _blocks(reader: MessageReader, op: Linear) -> list[plans.LinearRows]:
    if op.by_species:
        raise NotCovered(f"The engine has one matrix for all edges, and {op.name} one by species.")
    names = NamedLayout("", reader.layouts[op.source]), NamedLayout("", reader.layouts[op.name])
    steps = bricks.linear_steps(reader.modules[op.name], *names)
    return [
        plans.LinearRows(s.at_in, s.stride_in, s.dim, s.at_out, s.stride_out, s.matrices[0])
        for s in steps
    ]


def linear(reader: MessageReader, op: Linear) -> plans.EdgeLinearStep:
    gates = [r for r in reader.program.readers[op.name] if isinstance(r, Gate)]
    if gates:
        layout = bricks.gate(reader.modules[gates[0].name], reader.padding)[0]
    else:
        irreps = re.findall(r"(\d+)x(\d+)[eo]", op.irreps)
        blocks = tuple((2 * int(degree) + 1, (int(mul),)) for mul, degree in irreps)
        layout = Layout(blocks, reader.padding)
    reader.layouts[op.name] = layout
    return plans.EdgeLinearStep(op.source, op.name, _blocks(reader, op))


def linear_back(reader: MessageReader, op: Linear, g: transpose.Gradient) -> plans.EdgeLinearStep:
    blocks = [block.transposed() for block in _blocks(reader, op)]
    return plans.EdgeLinearStep(g.source, g.name, blocks, reader.starts(g.name))


def _gated(reader: MessageReader, op: Gate) -> list[plans.GatedRows]:
    _, reader.layouts[op.name], blocks = bricks.gate(reader.modules[op.name], reader.padding)
    return [
        plans.GatedRows(
            *(block.activation, block.scale, block.mul),
            block.at_in + block.mul * np.arange(block.dim),
            block.at_out + block.mul * np.arange(block.dim),
            block.gate,
        )
        for block in blocks
    ]


def gate(reader: MessageReader, op: Gate) -> plans.EdgeGateStep:
    return plans.EdgeGateStep(op.source, op.name, _gated(reader, op))


def gate_back(reader: MessageReader, op: Gate, g: transpose.Gradient) -> plans.EdgeGateStep:
    return plans.EdgeGateStep(g.source, g.name, _gated(reader, op), op.source)


def product(reader: MessageReader, op: ops.EdgeProduct) -> plans.EdgeProductStep:
    made = bricks.convolution(reader.modules[op.name], reader.layouts[op.source])
    convolution, weights, reader.layouts[op.name] = made
    first = reader.add_radial(op.radial, weights, convolution.num_weights)
    return plans.EdgeProductStep(op.source, op.name, convolution.from_weight(first))


def product_back(
    reader: MessageReader, op: ops.EdgeProduct, g: transpose.Gradient
) -> plans.EdgeProductStep:
    made = bricks.convolution(reader.modules[op.name], reader.layouts[op.source])[0]
    convolution = made.from_weight(reader.first_weight[op.radial])
    return plans.EdgeProductStep(g.source, g.name, convolution, op.source)


def edge_sum(reader: MessageReader, op: ops.EdgeSum) -> plans.EdgeSumStep:
    _same_layout(reader, op)
    return plans.EdgeSumStep(op.source, op.weights, reader.target.stride(0))


def edge_sum_back(
    reader: MessageReader, op: ops.EdgeSum, g: transpose.SumGradient
) -> plans.EdgeSpreadStep:
    names = g.name, op.source, op.weights, g.weights
    return plans.EdgeSpreadStep(*names, reader.target.stride(0))


def _same_layout(reader: MessageReader, op: ops.EdgeSum) -> None:
    if reader.layouts[op.source] != reader.target:
        raise NotCovered(f"The engine cannot sum {op.source} as it is: it needs a linear map.")


FORWARD = {
    ops.PairSum: pair_sum,
    Linear: linear,
    Gate: gate,
    ops.EdgeProduct: product,
    ops.EdgeSum: edge_sum,
}
#: by operation
BACKWARD = {
    ops.PairSum: pair_sum_back,
    Linear: linear_back,
    Gate: gate_back,
    ops.EdgeProduct: product_back,
    ops.EdgeSum: edge_sum_back,
}
