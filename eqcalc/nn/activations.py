"""Activations scaled so that x ~ N(0, 1) comes out with unit mean square.

Constants come in as defaults of arguments, because TorchScript sees no module-level numbers.
"""

import torch
from torch import Tensor

from eqcalc.program.activations import SCALES


def silu(x: Tensor, scale: float = SCALES["silu"]) -> Tensor:
    return scale * torch.nn.functional.silu(x)


def tanh(x: Tensor, scale: float = SCALES["tanh"]) -> Tensor:
    return scale * torch.tanh(x)


def sigmoid(x: Tensor, scale: float = SCALES["sigmoid"]) -> Tensor:
    return scale * torch.sigmoid(x)
