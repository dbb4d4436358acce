"""What writers (`models`) and readers (`export`, the pair style) of a potential file share."""

import torch
from torch import Tensor, nn

#: raised when a change to the file makes older readers wrong
FORMAT_VERSION = 1

#: submodules that stay in float64 whatever the precision of the calculation
FLOAT64_PREFIX = "reference_"


class ReferenceStructure(nn.Module):
    """A small structure with its energies, forces and strain derivative in float64.

    Whoever loads a file evaluates it again and refuses to run on a mismatch. Stored as edges, so
    that no neighbour list is needed: species [N], edge_vec [E, 3] Å, edge_src, edge_dst [E],
    energies [N] eV, forces [N, 3] eV/Å, strain [3, 3] eV.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


def network_tensors(module: nn.Module) -> list[Tensor]:
    """Floating parameters and buffers that take the precision of the calculation."""
    return [
        tensor
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
        if tensor.is_floating_point() and not name.startswith(FLOAT64_PREFIX)
    ]


def set_precision(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Converts a potential, scripted or not, in place; `reference_*` submodules stay float64."""
    for tensor in network_tensors(module):
        tensor.data = tensor.data.to(dtype)
    return module
