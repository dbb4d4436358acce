r"""Edge frames: Wigner matrices D^l of a rotation that turns an edge's direction to the polar axis.

Seen along its edge, a convolution mixes components of one |m| only (Passaro and Zitnick,
arXiv:2302.03655; `eqcalc.nn.so2`). Every rotation that does so serves: two of them differ by one
about the axis, which such maps do not feel. No choice is continuous on the whole sphere, but none
needs to be. With n = (a, p, b), the polar axis being e3nn's y, the smallest rotation that turns n
to the axis,

    R(n) = 1 - [ a^2 / (1 + p)    a    a b / (1 + p) ]
               [ -a             1 - p       -b       ]
               [ a b / (1 + p)    b    b^2 / (1 + p) ]

is rational in n and smooth but at p = -1; on the half p < 0, n is turned by pi about x first,
R(F n) F. Elements of D^l are then linear combinations, over k = |m - m'| or |m + m'|, of

    Re, Im of (a + i b)^(k mod 2) zeta^floor(k / 2)  times  P_i(p),   zeta = (a + i b)^2 / (1 + p)

with P_i Legendre's polynomials (from Edmonds' formula for d^l in half-angles), so that all of them
are one product of the basis with a matrix, without angles or roots, and their derivatives are exact
everywhere. What is computed from them does not change, to rounding, where n crosses p = 0.

| symbol       | variable             |                                     |
|--------------|----------------------|-------------------------------------|
| n            | `edge_vec` / length  | [E, 3], x y z = a p b               |
| D            | `frames`             | [E, width], one matrix after another |
| basis to D   | `matrix`             | [number of functions, width]        |
"""

import torch
from e3nn import o3
from torch import Tensor, nn


def orders_of_rows(l: int, m_max: int) -> list[int]:  # noqa: E741 - the standard name of the degree
    """m of the rows of D^l that are kept: 0, -1, 1, -2, 2 ... up to m_max."""
    return [0, *(sign * m for m in range(1, min(l, m_max) + 1) for sign in (-1, 1))]


def frame_sizes(l_max: int, m_max: int) -> list[tuple[int, int]]:
    """Rows and columns of each matrix, l = 0 .. l_max."""
    return [(len(orders_of_rows(l, m_max)), 2 * l + 1) for l in range(l_max + 1)]  # noqa: E741


def rotation_to_axis(n: Tensor) -> Tensor:
    """R(n) [E, 3, 3] of unit vectors n [E, 3] with n_y > -1."""
    a, p, b = n.unbind(1)
    c = 1.0 / (1.0 + p)
    rows = [1 - a * a * c, -a, -a * b * c, a, p, b, -a * b * c, -b, 1 - b * b * c]
    return torch.stack(rows, dim=1).view(-1, 3, 3)


def wigner_of_rotations(l: int, rotations: Tensor) -> Tensor:  # noqa: E741
    """D^l with Y_l(R r) = D^l Y_l(r): [E, 2l + 1, 2l + 1] of rotations R [E, 3, 3], in float64."""
    generator = torch.Generator().manual_seed(l)
    points = torch.randn(8 * l + 8, 3, dtype=torch.float64, generator=generator)
    before, after = (
        o3.spherical_harmonics(l, x, normalize=True, normalization="component")
        for x in (points, points @ rotations.transpose(1, 2))
    )
    return (torch.linalg.pinv(before) @ after).transpose(1, 2)


class EdgeFrames(nn.Module):
    """D^l of all edges, l = 0 .. l_max.

    Args:
        l_max: highest degree.
        m_max: rows with larger |m| are left out.

    forward: edge_vec [E, 3] Å and its length [E] Å -> [E, width]; the matrix of l is
    [number of rows, 2l + 1] with rows m = 0, -1, 1, -2, 2, ... (`frame_sizes`).
    """

    def __init__(self, l_max: int, m_max: int) -> None:
        super().__init__()
        self.l_max = l_max
        p = torch.linspace(-0.8, 1.0, 2 * l_max + 3, dtype=torch.float64)
        angle = torch.arange(4 * l_max + 3, dtype=torch.float64) * (2.0 * torch.pi)
        angle, p = torch.meshgrid(angle / len(angle), p, indexing="ij")
        angle, p = angle.flatten(), p.flatten()
        q = (1.0 - p * p).clamp(min=0.0).sqrt()
        samples = torch.stack([q * angle.cos(), p, q * angle.sin()], dim=1)
        matrices, signs = [], []
        half_turn = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
        for l in range(l_max + 1):  # noqa: E741
            kept = [l + m for m in orders_of_rows(l, m_max)]
            matrices.append(wigner_of_rotations(l, rotation_to_axis(samples))[:, kept].flatten(1))
            flip = wigner_of_rotations(l, half_turn[None])[0].diagonal().round()
            signs.append(flip.repeat(len(kept)))
        values = torch.cat(matrices, dim=1)
        basis = self._basis(*samples.unbind(1))
        matrix = torch.linalg.lstsq(basis, values).solution
        if (basis @ matrix - values).abs().max() > 1e-11:
            raise AssertionError(f"edge frames of l_max {l_max} are not what they should be")
        self.register_buffer("matrix", torch.where(matrix.abs() < 1e-12, 0.0, matrix))
        self.register_buffer("signs", torch.cat(signs))

    def _basis(self, a: Tensor, p: Tensor, b: Tensor) -> Tensor:
        """[E, number of functions]."""
        legendre = [torch.ones_like(p), p]
        for i in range(2, self.l_max + 1):
            legendre.append(((2 * i - 1) * p * legendre[-1] - (i - 1) * legendre[-2]) / i)
        c = 1.0 / (1.0 + p)
        zeta_re, zeta_im = (a * a - b * b) * c, 2.0 * a * b * c
        power_re, power_im = torch.ones_like(p), torch.zeros_like(p)
        columns: list[Tensor] = []
        for half in range(self.l_max + 1):
            for i in range(self.l_max + 1 - half):
                columns.append(power_re * legendre[i])
                if half > 0:
                    columns.append(power_im * legendre[i])
            odd_re, odd_im = a * power_re - b * power_im, a * power_im + b * power_re
            for i in range(self.l_max - half):
                columns.append(odd_re * legendre[i])
                columns.append(odd_im * legendre[i])
            power_re, power_im = (
                zeta_re * power_re - zeta_im * power_im,
                zeta_re * power_im + zeta_im * power_re,
            )
        return torch.stack(columns, dim=1)

    def forward(self, edge_vec: Tensor, edge_length: Tensor) -> Tensor:
        n = edge_vec / edge_length.unsqueeze(1)
        behind = n[:, 1:2] < 0.0
        sign = torch.where(behind, -1.0, 1.0).to(n.dtype)
        basis = self._basis(n[:, 0], n[:, 1] * sign[:, 0], n[:, 2] * sign[:, 0])
        signs = self.signs.to(n.dtype)
        return (basis @ self.matrix.to(n.dtype)) * torch.where(
            behind, signs, torch.ones_like(signs)
        )
