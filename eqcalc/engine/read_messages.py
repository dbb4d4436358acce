"""The plan of a message, from the operations on edges of a `Program` and their scripted modules.

The way back is that of `eqcalc.program.transpose`, operation by operation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from eqcalc.engine import bricks, read_products
from eqcalc.engine import message_plan as plans
from eqcalc.engine.arrays import as_array
from eqcalc.engine.message_plan import FrameLayout, MessagePlan
from eqcalc.engine.plan import Layout, NotCovered, RadialWeights
from eqcalc.program import messages as ops
from eqcalc.program import transpose
from eqcalc.program.operation import Operation
from eqcalc.program.operations import Radial
from eqcalc.program.program import Program


def _exponents(name: str) -> str:
    """The value beside the weights of attention `name`."""
    return f"{name}_exponents"


def _channels(irreps: str) -> list[int]:
    return [int(mul) for mul, _ in re.findall(r"(\d+)x(\d+)[eo]", irreps)]


def sphere_tables(module: Any, places: list[int], used: list[int], mul: int) -> plans.SphereTables:
    """Of a `SphereActivation`; places, used: first columns and numbers of its rows."""
    to_grid = as_array(module.to_grid)
    from_grid = np.zeros_like(to_grid)
    from_grid[:, 1:] = as_array(module.from_grid).T
    return plans.SphereTables(
        mul,
        to_grid[:, used],
        from_grid[:, used],
        np.array(places),
        bool(module.exact),
        float(module.scale),
        bricks.activation_scale("silu"),
    )


class MessageReader:
    """Lowers the operations that one sum over edges ends.

    Args:
        program: of the network.
        modules: by name.
        row: of a value on atoms, its layout.
        padding: of runs of channels.
    """

    def __init__(
        self,
        program: Program,
        modules: dict[str, Any],
        row: Callable[[str], bricks.NamedLayout],
        padding: int,
    ) -> None:
        self.program, self.modules, self.row, self.padding = program, modules, row, padding
        self.layouts: dict[str, FrameLayout | Layout] = {}
        self.first_weight: dict[str, int] = {}  # of radial functions, by name
        self.radial_weights: dict[str, RadialWeights] = {}
        self.num_weights = 0
        self.heads: plans.HeadsPlan | None = None

    def operations(self, end: Operation) -> list[Operation]:
        """Those on edges that lead to a sum, and the sum."""
        wanted = {end.name}
        for op in reversed(self.program.operations):
            if op.name in wanted and (op is end or op.name in self.program.on_edges):
                wanted.update(op.inputs)
        on_edges = self.program.on_edges
        found = (op for op in self.program.operations if op.name in wanted)
        return [op for op in found if op is end or op.name in on_edges]

    def read(self, end: Operation, target: Layout, norms: np.ndarray) -> tuple[MessagePlan, str]:
        """The message that ends so, whose sum has this layout; the row of the features."""
        every = self.operations(end)
        self.radial = [op for op in every if isinstance(op, Radial)]
        steps = [op for op in every if not isinstance(op, Radial)]
        for op in steps:
            if type(op) not in FORWARD:
                raise NotCovered(f"The engine does not know the operation {type(op).__name__}.")
        (atoms,) = (op for op in steps if isinstance(op, ops.ToFrames | ops.PairSum))
        self.target, self.features = target, self.row(atoms.source)
        centre = self.row(atoms.centre)
        if centre.layout != self.features.layout:
            raise NotCovered(f"The engine knows {atoms.name} of features of one kind alone.")
        forward = [FORWARD[type(op)](self, op) for op in steps]
        kept = transpose.worth_keeping(steps)
        self.started: set[str] = set()
        values = [plans.EdgeValue(name, layout.width) for name, layout in self.layouts.items()]
        gradients = [
            plans.EdgeValue(transpose.gradient_of(value.name), value.width) for value in values
        ]

        def made_again(kept: tuple[str, ...] = ()) -> list[plans.EdgeOperation]:
            names = {op.name for op in transpose.needed_again(steps, kept)}
            return [step for op, step in zip(steps, forward, strict=True) if op.name in names]

        plan = MessagePlan(
            centre.name,
            values + gradients,
            forward,
            made_again(),
            made_again(kept),
            [BACKWARD[type(g.of)](self, g.of, g) for g in transpose.transpose(steps)],
            list(kept),
            plans.KEPT_BYTES,
            norms,
            self.num_weights,
            self.heads,
        )
        return plan, self.features.name

    def weights(self) -> RadialWeights:
        """Places of the file's radial weights, in its order."""
        every = [self.radial_weights[op.name] for op in self.radial]
        places, scales = zip(*((w.places, w.scales) for w in every), strict=True)
        return RadialWeights(np.concatenate(places), np.concatenate(scales))

    def matrices(self) -> list[np.ndarray]:
        """Of all radial networks of the message, side by side but for what they read."""
        every = [
            bricks.radial_matrices(
                self.modules[op.name], self.radial_weights[op.name], self.num_weights, self.padding
            )
            for op in self.radial
        ]
        if len({len(matrices) for matrices in every}) > 1:
            raise NotCovered("The engine has radial networks of one depth for a message.")
        return bricks.side_by_side(every)

    def add_radial(self, name: str, weights: RadialWeights, count: int) -> int:
        """Makes room for the functions of a radial network; returns the place of the first."""
        first = self.first_weight[name] = self.num_weights
        self.radial_weights[name] = RadialWeights(weights.places + first, weights.scales)
        self.num_weights += count
        return first

    def starts(self, gradient: str) -> bool:
        """Whether nothing has been added to a gradient before."""
        first = gradient not in self.started
        self.started.add(gradient)
        return first

    def frame_layout(self, op: Any, runs: list[tuple[int, ...]] | None = None) -> FrameLayout:
        runs = runs or [(mul,) for mul in _channels(op.irreps)]
        layout = FrameLayout(tuple(runs), min(op.m_max, len(runs) - 1), self.padding)
        self.layouts[op.name] = layout
        return layout

    def degrees(self, layout: FrameLayout, atoms: Layout) -> list[plans.DegreeRows]:
        return [
            plans.DegreeRows(
                degree,
                min(degree, layout.m_max),
                atoms.offset(degree),
                atoms.stride(degree),
                np.array(layout.rows(degree)),
            )
            for degree in range(len(atoms.blocks))
        ]

    def to_frames(self, op: ops.ToFrames) -> plans.EdgeOperation:
        runs = [(mul, mul) for mul in _channels(op.irreps_in)]
        layout = self.frame_layout(op, runs)
        return plans.ToFramesStep(op.name, self.degrees(layout, self.features.layout))

    def from_frames(self, op: ops.ToFrames, gradient: transpose.Gradient) -> plans.EdgeOperation:
        degrees = self.degrees(self.layouts[op.name], self.features.layout)
        return plans.FromFramesStep(gradient.source, degrees)

    def modulate(self, op: ops.Modulation) -> plans.EdgeOperation:
        layout = self.layouts[op.name] = self.layouts[op.source]
        return plans.ModulateStep(op.source, op.name, self.modulated(op, layout))

    def modulate_back(self, op: ops.Modulation, gradient: transpose.Gradient) -> plans.ModulateStep:
        blocks = self.modulated(op, self.layouts[op.name])
        return plans.ModulateStep(gradient.source, gradient.name, blocks, op.source)

    def linear(self, op: ops.SO2Linear) -> plans.EdgeOperation:
        return plans.EdgeLinearStep(op.source, op.name, self.so2_linear(op))

    def linear_back(self, op: ops.SO2Linear, gradient: transpose.Gradient) -> plans.EdgeLinearStep:
        blocks = [block.transposed() for block in self.so2_linear(op)]
        starts = self.starts(gradient.name)
        return plans.EdgeLinearStep(gradient.source, gradient.name, blocks, starts)

    def gate(self, op: ops.FrameGate) -> plans.EdgeOperation:
        return plans.EdgeGateStep(op.source, op.name, self.frame_gate(op))

    def gate_back(self, op: ops.FrameGate, gradient: transpose.Gradient) -> plans.EdgeGateStep:
        return plans.EdgeGateStep(gradient.source, gradient.name, self.frame_gate(op), op.source)

    def sphere(self, op: ops.FrameSphere) -> plans.EdgeOperation:
        return plans.EdgeSphereStep(op.source, op.name, self.frame_sphere(op))

    def sphere_back(
        self, op: ops.FrameSphere, gradient: transpose.Gradient
    ) -> plans.EdgeSphereStep:
        return plans.EdgeSphereStep(
            gradient.source, gradient.name, self.frame_sphere(op), op.source
        )

    def sum(self, op: ops.FrameSum) -> plans.EdgeOperation:
        if self.layouts[op.source].runs != tuple(runs for _, runs in self.target.blocks):
            raise NotCovered(f"The engine cannot sum {op.source} as it is: it needs a linear map.")
        degrees = self.degrees(self.layouts[op.source], self.target)
        return plans.FrameSumStep(op.source, degrees, op.weights or None)

    def sum_back(self, op: ops.FrameSum, gradient: transpose.SumGradient) -> plans.FrameSpreadStep:
        degrees = self.degrees(self.layouts[op.source], self.target)
        weights = op.weights or None, gradient.weights or None
        return plans.FrameSpreadStep(gradient.name, op.source, degrees, *weights)

    def attention_back(
        self, op: ops.Attention, gradient: transpose.Gradient
    ) -> plans.AttentionBackStep:
        names = gradient.source, gradient.name, op.source, _exponents(op.name)
        return plans.AttentionBackStep(*names, self.heads)

    def modulated(self, op: ops.Modulation, layout: FrameLayout) -> list[plans.ModulatedRows]:
        if op.radial not in self.first_weight:
            places, count = [], 0
            for m in layout.orders:
                places.append(count + layout.channels(m))
                count += layout.columns(m)
            every = np.concatenate(places)
            self.add_radial(op.radial, RadialWeights(every, np.ones(len(every))), count)
        blocks, weight = [], self.first_weight[op.radial]
        for m in layout.orders:
            dim, stride = 2 if m else 1, layout.columns(m)
            blocks.append(plans.ModulatedRows(weight, layout.at(m), dim, stride))
            weight += stride
        return blocks

    def attention(self, op: ops.Attention) -> plans.AttentionStep:
        channels, columns = self.target.channels(0), np.full(self.target.width, -1)
        if any(runs != self.target.blocks[0][1] for _, runs in self.target.blocks):
            raise NotCovered("The engine knows attention to equally many channels of each degree.")
        of_channel = np.full(self.target.stride(0), -1)
        of_channel[channels] = np.arange(len(channels)) * op.heads // len(channels)
        for at in self.target.rows():
            columns[at : at + len(of_channel)] = of_channel
        before = self.layouts[op.source]
        weight, of_scalar = np.zeros(before.width), np.full(before.width, -1)
        places = before.channels(0)
        matrix = as_array(self.modules[op.name].weight)  # [heads, width]
        weight[places] = matrix.ravel() / math.sqrt(op.width)
        of_scalar[places] = np.repeat(np.arange(op.heads), op.width)
        silu = bricks.activation_scale("silu")
        self.heads = plans.HeadsPlan(op.heads, weight, of_scalar, of_channel, columns, silu)
        for name, count in ((op.name, len(channels)), (_exponents(op.name), op.heads)):
            self.layouts[name] = FrameLayout(((count,),), 0, self.padding)
        return plans.AttentionStep(op.source, op.name, _exponents(op.name), self.heads)

    def so2_linear(self, op: ops.SO2Linear) -> list[plans.LinearRows]:
        before = self.layouts[op.source]
        if op.name not in self.layouts:
            gates = [r for r in self.program.readers[op.name] if isinstance(r, ops.FrameGate)]
            runs = [(mul,) for mul in _channels(op.irreps)]
            if gates:
                inner = _channels(gates[0].irreps)
                runs[0] = tuple(inner)  # scalars, then the gates of each degree
            self.frame_layout(op, runs)
        after = self.layouts[op.name]
        weight = as_array(self.modules[op.name].weight)
        blocks, first = [], 0
        for m in after.orders:
            rows, columns = before.channels(m), after.channels(m)
            size = len(rows) * len(columns)
            matrix = np.zeros((before.columns(m), after.columns(m)))
            part = weight[first : first + size].reshape(len(rows), len(columns))
            matrix[np.ix_(rows, columns)] = part / math.sqrt(len(rows))
            blocks.append(
                plans.LinearRows(
                    *(before.at(m), before.columns(m), 2 if m else 1),
                    *(after.at(m), after.columns(m), matrix),
                )
            )
            first += size
        return blocks

    def frame_gate(self, op: ops.FrameGate) -> list[plans.GatedRows]:
        before = self.layouts[op.source]
        after = self.layouts.get(op.name) or self.frame_layout(op)
        gated = "silu" if self.modules[op.name].silu else "sigmoid"
        starts = np.cumsum([0, *before.padded(0)])
        blocks = []
        for degree in range(len(after.runs)):
            activation = gated if degree else "silu"
            blocks.append(
                plans.GatedRows(
                    activation,
                    bricks.activation_scale(activation),
                    after.stride(degree),
                    np.array(before.rows(degree)),
                    np.array(after.rows(degree)),
                    int(starts[degree]) if degree else None,
                )
            )
        return blocks

    def frame_sphere(self, op: ops.FrameSphere) -> plans.SphereTables:
        """On points of the frame, which is exact for the expansion of SiLU alone."""
        if op.polar:
            raise NotCovered("The engine knows SiLU on edges' spheres to second order alone.")
        layout = self.layouts.get(op.name) or self.frame_layout(op)
        places, used = [], []
        for degree in range(len(layout.runs)):
            signs = [0, *(s * m for m in range(1, min(degree, layout.m_max) + 1) for s in (-1, 1))]
            places += layout.rows(degree)
            used += [degree * degree + degree + m for m in signs]
        return sphere_tables(self.modules[op.name].activation, places, used, layout.stride(0))


FORWARD: dict[type[Operation], Callable[[MessageReader, Any], plans.EdgeOperation]] = {
    ops.ToFrames: MessageReader.to_frames,
    ops.Modulation: MessageReader.modulate,
    ops.SO2Linear: MessageReader.linear,
    ops.FrameGate: MessageReader.gate,
    ops.FrameSphere: MessageReader.sphere,
    ops.Attention: MessageReader.attention,
    ops.FrameSum: MessageReader.sum,
    **read_products.FORWARD,
}
#: of the operation whose gradient it is
BACKWARD: dict[type[Operation], Callable[[MessageReader, Any, Any], plans.EdgeOperation]] = {
    ops.ToFrames: MessageReader.from_frames,
    ops.Modulation: MessageReader.modulate_back,
    ops.SO2Linear: MessageReader.linear_back,
    ops.FrameGate: MessageReader.gate_back,
    ops.FrameSphere: MessageReader.sphere_back,
    ops.Attention: MessageReader.attention_back,
    ops.FrameSum: MessageReader.sum_back,
    **read_products.BACKWARD,
}
