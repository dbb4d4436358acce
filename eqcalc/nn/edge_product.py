r"""Messages of pairs of atoms: depth-wise tensor products on edges (arXiv:2206.11990, section 4.2).

    t_ij^{p c m3} = R^p_c(r_ij) sum_{m1 m2} C^p_{m1 m2 m3} e_ij^{l1 c m1} Y_{l2 m2}(r_ij)

for every path p = (l1, l2 -> l3), channel by channel, as in `eqcalc.nn.convolution` but edge by
edge, so that what follows may act on messages; e_ij is a sum of features of both atoms.
"""

from e3nn import o3
from torch import Tensor, nn

from eqcalc.nn.convolution import Convolution
from eqcalc.nn.linear import block_offsets
from eqcalc.nn.so2 import EdgeSum


class PairSum(nn.Module):
    """x_j + y_i. forward: [M, width], [N or more, width], edge_src, edge_dst [E] -> [E, width]."""

    def forward(self, x: Tensor, y: Tensor, edge_src: Tensor, edge_dst: Tensor) -> Tensor:
        return x.index_select(0, edge_src) + y.index_select(0, edge_dst)


class EdgeProduct(Convolution):
    """forward: e [E, irreps_in.dim], edge_attrs [E, (l_max + 1)^2], weights [E, num_weights] ->
    [E, irreps_out.dim].
    """

    def forward(self, e: Tensor, edge_attrs: Tensor, weights: Tensor) -> Tensor:
        return self.on_edges(e, edge_attrs, weights)


class WeightedSum(nn.Module):
    """sum_j a_ij y_ij: [E, irreps.dim], weights [E, heads], edge_dst, num_local -> [N, dim]."""

    # per irrep: first column, 2l + 1, channels
    _blocks: list[tuple[int, int, int]]

    def __init__(self, irreps: o3.Irreps, heads: int) -> None:
        super().__init__()
        starts = block_offsets(irreps)[:-1]
        self._blocks = [(at, ir.dim, mul) for at, (mul, ir) in zip(starts, irreps, strict=True)]
        self.sum = EdgeSum(irreps, heads)

    def forward(self, y: Tensor, weights: Tensor, edge_dst: Tensor, num_local: int) -> Tensor:
        blocks: list[Tensor] = []
        for at, dim, mul in self._blocks:
            blocks.append(y[:, at : at + dim * mul].reshape(-1, dim, mul))
        return self.sum(blocks, weights, edge_dst, num_local)
