"""One number of each atom from its even scalars."""

import math

import torch
from torch import Tensor, nn

from eqcalc.nn.activations import silu


class Readout(nn.Module):
    """w silu(W s) or w s, s being the even scalars.

    Weights are drawn from N(0, 1) and divided by sqrt(fan in) in the forward pass.

    Args:
        num_scalars: how many, in the first columns.
        hidden: width of the hidden layer; 0: none.

    forward: [N, num_scalars or more] -> [N].
    """

    def __init__(self, num_scalars: int, hidden: int) -> None:
        super().__init__()
        self.num_scalars = num_scalars
        self.linear = hidden == 0
        self.inner = nn.Parameter(torch.randn(0 if self.linear else num_scalars, hidden))
        self.outer = nn.Parameter(torch.randn(hidden or num_scalars))

    def forward(self, x: Tensor) -> Tensor:
        hidden = x[:, : self.num_scalars]
        if not self.linear:
            hidden = silu(hidden @ (self.inner / math.sqrt(self.inner.shape[0])))
        return hidden @ (self.outer / math.sqrt(self.outer.shape[0]))
