r"""Real spherical harmonics of edge directions, in e3nn's order, signs and `component` norm.

Built by coupling, Y_{l+1} ~ Y_l (x) Y_1, so that Wigner 3j symbols are the only constants:

    Y_{l+1, m} = c_l sum_{m' k} w3j(l, 1, l+1)_{m' k m} Y_{l, m'} Y_{1, k}

with Y_1 = sqrt(3) (x, y, z) / r and sum_m Y_lm^2 = 2l + 1.
"""

import math

import torch
from e3nn import o3
from torch import Tensor, nn


class _Raise(nn.Module):
    """Y_l -> Y_{l+1}: one matrix acting on the outer product with Y_1."""

    def __init__(self, l: int) -> None:  # noqa: E741 - the standard name of the degree
        super().__init__()
        # on the axis of degree 1, Y_lm is known: use it to fix the length and the sign
        axis = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
        y = o3.spherical_harmonics([1, l, l + 1], axis, False, normalization="component")
        y1, yl, target = y.split([3, 2 * l + 1, 2 * l + 3])
        coupling = o3.wigner_3j(l, 1, l + 1, dtype=torch.float64)
        raised = torch.einsum("i,j,ijk->k", yl, y1, coupling)
        coupling = coupling * (torch.dot(target, raised) / torch.dot(raised, raised))
        self.register_buffer("coupling", coupling.transpose(0, 1).reshape(-1, 2 * l + 3))

    def forward(self, y1: Tensor, y: Tensor) -> Tensor:
        outer = (y1.unsqueeze(2) * y.unsqueeze(1)).flatten(1)
        return outer @ self.coupling.to(y.dtype)


class SphericalHarmonics(nn.Module):
    """Y_lm(r / |r|) for l = 0 .. l_max.

    forward: edge_vec [E, 3] Å and its length [E] Å -> [E, (l_max + 1)^2].
    """

    def __init__(self, l_max: int) -> None:
        super().__init__()
        self.l_max = l_max
        self.steps = nn.ModuleList(_Raise(l) for l in range(1, l_max))  # noqa: E741

    def first(self, edge_vec: Tensor, edge_length: Tensor) -> Tensor:
        """Y_1 [E, 3]."""
        return math.sqrt(3.0) * edge_vec / edge_length.unsqueeze(1)

    def forward(self, edge_vec: Tensor, edge_length: Tensor) -> Tensor:
        columns = [torch.ones_like(edge_length).unsqueeze(1)]
        if self.l_max > 0:
            y1 = self.first(edge_vec, edge_length)
            columns.append(y1)
            y = y1
            for step in self.steps:
                y = step(y1, y)
                columns.append(y)
        return torch.cat(columns, dim=1)


class SolidHarmonics(SphericalHarmonics):
    """Regular solid harmonics r^l Y_lm, r in Å: homogeneous polynomials of the vector."""

    def __init__(self, l_max: int) -> None:
        super().__init__(l_max)
        self.solid = True  # engines that read the file ask for it

    def first(self, edge_vec: Tensor, edge_length: Tensor) -> Tensor:  # noqa: ARG002
        """r Y_1 [E, 3]."""
        return math.sqrt(3.0) * edge_vec
