"""eSEN: smooth, conservative convolutions in frames of edges (Fu et al., arXiv:2502.12147).

Layer, with n = LayerNorm(x), all of it in the frame of the edge between the rotations D (section 4
and fig. 2; the convolution is eSCN's, Passaro and Zitnick, arXiv:2302.03655):

    y = x + s sum_j u(r_ij) D^T W2 gate( W1 R(r_ij) D (n_j, n_i) )
    x' = y + W4 act( W3 LayerNorm(y) )

W1 and W2 mix all degrees of one |m|. Gates, not a grid on the sphere, act on edges, so that a
message turns exactly with its edge. Two things differ from the paper: features have natural parity
(-1)^l, so that energies are the same in a mirror, and there is no separate embedding of degrees,
for the first layer makes them.
"""

from __future__ import annotations

from dataclasses import dataclass

from e3nn import o3

from eqcalc.models.blocks import FramesConfig, natural
from eqcalc.program import FrameSum, Normalization, Operation, SO2Linear


@dataclass(frozen=True)
class ESENConfig(FramesConfig):
    """eSEN, as in arXiv:2502.12147. Lengths in Å."""

    architecture: str = "esen"

    def messages(self, k: int, before: o3.Irreps, after: o3.Irreps) -> list[Operation]:
        order, out = self.order(before, after), str(after)
        inner = str(natural(self.hidden_channels, self.l_max))
        return [
            *self.in_frames(k, before, order),
            *self.hidden(k, before, order, sphere=False),
            SO2Linear(f"message_{k}", f"act_edge_{k}", inner, order, order, out),
            FrameSum(f"sum_{k}", f"message_{k}", order, out),
            Normalization(f"out_{k}", f"sum_{k}", out),
        ]
