r"""Functions of distance: cutoff envelope, Bessel basis, radial network.

Gasteiger, Groß and Günnemann, ICLR 2020 (arXiv:2003.03123), eqs. 7 and 8:

    b_n(r) = sqrt(2 / r_c) sin(n pi r / r_c) / r
    u(x)   = 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2),   x = r / r_c

| symbol | variable   |
|--------|------------|
| r_c    | `cutoff`   |
| p      | `power`    |
| n      | `orders`   |

XPLOR, as in Brooks et al., J. Comput. Chem. 4, 187 (1983), and Brünger's X-PLOR: 1 up to r_on, then

    u(r) = (r_c^2 - r^2)^2 (r_c^2 + 2 r^2 - 3 r_on^2) / (r_c^2 - r_on^2)^3
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from eqcalc.nn.activations import silu


def polynomial_envelope(x: Tensor, power: int) -> Tensor:
    """u(x): 1 at x = 0; value, slope and curvature zero at x = 1, and zero beyond."""
    p = float(power)
    u = (
        1.0
        - (p + 1.0) * (p + 2.0) / 2.0 * x.pow(p)
        + p * (p + 2.0) * x.pow(p + 1.0)
        - p * (p + 1.0) / 2.0 * x.pow(p + 2.0)
    )
    return u * (x < 1.0).to(x.dtype)


def xplor_envelope(r: Tensor, onset: float, cutoff: float) -> Tensor:
    """u(r): 1 up to the onset, zero from the cutoff on; its curvature jumps at both (Å)."""
    rr, on, cut = r * r, onset * onset, cutoff * cutoff
    u = (cut - rr) ** 2 * (cut + 2.0 * rr - 3.0 * on) / (cut - on) ** 3
    return torch.where(r < onset, torch.ones_like(u), u) * (r < cutoff).to(r.dtype)


class InnerLimit(nn.Module):
    """The distance that a network sees: r down to the shortest of its training, a constant below.

    A network is free to do anything at distances that no frame has. Below r_0 of a pair of species
    its input is r'(r) in place of r; the slope falls from 1 at r_0 to 0 at 0.95 r_0, twice
    differentiable,

        r' = r_0 + w (s^6 - 3 s^5 + 5/2 s^4 - 1/2),   w = r_0 / 20,   s = (r - r_0) / w + 1,

    and is a constant below: forces along r are then those of the pair terms alone
    (`eqcalc.nn.reference`).

    Args:
        distances: r_0 [species, species] Å; 0: no limit.

    forward: species [M], edge_src, edge_dst [E], length [E] Å -> [E] Å.
    """

    def __init__(self, distances: list[list[float]]) -> None:
        super().__init__()
        self.register_buffer("distances", torch.tensor(distances, dtype=torch.float64))

    def forward(
        self, species: Tensor, edge_src: Tensor, edge_dst: Tensor, length: Tensor
    ) -> Tensor:
        a, b = species.index_select(0, edge_dst), species.index_select(0, edge_src)
        limit = self.distances[a, b].to(length.dtype)
        width = 0.05 * limit
        beyond = length >= limit
        s = (1.0 - (limit - length) / torch.where(beyond, torch.ones_like(width), width)).clamp(0.0)
        replaced = limit + width * (s.pow(4) * (s * (s - 3.0) + 2.5) - 0.5)
        return torch.where(beyond, length, replaced)


class PairCutoffs(nn.Module):
    """Distances r r_c / r_ab, so that a network with the cutoff r_c sees pairs a b up to r_ab.

    Args:
        cutoffs: r_ab [species of the centre, species of the neighbour] Å, r_c at most.
        cutoff: r_c in Å.

    forward: species [M], edge_src, edge_dst [E], length [E] Å -> [E] Å.
    """

    def __init__(self, cutoffs: list[list[float]], cutoff: float) -> None:
        super().__init__()
        self.register_buffer("stretch", cutoff / torch.tensor(cutoffs, dtype=torch.float64))

    def forward(
        self, species: Tensor, edge_src: Tensor, edge_dst: Tensor, length: Tensor
    ) -> Tensor:
        a, b = species.index_select(0, edge_dst), species.index_select(0, edge_src)
        return length * self.stretch[a, b].to(length.dtype)


class BesselBasis(nn.Module):
    """c b_n(r) u(r / r_c); c is such that c b_n has the root mean square `scale` over the ball.

    Args:
        cutoff: r_c in Å.
        num_radial: how many n, from 1.
        power: p of the envelope; 6 makes the basis twice continuously differentiable at r_c.
        scale: root mean square of what enters the radial network, without u and over the ball of
            radius r_c.

    forward: r [E] Å -> [E, num_radial].
    """

    cutoff: float
    power: int

    def __init__(self, cutoff: float, num_radial: int, power: int, scale: float = 1.0) -> None:
        super().__init__()
        self.cutoff = float(cutoff)
        self.power = int(power)
        self.prefactor = scale * cutoff * math.sqrt(2.0 / 3.0)
        orders = torch.arange(1, num_radial + 1, dtype=torch.float64) * (math.pi / cutoff)
        self.register_buffer("orders", orders)

    def forward(self, r: Tensor) -> Tensor:
        return self.transformed(r, r)

    def envelope(self, r: Tensor) -> Tensor:
        """u(r / r_c) [E]."""
        return polynomial_envelope(r / self.cutoff, self.power)

    def transformed(self, x: Tensor, r: Tensor) -> Tensor:
        """c b_n(x) u(r / r_c): another distance x [E] in the Bessel functions."""
        x, envelope = x.unsqueeze(-1), self.envelope(r).unsqueeze(-1)
        return self.prefactor * torch.sin(self.orders.to(r.dtype) * x) / x * envelope


class XplorBesselBasis(BesselBasis):
    """c b_n(r) u(r) with the XPLOR envelope, from `onset` (Å) on."""

    onset: float

    def __init__(self, cutoff: float, num_radial: int, onset: float, scale: float = 1.0) -> None:
        super().__init__(cutoff, num_radial, 0, scale)
        self.onset = float(onset)

    def envelope(self, r: Tensor) -> Tensor:
        return xplor_envelope(r, self.onset, self.cutoff)


class RadialNetwork(nn.Module):
    """A bias-free perceptron with SiLU, so that zero in (beyond the cutoff) is zero out.

    Weights are drawn from N(0, 1) and divided by sqrt(fan in) in the forward pass.

    forward: [E, widths[0]] -> [E, widths[-1]].
    """

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(a, b)) for a, b in pairwise(widths)
        )
        self.num_layers = len(widths) - 1

    def forward(self, x: Tensor) -> Tensor:
        for i, weight in enumerate(self.weights):
            x = x @ (weight / math.sqrt(weight.shape[0]))
            if i + 1 < self.num_layers:
                x = silu(x)
        return x


class EdgeRadialNetwork(RadialNetwork):
    """The same, where every edge must have a row of its own whatever runs it."""
