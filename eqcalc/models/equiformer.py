"""Equiformer: attention over depth-wise tensor products (Liao and Smidt, arXiv:2206.11990).

Layer, with n = LayerNorm(x), (x) a Clebsch-Gordan product with harmonics of the edge, channel by
channel, and eqs. 3 to 5:

    e_ij = W_src n_j + W_dst n_i,   t_ij = R(r_ij) e_ij (x) Y(r_ij)
    v_ij = W2 ( R'(r_ij) gate( W1 t_ij ) (x) Y(r_ij) )
    a_ij = attention( Wa t_ij ) for each head (`eqcalc.nn.attention`)
    y = x + W_out s sum_j a_ij v_ij,   x' = y + W4 gate( W3 LayerNorm(y) )

The attention is that of a perceptron of invariant scalars. Differences from the paper: its softmax
has the envelope inside and shares less than 1; the layer normalisation is smooth where features
vanish; features have natural parity.
"""

from __future__ import annotations

from dataclasses import dataclass

from e3nn import o3

from eqcalc.models.blocks import AttentionConfig, natural
from eqcalc.nn.convolution import reached_irreps
from eqcalc.nn.gate import gate_input
from eqcalc.program import (
    Attention,
    EdgeProduct,
    EdgeSum,
    Gate,
    Linear,
    Normalization,
    Operation,
    PairSum,
    Radial,
)


@dataclass(frozen=True)
class EquiformerConfig(AttentionConfig):
    """Equiformer, as in arXiv:2206.11990. Lengths in Å.

    Attributes:
        l_max: highest degree of features and harmonics.
    """

    architecture: str = "equiformer"
    l_max: int = 2

    def messages(self, k: int, before: o3.Irreps, after: o3.Irreps) -> list[Operation]:
        n, out, l_max = f"n_{k}", str(after), self.l_max
        heads, width = self.num_heads, self.attention_channels
        inner = natural(self.hidden_channels, l_max)
        mixed = str(natural(self.hidden_channels, len(before) - 1))
        once = str(reached_irreps(o3.Irreps(mixed), l_max, inner))
        twice = str(reached_irreps(inner, l_max, after))
        gated, scalars = str(gate_input(inner)), f"{heads * width}x0e"
        mlp = tuple(self.radial_mlp)
        return [
            Linear(f"src_{k}", n, str(before), mixed),
            Linear(f"dst_{k}", n, str(before), mixed),
            PairSum(f"pair_{k}", f"src_{k}", f"dst_{k}", mixed),
            Radial(f"r_{k}", mlp),
            EdgeProduct(f"product_{k}", f"pair_{k}", f"r_{k}", mixed, l_max, once),
            Linear(f"hidden_{k}", f"product_{k}", once, gated),
            Gate(f"act_edge_{k}", f"hidden_{k}", str(inner)),
            Radial(f"r2_{k}", mlp),
            EdgeProduct(f"again_{k}", f"act_edge_{k}", f"r2_{k}", str(inner), l_max, twice),
            Linear(f"value_{k}", f"again_{k}", twice, out),
            Linear(f"alpha_{k}", f"product_{k}", once, scalars),
            Attention(f"share_{k}", f"alpha_{k}", heads, width),
            EdgeSum(f"sum_{k}", f"value_{k}", f"share_{k}", out, heads),
            Normalization(f"m_{k}", f"sum_{k}", out),
            Linear(f"out_{k}", f"m_{k}", out, out),
        ]
