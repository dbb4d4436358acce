r"""Convolutions in the frames of edges (Passaro and Zitnick, arXiv:2302.03655).

In the frame of an edge (`eqcalc.nn.frames`), whatever commutes with rotations about the edge and
reflections through it maps components of one order m to components of the same m,

    y^{l' c'}_{+-m} = sum_{l >= |m|, c} W^{|m|}_{(l c), (l' c')} x^{l c}_{+-m},

with one matrix for m and -m: reflections forbid that it mixes the two, if features have natural
parity (-1)^l, as all have here. A Clebsch-Gordan product with harmonics of the edge is the special
case W^m = sum_{l2} R_{l l2 l'} sqrt((2l' + 1)(2 l2 + 1)) (l m l2 0 | l' m)_3j, and the paths
(l, l2 -> l'), of which there are min(l, l') + 1, span all of it. The cost of a product falls from
l_max^6 to l_max^3, and rotations cost l_max^3 as well.

Features in frames are a list: for m = 0 .. m_max a tensor [E, 1 or 2, K_m], rows m (first -m, then
m), columns (l >= m, channel), channels innermost.

| symbol | variable  | shape                                                                |
|--------|-----------|----------------------------------------------------------------------|
| x, y   | `x`       | list of [E, 1 or 2, K_m]                                             |
| W      | `weight`  | all matrices in a row: for each m, [K_m in, K_m out]                 |
| D      | `frames`  | [E, width] (`eqcalc.nn.frames.EdgeFrames`)                           |
| u      | `weights` | [E, number of heads], e.g. the envelope                              |
"""

import math

import torch
from e3nn import o3
from torch import Tensor, nn

from eqcalc.nn.activations import sigmoid, silu
from eqcalc.nn.frames import frame_sizes
from eqcalc.nn.gate import gate_input


def channels_by_degree(irreps: o3.Irreps) -> list[int]:
    """Channels of l = 0, 1, ... of features of natural parity.

    Raises:
        ValueError: an irrep is missing, is out of order or has another parity.
    """
    degrees = [ir for _, ir in irreps]
    if degrees != [o3.Irrep(l, (-1) ** l) for l in range(len(degrees))]:  # noqa: E741
        raise ValueError(f"{irreps}: features in frames are 0e + 1o + 2e + ... in this order")
    return [mul for mul, _ in irreps]


def columns_by_order(irreps: o3.Irreps, m_max: int) -> list[int]:
    """K_m for m = 0 .. m_max: channels of all l >= m."""
    channels = channels_by_degree(irreps)
    return [sum(channels[m:]) for m in range(m_max + 1)]


def _in_range(irreps: o3.Irreps, m_max: int) -> int:
    return min(m_max, len(irreps) - 1)


def by_order(turned: list[Tensor], m_max: int) -> list[Tensor]:
    """Blocks [E, 2 min(l, m_max) + 1, channels], rows m = 0, -1, 1, ... -> [E, 1 or 2, K_m]."""
    found: list[Tensor] = []
    for m in range(m_max + 1):
        parts: list[Tensor] = []
        for x in turned:
            if x.shape[1] > 2 * m:
                parts.append(x[:, max(2 * m - 1, 0) : 2 * m + 1])  # noqa: PERF401 - TorchScript
        found.append(torch.cat(parts, dim=2))
    return found


class FrameMatrices(nn.Module):
    """The Wigner matrices of edges, one by one, with the rows |m| <= m_max.

    Args:
        l_max: highest degree that is wanted.
        m_max: highest order that is wanted.
        l_max_frames, m_max_frames: of the edge frames.

    forward: frames [E, width] -> for each l [E, 2 min(l, m_max) + 1, 2l + 1].
    """

    def __init__(self, l_max: int, m_max: int, l_max_frames: int, m_max_frames: int) -> None:
        super().__init__()
        self.l_max, self.m_max = l_max, m_max
        self.sizes = frame_sizes(l_max_frames, m_max_frames)
        self.widths = [rows * columns for rows, columns in self.sizes]

    def forward(self, frames: Tensor) -> list[Tensor]:
        parts = frames.split(self.widths, dim=1)
        found: list[Tensor] = []
        for l in range(self.l_max + 1):  # noqa: E741
            rows, columns = self.sizes[l]
            kept = 2 * min(l, self.m_max) + 1
            found.append(parts[l].view(-1, rows, columns)[:, :kept])
        return found


class ToFrames(nn.Module):
    """Features of an edge's neighbour and centre, side by side, in its frame.

    Args:
        irreps: of the features, on atoms.
        m_max: components with larger |m| are left out.
        l_max_frames, m_max_frames: of the Wigner matrices.

    The channels of each degree are the neighbour's, then the centre's.

    forward: source [M, irreps.dim], centre [N or more, irreps.dim], frames [E, width], edge_src,
    edge_dst [E] -> list of [E, 1 or 2, K_m].
    """

    def __init__(self, irreps: o3.Irreps, m_max: int, l_max_frames: int, m_max_frames: int) -> None:
        super().__init__()
        self.channels = channels_by_degree(irreps)
        self.m_max = _in_range(irreps, m_max)
        self.matrices = FrameMatrices(len(irreps) - 1, self.m_max, l_max_frames, m_max_frames)

    def forward(
        self, source: Tensor, centre: Tensor, frames: Tensor, edge_src: Tensor, edge_dst: Tensor
    ) -> list[Tensor]:
        turned: list[Tensor] = []
        at = 0
        matrices = self.matrices(frames)
        for l, mul in enumerate(self.channels):  # noqa: E741
            dim = 2 * l + 1
            for feats, index in ((source, edge_src), (centre, edge_dst)):
                x = feats[:, at : at + dim * mul].reshape(-1, dim, mul).index_select(0, index)
                turned.append(torch.bmm(matrices[l], x))
            at += dim * mul
        return by_order(turned, self.m_max)


class Modulation(nn.Module):
    """x^{l c}_m times a number for each of (|m|, l, c) and edge.

    forward: list of [E, 1 or 2, K_m], weights [E, num_weights] -> list of [E, 1 or 2, K_m].
    """

    def __init__(self, irreps: o3.Irreps, m_max: int) -> None:
        super().__init__()
        self.widths = columns_by_order(irreps, _in_range(irreps, m_max))
        self.num_weights = sum(self.widths)

    def forward(self, x: list[Tensor], weights: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        for block, w in zip(x, weights.split(self.widths, dim=1)):  # noqa: B905 - TorchScript
            found.append(block * w.unsqueeze(1))
        return found


class SO2Linear(nn.Module):
    """Mixes degrees and channels of each |m|: list of [E, 1 or 2, K_m in] -> [E, 1 or 2, K_m out].

    Args:
        irreps_in, irreps_out: natural parity, degrees 0 .. l_max of each.
        m_max_in, m_max_out: orders that there are; the value has none that the input lacks.

    Weights are drawn from N(0, 1) and divided by sqrt(K_m in) in the forward pass.
    """

    #: rows and columns of each matrix
    shapes: list[tuple[int, int]]

    def __init__(
        self, irreps_in: o3.Irreps, m_max_in: int, irreps_out: o3.Irreps, m_max_out: int
    ) -> None:
        super().__init__()
        inputs = columns_by_order(irreps_in, _in_range(irreps_in, m_max_in))
        outputs = columns_by_order(irreps_out, _in_range(irreps_out, m_max_out))
        if len(outputs) > len(inputs):
            raise ValueError(f"{irreps_in} up to |m| = {m_max_in} has no |m| = {m_max_out}")
        self.shapes = list(zip(inputs, outputs, strict=False))
        self._sizes = [a * b for a, b in self.shapes]
        self.weight = nn.Parameter(torch.randn(sum(self._sizes)))

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        matrices = self.weight.split(self._sizes)
        found: list[Tensor] = []
        for m, (a, b) in enumerate(self.shapes):
            rows = x[m].reshape(-1, a) @ (matrices[m].view(a, b) / math.sqrt(a))
            found.append(rows.view(x[m].shape[0], x[m].shape[1], b))
        return found


class FrameGate(nn.Module):
    """Scalars through SiLU, other degrees times gates of their own (`eqcalc.nn.gate`), in frames.

    forward: list with scalars [own, gates] -> list of [E, 1 or 2, K_m] of irreps_out.
    """

    def __init__(self, irreps_out: o3.Irreps, m_max: int, activation: str = "sigmoid") -> None:
        super().__init__()
        channels = channels_by_degree(irreps_out)
        channels_by_degree(gate_input(irreps_out))
        self.m_max = _in_range(irreps_out, m_max)
        rest = sum(channels[1:])
        self.widths = [channels[0], rest, rest]
        # how many gates belong to lower degrees than m
        self.first = [0, *(sum(channels[1:m]) for m in range(1, self.m_max + 1))]
        self.silu = activation == "silu"

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        own, gates, others = x[0].split(self.widths, dim=2)
        gates = silu(gates) if self.silu else sigmoid(gates)
        found = [torch.cat([silu(own), others * gates], dim=2)]
        found.extend([x[m] * gates[:, :, self.first[m] :] for m in range(1, self.m_max + 1)])
        return found


class FromFrames(nn.Module):
    """Features of edges, back in the frame of the world: y^{l c} = D^T x.

    forward: list of [E, 1 or 2, K_m], frames [E, width] -> for each degree [E, 2l + 1, channels].
    """

    def __init__(self, irreps: o3.Irreps, m_max: int, l_max_frames: int, m_max_frames: int) -> None:
        super().__init__()
        self.channels = channels_by_degree(irreps)
        self.m_max = _in_range(irreps, m_max)
        self.matrices = FrameMatrices(len(irreps) - 1, self.m_max, l_max_frames, m_max_frames)

    def forward(self, x: list[Tensor], frames: Tensor) -> list[Tensor]:
        matrices = self.matrices(frames)
        found: list[Tensor] = []
        first = [0] * (self.m_max + 1)  # column of the degree, by order
        for l, mul in enumerate(self.channels):  # noqa: E741
            parts: list[Tensor] = []
            for m in range(min(l, self.m_max) + 1):
                parts.append(x[m][:, :, first[m] : first[m] + mul])
                first[m] += mul
            found.append(torch.bmm(matrices[l].transpose(1, 2), torch.cat(parts, dim=1)))
        return found


class EdgeSum(nn.Module):
    """sum_j u_ij y_ij over each centre's edges, y in the frame of the world, degree by degree.

    Args:
        irreps: of y and the sums.
        heads: each has an equal share of the channels of every degree, and a weight of its own.

    forward: for each degree [E, 2l + 1, channels], weights [E, heads], edge_dst [E], num_local ->
    [num_local, irreps.dim].
    """

    def __init__(self, irreps: o3.Irreps, heads: int) -> None:
        super().__init__()
        self.heads = heads
        for mul, ir in irreps:
            if mul % heads:
                raise ValueError(f"{mul}x{ir}: {heads} heads cannot share the channels equally")

    def forward(self, y: list[Tensor], weights: Tensor, edge_dst: Tensor, num_local: int) -> Tensor:
        columns: list[Tensor] = []
        for block in y:
            edges, dim, mul = block.shape
            if self.heads == 1:
                weighted = (block * weights.unsqueeze(1)).view(edges, dim * mul)
            else:
                shared = block.view(edges, dim, self.heads, mul // self.heads)
                weighted = (shared * weights.view(edges, 1, self.heads, 1)).view(edges, dim * mul)
            zero = torch.zeros(num_local, dim * mul, dtype=block.dtype, device=block.device)
            columns.append(zero.index_add(0, edge_dst, weighted))
        return torch.cat(columns, dim=1)


class FrameSum(nn.Module):
    """sum_j u_ij D^T x_ij: back from the frames, and over each centre's edges.

    forward: list of [E, 1 or 2, K_m], weights [E, heads], frames [E, width], edge_dst [E],
    num_local -> [num_local, irreps.dim].
    """

    def __init__(
        self, irreps: o3.Irreps, m_max: int, heads: int, l_max_frames: int, m_max_frames: int
    ) -> None:
        super().__init__()
        self.back = FromFrames(irreps, m_max, l_max_frames, m_max_frames)
        self.sum = EdgeSum(irreps, heads)

    def forward(
        self, x: list[Tensor], weights: Tensor, frames: Tensor, edge_dst: Tensor, num_local: int
    ) -> Tensor:
        return self.sum(self.back(x, frames), weights, edge_dst, num_local)
