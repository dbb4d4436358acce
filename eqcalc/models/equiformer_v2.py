"""EquiformerV2: attention over messages in frames of edges (Liao et al., arXiv:2306.12059).

Layer, with n = LayerNorm(x) and e = R(r_ij) D (n_j, n_i) in the frame of the edge (section 4):

    v_ij = W2 sphere( W1 e_ij ),   a_ij = attention( Wa e_ij ) for each head (`eqcalc.nn.attention`)
    y = x + W_out s sum_j a_ij D^T v_ij,   x' = y + W4 act( W3 LayerNorm(y) )

Heads share the channels of every degree. Differences from the paper: the attention's softmax has
the envelope inside and shares less than 1; the layer normalisation is smooth where features vanish;
forces are derivatives of the energy; features have natural parity (-1)^l.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from e3nn import o3

from eqcalc.models.blocks import AttentionConfig, FramesConfig, doubled, natural
from eqcalc.program import Attention, FrameSum, Linear, Normalization, Operation, SO2Linear


@dataclass(frozen=True)
class EquiformerV2Config(FramesConfig, AttentionConfig):
    """EquiformerV2, as in arXiv:2306.12059. Lengths in Å.

    Attributes:
        message_nonlinearity: of messages: the sphere, or gates, which are faster. On a grid
            (sphere_points above 0) it runs on torch alone.
    """

    architecture: str = "equiformer_v2"
    message_nonlinearity: Literal["sphere", "gate"] = "sphere"
    nonlinearity: Literal["gate", "sphere"] = "sphere"

    def messages(self, k: int, before: o3.Irreps, after: o3.Irreps) -> list[Operation]:
        order, out = self.order(before, after), str(after)
        inner = str(natural(self.hidden_channels, self.l_max))
        heads, width = self.num_heads, self.attention_channels
        alpha = SO2Linear(
            *(f"alpha_{k}", f"edge_{k}", str(doubled(before)), order, 0, f"{heads * width}x0e")
        )
        sphere = self.message_nonlinearity == "sphere"
        return [
            *self.in_frames(k, before, order),
            *self.hidden(k, before, order, sphere=sphere),
            SO2Linear(f"value_{k}", f"act_edge_{k}", inner, order, order, out),
            alpha,
            Attention(f"share_{k}", f"alpha_{k}", heads, width, in_frames=True),
            FrameSum(f"sum_{k}", f"value_{k}", order, out, f"share_{k}", heads),
            Normalization(f"m_{k}", f"sum_{k}", out),
            Linear(f"out_{k}", f"m_{k}", out, out),
        ]
