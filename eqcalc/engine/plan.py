"""What the fused engine needs to know of a potential: data of C++, but for what becomes code.

Numbers of an atom are in rows, which have names. A layer's convolution reads a row of every
neighbour, its features, and makes messages; steps then go from rows to rows of the same atom, to
the next layer's features among them, and to its energy. All steps but those that set their target
add to it.

Rows are padded: every run of channels that the network treats alike (the channels of an irrep, of
one path in a message, of the gates of one irrep) is filled up with zeros to whole cache lines, so
that no kernel has a remainder. A `Layout` says where a column of the file's rows is then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from eqcalc.engine.build import EngineUnavailable
from eqcalc.program.trilinear import TrilinearForm

if TYPE_CHECKING:
    from eqcalc.engine.message_plan import FramesPlan, MessagePlan, SphereTables

#: numbers of 64 bytes
PADDING = {"float": 16, "double": 8}


class NotCovered(EngineUnavailable):
    """The fused engine cannot run this architecture or one of its options."""


@dataclass(frozen=True)
class Layout:
    """Rows made of blocks [2l + 1, channels], the channels in separately padded runs.

    blocks: (2l + 1, channels of each run) of each block.
    """

    blocks: tuple[tuple[int, tuple[int, ...]], ...]
    padding: int

    def padded(self, runs: Sequence[int]) -> list[int]:
        return [-(-n // self.padding) * self.padding for n in runs]

    def stride(self, block: int) -> int:
        """Padded channels of a block."""
        return sum(self.padded(self.blocks[block][1]))

    def offset(self, block: int) -> int:
        """First padded column of a block."""
        return sum(dim * sum(self.padded(runs)) for dim, runs in self.blocks[:block])

    @property
    def width(self) -> int:
        return self.offset(len(self.blocks))

    def rows(self) -> list[int]:
        """First column of every row of channels."""
        return [
            self.offset(block) + m * self.stride(block)
            for block, (dim, _) in enumerate(self.blocks)
            for m in range(dim)
        ]

    def channels(self, block: int) -> np.ndarray:
        """Padded place of each channel of a block, relative to a row [stride]."""
        runs = self.blocks[block][1]
        starts = [0, *accumulate(self.padded(runs))]
        return np.concatenate(
            [np.arange(n) + at for n, at in zip(runs, starts, strict=False)] or [np.zeros(0, int)]
        ).astype(int)

    def block_at(self, column: int) -> int:
        """The block that begins at an unpadded column."""
        starts = [0, *accumulate(dim * sum(runs) for dim, runs in self.blocks)]
        return starts.index(column)


@dataclass(frozen=True)
class Path:
    """One coupling in padded rows.

    x, d1: first column and 2 l1 + 1 of the input; out, d3, stride: first column, 2 l3 + 1 and
    padded channels of the output; mul: padded channels; terms: (m1, place in Y, m3, coefficient).
    The radial weights are in the order in which a kernel reads them: a cache line of each path of
    the block, then the next. weight: the first of this path; weight_step: from line to line.
    """

    x: int
    d1: int
    out: int
    d3: int
    stride: int
    weight: int
    weight_step: int
    mul: int
    terms: tuple[tuple[int, int, int, float], ...]

    @property
    def form(self) -> TrilinearForm:
        """What the path makes, and its gradients."""
        return TrilinearForm(self.terms)

    @property
    def columns(self) -> list[int]:
        """First column of each row of the output."""
        return [self.out + m * self.stride for m in range(self.d3)]


@dataclass(frozen=True)
class ConvolutionPlan:
    """Equal plans share their kernels."""

    width_in: int
    width_out: int
    num_weights: int
    paths: tuple[Path, ...]

    def from_weight(self, first: int) -> ConvolutionPlan:
        """The same with radial weights that begin there."""
        paths = tuple(replace(path, weight=path.weight + first) for path in self.paths)
        return replace(self, paths=paths)


@dataclass
class Row:
    """Numbers of every atom; its values are sums that begin with those in `begin`, or zeros."""

    name: str
    width: int
    begin: np.ndarray | None = None  # [species or 1, width]


@dataclass
class Step:
    """source: the row that it reads."""

    source: str

    #: whether the way back needs the source's values
    needs_source: ClassVar[bool] = False
    #: whether all of the target is set, and nobody else may add to it
    sets_target: ClassVar[bool] = False
    #: whether the gradient of the source may take its values' place while it is made
    in_place: ClassVar[bool] = False

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of those that it reads or writes."""
        return (self.source,)


@dataclass
class TransformStep(Step):
    """A step from a row to a row."""

    target: str

    @property
    def rows(self) -> tuple[str, ...]:
        return self.source, self.target


@dataclass
class AddStep(TransformStep):
    """A row added to another one of the same layout."""


@dataclass
class LinearStep(TransformStep):
    """Block [dim, stride_in] times a matrix, or one per species, added to a block of the target."""

    at_in: int
    stride_in: int
    dim: int
    at_out: int
    stride_out: int
    matrices: np.ndarray  # [species or 1, inputs, outputs], padded


@dataclass
class DensityStep(TransformStep):
    """Rows [dim, species in the structure, functions] of a density (eqcalc.engine.density), which
    begin with row `first`, times a matrix for each species, added to a block of the target.
    """

    first: int
    dim: int
    at_out: int
    stride_out: int
    matrices: np.ndarray  # [species, functions, outputs], padded


@dataclass
class ContractionStep(TransformStep):
    """Polynomials of a row, channel by channel: y_out = sum of coefficients u_left u_right.

    u are rows [channels] of the source, products of two of them, and 1: see `contraction`. Terms of
    one out and left lie together.

    channels: padded. rows_in, rows_out: first columns in source and target. first, second: numbers
    of the rows whose products are taken. out, left, right: numbers, of each term. coefficients:
    [species or 1, channels or 1, terms]. kernels: which of the library's, or none.
    """

    channels: int
    rows_in: np.ndarray
    rows_out: np.ndarray
    first: np.ndarray
    second: np.ndarray
    out: np.ndarray
    left: np.ndarray
    right: np.ndarray
    coefficients: np.ndarray
    kernels: int | None = None

    needs_source = True
    sets_target = True


@dataclass
class GateBlock:
    """activation: silu, tanh or sigmoid, times `scale`, of the block's scalars, or of the scalars
    at `gate` that multiply the block; places in padded rows.
    """

    activation: str
    scale: float
    at_in: int
    dim: int
    mul: int
    at_out: int
    gate: int | None = None


@dataclass
class GateStep(TransformStep):
    blocks: list[GateBlock]

    needs_source = True
    sets_target = True
    in_place = True


@dataclass
class NormGateBlock:
    """bias: [padded channels], added to the norms; None: of scalars through the activation."""

    activation: str
    scale: float
    at: int
    dim: int
    mul: int
    bias: np.ndarray | None = None


@dataclass
class NormGateStep(TransformStep):
    """Blocks times activated norms (eqcalc.nn.norm_gate); square: epsilon^2."""

    blocks: list[NormGateBlock]
    square: float

    needs_source = True
    sets_target = True
    in_place = True


@dataclass
class LayerNormStep(TransformStep):
    """gains x / n, n^2 = square + sum of shares x^2 (eqcalc.nn.layer_norm)."""

    gains: np.ndarray  # [columns]
    shares: np.ndarray  # [columns]
    square: float

    needs_source = True
    sets_target = True
    in_place = True


@dataclass
class SphereStep(TransformStep):
    """A function on the sphere."""

    sphere: SphereTables

    needs_source = True
    sets_target = True
    in_place = True


@dataclass
class ReadoutStep(Step):
    """Adds scale[species] weights . activation(source) to the energy (eV).

    activation: as of gates, or identity; times `activation_scale`. feature, num_features: the
    first of an atom's features (eqcalc.uncertainty) that it makes, and how many.
    """

    weights: np.ndarray  # [first columns of the source]
    scale: np.ndarray  # [species]
    feature: int
    num_features: int
    activation: str = "identity"
    activation_scale: float = 1.0

    in_place = True

    @property
    def needs_source(self) -> bool:
        return self.activation != "identity"


@dataclass
class RadialWeights:
    """places: of the file's radial weights among the padded ones; scales: what they are multiplied
    by, so that most coefficients of a path are 1 or -1; degrees: of their harmonics.
    """

    places: np.ndarray
    scales: np.ndarray
    degrees: np.ndarray | None = None


@dataclass
class RadialTable:
    """Splines on segments of distances that begin at `start` (Å) and are cut into equal intervals.

    segments: (start, intervals); coefficients: [intervals, degree + 1, padded weights], of powers
    of t = -1/2..1/2.
    """

    segments: list[tuple[float, int]]
    coefficients: np.ndarray


@dataclass
class DensityPlan:
    """The functions of distance that radial weights are combinations of (eqcalc.engine.density).

    projection: [functions, weights of the file], orthonormal: functions = weights projection^T.
    width: padded number of functions.
    """

    projection: np.ndarray
    width: int


@dataclass
class LayerPlan:
    """One message-passing layer; features and messages: the rows that its convolution, or its
    operations on edges, read of neighbours and add to. Before the first layer features are a table
    of species, their row's `begin`. Where there is a density, messages are that, and `table` holds
    its functions.
    count: column of `Plan.counts`; messages are divided by one plus that number of neighbours.
    """

    convolution: ConvolutionPlan | None
    weights: RadialWeights
    radial_network: list[np.ndarray]
    features: str
    messages: str
    steps: list[Step]
    table: RadialTable | None = None
    density: DensityPlan | None = None
    count: int | None = None
    message: MessagePlan | None = None

    @property
    def all_weights(self) -> int:
        """Padded radial weights of the file."""
        return (self.message or self.convolution).num_weights

    @property
    def num_weights(self) -> int:
        """Padded functions of the distance."""
        return self.density.width if self.density else self.all_weights


@dataclass
class BesselConstants:
    """Bessel functions in an envelope (eqcalc.nn.radial)."""

    orders: np.ndarray
    prefactor: float
    envelope_power: float
    envelope_onset: float  # Å, of XPLOR; 0: polynomial
    silu: float  # what SiLU is multiplied by in the radial networks


@dataclass
class CoreTables:
    """That of eqcalc.nn.reference: arrays [species, species], and of the screening function."""

    charges: np.ndarray
    screening: np.ndarray
    cutoff: np.ndarray
    power: int
    amplitudes: np.ndarray
    decays: np.ndarray


@dataclass
class AgnesiConstants:
    """Distances in units of bonds (eqcalc.nn.transform).

    kinds: [species, species], which bond a pair has. bonds: [kinds] Å. a, q, p: of the transform.
    """

    kinds: np.ndarray
    bonds: np.ndarray
    a: float
    q: float
    p: float


@dataclass
class CountPlan:
    """Numbers of neighbours, sums of tanh(z^2): z = matrix times Bessel functions, by column."""

    matrix: np.ndarray  # [Bessel functions, columns]
    table: RadialTable | None = None


@dataclass
class CrowdingTables:
    """Where messages fade (eqcalc.nn.crowding).

    Attributes:
        distances: [species, species] Å.
        closest: the same, of close pairs.
        largest: [species], of the measure in the training.
        crowded: what of that begins to crowd an atom, and what does so entirely.
        cost: eV, of an atom that is crowded entirely.
        counted, close: the ends of both functions of a distance; None: of older files, (d/r)^8.
    """

    distances: np.ndarray
    largest: np.ndarray
    crowded: np.ndarray
    cost: float = 0.0
    counted: np.ndarray | None = None
    close: np.ndarray | None = None
    closest: np.ndarray | None = None


@dataclass
class PairTables:
    """The pair potential of eqcalc.nn.reference."""

    rate: float
    cutoff: float
    coefficients: np.ndarray  # [species, species, terms]


@dataclass
class Plan:
    """A whole network; numbers in float64."""

    scalar: str
    padding: int  # numbers to whose multiples runs of channels are filled up
    cutoff: float
    num_species: int
    l_max: int
    harmonics: list[np.ndarray]  # couplings Y_1 x Y_l -> Y_{l+1}: [3, 2l + 1, 2l + 3]
    rows: list[Row]
    layers: list[LayerPlan]
    basis: BesselConstants
    shift: np.ndarray
    core: CoreTables | None = None
    pair: PairTables | None = None
    inner_limits: np.ndarray | None = None  # [species, species]
    stretch: np.ndarray | None = None  # [species, species], of eqcalc.nn.radial.PairCutoffs
    crowding: CrowdingTables | None = None
    agnesi: AgnesiConstants | None = None
    counts: CountPlan | None = None
    frames: FramesPlan | None = None
    solid: bool = False  # harmonics are r^l Y_lm; tables have the r^l

    @property
    def num_features(self) -> int:
        """Of an atom, from all readouts (eqcalc.uncertainty)."""
        steps = (step for layer in self.layers for step in layer.steps)
        return sum(step.num_features for step in steps if isinstance(step, ReadoutStep))
