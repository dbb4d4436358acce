r"""Nonlinearities on the sphere (Cohen et al., arXiv:1801.10130; separable: arXiv:2306.12059, 4.2).

Features x^l of a channel are a function on the sphere. It is evaluated on a grid, a nonlinearity
phi acts on its values, and the degrees above 0 of the result are what follows; scalars pass through
SiLU by themselves:

    f(w) = sum_lm x_lm Y_lm(w) / (l_max + 1),
    y_lm = (l_max + 1) sum_p q_p phi(f(w_p)) Y_lm(w_p)      l > 0
    y_00 = silu(x_00)

with `polar` Gauss-Legendre points along the axis times 2 polar equal steps around it, and weights q
of sum 1. With phi = SiLU, which has no highest degree, the map turns with its argument up to an
error that falls exponentially with the number of points (forces of a network of l_max 3: 2e-3 eV/Å
with 12 points, 1e-6 with 24). With polar = 0, phi is SiLU to second order,

    phi(f) = c (f / 2 + f^2 / 4),

whose integrals few points give exactly (degree 3 l_max: as many as 3 l_max / 2 + 1/2 along the
axis), and the map turns exactly; c makes the mean square 1 for normal f. Either is a smooth
function of positions. In frames of edges it acts on features that are turned back into the frame of
the world first: on a grid that turned with the edge, the error of SiLU would jump where the choice
of the frame does.
"""

import math

import numpy as np
import torch
from e3nn import o3
from torch import Tensor, nn

from eqcalc.nn.activations import silu
from eqcalc.nn.so2 import FromFrames, by_order, channels_by_degree


def sphere_grid(polar: int) -> tuple[Tensor, Tensor]:
    """Points [2 polar^2, 3] around e3nn's polar axis y, and weights of sum 1."""
    height, weight = np.polynomial.legendre.leggauss(polar)
    angle = np.arange(2 * polar) * (math.pi / polar)
    p, angle = (t.flatten() for t in np.meshgrid(height, angle, indexing="ij"))
    q = np.sqrt(1.0 - p * p)
    points = np.stack([q * np.sin(angle), p, q * np.cos(angle)], axis=1)
    return torch.from_numpy(points), torch.from_numpy(np.repeat(weight / (4.0 * polar), 2 * polar))


class SphereActivation(nn.Module):
    """forward: [N, irreps.dim] -> [N, irreps.dim].

    Args:
        irreps: natural parity, equally many channels in each degree.
        polar: points along the axis; 0: SiLU to second order, exactly.
    """

    def __init__(self, irreps: o3.Irreps, polar: int) -> None:
        super().__init__()
        channels = channels_by_degree(irreps)
        if len(set(channels)) > 1:
            raise ValueError(f"{irreps}: functions on a sphere have all degrees")
        self.mul, self.rows = channels[0], len(channels) ** 2
        self.exact = polar == 0
        self.scale = 4.0 / math.sqrt(7.0)
        points, weights = sphere_grid(polar or (3 * len(channels) - 1) // 2)
        degrees = list(range(len(channels)))
        y = o3.spherical_harmonics(degrees, points, normalize=True, normalization="component")
        self.register_buffer("to_grid", y / len(channels))
        back = (y * weights.unsqueeze(1)).T * len(channels)
        self.register_buffer("from_grid", back[1:].contiguous())

    def on_rows(self, x: Tensor) -> Tensor:
        """[N, (l_max + 1)^2, channels] -> the same."""
        values = torch.matmul(self.to_grid.to(x.dtype), x)
        values = self.scale * values * (0.5 + 0.25 * values) if self.exact else silu(values)
        return torch.cat([silu(x[:, :1]), torch.matmul(self.from_grid.to(x.dtype), values)], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.on_rows(x.view(-1, self.rows, self.mul)).view(-1, self.rows * self.mul)


class FrameSphereActivation(nn.Module):
    """The same of features in frames: list of [E, 1 or 2, K_m], frames [E, width] -> list."""

    def __init__(
        self, irreps: o3.Irreps, m_max: int, polar: int, l_max_frames: int, m_max_frames: int
    ) -> None:
        super().__init__()
        self.back = FromFrames(irreps, m_max, l_max_frames, m_max_frames)
        self.activation = SphereActivation(irreps, polar)
        self.dims = [ir.dim for _, ir in irreps]

    def forward(self, x: list[Tensor], frames: Tensor) -> list[Tensor]:
        y = self.activation.on_rows(torch.cat(self.back(x, frames), dim=1)).split(self.dims, dim=1)
        turned: list[Tensor] = []
        for matrix, block in zip(self.back.matrices(frames), y):  # noqa: B905 - TorchScript
            turned.append(torch.bmm(matrix, block))
        return by_order(turned, self.back.m_max)
