r"""CUDA C++ of a convolution with slices of its radial table in shared memory.

The equations and terms are those of `convolution`. A block of threads stays as long as the kernel
runs, one on each multiprocessor, and goes through the table slice by slice: the functions of some
paths that read one block of features, for some of its channels. With a slice in shared memory, each
of its warps takes centres (or neighbours) of its own, the same ones for every slice, and adds to
what it left at the slice before. So nothing is added atomically, sums have one order, and no warp
looks at what another one writes.

What is left to choose, how many channels a slice has and how many paths, is chosen by a count of
the bytes that an edge reads and writes through the second-level cache. It counts whole sectors, and
what a warp reads of its centre not at all. Nobody has timed it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

from eqcalc.engine.cuda.convolution import LANES, SIZES
from eqcalc.engine.cuda.couplings import Couplings, forward_terms, gather_terms, gradient_terms
from eqcalc.engine.plan import ConvolutionPlan, Path
from eqcalc.engine.terms import blocks_of, direction_terms

#: channels of a slice, and lanes of an edge
WIDTHS = (32, 16, 8)
#: warps of a block of threads; fewer would wait for memory
LEAST_WARPS, MOST_WARPS = 16, 24
#: bytes that caches move at once
SECTOR = 32

_KERNEL = """
extern "C" __global__ void __launch_bounds__({threads}, 1) {name}(const Task t)
{{
  constexpr int WIDTH = {width}, PARTS = 32 / WIDTH, WARPS = {warps};
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int part = lane / WIDTH, intervals = intervals_of(t);
  T (*const Y)[32] = (T (*)[32])(dynamic_shared() + warp * {tile});
  T (*const G)[32] = Y + {num_y}, (*const S)[32] = G + {num_g};
  T *const AT = S[{num_s}], *const FACTOR = AT + 32;
  int *const PLACE = (int *)(FACTOR + 32), *const ROW = PLACE + 32;
  Piece *const slice = (Piece *)(dynamic_shared() + WARPS * {tile});
{slices}
}}
"""

_SLICE = """
  for (int first = 0; first < {mul}; first += WIDTH) {{
    const int channel = first + lane % WIDTH;
    __syncthreads();     // the slice before has been read
    {take}
    __syncthreads();
    for (int i = t.begin + blockIdx.x * WARPS + warp; i < t.end; i += gridDim.x * WARPS) {{
      {body}
    }}
  }}"""

_TAKE = "take_slice<WIDTH>(slice + {number} * intervals * WIDTH, {source}, intervals, t);"

#: the edges of a tile, one for each lane
_TILE = """const int count = min(32, last - edge0);
        T scale = 0;
        __syncwarp();     // the tile of the warp before has been read
        if (lane < count) {{
          const int n = lane, edge = {edge};
          PLACE[n] = interval_of(t, edge, AT[n], scale);
          ROW[n] = {row};
          {factor}
          {harmonics}
        }}
        __syncwarp();"""

#: sums over the edges of a centre or of a neighbour, i
_SUMS = """T {sums};
      const int last = t.{first}[i + 1];
      for (int edge0 = t.{first}[i]; edge0 < last; edge0 += 32) {{
        {tile}
        for (int e = part; e < count; e += PARTS) {{
          if (PLACE[e] < 0) continue;     // beyond the cutoff
          const T at = AT[e];
          {terms}
        }}
      }}
      for (int d = WIDTH; d < 32; d *= 2) {{ {add} }}
      T *out = {out} + channel;{factor}
      if (part == 0) {{
        {keep}
      }}"""

_EDGES = """const T *g = t.messages + (long long)i * {width_out} + channel;
      const T factor = {factor};
      {gradients}
      const int last = t.first_edge[i + 1];
      for (int edge0 = t.first_edge[i]; edge0 < last; edge0 += 32) {{
        {tile}
        for (int e0 = 0; e0 < count; e0 += PARTS) {{
          const int e = e0 + part;
          T {sums};
          if (e < count && PLACE[e] >= 0) {{
            const T at = AT[e];
            {terms}
          }}
          for (int d = WIDTH / 2; d > 0; d /= 2) {{ {add} }}
          if (lane % WIDTH == 0 && e < count) {{ {give} }}
        }}
        __syncwarp();
        // of what has no limit, nothing
        if (lane < count && PLACE[lane] >= 0 && factor != T(0)) {{
          const int n = lane, edge = edge0 + n;
          {keep}
        }}{product}
      }}"""

#: of gradients and messages, both as they are before they are multiplied by the factor
_PRODUCT = """
        if (lane == 0) {{
          double sum = 0.0;
          for (int n = 0; n < count; n++)
            if (PLACE[n] >= 0) sum += double(S[{row}][n]);
          t.calm_pull[i] += sum;
        }}"""


class Slicing(NamedTuple):
    """What slices are made for.

    Attributes:
        l_max: of the harmonics.
        degree, intervals: of the table, of the largest of layers that share kernels.
        scalar: float or double.
        fades: whether messages are multiplied by a factor of their atom.
        shared: bytes of shared memory that a block of threads may have.
    """

    plan: ConvolutionPlan
    l_max: int
    degree: int
    intervals: int
    scalar: str
    fades: bool
    shared: int

    @property
    def size(self) -> int:
        return SIZES[self.scalar]

    @property
    def num_y(self) -> int:
        return (self.l_max + 1) ** 2 - 1

    @property
    def line(self) -> int:
        """Bytes of a function in an interval of the table."""
        return (self.degree + 1) * self.size

    def run(self, numbers: int) -> int:
        """Bytes that are moved for numbers that lie together."""
        return -(-numbers * self.size // SECTOR) * SECTOR


class SliceCouplings(Couplings):
    """Of the paths of a slice; harmonics have rows in the order in which they are met."""

    def __init__(self) -> None:
        super().__init__(1)
        self.rows: dict[int, int] = {}

    def harmonic(self, m2: int) -> str:
        return f"Y[{self.rows.setdefault(m2, len(self.rows))}][e]"

    @property
    def harmonics(self) -> list[str]:
        taken = [f"Y[{row}][n] = y[{m2 - 1}];" for m2, row in self.rows.items()]
        if not (taken or self.lines):
            return []
        return ["const T *y = t.y + (long long)edge * NUM_Y;", *taken, *self.lines]


def harmonics_of(paths: list[Path]) -> list[int]:
    """Numbers of those that vary, of what these paths multiply by."""
    return sorted({m2 for path in paths for _, m2, _, _ in path.terms if m2 > 0})


def _sums(names: list[str]) -> str:
    return ", ".join(f"{name} = 0" for name in names)


def _added(names: list[str]) -> str:
    return " ".join(f"{name} += __shfl_xor_sync(~0u, {name}, d);" for name in names)


class _Kernel(ABC):
    """One of the three, in the way that moves the fewest bytes.

    Attributes:
        name, threads: of the kernel.
        width, most: channels and paths of a slice.
        tile: bytes of shared memory of a warp, beside the slice.
        source: empty where no slices fit.
        moved, plain: bytes of an edge through the second-level cache, and without slices.
    """

    #: what it does
    NAME = ""

    def __init__(self, of: Slicing, number: int) -> None:
        self._of, self.name = of, f"slices_{self.NAME}_{number}"
        blocks = blocks_of(of.plan)
        self.plain = self.moved = self._plain(blocks)
        self.source = ""
        for width in WIDTHS:
            for most in range(1, 1 + max(map(len, blocks))):
                self._try(blocks, width, most)

    def _try(self, blocks: list[list[Path]], width: int, most: int) -> None:
        """Takes slices of that shape if they fit, and are better than those before."""
        of = self._of
        groups = [b[n : n + most] for b in blocks for n in range(0, len(b), most)]
        moved = sum(paths[0].mul // width * self._moved(paths, width) for paths in groups)
        if self.source and moved >= self.moved:
            return
        couplings = [SliceCouplings() for _ in groups]
        bodies = [self._body(*made) for made in zip(groups, couplings, strict=True)]
        num_y = max(len(c.rows) for c in couplings)
        num_g = max(len(c.lines) for c in couplings)
        num_s = max(map(self._num_sums, groups))
        tile = (num_y + num_g + num_s + 2) * LANES * of.size + 2 * LANES * 4
        slice_bytes = most * of.intervals * width * of.line
        warps = min(MOST_WARPS * 4 // of.size, (of.shared - slice_bytes) // tile)
        if warps < LEAST_WARPS * 4 // of.size:
            return
        self.width, self.most, self.tile, self.moved = width, most, tile, moved
        self.threads = warps * LANES
        self.source = _KERNEL.format(
            name=self.name,
            threads=self.threads,
            width=width,
            warps=warps,
            tile=tile,
            num_y=num_y,
            num_g=num_g,
            num_s=num_s,
            slices="".join(
                _SLICE.format(mul=paths[0].mul, take=self._take(paths), body=body)
                for paths, body in zip(groups, bodies, strict=True)
            ),
        )

    def shared(self, intervals: int | None = None) -> int:
        """Bytes of shared memory, for a table of so many intervals, or the largest."""
        slices = self.most * (intervals or self._of.intervals) * self.width * self._of.line
        return self.threads // LANES * self.tile + slices

    def least_edges(self, intervals: int, processors: int) -> int | None:
        """From how many edges on slices move fewer bytes; None: never."""
        of = self._of
        table = intervals * of.line * sum(path.mul for path in of.plan.paths)
        saved = self.plain - self.moved
        return -(-table * processors // saved) if saved > 0 else None

    def _take(self, paths: list[Path]) -> str:
        numbers = (self._of.degree + 1) * LANES
        lines = []
        for number, path in enumerate(paths):
            step = path.weight_step // LANES * numbers
            place = path.weight // LANES * numbers
            source = f"t.table + {place} + first / 32 * {step} + first % 32"
            lines.append(_TAKE.format(number=number, source=source))
        return "\n    ".join(lines)

    def _tile(self, couplings: SliceCouplings, edge: str, row: str, factor: str = "") -> str:
        harmonics = "\n          ".join(couplings.harmonics)
        return _TILE.format(edge=edge, row=row, factor=factor, harmonics=harmonics)

    def _weight(self, number: int, factor: str = "", slope: str = "") -> str:
        place = f"slice[({number} * intervals + PLACE[e]) * WIDTH + lane % WIDTH]"
        declared, rest = (f"T {slope}; ", f", {slope}") if slope else ("", "")
        return f"{{ {declared}const T w = {factor}spline({place}, at{rest});"

    def _features(self, paths: list[Path]) -> list[str]:
        first = paths[0]
        at = f"(long long)ROW[e] * {self._of.plan.width_in} + {first.x} + channel"
        rows = [f"const T x{m} = __ldg(x + {m * first.mul});" for m in range(first.d1)]
        return [f"const T *x = t.x + {at};", *rows]

    def _factor(self) -> str:
        return "t.factor[i]" if self._of.fades else "T(1)"

    def _edge(self, paths: list[Path]) -> int:
        """Bytes of an edge, by centre: distance, neighbour, harmonics."""
        return 8 + 4 + (self._of.run(self._of.num_y) if harmonics_of(paths) else 0)

    def _plain(self, blocks: list[list[Path]]) -> int:
        """Bytes of an edge without slices: as of one slice with all, and the table."""
        of = self._of
        every = [path for block in blocks for path in block]
        features = sum(self._rows(block, block[0].mul) for block in blocks)
        return self._own(every) + features + of.line * sum(path.mul for path in every)

    def _moved(self, paths: list[Path], width: int) -> int:
        """Bytes of an edge for a slice of these paths."""
        return self._own(paths) + self._rows(paths, width)

    def _own(self, paths: list[Path]) -> int:
        """Bytes of an edge's own numbers."""
        return self._edge(paths)

    def _rows(self, paths: list[Path], width: int) -> int:
        """Bytes of atoms' rows that an edge reads."""
        return paths[0].d1 * self._of.run(width)

    def _num_sums(self, paths: list[Path]) -> int:  # noqa: ARG002
        return 0

    @abstractmethod
    def _body(self, paths: list[Path], couplings: SliceCouplings) -> str:
        """What a warp does for an atom, i, with the slice of these paths."""


class _Forward(_Kernel):
    NAME = "forward"

    def _body(self, paths: list[Path], couplings: SliceCouplings) -> str:
        terms, keep, a = self._features(paths), [], 0
        for number, path in enumerate(paths):
            every = couplings.of(path, "g")
            terms += [self._weight(number), *forward_terms(path, every, a), "}"]
            for m3, column in enumerate(path.columns):
                value = f"factor * a{a + m3}"
                given = f"factor > T(0) ? {value} : T(0)" if self._of.fades else value
                keep.append(f"out[{column}] = {given};")
            a += path.d3
        names = [f"a{n}" for n in range(a)]
        return _SUMS.format(
            sums=_sums(names),
            first="first_edge",
            tile=self._tile(couplings, "edge0 + n", "t.sources[edge]"),
            terms="\n          ".join(terms),
            add=_added(names),
            out=f"t.messages + (long long)i * {self._of.plan.width_out}",
            factor=f"\n      const T factor = {self._factor()};",
            keep="\n        ".join(keep),
        )


class _Edges(_Kernel):
    NAME = "edges"

    def _owed(self, paths: list[Path]) -> list[int]:
        """Numbers of sums: of the distance, of harmonics, of the product of both sides."""
        return [0, *harmonics_of(paths), *([self._of.num_y + 1] if self._of.fades else [])]

    def _num_sums(self, paths: list[Path]) -> int:
        return len(self._owed(paths))

    def _own(self, paths: list[Path]) -> int:
        of = self._of
        written = of.size + (of.run(of.num_y) if harmonics_of(paths) else 0)
        return self._edge(paths) + 2 * written  # and what was there before

    def _body(self, paths: list[Path], couplings: SliceCouplings) -> str:
        of = self._of
        terms, gradients, a = self._features(paths), [], 0
        for number, path in enumerate(paths):
            gradients += [
                f"const T g{a + m} = g[{column}];" for m, column in enumerate(path.columns)
            ]
            every = couplings.of(path, "x", first=a)
            terms += [self._weight(number, slope="dw"), *gradient_terms(every)]
            terms.append("s0 += dw * q;")
            if of.fades:
                terms.append(f"s{of.num_y + 1} += w * q;")
            directions = direction_terms(path, a)
            if directions:
                used = sorted({m1 for m1, _ in every})
                terms += [f"const T z{m} = w * x{m};" for m in used]
            terms += [*directions, "}"]
            a += path.d3
        owed = self._owed(paths)
        keep = ["t.dr[edge] += factor * S[0][n] * scale;"]
        keep += [
            f"t.dy[(long long)edge * NUM_Y + {m2 - 1}] += factor * S[{row}][n];"
            for row, m2 in enumerate(owed)
            if 0 < m2 <= of.num_y
        ]
        names = [f"s{n}" for n in owed]
        return _EDGES.format(
            width_out=of.plan.width_out,
            factor=self._factor(),
            gradients="\n      ".join(gradients),
            tile=self._tile(couplings, "edge0 + n", "t.sources[edge]"),
            sums=_sums(names),
            terms="\n            ".join(terms),
            add=_added(names),
            give=" ".join(f"S[{row}][e] = {name};" for row, name in enumerate(names)),
            keep="\n          ".join(keep),
            product=_PRODUCT.format(row=len(owed) - 1) if of.fades else "",
        )


class _Gather(_Kernel):
    NAME = "gather"

    def _edge(self, paths: list[Path]) -> int:
        """By neighbour: places of edges, and all else from somewhere."""
        harmonics = self._of.run(self._of.num_y) if harmonics_of(paths) else 0
        factor = SECTOR if self._of.fades else 0
        return 4 + SECTOR + SECTOR + factor + harmonics

    def _rows(self, paths: list[Path], width: int) -> int:
        return sum(path.d3 for path in paths) * self._of.run(width)

    def _body(self, paths: list[Path], couplings: SliceCouplings) -> str:
        of, first = self._of, paths[0]
        terms = [f"const T *g = t.messages + (long long)ROW[e] * {of.plan.width_out} + channel;"]
        factor = "FACTOR[e] * " if of.fades else ""
        for number, path in enumerate(paths):
            every = couplings.of(path, "x")
            terms.append(self._weight(number, factor))
            terms += [f"const T g{m} = __ldg(g + {c});" for m, c in enumerate(path.columns)]
            terms += [*gather_terms(every), "}"]
        names = [f"a{m}" for m in range(first.d1)]
        taken = "FACTOR[n] = t.factor[ROW[n]]; if (FACTOR[n] == T(0)) PLACE[n] = -1;"
        edge, row = "t.row_edge[edge0 + n]", "t.dst[edge]"
        return _SUMS.format(
            sums=_sums(names),
            first="row_first",
            tile=self._tile(couplings, edge, row, taken if of.fades else ""),
            terms="\n          ".join(terms),
            add=_added(names),
            out=f"t.dx + (long long)t.rows[i] * {of.plan.width_in}",
            factor="",
            keep="\n        ".join(
                f"out[{first.x + m * first.mul}] += {name};" for m, name in enumerate(names)
            ),
        )


@dataclass(frozen=True)
class SliceKernels:
    """The three kernels of a plan.

    Attributes:
        every: by what they do.
        kernels: those whose slices fit.
        source: of all these.
    """

    every: dict[str, _Kernel]

    @classmethod
    def of(cls, slicing: Slicing, number: int) -> SliceKernels:
        made = [kind(slicing, number) for kind in (_Forward, _Edges, _Gather)]
        return cls({kernel.NAME: kernel for kernel in made})

    @property
    def kernels(self) -> dict[str, _Kernel]:
        return {what: kernel for what, kernel in self.every.items() if kernel.source}

    @property
    def source(self) -> str:
        return "".join(kernel.source for kernel in self.kernels.values())

    def described(
        self, what: str, intervals: int, processors: int, *, always: bool
    ) -> dict[str, Any] | None:
        """For the host, of a table of so many intervals; None: it would never be used.

        processors: of the GPU, each of which reads the table once; every warp of them should have
            an atom.
        """
        kernel = self.kernels[what]
        least = 0 if always else kernel.least_edges(intervals, processors)
        if least is None:
            return None
        return {
            "name": kernel.name,
            "threads": kernel.threads,
            "shared": kernel.shared(intervals),
            "most_shared": kernel.shared(),
            "least_atoms": 0 if always else processors * kernel.threads // LANES,
            "least_edges": least,
        }
