"""Activations scaled so that x ~ N(0, 1) comes out with unit mean square.

Functions with the constant inside, because TorchScript sees no module-level numbers.
"""

import torch
from torch import Tensor


def silu(x: Tensor) -> Tensor:
    return 1.676532470331092 * torch.nn.functional.silu(x)


def tanh(x: Tensor) -> Tensor:
    return 1.5925374197228321 * torch.tanh(x)


def sigmoid(x: Tensor) -> Tensor:
    return 1.8462285453386058 * torch.sigmoid(x)
