"""The plan of a `Program`, whose parameters are read out of its scripted module.

Every value on atoms is a row, but for three kinds. Linear maps that one sum reads add to the sum's
row; a bias is what its source's sum begins with; constants of a normalisation go into the matrices
that read it, or into messages that operations on edges make. What the species alone decide is
worked out here. Operations that do not fit raise `NotCovered`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from eqcalc.engine import bricks
from eqcalc.engine.arrays import as_array
from eqcalc.engine.bricks import NamedLayout
from eqcalc.engine.message_plan import FramesPlan
from eqcalc.engine.plan import (
    AddStep,
    CountPlan,
    GateStep,
    LayerPlan,
    Layout,
    NotCovered,
    Plan,
    Row,
    SphereStep,
    Step,
)
from eqcalc.engine.read_messages import MessageReader, sphere_tables
from eqcalc.program import operations as ops
from eqcalc.program.messages import EdgeSum, FrameSum
from eqcalc.program.program import Program

UNKNOWN = "The engine does not know the operation {}."


class _Reader:
    """Makes a plan, an operation at a time."""

    def __init__(
        self, program: Program, modules: Mapping[str, Any], module: Any, padding: int
    ) -> None:
        self.program, self.modules = program, modules
        self.module, self.padding = module, padding
        self.silu = bricks.activation_scale("silu")
        self.scale = as_array(module.reference_energy.scale)
        self.tables: dict[str, np.ndarray] = {}  # [species, width], of values before any layer
        self.begins: dict[str, np.ndarray] = {}  # [species or 1, width], of rows
        self.rows: list[Row] = []
        self.layers: list[LayerPlan] = []
        self.num_features = 0  # of an atom, made by readouts so far
        self.counts: dict[str, np.ndarray] = {}  # [num_radial, 1], of densities by name

    def joins(self, name: str) -> bool:
        """Whether a value's row is that of its one reader."""
        value, readers = self.program.by_name[name], self.program.readers[name]
        if len(readers) != 1:
            return False
        sums = isinstance(value, ops.Linear | ops.Add | ops.Bias)
        return sums and isinstance(readers[0], ops.Add | ops.Bias)

    def row(self, name: str) -> NamedLayout:
        """The row in which a value is."""
        while True:
            op = self.program.by_name[name]
            if isinstance(op, ops.Normalization):
                name = op.source
            elif self.joins(name):
                name = self.program.readers[name][0].name
            else:
                return NamedLayout(name, self.layout(op))

    def layout(self, op: Any) -> Layout:
        """Of a value that has a row of its own."""
        if isinstance(op, ops.Convolution):
            return bricks.message_layout(self.modules[op.name], self.padding)
        if isinstance(op, ops.Product):
            return bricks.product_layout(self.modules[op.name], self.padding)
        gates = [r for r in self.program.readers[op.name] if isinstance(r, ops.Gate)]
        if gates:
            return bricks.gate(self.modules[gates[0].name], self.padding)[0]
        irreps = re.findall(r"(\d+)x(\d+)[eo]", op.irreps)
        blocks = tuple((2 * int(degree) + 1, (int(mul),)) for mul, degree in irreps)
        return Layout(blocks, self.padding)

    def begin_with(self, row: NamedLayout, values: np.ndarray) -> None:
        self.begins[row.name] = self.begins.get(row.name, np.zeros((1, row.layout.width))) + values

    def of_species(self, op: Any) -> None:
        """A value that the species alone decide."""
        layout = self.row(op.name).layout
        match op:
            case ops.Embedding():
                weight = as_array(self.module.species_embedding)
                table = np.zeros((len(weight), layout.width))
                table[:, layout.channels(0)] = weight
            case ops.Linear():
                source, target = self.row(op.source), self.row(op.name)
                steps = bricks.linear_steps(self.modules[op.name], source, target)
                table = bricks.of_species(steps, self.tables[op.source], np.zeros(layout.width))
            case ops.Bias():
                table = self.tables[op.source] + bricks.bias(self.modules[op.name], layout)
            case ops.Add():
                table = sum(self.tables[name] for name in op.sources)
            case ops.LayerNorm():
                step = bricks.layer_norm_step(self.modules[op.name], self.row(op.source), "")
                x = self.tables[op.source]
                size = np.sqrt(step.square + (step.shares * x * x).sum(axis=1, keepdims=True))
                table = step.gains * x / size
            case _:
                raise NotCovered(UNKNOWN.format(type(op).__name__))
        self.tables[op.name] = table

    def of_atoms(self, op: Any) -> None:
        """A value that a convolution has led to."""
        match op:
            case ops.Convolution():
                self.convolution(op)
            case FrameSum() | EdgeSum():
                self.message(op)
            case ops.Normalization() if isinstance(
                self.program.by_name[op.source], FrameSum | EdgeSum
            ):
                pass  # its constants are in the message
            case ops.Normalization():
                readers = self.program.readers[op.name]
                if not all(isinstance(r, ops.Linear) for r in readers):
                    raise NotCovered(f"The engine does not know normalisations as {op.name}.")
            case ops.Bias() | ops.Add():
                self.sum(op)
            case ops.Readout():
                self.readout(op)
            case _:
                steps = self.steps(op, self.row(op.source), self.row(op.name))
                self.layers[self.program.depth[op.name] - 1].steps += steps

    def steps(  # noqa: PLR0911 - one for each operation
        self, op: Any, source: NamedLayout, target: NamedLayout
    ) -> list[Step]:
        """From row to row."""
        module = self.modules[op.name]
        match op:
            case ops.Linear():
                before = self.program.by_name[op.source]
                norm = None
                if isinstance(before, ops.Normalization) and not isinstance(
                    self.program.by_name[before.source], FrameSum | EdgeSum
                ):
                    norm = as_array(self.modules[before.name].norm)
                return bricks.linear_steps(module, source, target, norm)
            case ops.Contraction():
                return [bricks.contraction_step(module, source, target)]
            case ops.Product():
                return [bricks.product_step(module, source, target)]
            case ops.Gate():
                blocks = bricks.gate(module, self.padding)[2]
                return [GateStep(source.name, target.name, blocks)]
            case ops.NormGate():
                return [bricks.norm_gate_step(module, source, target)]
            case ops.LayerNorm():
                return [bricks.layer_norm_step(module, source, target.name)]
            case ops.Sphere():
                return [self.sphere(op, source, target)]
        raise NotCovered(UNKNOWN.format(type(op).__name__))

    def sphere(self, op: ops.Sphere, source: NamedLayout, target: NamedLayout) -> SphereStep:
        rows = source.layout.rows()
        every = list(range(len(rows)))
        tables = sphere_tables(self.modules[op.name], rows, every, source.layout.stride(0))
        return SphereStep(source.name, target.name, tables)

    def readout(self, op: ops.Readout) -> None:
        module = self.modules[op.name]
        inner, outer = as_array(module.inner), as_array(module.outer)
        rows, steps = bricks.readout_steps(
            self.row(op.source),
            inner,
            outer,
            self.scale,
            self.silu,
            f"{op.name}_inner",
            self.num_features,
        )
        self.num_features += len(outer)
        self.rows += rows
        self.layers[self.program.depth[op.name] - 1].steps += steps

    def sum(self, op: ops.Bias | ops.Add) -> None:
        """Adds what is not in its row yet."""
        target = self.row(op.name)
        if isinstance(op, ops.Bias):
            constants = bricks.bias(self.modules[op.name], target.layout)
            self.begin_with(target, constants[None])
        for name in op.inputs:
            row = self.row(name)
            if self.program.depth[name] == 0:
                self.begin_with(target, self.tables[name])
            elif row.name != target.name:
                if row.layout != target.layout:
                    raise NotCovered(f"The engine cannot add {name} to {op.name}.")
                steps = self.layers[self.program.depth[name] - 1].steps
                steps.append(AddStep(row.name, target.name))

    def convolution(self, op: ops.Convolution) -> None:
        k = self.program.depth[op.name] - 1
        source = self.row(op.source)
        if k != len(self.layers) or len(self.program.readers[op.source]) != 1:
            raise NotCovered(
                "The engine has one convolution of each depth, of features of its own."
            )
        self.fading(op)
        densities = {getattr(reader, "density", "") for reader in self.program.readers[op.name]}
        if len(densities) != 1:
            raise NotCovered(f"In the engine all readers of {op.name} divide it by one density.")
        if self.program.depth[op.source] == 0:
            self.rows.append(source.row(self.tables[op.source]))
        convolution, weights, _ = bricks.convolution(self.modules[op.name], source.layout)
        matrices = bricks.radial_matrices(
            self.modules[op.radial], weights, convolution.num_weights, self.padding
        )
        name = self.row(op.name).name
        layer = LayerPlan(convolution, weights, matrices, source.name, name, [])
        if density := densities.pop():
            weight = as_array(next(self.modules[density].network.weights.parameters()))
            layer.count = len(self.counts)
            self.counts[density] = weight / math.sqrt(len(weight))
        self.layers.append(layer)

    def fading(self, op: ops.Operation) -> None:
        """Raises NotCovered where messages of crowded atoms would have to stay."""
        fades = "crowding" in dict(self.module.named_children())
        readers = self.program.readers[op.name]
        if fades and not all(isinstance(reader, ops.Normalization) for reader in readers):
            raise NotCovered(
                f"In the engine all messages fade that crowd, also {op.name}, without a norm."
            )

    def message(self, op: FrameSum | EdgeSum) -> None:
        """Messages that operations on edges make."""
        k = self.program.depth[op.name] - 1
        if k != len(self.layers):
            raise NotCovered("The engine has messages of one kind for each depth.")
        self.fading(op)
        readers = self.program.readers[op.name]
        (norm,) = readers if len(readers) == 1 else (None,)
        target = self.row(op.name)
        norms = np.ones(target.layout.width)
        if isinstance(norm, ops.Normalization):
            if norm.density:
                raise NotCovered("The engine divides messages on edges by no density.")
            norms = bricks.spread(as_array(self.modules[norm.name].norm), target.layout)
        reader = MessageReader(self.program, self.modules, self.row, self.padding)
        plan, features = reader.read(op, target.layout, norms)
        named = {row.name for row in self.rows}
        for name in {features, plan.centre} - named:
            if name in self.tables:
                self.rows.append(self.row(name).row(self.tables[name]))
        self.layers.append(
            LayerPlan(
                None, reader.weights(), reader.matrices(), features, target.name, [], message=plan
            )
        )

    def frames(self) -> FramesPlan | None:
        if "edge_frames" not in dict(self.module.named_children()):
            return None
        frames = self.module.edge_frames
        matrix, degree = as_array(frames.matrix), int(frames.l_max)
        width, order = 0, -1
        while width < matrix.shape[1]:
            order += 1
            width = sum((2 * min(k, order) + 1) * (2 * k + 1) for k in range(degree + 1))
        return FramesPlan(degree, order, matrix, as_array(frames.signs))

    def plan(self, scalar: str) -> Plan:
        for op in self.program.operations:
            if isinstance(op, ops.Output):
                readouts = {o.name for o in self.program.operations if isinstance(o, ops.Readout)}
                if op.name != "energy" or readouts != set(op.sources):
                    raise NotCovered("The engine makes energies alone, sums of readouts.")
            elif op.name not in self.program.on_edges and not isinstance(op, ops.Density):
                (self.of_atoms if self.program.depth[op.name] else self.of_species)(op)
        used = {name for layer in self.layers for name in (layer.messages, *_touched(layer.steps))}
        used |= {layer.message.centre for layer in self.layers if layer.message}
        named = {row.name for row in self.rows}
        for op in self.program.operations:
            if op.name in used - named:
                row = self.row(op.name)
                self.rows.append(row.row(self.begins.get(row.name)))
        plan = bricks.network_plan(
            self.module, scalar, self.padding, self.rows, self.layers, self.silu
        )
        plan.frames = self.frames()
        if self.counts:
            plan.counts = CountPlan(np.concatenate(list(self.counts.values()), axis=1))
        return plan


def _touched(steps: list[Step]) -> set[str]:
    return {name for step in steps for name in step.rows}


def read_program(
    program: Program,
    modules: Mapping[str, Any],
    module: torch.jit.ScriptModule,
    scalar: str,
    padding: int,
) -> Plan:
    """The plan of a scripted potential in float64.

    Args:
        program: what it computes.
        modules: those of its operations, by their names.
        module: the potential.
        scalar: of the engine, "float" or "double".
        padding: of runs of channels.

    Raises:
        NotCovered: an operation, or a use of one, that the engine does not know.
    """
    return _Reader(program, modules, module, padding).plan(scalar)
