"""CUDA C++ of a layer's steps (eqcalc.engine.plan): one kernel there, and one back.

A block of threads takes a few atoms through all steps. Between two steps there is a barrier where
the second reads, or adds to, what the first has written.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from eqcalc.engine.plan import (
    AddStep,
    ContractionStep,
    GateStep,
    LayerPlan,
    LinearStep,
    NormGateStep,
    NotCovered,
    Plan,
    ReadoutStep,
    Row,
    Step,
)
from eqcalc.engine.rows import Lives
from eqcalc.engine.terms import number

#: atoms and threads of a block
ATOMS, THREADS = 8, 128


class _Arrays(Protocol):
    def add(self, *arrays: Any) -> int: ...


class _Body:
    """Calls and the barriers between them."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._written: set[tuple[str, int | None]] = set()
        self._read: set[str] = set()

    def call(self, line: str, reads: list[str], writes: str, column: int | None = None) -> None:
        """column: where the block that it writes begins; None: all of the row."""
        clash = writes in self._read or any(
            row in reads or (row == writes and (at is None or column in (None, at)))
            for row, at in self._written
        )
        if clash:
            self.barrier()
        self.lines.append(line)
        self._written.add((writes, column))
        self._read.update(reads)

    def barrier(self) -> None:
        if self._written or self._read:
            self.lines.append("__syncthreads();")
        self._written, self._read = set(), set()


def _sizes(step: ContractionStep) -> str:
    """Arguments of the template."""
    tables, channels, terms = step.coefficients.shape
    sizes = [step.channels, len(step.rows_in), len(step.first), len(step.rows_out), terms, tables]
    return ", ".join([*map(str, sizes), "true" if channels > 1 else "false"])


def _terms(name: str, step: ContractionStep) -> str:
    """Tables of integers, and the structure that names them."""
    tables = {
        "ROWS": step.rows_in,
        "OUTS": step.rows_out,
        "FIRST": step.first,
        "SECOND": step.second,
        "OUT": step.out,
        "LEFT": step.left,
        "RIGHT": step.right,
    }
    lines = [
        f"__device__ const int {name}_{part}[] = {{{', '.join(map(str, [*map(int, values), 0]))}}};"
        for part, values in tables.items()
    ]
    names = ", ".join(f"{name}_{part}" for part in tables)
    return "\n" + "\n".join([*lines, f"#define {name} Terms{{{names}}}\n"])


class NodeKernels:
    """Kernels nodes_k and nodes_back_k of all layers.

    Attributes:
        source: theirs.
        rows: where the rows are: name, width, values and gradients ("neighbours", "kept",
            "as values" or "pool"), slot.
        pool_width: numbers of an atom in the pool.
    """

    def __init__(self, plan: Plan, weights: _Arrays, constants: _Arrays) -> None:
        self.plan, self._weights, self._constants = plan, weights, constants
        self._lives = Lives(plan)
        self._number = {row.name: n for n, row in enumerate(plan.rows)}
        self._widths = {row.name: row.width for row in plan.rows}
        self._begins = {
            row.name: (weights.add(row.begin), len(row.begin))
            for row in plan.rows
            if row.begin is not None
        }
        self._matrices: dict[int, tuple[int, int]] = {}
        self._tables: list[str] = []  # of integers, in the source
        self._steps = {id(s): self._numbers(s) for layer in plan.layers for s in layer.steps}
        self.rows = [self._row(row) for row in plan.rows]
        self._by_name = {row["name"]: row for row in self.rows}
        self.pool_width = self._slots()
        self.source = "".join(self._tables) + "".join(
            self._kernel(k, layer) + self._kernel_back(k, layer)
            for k, layer in enumerate(plan.layers)
        )

    # ---- where rows are

    def _row(self, row: Row) -> dict[str, Any]:
        of_neighbours = row.name in self._lives.features
        kept = self._lives.needed(row.name) or self._lives.carried(row.name)
        gradient = {"in block": "pool"}.get(place := self._lives.gradient(row.name), place)
        return {
            "name": row.name,
            "width": row.width,
            "values": "neighbours" if of_neighbours else "kept" if kept else "pool",
            "gradients": "neighbours" if of_neighbours else gradient,
            "slot": 0,
        }

    def _slots(self) -> int:
        """Gives the rows in the pool their places, and returns its width."""
        widest = 0
        for layer in self.plan.layers:
            used = {layer.messages, *(name for step in layer.steps for name in step.rows)}
            slot = 0
            for row in self.rows:
                if row["name"] in used and "pool" in (row["values"], row["gradients"]):
                    row["slot"] = slot
                    slot += row["width"]
            widest = max(widest, slot)
        return widest

    def _values(self, name: str) -> str:
        return f"v{self._number[name]}"

    def _gradients(self, name: str) -> str:
        same = self._by_name[name]["gradients"] == "as values"
        return f"{'v' if same else 'g'}{self._number[name]}"

    def _sets(self, name: str) -> str:
        """Whether the gradient of a row is set by the one step that reads it."""
        place = self._by_name[name]["gradients"]
        return "true" if place == "as values" and self._lives.needed(name) else "false"

    def _declare(self, layer: LayerPlan) -> list[str]:
        names = dict.fromkeys([layer.messages, *(n for s in layer.steps for n in s.rows)])
        return [
            f"[[maybe_unused]] const Rows {kind}{self._number[name]} = "
            f"{{t.{place}[{self._number[name]}], {self._widths[name]}}};"
            for name in names
            for kind, place in (("v", "values"), ("g", "gradients"))
        ]

    # ---- numbers of the steps

    def _numbers(self, step: Step) -> Any:
        """Places of what a step reads."""
        match step:
            case LinearStep():
                turned = np.swapaxes(step.matrices, 1, 2)
                return self._weights.add(step.matrices), self._weights.add(turned)
            case ContractionStep():
                name = f"TERMS_{len(self._tables)}"
                self._tables.append(_terms(name, step))
                return name, self._weights.add(np.swapaxes(step.coefficients, 1, 2))
            case NormGateStep():
                return [
                    self._weights.add(b.bias) if b.bias is not None else -1 for b in step.blocks
                ]
            case ReadoutStep():
                return self._weights.add(step.weights), self._constants.add(step.scale)
            case AddStep() | GateStep():
                return None
        raise NotCovered(f"The GPU engine does not know the operation {type(step).__name__}.")

    # ---- kernels

    def _whole(self, name: str, layer: LayerPlan, body: _Body) -> str:
        lines = [*self._declare(layer), *body.lines]
        return (
            f'\nextern "C" __global__ void __launch_bounds__({THREADS}) {name}(const Task t)\n{{\n'
            "  const int begin = t.begin + blockIdx.x * ATOMS;\n"
            "  const int count = min(ATOMS, t.end - begin);\n  " + "\n  ".join(lines) + "\n}\n"
        )

    def _kernel(self, k: int, layer: LayerPlan) -> str:
        body = _Body()
        for name in self._lives.starts(k):
            at, tables = self._begins.get(name, (0, 0))
            v = self._values(name)
            line = f"start<{tables}>({v}, t.weights + {at}, t.species, begin, count);"
            body.call(line, [], v)
        for step in layer.steps:
            self._forward(step, body)
        return self._whole(f"nodes_{k}", layer, body)

    def _kernel_back(self, k: int, layer: LayerPlan) -> str:
        body = _Body()
        for name in self._lives.gradient_starts(k):
            g = self._gradients(name)
            body.call(f"start<0>({g}, t.weights, t.species, begin, count);", [], g)
        for step in reversed(layer.steps):
            self._backward(step, body)
        return self._whole(f"nodes_back_{k}", layer, body)

    def _forward(self, step: Step, body: _Body) -> None:
        x = self._values(step.source)
        numbers = self._steps[id(step)]
        if isinstance(step, ReadoutStep):
            line = (
                f"readout<{step.activation.upper()}, {len(step.weights)}, {step.feature}, "
                f"{step.num_features}>({number(float(step.activation_scale))}, "
                f"{step.num_features**-0.5!r}, {x}, t.weights + {numbers[0]}, "
                f"t.constants + {numbers[1]}, t, begin, count);"
            )
            body.call(line, [x], "energies")
            return
        y = self._values(step.target)
        match step:
            case AddStep():
                body.call(f"add({x}, {y}, begin, count);", [x], y)
            case LinearStep():
                line = (
                    f"linear<{step.dim}, {step.stride_in}, {step.stride_out}, {len(step.matrices)}>"
                    f"({x}, {step.at_in}, {y}, {step.at_out}, t.weights + {numbers[0]}, t.species, "
                    "begin, count);"
                )
                body.call(line, [x], y, step.at_out)
            case ContractionStep():
                line = (
                    f"contraction<{_sizes(step)}>({numbers[0]}, t.weights + {numbers[1]}, "
                    f"t.species, {x}, {y}, begin, count);"
                )
                body.call(line, [x], y)
            case GateStep():
                for b in step.blocks:
                    gate = -1 if b.gate is None else b.gate
                    line = (
                        f"gate<{b.activation.upper()}, {b.dim}, {b.mul}, {gate}>("
                        f"{number(float(b.scale))}, {x}, {b.at_in}, {y}, {b.at_out}, begin, count);"
                    )
                    body.call(line, [x], y, b.at_out)
            case NormGateStep():
                for b, bias in zip(step.blocks, numbers, strict=True):
                    body.call(self._norm_gate(step, b, bias, x, y), [x], y, b.at)

    def _norm_gate(self, step: NormGateStep, b: Any, bias: int, x: str, y: str) -> str:
        kind, scale = b.activation.upper(), number(float(b.scale))
        if bias < 0:
            return (
                f"gate<{kind}, 1, {b.mul * b.dim}, -1>({scale}, {x}, {b.at}, {y}, {b.at}, begin, "
                "count);"
            )
        return (
            f"norm_gate<{kind}, {b.dim}, {b.mul}>({scale}, t.weights + {bias}, "
            f"{number(float(step.square))}, {x}, {y}, {b.at}, begin, count);"
        )

    def _backward(self, step: Step, body: _Body) -> None:
        x, dx = self._values(step.source), self._gradients(step.source)
        sets, numbers = self._sets(step.source), self._steps[id(step)]
        if isinstance(step, ReadoutStep):
            line = (
                f"readout_gradient<{step.activation.upper()}, {len(step.weights)}, {sets}>("
                f"{number(float(step.activation_scale))}, {x}, {dx}, t.weights + {numbers[0]}, "
                f"t.constants + {numbers[1]}, t.species, begin, count);"
            )
            body.call(line, [x] if step.activation != "identity" else [], dx)
            return
        dy = self._gradients(step.target)
        match step:
            case AddStep():
                body.call(f"add({dy}, {dx}, begin, count);", [dy], dx)
            case LinearStep():
                line = (
                    f"linear<{step.dim}, {step.stride_out}, {step.stride_in}, {len(step.matrices)}>"
                    f"({dy}, {step.at_out}, {dx}, {step.at_in}, t.weights + {numbers[1]}, "
                    "t.species, begin, count);"
                )
                body.call(line, [dy], dx, step.at_in)
            case ContractionStep():
                line = (
                    f"contraction_gradient<{_sizes(step)}>({numbers[0]}, t.weights + {numbers[1]}, "
                    f"t.species, {x}, {dx}, {dy}, begin, count);"
                )
                body.call(line, [x, dy], dx)
            case GateStep():
                for b in step.blocks:
                    gate = -1 if b.gate is None else b.gate
                    line = (
                        f"gate_gradient<{b.activation.upper()}, {b.dim}, {b.mul}, {gate}, {sets}>("
                        f"{number(float(b.scale))}, {x}, {dx}, {b.at_in}, {dy}, {b.at_out}, begin, "
                        "count);"
                    )
                    body.call(line, [x, dy], dx, b.at_in)
            case NormGateStep():
                for b, bias in zip(step.blocks, numbers, strict=True):
                    kind, scale = b.activation.upper(), number(float(b.scale))
                    if bias < 0:
                        line = (
                            f"gate_gradient<{kind}, 1, {b.mul * b.dim}, -1, {sets}>({scale}, {x}, "
                            f"{dx}, {b.at}, {dy}, {b.at}, begin, count);"
                        )
                    else:
                        line = (
                            f"norm_gate_gradient<{kind}, {b.dim}, {b.mul}, {sets}>({scale}, "
                            f"t.weights + {bias}, {number(float(step.square))}, {x}, {dx}, {dy}, "
                            f"{b.at}, begin, count);"
                        )
                    body.call(line, [x, dy], dx, b.at)
