"""Messages that operations on edges make, as data of C++ (csrc/messages.h).

Values of an edge are rows with names, padded like those of atoms. In frames, rows are ordered by
|m|, then by its sign, then by degree, and the channels of a degree by run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eqcalc.engine.plan import ConvolutionPlan

KEPT_BYTES = 2**29  # of a message: 4000 atoms or so of a usual network in float32


@dataclass(frozen=True)
class FrameLayout:
    """runs: channels of each run of degrees 0, 1, ...; m_max: highest |m| of the rows."""

    runs: tuple[tuple[int, ...], ...]
    m_max: int
    padding: int

    def padded(self, degree: int) -> list[int]:
        return [-(-n // self.padding) * self.padding for n in self.runs[degree]]

    def stride(self, degree: int) -> int:
        """Padded channels of a degree."""
        return sum(self.padded(degree))

    @property
    def orders(self) -> range:
        return range(min(self.m_max, len(self.runs) - 1) + 1)

    def columns(self, m: int) -> int:
        """Padded channels of all degrees with that |m|."""
        return sum(self.stride(degree) for degree in range(m, len(self.runs)))

    def at(self, m: int) -> int:
        """First column of the rows with that |m|, of which there are one or two."""
        return sum((2 if k else 1) * self.columns(k) for k in range(m))

    @property
    def width(self) -> int:
        return self.at(self.orders[-1] + 1)

    def rows(self, degree: int) -> list[int]:
        """First column of the rows m = 0, -1, 1, ... of a degree."""
        found = []
        for m in self.orders:
            if m <= degree:
                before = self.at(m) + sum(self.stride(k) for k in range(m, degree))
                found += [before + sign * self.columns(m) for sign in range(2 if m else 1)]
        return found

    def channels(self, m: int) -> np.ndarray:
        """Padded place of each column (degree, channel) of a row with that |m|."""
        places, start = [], 0
        for degree in range(m, len(self.runs)):
            for n, wide in zip(self.runs[degree], self.padded(degree), strict=True):
                places.append(start + np.arange(n))
                start += wide
        return np.concatenate(places)


@dataclass
class FramesPlan:
    """Constants of eqcalc.nn.frames; degree, order: highest l and |m|."""

    degree: int
    order: int
    matrix: np.ndarray  # [functions, elements]
    signs: np.ndarray  # [elements]


@dataclass
class EdgeValue:
    name: str
    width: int


@dataclass
class DegreeRows:
    """A degree of features in frames; at, stride: first column and channels in an atom's row."""

    degree: int
    order: int
    at: int
    stride: int
    rows: np.ndarray  # first column of the rows m = 0, -1, 1, ... on the edge


@dataclass
class EdgeOperation:
    """What is done with a tile of edges; names are those of values."""


@dataclass
class ToFramesStep(EdgeOperation):
    target: str
    degrees: list[DegreeRows]


@dataclass
class FromFramesStep(EdgeOperation):
    source: str
    degrees: list[DegreeRows]


@dataclass
class ModulatedRows:
    """weight: first radial function; dim rows of `stride` columns from `at` on."""

    weight: int
    at: int
    dim: int
    stride: int


@dataclass
class ModulateStep(EdgeOperation):
    """value: what was modulated, on the way back."""

    source: str
    target: str
    blocks: list[ModulatedRows]
    value: str | None = None


@dataclass
class LinearRows:
    at_in: int
    stride_in: int
    dim: int
    at_out: int
    stride_out: int
    matrix: np.ndarray  # [stride_in, stride_out]

    def transposed(self) -> LinearRows:
        places = self.at_out, self.stride_out, self.dim, self.at_in, self.stride_in
        return LinearRows(*places, np.ascontiguousarray(self.matrix.T))


@dataclass
class EdgeLinearStep(EdgeOperation):
    """starts: whether nothing has been added to the target yet."""

    source: str
    target: str
    blocks: list[LinearRows]
    starts: bool = True


@dataclass
class GatedRows:
    """As `plan.GateBlock`, with the first column of every row."""

    activation: str
    scale: float
    mul: int
    rows_in: np.ndarray
    rows_out: np.ndarray
    gate: int | None = None


@dataclass
class EdgeGateStep(EdgeOperation):
    """value: what went through the gate, on the way back."""

    source: str
    target: str
    blocks: list[GatedRows]
    value: str | None = None


@dataclass
class SphereTables:
    """A nonlinearity on points of the sphere (eqcalc.nn.sphere).

    to_grid, from_grid: [points, rows]; places: first column of the rows; exact: SiLU to second
    order, times `scale`; silu: what SiLU is multiplied by.
    """

    mul: int
    to_grid: np.ndarray
    from_grid: np.ndarray
    places: np.ndarray
    exact: bool
    scale: float
    silu: float


@dataclass
class EdgeSphereStep(EdgeOperation):
    """value: what went through, on the way back."""

    source: str
    target: str
    sphere: SphereTables
    value: str | None = None


@dataclass
class FrameSumStep(EdgeOperation):
    """weights: of channels; None: the envelope."""

    source: str
    degrees: list[DegreeRows]
    weights: str | None = None


@dataclass
class FrameSpreadStep(EdgeOperation):
    """The way back of a sum: value is what was summed."""

    target: str
    value: str
    degrees: list[DegreeRows]
    weights: str | None = None
    weight_gradient: str | None = None


@dataclass
class HeadsPlan:
    """Of attention (eqcalc.nn.attention).

    weight: [padded scalars]. of_scalar, of_channel, of_column: the head of each scalar, channel of
    the values and column of the sum, or -1. silu: what SiLU is multiplied by.
    """

    heads: int
    weight: np.ndarray
    of_scalar: np.ndarray
    of_channel: np.ndarray
    of_column: np.ndarray
    silu: float


@dataclass
class AttentionStep(EdgeOperation):
    """Weights of channels; exponents: a value with room for the heads."""

    source: str
    target: str
    exponents: str
    heads: HeadsPlan


@dataclass
class AttentionBackStep(EdgeOperation):
    """value: the scalars."""

    source: str
    target: str
    value: str
    exponents: str
    heads: HeadsPlan


@dataclass
class PairSumStep(EdgeOperation):
    """Rows of both atoms added."""

    target: str


@dataclass
class PairBackStep(EdgeOperation):
    source: str


@dataclass
class EdgeProductStep(EdgeOperation):
    """Clebsch-Gordan products with harmonics, by kernels of their own.

    value: what was multiplied, on the way back. kernels: their number in the library.
    """

    source: str
    target: str
    convolution: ConvolutionPlan
    value: str | None = None
    kernels: int = -1


@dataclass
class EdgeSumStep(EdgeOperation):
    """weights: of channels; stride: channels of every row."""

    source: str
    weights: str
    stride: int


@dataclass
class EdgeSpreadStep(EdgeOperation):
    """The way back of a sum: value is what was summed."""

    target: str
    value: str
    weights: str
    weight_gradient: str
    stride: int


@dataclass
class MessagePlan:
    """Operations in order, of the way forward; of it, again; of the way back.

    kept: values of edges that the way back finds, for as many edges as kept_bytes have room for.
    missing: what it makes again there, where `again` is what it makes without them.
    centre: row of the centre that they read, which is that of the features where both are one.
    norms: [columns of the sum]. heads: of attention, or none.
    num_weights: padded functions of the distance.
    """

    centre: str
    values: list[EdgeValue]
    forward: list[EdgeOperation]
    again: list[EdgeOperation]
    missing: list[EdgeOperation]
    backward: list[EdgeOperation]
    kept: list[str]
    kept_bytes: int
    norms: np.ndarray
    num_weights: int
    heads: HeadsPlan | None = None

    @property
    def _linear_rows(self) -> list[LinearRows]:
        """Blocks of linear maps of edges, on both ways."""
        maps = (op for op in (*self.forward, *self.backward) if isinstance(op, EdgeLinearStep))
        return [block for op in maps for block in op.blocks]

    @property
    def most_rows(self) -> int:
        """Of a linear map of an edge."""
        return max((block.dim for block in self._linear_rows), default=1)

    @property
    def most_columns(self) -> int:
        """That a linear map of an edge makes of a row."""
        return max((block.stride_out for block in self._linear_rows), default=1)

    @property
    def products(self) -> list[EdgeProductStep]:
        """On both ways."""
        every = (*self.forward, *self.again, *self.missing, *self.backward)
        return [op for op in every if isinstance(op, EdgeProductStep)]
