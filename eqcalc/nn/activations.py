"""Activations scaled so that x ~ N(0, 1) comes out with unit mean square.

Constants come in as defaults of arguments, because TorchScript sees no module-level numbers.
"""

import torch
from torch import Tensor

#: what each is multiplied by, here and in the kernels of the engines
SCALES = {
    "silu": 1.676532470331092,
    "tanh": 1.5925374197228321,
    "sigmoid": 1.8462285453386058,
}


def silu(x: Tensor, scale: float = SCALES["silu"]) -> Tensor:
    return scale * torch.nn.functional.silu(x)


def tanh(x: Tensor, scale: float = SCALES["tanh"]) -> Tensor:
    return scale * torch.tanh(x)


def sigmoid(x: Tensor, scale: float = SCALES["sigmoid"]) -> Tensor:
    return scale * torch.sigmoid(x)
