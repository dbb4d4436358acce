r"""Equivariant gate (Weiler et al., NeurIPS 2018, arXiv:1807.02547, section 3.4).

Even scalars pass through SiLU, odd scalars through tanh (an odd function keeps their parity), and
every other channel is multiplied by an even scalar of its own, through the sigmoid or, as in
Batzner et al. (2022), SiLU.
"""

import torch
from e3nn import o3
from torch import Tensor, nn

from eqcalc.nn.activations import sigmoid, silu, tanh
from eqcalc.nn.linear import block_offsets


def gate_input(irreps_out: o3.Irreps) -> o3.Irreps:
    """What a gate reads: its value's irreps, and a gate for each channel with l > 0 in 0e."""
    num_gates = sum(mul for mul, ir in irreps_out if ir.l > 0)
    if num_gates and o3.Irrep("0e") not in irreps_out:
        raise ValueError(f"{irreps_out}: gates need even scalars beside the other irreps")
    return o3.Irreps(
        [(mul + num_gates if ir == o3.Irrep("0e") else mul, ir) for mul, ir in irreps_out]
    )


class Gate(nn.Module):
    """irreps_in (even scalars carry the gates behind their own channels) -> irreps_out.

    Args:
        irreps_out: of the features after the gate.
        activation: of the gates: sigmoid or silu.

    forward: [N, irreps_in.dim] -> [N, irreps_out.dim].
    """

    _blocks: list[tuple[int, int, int, int, int]]

    def __init__(self, irreps_out: o3.Irreps, activation: str = "sigmoid") -> None:
        super().__init__()
        scalar = o3.Irrep("0e")
        self.irreps_out = irreps_out
        num_even = sum(mul for mul, ir in irreps_out if ir == scalar)
        self.irreps_in = gate_input(irreps_out)
        offsets = block_offsets(self.irreps_in)
        even = next((at for (_, ir), at in zip(irreps_out, offsets, strict=False) if ir == scalar))
        gate = even + num_even
        # (first column in, 2l+1, channels, first gate, kind); 0: SiLU, 1: tanh, 2 and 3: gated
        # by the sigmoid and by SiLU
        self._blocks = []
        gated = {"sigmoid": 2, "silu": 3}[activation]
        for (mul, ir), at in zip(irreps_out, offsets, strict=False):
            kind = gated if ir.l > 0 else (0 if ir.p == 1 else 1)
            self._blocks.append((at, ir.dim, mul, gate, kind))
            if ir.l > 0:
                gate += mul

    def forward(self, x: Tensor) -> Tensor:
        columns: list[Tensor] = []
        for at, dim, mul, gate, kind in self._blocks:
            block = x[:, at : at + dim * mul]
            if kind == 0:
                columns.append(silu(block))
            elif kind == 1:
                columns.append(tanh(block))
            else:
                gates = x[:, gate : gate + mul]
                gates = silu(gates) if kind == 3 else sigmoid(gates)
                gated = block.view(-1, dim, mul) * gates.unsqueeze(1)
                columns.append(gated.reshape(-1, dim * mul))
        return torch.cat(columns, dim=1)
