"""Convolutions that can be trained, on a GPU: the same kernels, with radial weights of each edge.

The convolution is S(g, x, Y, R) of `eqcalc.engine.generate`, linear in each of its arguments, so
three kernels are enough for its first and second derivatives: forward gives dS/dg, gather dS/dx,
edges dS/dY and dS/dR, with whatever stands in for the other arguments. All add to what is there.
"""

from __future__ import annotations

from eqcalc.engine.cuda.convolution import ConvolutionKernels, inside, or_zero
from eqcalc.engine.cuda.source import BEGIN, text
from eqcalc.engine.generate import kernel_paths
from eqcalc.engine.plan import ConvolutionPlan, Path
from eqcalc.nn.convolution import Convolution

#: harmonics of edges are looked at where their gradient is wanted
_KEEP = "if (t.dy) t.dy[(long long)edge * {num_y} + m] += sum;"


def training_plan(convolution: Convolution) -> ConvolutionPlan:
    widths = convolution.irreps_in.dim, convolution.irreps_out.dim, convolution.num_weights
    return ConvolutionPlan(*widths, tuple(kernel_paths(convolution)))


class TrainingKernels(ConvolutionKernels):
    """The three kernels of a convolution, by name; radial weights [edges, num_weights]."""

    FIRST_Y = 0
    FIND_WEIGHTS = "PLACE[n] = edge;"
    GIVE = "+="

    def __init__(self, convolution: Convolution, number: int, scalar: str) -> None:
        num_y = (convolution.l_max + 1) ** 2
        self.NUM_Y, self.KEEP = str(num_y), _KEEP.format(num_y=num_y)
        plan = training_plan(convolution)
        super().__init__(plan, number, convolution.l_max, 0, scalar, fades=False)

    def _at(self, path: Path) -> str:
        return f"(long long)PLACE[e] * {self.plan.num_weights} + {path.weight} + chunk * 32 + lane"

    def _weight(self, path: Path, factor: str = "", slope: str = "") -> str:  # noqa: ARG002
        read = or_zero(f"__ldg(t.weights + {self._at(path)})", path.mul)
        return f"const T w = {read};"

    def _owed(self, path: Path) -> str:
        where = inside(path.mul)
        condition = f"t.dweights && {where}" if where else "t.dweights"
        return f"if ({condition}) t.dweights[{self._at(path)}] += q;"


def training_source(convolutions: list[TrainingKernels], scalar: str) -> str:
    """One translation unit for a whole model."""
    head = [BEGIN, f"typedef {scalar} T;", text("training_task.h")]
    return "\n".join([*head, *(kernels.source for kernels in convolutions)])
