r"""CUDA C++ of a convolution: a block of threads for a centre or a neighbour, lanes are channels.

The equations are those of `eqcalc.engine.kernels`. Forward and the gradients in edges go through
the edges of a centre, 32 at a time; gradients in features through those of a neighbour, by lists
that are sorted by neighbour: nothing is added atomically, and sums are always made in one order.
A warp takes 32 channels of the paths that read one block of features, a part. Where there are more
parts than warps, the block of threads goes through the edges several times.
"""

from __future__ import annotations

from eqcalc.engine.cuda.couplings import Couplings, forward_terms, gather_terms, gradient_terms
from eqcalc.engine.plan import ConvolutionPlan, NotCovered, Path
from eqcalc.engine.terms import blocks_of, direction_terms

LANES = 32
#: warps of a block of threads, at most: a thread may then have 128 registers
MOST_WARPS = 16
#: bytes of shared memory that every GPU gives a block of threads
SHARED = 48 * 1024
SIZES = {"float": 4, "double": 8}


class _Parts:
    """Which warp takes which channels of which block of features."""

    def __init__(self, plan: ConvolutionPlan, most_warps: int) -> None:
        self.blocks = blocks_of(plan)
        counts = [-(-paths[0].mul // LANES) for paths in self.blocks]
        self.first = [sum(counts[:b]) for b in range(len(counts))]
        self.count = sum(counts)
        self.warps = min(self.count, most_warps)
        self.rounds = -(-self.count // self.warps)

    def branches(self, bodies: list[str], otherwise: str = "") -> str:
        """Code of each block of features, for the warps that have it."""
        ends = [*self.first[1:], self.count]
        text = ""
        for first, end, body in zip(self.first, ends, bodies, strict=True):
            text += f"if (part < {end}) {{\n      const int chunk = part - {first};\n{body}\n"
            text += "    } else "
        return text + f"{{ {otherwise} }}"


_HEAD = """
extern "C" __global__ void __launch_bounds__({threads}) {name}(const Task t)
{{
  __shared__ T Y[{num_y}][32], G[{couplings}][32], AT[32], SCALE[32], FACTOR[32];
  __shared__ int PLACE[32], ROW[32];{shared}
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
"""

#: the edges of a tile, one for each lane of the first warp
_TILE = """      const int count = min(32, last - edge0);
      __syncthreads();     // the tile before has been read
      if (threadIdx.x < count) {{
        const int n = threadIdx.x, edge = {edge};
        {weights}
        ROW[n] = {row};
        {factor}
        const T *y = t.y + (long long)edge * {num_y};
        for (int m = 0; m < {num_y}; m++) Y[m][n] = y[m];
        {couplings}
      }}
      __syncthreads();"""

#: sums over the edges of a centre or of a neighbour
_SUMS = """
  const int {of} = t.begin + blockIdx.x, last = t.{first}[{of} + 1];
  for (int round = 0; round < {rounds}; round++) {{
    const int part = round * {warps} + warp;
    T {sums};
    for (int edge0 = t.{first}[{of}]; edge0 < last; edge0 += 32) {{
{tile}
      for (int e = 0; e < count; e++) {{
        if (PLACE[e] < 0) continue;     // beyond the cutoff
        const T at = AT[e]{factor};
    {body}
      }}
    }}
    T *out = {out};
    {keep}
  }}
}}
"""

_EDGES = """
  const int i = t.begin + blockIdx.x, last = t.first_edge[i + 1];
  const T factor = {factor};
  const T *g = t.messages + (long long)i * {width_out};
  for (int round = 0; round < {rounds}; round++) {{
    const int part = round * {warps} + warp;
    for (int edge0 = t.first_edge[i]; edge0 < last; edge0 += 32) {{
{tile}
    {body}
      __syncthreads();
      if (threadIdx.x < count && PLACE[threadIdx.x] >= 0) {{
        const int n = threadIdx.x, edge = edge0 + n;
        for (int m = 0; m < {owed}; m++) {{
          T sum = 0;
          for (int w = 0; w < {warps}; w++) sum += S[m][w][n];
          {keep}
        }}
      }}{product}
    }}
  }}
}}
"""

#: what an edge owes to its distance and to harmonics but Y_0
_KEEP = """if (factor == T(0)) sum = 0;     // of what has no limit, too
          if (m == 0)
            t.dr[edge] += factor * sum * SCALE[n];
          else
            t.dy[(long long)edge * NUM_Y + m - 1] += factor * sum;"""

#: of gradients and messages, both as they are before they are multiplied by the factor
_PRODUCT = """
      if (threadIdx.x == 0) {{
        double sum = 0.0;
        for (int n = 0; n < count; n++)
          if (PLACE[n] >= 0)
            for (int w = 0; w < {warps}; w++) sum += double(S[NUM_Y + 1][w][n]);
        t.calm_pull[i] += sum;
      }}"""


def inside(mul: int) -> str:
    """Whether a lane has a channel, of so many; nothing where all have."""
    return f"chunk * 32 + lane < {mul}" if mul % LANES else ""


def or_zero(value: str, mul: int) -> str:
    return f"{inside(mul)} ? {value} : T(0)" if mul % LANES else value


def _write(assignment: str, mul: int) -> str:
    return f"if ({inside(mul)}) {assignment}" if mul % LANES else assignment


class ConvolutionKernels:
    """The three kernels of a plan, by name.

    Radial weights are splines of distance here; see `_weight`.

    Attributes:
        forward, edges, gather: their names.
        threads: of a block, by name.
        source: of all three.
    """

    #: the first harmonic that varies: Y_0 is 1
    FIRST_Y = 1
    #: numbers of `y` that an edge has, what finds its radial weights, where what it owes goes
    NUM_Y = "NUM_Y"
    FIND_WEIGHTS = "PLACE[n] = cursor(t, edge, AT[n], SCALE[n]);"
    KEEP = _KEEP
    #: how messages are given
    GIVE = "="

    def __init__(
        self,
        plan: ConvolutionPlan,
        number: int,
        l_max: int,
        degree: int,
        scalar: str,
        *,
        fades: bool,
    ) -> None:
        """fades: whether messages are multiplied by a factor of their atom."""
        self.plan, self.degree, self.fades = plan, degree, fades
        self.num_y = (l_max + 1) ** 2 - self.FIRST_Y
        self.size = SIZES[scalar]
        self.forward, self.edges, self.gather = (
            f"{name}_{number}" for name in ("forward", "edges", "gather")
        )
        self.threads: dict[str, int] = {}
        self.source = self._forward() + self._edges() + self._gather()

    def _head(self, name: str, couplings: Couplings, warps: int, shared: str = "") -> str:
        self.threads[name] = warps * LANES
        return _HEAD.format(
            name=name,
            threads=warps * LANES,
            num_y=max(1, self.num_y),
            couplings=max(1, len(couplings.lines)),
            shared=shared,
        )

    def _room(self, couplings: Couplings) -> int:
        """Bytes of shared memory that are left."""
        numbers = max(1, self.num_y) + max(1, len(couplings.lines)) + 3
        room = SHARED - 256 - numbers * LANES * self.size
        if room < 0:
            raise NotCovered("The couplings of this network do not fit into a GPU's shared memory.")
        return room

    def _tile(self, couplings: Couplings, edge: str, row: str, factor: str = "") -> str:
        return _TILE.format(
            edge=edge,
            row=row,
            weights=self.FIND_WEIGHTS,
            num_y=self.NUM_Y,
            factor=factor,
            couplings="\n        ".join(couplings.lines),
        )

    def _weight(self, path: Path, factor: str = "", slope: str = "") -> str:
        """w, times a factor if there is one; slope: of what is the derivative, too."""
        numbers = (self.degree + 1) * LANES
        step = path.weight_step // LANES * numbers
        place = f"t.table + PLACE[e] + {path.weight // LANES * numbers} + chunk * {step} + lane"
        declared, rest = (f"T {slope}; ", f", {slope}") if slope else ("", "")
        return f"{declared}const T w = {factor}spline({place}, at{rest});"

    def _owed(self, path: Path) -> str:  # noqa: ARG002
        """To a radial weight, q: through its slope to the distance."""
        return "s0 += dw * q;"

    @property
    def _num_sums(self) -> int:
        """Of an edge: harmonics, and the distance or Y_0."""
        return self.num_y + self.FIRST_Y

    def _features(self, paths: list[Path]) -> list[str]:
        """Reads the block of a neighbour's features that these paths read."""
        x, d1, mul = paths[0].x, paths[0].d1, paths[0].mul
        at = f"(long long)ROW[e] * {self.plan.width_in} + {x} + chunk * 32 + lane"
        rows = [f"const T x{m} = {or_zero(f'__ldg(x + {m * mul})', mul)};" for m in range(d1)]
        return [f"const T *x = t.x + {at};", *rows]

    def _factor(self) -> str:
        return "t.factor[i]" if self.fades else "T(1)"

    def _forward(self) -> str:
        parts, couplings = _Parts(self.plan, MOST_WARPS), Couplings(self.FIRST_Y)
        bodies, keeps, most = [], [], 0
        for paths in parts.blocks:
            body = self._features(paths)
            keep, a = [], 0
            for path in paths:
                body.append("{ " + self._weight(path))
                every = couplings.of(path, "g")
                body += forward_terms(path, every, a)
                for m3 in range(path.d3):
                    at = f"out[{path.out + m3 * path.stride} + chunk * 32 + lane]"
                    value = f"factor * a{a + m3}"
                    given = f"factor > T(0) ? {value} : T(0)" if self.fades else value
                    keep.append(_write(f"{at} {self.GIVE} {given};", path.mul))
                body.append("}")
                a += path.d3
            most = max(most, a)
            bodies.append("\n".join(body))
            keeps.append("\n".join(keep))
        self._room(couplings)
        return self._head(self.forward, couplings, parts.warps) + _SUMS.format(
            of="i",
            first="first_edge",
            rounds=parts.rounds,
            warps=parts.warps,
            sums=", ".join(f"a{k} = 0" for k in range(most)),
            tile=self._tile(couplings, "edge0 + n", "t.sources[edge]"),
            factor="",
            body=parts.branches(bodies),
            out=f"t.messages + (long long)i * {self.plan.width_out}",
            keep=f"const T factor = {self._factor()};\n    {parts.branches(keeps)}",
        )

    def _gather(self) -> str:
        parts, couplings = _Parts(self.plan, MOST_WARPS), Couplings(self.FIRST_Y)
        bodies, keeps = [], []
        for paths in parts.blocks:
            x, d1, mul = paths[0].x, paths[0].d1, paths[0].mul
            at = f"(long long)ROW[e] * {self.plan.width_out} + chunk * 32 + lane"
            body = [f"const T *g = t.messages + {at};"]
            for path in paths:
                body.append("{ " + self._weight(path, "factor * "))
                body += [
                    f"const T g{m} = {or_zero(f'__ldg(g + {column})', mul)};"
                    for m, column in enumerate(path.columns)
                ]
                every = couplings.of(path, "x")
                body += [*gather_terms(every), "}"]
            bodies.append("\n".join(body))
            keeps.append(
                "\n".join(
                    _write(f"out[{x + m * mul} + chunk * 32 + lane] += a{m};", mul)
                    for m in range(d1)
                )
            )
        self._room(couplings)
        most = max(paths[0].d1 for paths in parts.blocks)
        # what has no limit must not meet a factor that is zero
        factor = "FACTOR[n] = T(1);"
        if self.fades:
            factor = "FACTOR[n] = t.factor[ROW[n]]; if (FACTOR[n] == T(0)) PLACE[n] = -1;"
        return self._head(self.gather, couplings, parts.warps) + _SUMS.format(
            of="neighbour",
            first="row_first",
            rounds=parts.rounds,
            warps=parts.warps,
            sums=", ".join(f"a{k} = 0" for k in range(most)),
            tile=self._tile(couplings, "t.row_edge[edge0 + n]", "t.dst[edge]", factor),
            factor=", factor = FACTOR[e]",
            body=parts.branches(bodies),
            out=f"t.dx + (long long)t.rows[neighbour] * {self.plan.width_in}",
            keep=parts.branches(keeps),
        )

    def _edges_block(self, paths: list[Path], couplings: Couplings) -> str:
        """Sums over one warp's channels of what its edges owe, into S."""
        lines, a = [], 0
        body = self._features(paths)
        for path in paths:
            lines += [
                f"const T g{a + m} = {or_zero(f'g[{column} + chunk * 32 + lane]', path.mul)};"
                for m, column in enumerate(path.columns)
            ]
            body.append("{ " + self._weight(path, slope="dw"))
            every = couplings.of(path, "x", first=a)
            body += [*gradient_terms(every), self._owed(path)]
            if self.fades:
                body.append(f"s{self.num_y + 1} += w * q;")
            directions = direction_terms(path, a, self.FIRST_Y)
            if directions:
                body += [f"const T z{m} = w * x{m};" for m in sorted({m1 for m1, _ in every})]
            body += [*directions, "}"]
            a += path.d3
        count = self._num_sums + (1 if self.fades else 0)
        sums = ", ".join(f"s{m} = 0" for m in range(count))
        add = " ".join(f"s{m} += __shfl_xor_sync(~0u, s{m}, d);" for m in range(count))
        keep = " ".join(f"S[{m}][warp][e] = s{m};" for m in range(count))
        return (
            "\n".join(lines)
            + "\nfor (int e = 0; e < count; e++) {\nif (PLACE[e] < 0) continue;"
            + "\nconst T at = AT[e];"
            + f"\nT {sums};\n"
            + "\n".join(body)
            + f"\nfor (int d = 16; d > 0; d /= 2) {{ {add} }}\nif (lane == 0) {{ {keep} }}\n}}"
        )

    def _edges(self) -> str:
        couplings = Couplings(self.FIRST_Y)
        bodies = [self._edges_block(paths, couplings) for paths in blocks_of(self.plan)]
        count = self._num_sums + (1 if self.fades else 0)
        warps = min(MOST_WARPS, self._room(couplings) // (count * LANES * self.size))
        if warps < 1:
            raise NotCovered("The couplings of this network do not fit into a GPU's shared memory.")
        parts = _Parts(self.plan, warps)
        idle = f"for (int m = 0; m < {count}; m++) S[m][warp][lane] = T(0);"
        shared = f"\n  __shared__ T S[{count}][{parts.warps}][32];"
        return self._head(self.edges, couplings, parts.warps, shared) + _EDGES.format(
            rounds=parts.rounds,
            warps=parts.warps,
            factor=self._factor(),
            width_out=self.plan.width_out,
            tile=self._tile(couplings, "edge0 + n", "t.sources[edge]"),
            body=parts.branches(bodies, idle),
            owed=self._num_sums,
            keep=self.KEEP,
            product=_PRODUCT.format(warps=parts.warps) if self.fades else "",
        )
