"""Operations on edges: messages that are more than one product (see `eqcalc.program.operations`).

Values on edges have irreps as those on atoms have. Values in frames (`eqcalc.nn.frames`) have
natural parity, and their components with |m| > `m_max` are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from eqcalc.program.operation import Operation


def sphere_formula(source: str, polar: int) -> str:
    """Of a nonlinearity on the sphere."""
    if polar == 0:
        return f"{source} / 2 + {source}^2 / 4 on the sphere"
    return f"silu({source} on {polar} x {2 * polar} points of the sphere)"


@dataclass(frozen=True)
class InFrames(Operation):
    """A value on edges, in their frames.

    irreps: of the value; m_max: its highest order.
    """

    on_edges: ClassVar[bool | None] = True


@dataclass(frozen=True)
class ToFrames(InFrames):
    """irreps_in: of both; irreps: twice the channels, the neighbour's and the centre's."""

    source: str
    centre: str
    irreps_in: str
    m_max: int
    irreps: str
    reads: ClassVar[tuple[str, ...]] = ("source", "centre")
    reads_neighbours: ClassVar[tuple[str, ...]] = ("source",)

    def formula(self) -> str:
        return f"D[edge] ({self.source}[j], {self.centre}[i]), |m| <= {self.m_max}"


@dataclass(frozen=True)
class Modulation(InFrames):
    """Every |m|, degree and channel times a function of distance."""

    source: str
    radial: str
    m_max: int
    irreps: str
    reads: ClassVar[tuple[str, ...]] = ("source", "radial")

    def formula(self) -> str:
        return f"{self.radial} {self.source}"


@dataclass(frozen=True)
class SO2Linear(InFrames):
    """A matrix over degrees and channels for each |m| (see `eqcalc.nn.so2`)."""

    source: str
    irreps_in: str
    m_max_in: int
    m_max: int
    irreps: str

    def formula(self) -> str:
        return f"W_|m| {self.source}"


@dataclass(frozen=True)
class FrameGate(InFrames):
    """`Gate` in frames."""

    source: str
    m_max: int
    irreps: str

    def formula(self) -> str:
        return f"gate_sigmoid({self.source})"


@dataclass(frozen=True)
class FrameSphere(InFrames):
    """`Sphere` of features in frames; polar: of the grid (`eqcalc.nn.sphere`)."""

    source: str
    m_max: int
    polar: int
    irreps: str

    def formula(self) -> str:
        return sphere_formula(self.source, self.polar)


@dataclass(frozen=True)
class FrameSum(Operation):
    """sum_j D^T x_ij times the envelope, or a weight for each of the heads that share channels."""

    source: str
    m_max: int
    irreps: str
    weights: str = ""
    heads: int = 1
    reads: ClassVar[tuple[str, ...]] = ("source", "weights")
    gathers: ClassVar[bool] = True

    def formula(self) -> str:
        return f"sum_j {self.weights or 'u(r)'} D[edge]^T {self.source}"


@dataclass(frozen=True)
class Attention(Operation):
    """Weights of a centre's neighbours (see `eqcalc.nn.attention`).

    source: heads * width even scalars on edges, in frames or not.
    """

    source: str
    heads: int
    width: int
    in_frames: bool = False
    on_edges: ClassVar[bool | None] = True

    def formula(self) -> str:
        return f"u(r) exp(w silu({self.source})) / (1 + sum_k)"


@dataclass(frozen=True)
class PairSum(Operation):
    """source at the neighbour plus centre at the centre, on edges."""

    source: str
    centre: str
    irreps: str
    on_edges: ClassVar[bool | None] = True
    reads: ClassVar[tuple[str, ...]] = ("source", "centre")
    reads_neighbours: ClassVar[tuple[str, ...]] = ("source",)

    def formula(self) -> str:
        return f"{self.source}[j] + {self.centre}[i]"


@dataclass(frozen=True)
class EdgeProduct(Operation):
    """Products of a value on edges with harmonics, as in `Convolution`, edge by edge."""

    source: str
    radial: str
    irreps_in: str
    l_max: int
    irreps: str
    on_edges: ClassVar[bool | None] = True
    reads: ClassVar[tuple[str, ...]] = ("source", "radial")

    def formula(self) -> str:
        return f"{self.radial} {self.source} (x) Y_0..{self.l_max}"


@dataclass(frozen=True)
class EdgeSum(Operation):
    """sum_j of a value on edges, with a weight for each of the heads that share channels."""

    source: str
    weights: str
    irreps: str
    heads: int
    reads: ClassVar[tuple[str, ...]] = ("source", "weights")
    gathers: ClassVar[bool] = True

    def formula(self) -> str:
        return f"sum_j {self.weights} {self.source}"


MESSAGES: tuple[type[Operation], ...] = (
    *(ToFrames, Modulation, SO2Linear, FrameGate, FrameSphere, FrameSum),
    *(Attention, PairSum, EdgeProduct, EdgeSum),
)
