"""Modules of operations on edges, and how the text of a stage calls them."""

from collections.abc import Callable
from typing import Any

from e3nn import o3
from torch import nn

from eqcalc.nn.attention import Attention
from eqcalc.nn.edge_product import EdgeProduct, PairSum, WeightedSum
from eqcalc.nn.so2 import FrameGate, FrameSum, Modulation, SO2Linear, ToFrames
from eqcalc.nn.sphere import FrameSphereActivation
from eqcalc.program import messages as ops
from eqcalc.program.operation import Operation
from eqcalc.program.program import Program


def frame_limits(program: Program) -> tuple[int, int]:
    """l_max and m_max of the Wigner matrices that a program needs."""
    inside = [op for op in program.operations if isinstance(op, ops.InFrames)]
    l_max = max((len(o3.Irreps(op.irreps)) - 1 for op in inside), default=0)
    return l_max, min(l_max, max((op.m_max for op in inside), default=0))


def _to_frames(op: ops.ToFrames, l_max: int, m_max: int) -> ToFrames:
    return ToFrames(o3.Irreps(op.irreps_in), op.m_max, l_max, m_max)


def _so2_linear(op: ops.SO2Linear, *_: int) -> SO2Linear:
    return SO2Linear(o3.Irreps(op.irreps_in), op.m_max_in, o3.Irreps(op.irreps), op.m_max)


def _sphere(op: ops.FrameSphere, l_max: int, m_max: int) -> FrameSphereActivation:
    return FrameSphereActivation(o3.Irreps(op.irreps), op.m_max, op.polar, l_max, m_max)


def _frame_sum(op: ops.FrameSum, l_max: int, m_max: int) -> FrameSum:
    return FrameSum(o3.Irreps(op.irreps), op.m_max, op.heads, l_max, m_max)


def _product(op: ops.EdgeProduct, *_: int) -> EdgeProduct:
    module = EdgeProduct(o3.Irreps(op.irreps_in), op.l_max, o3.Irreps(op.irreps))
    if module.irreps_out != o3.Irreps(op.irreps):
        raise ValueError(f"{op.name} has {module.irreps_out}, not {op.irreps}")
    return module


#: the module of an operation, of the program's l_max and m_max in frames
EDGE_MODULES: dict[type[Operation], Callable[[Any, int, int], nn.Module]] = {
    ops.ToFrames: _to_frames,
    ops.Modulation: lambda op, *_: Modulation(o3.Irreps(op.irreps), op.m_max),
    ops.SO2Linear: _so2_linear,
    ops.FrameGate: lambda op, *_: FrameGate(o3.Irreps(op.irreps), op.m_max),
    ops.FrameSphere: _sphere,
    ops.FrameSum: _frame_sum,
    ops.Attention: lambda op, *_: Attention(op.heads, op.width),
    ops.PairSum: lambda *_: PairSum(),
    ops.EdgeProduct: _product,
    ops.EdgeSum: lambda op, *_: WeightedSum(o3.Irreps(op.irreps), op.heads),
}

EDGE = "edges.src, edges.dst"
SUM = "edges.dst, num_local"


def _weights(op: ops.FrameSum) -> str:
    return op.weights or "edges.envelope.unsqueeze(1)"


def _scalars(op: ops.Attention) -> str:
    return f"{op.source}[0].flatten(1)" if op.in_frames else op.source


def _product_arguments(op: ops.EdgeProduct) -> str:
    return f"{op.source}, edges.attrs[:, :{(op.l_max + 1) ** 2}], {op.radial}"


#: what the module of an operation is called with
ARGUMENTS: dict[type[Operation], Callable[[Any], str]] = {
    ops.ToFrames: lambda op: f"{op.source}, {op.centre}, edges.frames, {EDGE}",
    ops.Modulation: lambda op: f"{op.source}, {op.radial}",
    ops.SO2Linear: lambda op: op.source,
    ops.FrameGate: lambda op: op.source,
    ops.FrameSphere: lambda op: f"{op.source}, edges.frames",
    ops.FrameSum: lambda op: f"{op.source}, {_weights(op)}, edges.frames, {SUM}",
    ops.Attention: lambda op: f"{_scalars(op)}, edges.envelope, {SUM}",
    ops.PairSum: lambda op: f"{op.source}, {op.centre}, {EDGE}",
    ops.EdgeProduct: _product_arguments,
    ops.EdgeSum: lambda op: f"{op.source}, {op.weights}, {SUM}",
}
