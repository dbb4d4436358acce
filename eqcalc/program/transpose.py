r"""The gradient of a message as operations: one rule for each operation on edges.

A message is a list of operations on edges that ends with a sum over a centre's edges. With g_x for
the gradient of an energy with respect to a value x, each operation y = f(x) owes x what the
transpose of its derivative makes of g_y,

    g_x += (dy/dx)^T g_y,

and the direction, the length or the harmonics of the edge as much, where f has them. Those of an
atom's features go to that atom, on edges they add up. The list goes from the last operation to the
first, so that a gradient is whole when it is read.

Wigner matrices need no derivative of their own. Turned by an infinitesimal rotation w, an edge's
matrix is D (1 - w.J), to a rotation about the edge that no message feels; with torques
t_k = dE/dw_k and u a unit vector along the edge, dE/du = t x u and

    y = D x       t_k -= <D^T g_y, J_k x>
    y = D^T x     t_k += <g_y, J_k y>

J_k are the generators of rotations in real harmonics (`generators`).

Operations on atoms follow the same rule. The engine takes them one by one, and what each owes is
written in one place, beside what it makes:

| operation                                  | its transpose                                      |
|--------------------------------------------|----------------------------------------------------|
| `Convolution`                              | `trilinear.TrilinearForm`, as that of `EdgeProduct`|
| `Contraction`, `Product`                   | `engine.contraction_kernels.Polynomial`; tables of |
|                                            | many terms: contraction.h, contraction.cuh         |
| `Linear`, `Bias`, `Add`, `Normalization`   | the same map with its matrix turned                |
| `Gate`, `NormGate`, `LayerNorm`, `Sphere`, | their steps (engine/csrc/*_step.h, nodes.cuh on a  |
| `Readout`                                  | GPU, dense.h in training)                          |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from eqcalc.program import messages as ops
from eqcalc.program.operation import Operation
from eqcalc.program.operations import Gate, Linear


@dataclass(frozen=True)
class Gradient(Operation):
    """Adds to the gradient `name` what an operation owes to the value that it is of.

    source: gradient of the operation's value; of: the operation; values: what it needs of the way
    forward.
    """

    source: str
    of: Operation
    values: tuple[str, ...] = ()
    reads: ClassVar[tuple[str, ...]] = ("source", "values")
    on_edges: ClassVar[bool | None] = True
    #: what of the edge gets its part: direction, length, harmonics
    owes: ClassVar[tuple[str, ...]] = ()

    def formula(self) -> str:
        return f"({type(self.of).__name__})^T {', '.join(self.inputs)}"


class LinearGradient(Gradient):
    """W^T g."""


class GateGradient(Gradient):
    """g times gates, and their slopes times <g, x> over the rows of a gated channel."""


class SphereGradient(Gradient):
    """from_grid^T g, times the slope of the function on the points, through to_grid^T."""


class ModulationGradient(Gradient):
    """R g, and R' <x, g> for the length."""

    owes = ("length",)


class ProductGradient(Gradient):
    """R C Y g, R' <C x Y, g> for the length, and R C x g for the harmonics: the gradients of a
    `trilinear.TrilinearForm`.
    """

    owes = ("length", "harmonics")


class SumGradient(Gradient):
    """a D g of the sum's gradient, or a g where there are no frames.

    weights: gradient of the weights, <g, D^T x> of each head; without weights the envelope's,
    which the length takes.
    """

    owes = ("length", "direction")

    @property
    def weights(self) -> str:
        return gradient_of(self.of.weights) if self.of.weights else ""


class AttentionGradient(Gradient):
    """a_e (g_e - sum_k a_k g_k) slope, of each head, and its part of the envelope."""

    owes = ("length",)


class ToAtoms(Gradient):
    """D^T g, or g where there are no frames, to the features of both atoms."""

    owes = ("direction",)


#: operations on edges whose cost is that of a matrix
MAPS = ops.SO2Linear, Linear


def gradient_of(name: str) -> str:
    """The name of a value's gradient."""
    return f"d_{name}"


def _rule(kind: type[Gradient], *needs: str) -> Callable[[Any], Gradient]:
    """needs: fields that name what the way forward has to keep."""
    return lambda op: kind(gradient_of(op.source), gradient_of(op.name), op, op.named(needs))


#: of each operation on edges, what it owes
RULES: dict[type[Operation], Callable[[Any], Gradient]] = {
    ops.FrameSum: _rule(SumGradient, "source", "weights"),
    ops.EdgeSum: _rule(SumGradient, "source", "weights"),
    ops.SO2Linear: _rule(LinearGradient),
    Linear: _rule(LinearGradient),
    ops.FrameGate: _rule(GateGradient, "source"),
    Gate: _rule(GateGradient, "source"),
    ops.FrameSphere: _rule(SphereGradient, "source"),
    ops.Modulation: _rule(ModulationGradient, "source"),
    ops.EdgeProduct: _rule(ProductGradient, "source"),
    ops.Attention: _rule(AttentionGradient, "source", "name"),
    ops.ToFrames: _rule(ToAtoms),
    ops.PairSum: _rule(ToAtoms),
}


def transpose(operations: Sequence[Operation]) -> tuple[Gradient, ...]:
    """The way back through a message, from its sum's gradient to atoms and edges.

    Raises:
        ValueError: an operation has no rule.
    """
    found = []
    for op in reversed(operations):
        if type(op) not in RULES:
            raise ValueError(f"{op.name}: {type(op).__name__} has no transpose")
        found.append(RULES[type(op)](op))
    return tuple(found)


def needed_again(
    operations: Sequence[Operation], kept: Sequence[str] = ()
) -> tuple[Operation, ...]:
    """The operations whose values the way back reads, with what leads to them.

    kept: values that are there.
    """
    wanted = {name for op in transpose(operations) for name in op.values}
    for op in reversed(operations):
        if op.name in wanted and op.name not in kept:
            wanted.update(op.inputs)
    return tuple(op for op in operations if op.name in wanted and op.name not in kept)


def worth_keeping(operations: Sequence[Operation]) -> tuple[str, ...]:
    """Values of linear maps that the way back would make again: most of its work forward."""
    again = needed_again(operations, [op.name for op in operations if isinstance(op, MAPS)])
    read = {name for op in transpose(operations) for name in op.values}
    read.update(name for op in again for name in op.inputs)
    return tuple(op.name for op in operations if isinstance(op, MAPS) and op.name in read)


def generators(l: int) -> np.ndarray:  # noqa: E741 - the standard name of the degree
    """J_k [3, 2l + 1, 2l + 1] with D(exp(w x)) = 1 + w.J to first order, k = x, y, z.

    Real harmonics whose polar axis is y: with x, y, z renamed to y, z, x they are the usual ones,
    real and imaginary parts of (-1)^m sqrt(2) Y_lm, on which -i L_k act (e.g. Varshalovich et al.,
    Quantum Theory of Angular Momentum, section 4.1).
    """
    m = np.arange(-l, l + 1)
    raised = np.diag(np.sqrt(l * (l + 1.0) - m[:-1] * (m[:-1] + 1.0)), -1)
    operators = (raised + raised.T) / 2.0, (raised - raised.T) / 2.0j, np.diag(m + 0.0)
    real = np.zeros((2 * l + 1, 2 * l + 1), dtype=complex)  # rows: real harmonics, of complex ones
    real[l, l] = 1.0
    for k in range(1, l + 1):
        a, sign = 1.0 / math.sqrt(2.0), (-1.0) ** k
        real[l + k, l + k], real[l + k, l - k] = sign * a, a
        real[l - k, l + k], real[l - k, l - k] = -1j * sign * a, 1j * a
    turned = [(real.conj() @ (-1j * op) @ real.T).real for op in operators]
    usual_x, usual_y, usual_z = turned
    return np.stack([usual_y, usual_z, usual_x])
