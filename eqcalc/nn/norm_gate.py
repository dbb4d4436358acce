r"""Nonlinearity by norms (Thomas et al., arXiv:1802.08219, section 4.1.3).

    x'^{lc} = x^{lc} sigma(n + b_c),   n^2 = |x^{lc}|^2 / (2l + 1) + epsilon^2

for every irrep but the even scalars, which pass through SiLU. With epsilon the norm has all its
derivatives where features vanish, so that forces stay smooth.
"""

import torch
from e3nn import o3
from torch import Tensor, nn

from eqcalc.nn.activations import sigmoid, silu
from eqcalc.nn.linear import block_offsets


class NormGate(nn.Module):
    """forward: [N, irreps.dim] -> [N, irreps.dim]."""

    EPSILON = 0.1

    # per irrep: first column, 2l + 1, channels, first bias; channels of 0 biases: even scalars
    _blocks: list[tuple[int, int, int, int]]

    def __init__(self, irreps: o3.Irreps) -> None:
        super().__init__()
        self._blocks = []
        self._square = self.EPSILON**2
        count = 0
        for (mul, ir), at in zip(irreps, block_offsets(irreps), strict=False):
            even = ir == o3.Irrep("0e")
            self._blocks.append((at, ir.dim, mul, -1 if even else count))
            count += 0 if even else mul
        self.bias = nn.Parameter(torch.zeros(count))

    def forward(self, x: Tensor) -> Tensor:
        columns: list[Tensor] = []
        for at, dim, mul, first in self._blocks:
            block = x[:, at : at + dim * mul]
            if first < 0:
                columns.append(silu(block))
            else:
                block = block.reshape(-1, dim, mul)
                norm = torch.sqrt(block.square().mean(dim=1, keepdim=True) + self._square)
                gated = block * sigmoid(norm + self.bias[first : first + mul])
                columns.append(gated.reshape(-1, dim * mul))
        return torch.cat(columns, dim=1)
