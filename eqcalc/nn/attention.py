r"""Weights of neighbours by attention, smooth where a neighbour comes or goes.

For every head, from invariant scalars s of the message (Liao and Smidt, arXiv:2206.11990, eq. 4;
Liao et al., arXiv:2306.12059, section 3.3),

    a_ij = u(r_ij) exp(z_ij) / (1 + sum_k u(r_ik) exp(z_ik)),   z_ij = w . silu(s_ij) / sqrt(width)

A softmax over neighbours alone jumps where one of them crosses the cutoff, since all share a total
of 1. With the envelope u in numerator and denominator, a neighbour that leaves takes its weight
with it; and with the 1, the share of nobody, an atom without neighbours has sums of zero, and the
only neighbour of an atom fades like any other, instead of keeping all the weight until u has all
but vanished.

| symbol | variable   | shape              |
|--------|------------|--------------------|
| s      | `scalars`  | [E, heads * width] |
| u      | `envelope` | [E]                |
| w      | `weight`   | [heads, width]     |
"""

import math

import torch
from torch import Tensor, nn

from eqcalc.nn.activations import silu


class Attention(nn.Module):
    """forward: scalars [E, heads * width], envelope [E], edge_dst [E], num_local -> [E, heads]."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.weight = nn.Parameter(torch.randn(heads, width))

    def forward(
        self, scalars: Tensor, envelope: Tensor, edge_dst: Tensor, num_local: int
    ) -> Tensor:
        hidden = silu(scalars).view(-1, self.heads, self.width)
        z = (hidden * (self.weight / math.sqrt(self.width))).sum(dim=2)
        # the largest exponent is taken out of numerator and denominator: the value and all its
        # derivatives are the same whatever it is, so that it is a constant
        index = edge_dst.unsqueeze(1).expand_as(z)
        zero = torch.zeros(num_local, self.heads, dtype=z.dtype, device=z.device)
        top = zero.scatter_reduce(0, index, z.detach(), "amax", include_self=True)
        share = envelope.unsqueeze(1) * torch.exp(z - top.index_select(0, edge_dst))
        total = torch.exp(-top).index_add(0, edge_dst, share)
        return share / total.index_select(0, edge_dst)
