r"""Equivariant layer normalisation (Liao et al., arXiv:2306.12059, section 4.1).

All degrees of an atom are divided by one size, so that their proportions stay,

    y^{lc}_m = g_lc x^{lc}_m / n,   n^2 = epsilon^2 + mean over l, c of |x^{lc}|^2 / (2l + 1)

With epsilon, the map has all its derivatives where features vanish; as small a number as is usual
(1e-5) would make it a step there, and the forces of an atom that loses its neighbours noise.
"""

import torch
from e3nn import o3
from torch import Tensor, nn

from eqcalc.nn.linear import block_offsets


class LayerNorm(nn.Module):
    """forward: [N, irreps.dim] -> [N, irreps.dim].

    `gains` are g - 1, zero at first.
    """

    EPSILON = 0.1

    # per irrep: first column, columns, channels
    _blocks: list[tuple[int, int, int]]

    def __init__(self, irreps: o3.Irreps) -> None:
        super().__init__()
        starts = block_offsets(irreps)[:-1]
        self._blocks = [
            (at, mul * ir.dim, mul) for at, (mul, ir) in zip(starts, irreps, strict=True)
        ]
        self._square = self.EPSILON**2
        self.gains = nn.Parameter(torch.zeros(sum(mul for mul, _ in irreps)))

    def forward(self, x: Tensor) -> Tensor:
        square = torch.full((x.shape[0], 1), self._square, dtype=x.dtype, device=x.device)
        for at, width, _ in self._blocks:
            block = x[:, at : at + width]
            square = square + block.square().mean(dim=1, keepdim=True) / len(self._blocks)
        x = x * torch.rsqrt(square)
        columns: list[Tensor] = []
        first = 0
        for at, width, mul in self._blocks:
            gain = 1.0 + self.gains[first : first + mul]
            columns.append((x[:, at : at + width].reshape(-1, mul) * gain).view(-1, width))
            first += mul
        return torch.cat(columns, dim=1)
