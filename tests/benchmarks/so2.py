"""Time per atom of Clebsch-Gordan convolutions and of convolutions in frames of edges, by l_max.

    python tests/benchmarks/so2.py [--out FOLDER] [--repeats 5]

Messages of equal widths in plain torch, float32, one thread, forward and backward to edge vectors
and features, of perturbed diamond silicon with 28 neighbours:

    Clebsch-Gordan   every path (l1, l2 -> l3) of natural parity, l2 up to l_max, with a radial
                     weight for each path and channel, summed, then a matrix for each l3
    frames           D x_j, a radial weight for each |m|, degree and channel, a matrix over degrees
                     and channels for each |m|, D^T, summed; all |m|, and |m| <= 2

The runs are interleaved, the fastest of the repeats counts. Writes so2.json and so2.png.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from ase.build import bulk
from torch import Tensor

from eqcalc.models.blocks import natural
from eqcalc.neighbors import neighbor_list
from eqcalc.nn.angular import SphericalHarmonics
from eqcalc.nn.convolution import Convolution, reached_irreps
from eqcalc.nn.frames import EdgeFrames
from eqcalc.nn.linear import SpeciesLinear
from eqcalc.nn.so2 import FrameMatrices, FrameSum, SO2Linear, by_order

DEGREES = (1, 2, 3, 4, 6)
CHANNELS = 32
CUTOFF = 5.0  # Å


def edges() -> tuple[Tensor, Tensor, Tensor, int]:
    """edge_vec [E, 3] Å, edge_src, edge_dst [E], number of atoms."""
    atoms = bulk("Si", cubic=True).repeat(2)
    atoms.rattle(0.05, seed=1)
    pairs = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF)
    vectors = torch.from_numpy(pairs.vectors(atoms.positions, atoms.cell.array)).float()
    return vectors, torch.from_numpy(pairs.edge_src), torch.from_numpy(pairs.edge_dst), len(atoms)


class ClebschGordan(torch.nn.Module):
    def __init__(self, l_max: int) -> None:
        super().__init__()
        irreps = natural(CHANNELS, l_max)
        self.harmonics = SphericalHarmonics(l_max)
        self.convolution = Convolution(irreps, l_max, reached_irreps(irreps, l_max, irreps))
        self.mix = SpeciesLinear(self.convolution.irreps_out, irreps)
        self.num_weights = self.convolution.num_weights

    def forward(self, x: Tensor, vec: Tensor, r: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        y = self.harmonics(vec, vec.norm(dim=1))
        return self.mix(self.convolution(x, y, r, src, dst, len(x)), src)


class Frames(torch.nn.Module):
    def __init__(self, l_max: int, m_max: int) -> None:
        super().__init__()
        irreps = natural(CHANNELS, l_max)
        self.l_max, self.m_max = l_max, min(m_max, l_max)
        self.frames = EdgeFrames(l_max, self.m_max)
        self.matrices = FrameMatrices(l_max, self.m_max, l_max, self.m_max)
        self.linear = SO2Linear(irreps, m_max, irreps, m_max)
        self.sum = FrameSum(irreps, m_max, 1, l_max, self.m_max)
        self.widths = [rows for rows, _ in self.linear.shapes]
        self.num_weights = sum(self.widths)

    def forward(self, x: Tensor, vec: Tensor, r: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        frames = self.frames(vec, vec.norm(dim=1))
        blocks = x.split([CHANNELS * (2 * l + 1) for l in range(self.l_max + 1)], dim=1)  # noqa: E741
        turned = [
            torch.bmm(matrix, block.view(len(x), -1, CHANNELS).index_select(0, src))
            for matrix, block in zip(self.matrices(frames), blocks, strict=True)
        ]
        weights = r.split(self.widths, dim=1)
        inside = [
            block * w.unsqueeze(1)
            for block, w in zip(by_order(turned, self.m_max), weights, strict=True)
        ]
        u = torch.ones(len(vec), 1)
        return self.sum(self.linear(inside), u, frames, dst, len(x))


def step(module: torch.nn.Module, l_max: int, graph: tuple[Tensor, Tensor, Tensor, int]) -> None:
    """Forward and backward."""
    vec, src, dst, count = graph
    vec = vec.clone().requires_grad_()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, CHANNELS * (l_max + 1) ** 2, generator=generator).requires_grad_()
    r = torch.ones(len(vec), module.num_weights).requires_grad_()
    torch.autograd.grad(module(x, vec, r, src, dst).square().sum(), (vec, x, r))


def seconds(
    module: torch.nn.Module, l_max: int, graph: tuple[Tensor, Tensor, Tensor, int]
) -> float:
    """CPU time of a step."""
    begin = time.process_time()
    step(module, l_max, graph)
    return time.process_time() - begin


def measure(repeats: int) -> dict[str, dict[str, float]]:
    """Microseconds of CPU per atom, by kind and l_max."""
    graph = edges()
    found: dict[str, dict[str, float]] = {}
    for l_max in DEGREES:
        kinds = {
            "Clebsch-Gordan": ClebschGordan(l_max),
            "frames, all |m|": Frames(l_max, l_max),
            "frames, |m| ≤ 2": Frames(l_max, 2),
        }
        best = dict.fromkeys(kinds, math.inf)
        for _ in range(repeats + 1):
            for name, module in kinds.items():
                module.requires_grad_(False)
                best[name] = min(best[name], seconds(module, l_max, graph))
        for name, value in best.items():
            found.setdefault(name, {})[str(l_max)] = round(1e6 * value / graph[3], 1)
            print(f"l_max {l_max}  {name:<18} {1e6 * value / graph[3]:9.1f} µs/atom", flush=True)
    return found


def plot(found: dict[str, dict[str, float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 4.0), layout="constrained")
    axes = figure.subplots()
    for (name, values), marker in zip(found.items(), "os^", strict=True):
        axes.plot([int(k) for k in values], list(values.values()), marker=marker, label=name)
    axes.set(
        yscale="log",
        xlabel="l_max",
        ylabel="µs per atom, forward and backward",
        title=f"One convolution, {CHANNELS} channels of every degree, torch, one thread",
    )
    axes.title.set_fontsize(9)
    axes.set_xticks(DEGREES)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(arguments.repeats)
    document = {"channels": CHANNELS, "neighbours": 28, "microseconds_per_atom": found}
    (arguments.out / "so2.json").write_text(json.dumps(document, indent=1) + "\n")
    plot(found, arguments.out / "so2.png")


if __name__ == "__main__":
    main()
