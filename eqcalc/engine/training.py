"""The generated kernels as a convolution that can be trained: twice differentiable.

A `FusedConvolution` takes the place of a `Convolution` in an eager model; parameters, buffers and
results (to rounding) are the same. Exports are always made of the plain one.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from eqcalc.contract import network_tensors
from eqcalc.engine.build import compile_library
from eqcalc.engine.generate import library_source
from eqcalc.nn.convolution import Convolution

SCALARS = {torch.float32: "float", torch.float64: "double"}


class _Kernels:
    """The three kernels of one layer, and the edges they run on."""

    def __init__(self, path: Path, layer: int) -> None:
        self._made_of = path, layer
        library = ctypes.CDLL(str(path))
        names = ("forward", "backward", "second")
        self.functions = {name: getattr(library, f"{name}_{layer}") for name in names}
        for function in self.functions.values():
            function.restype = None

    def __reduce__(self) -> tuple[type, tuple[Path, int]]:  # copies and pickles open it again
        return type(self), self._made_of

    def run(self, name: str, edges: tuple[Tensor, Tensor, Tensor], *arrays: Tensor) -> None:
        islands, src, dst = edges
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (islands, src, dst, *arrays)]
        self.functions[name](ctypes.c_int64(len(islands) - 1), *pointers)


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, r: Tensor, kernels: _Kernels, edges, shape):
        x, y, r = x.contiguous(), y.contiguous(), r.contiguous()
        out = x.new_zeros(shape)
        kernels.run("forward", edges, x, out, y, r)
        ctx.save_for_backward(x, y, r)
        ctx.rest = kernels, edges
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor):
        return (*_Backward.apply(g, *ctx.saved_tensors, *ctx.rest), None, None, None)


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, y: Tensor, r: Tensor, kernels: _Kernels, edges):
        g = g.contiguous()
        dx, dy, dr = torch.zeros_like(x), torch.zeros_like(y), torch.empty_like(r)
        kernels.run("backward", edges, x, g, dx, y, r, dy, dr)
        ctx.save_for_backward(g, x, y, r)
        ctx.rest = kernels, edges
        return dx, dy, dr

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, ux: Tensor, uy: Tensor, ur: Tensor):
        g, x, y, r = ctx.saved_tensors
        kernels, edges = ctx.rest
        ux, uy, ur = ux.contiguous(), uy.contiguous(), ur.contiguous()
        dg, dx = torch.zeros_like(g), torch.zeros_like(x)
        dy, dr = torch.zeros_like(y), torch.empty_like(r)
        kernels.run("second", edges, x, ux, g, dg, dx, y, uy, r, ur, dy, dr)
        return dg, dx, dy, dr, None, None


def islands_of(edge_src: Tensor, edge_dst: Tensor) -> Tensor:
    """First edge of each run of edges that shares no atom with the others, and the end: [K + 1].

    Edges are sorted by centre. A cut before edge e is possible where every atom that an earlier
    edge touches has a smaller index than every atom that a later edge touches.
    """
    count = edge_dst.shape[0]
    if count == 0:
        return torch.zeros(1, dtype=torch.int64)
    high = torch.maximum(edge_src, edge_dst).cummax(0).values
    low = torch.minimum(edge_src, edge_dst).flip(0).cummin(0).values.flip(0)
    cuts = torch.nonzero(high[:-1] < low[1:]).squeeze(1) + 1
    ends = torch.tensor([count])
    return torch.cat([torch.zeros(1, dtype=torch.int64), cuts, ends])


class FusedConvolution(Convolution):
    """`Convolution` on the generated kernels; CPU, the precision they were generated for."""

    def __init__(self, plain: Convolution, library: Path, layer: int) -> None:
        nn.Module.__init__(self)
        self.__dict__.update({k: v for k, v in plain.__dict__.items() if k != "_buffers"})
        self._buffers = plain._buffers
        self._kernels = _Kernels(library, layer)

    def forward(
        self,
        node_feats: Tensor,
        edge_attrs: Tensor,
        weights: Tensor,
        edge_src: Tensor,
        edge_dst: Tensor,
        num_local: int,
    ) -> Tensor:
        edges = islands_of(edge_src, edge_dst), edge_src, edge_dst
        shape = (num_local, self.irreps_out.dim)
        return _Forward.apply(node_feats, edge_attrs, weights, self._kernels, edges, shape)


def fuse(model: nn.Module) -> nn.Module:
    """Puts generated kernels into an eager model, in place, for CPU training.

    Raises:
        InputError: there is no C++ compiler, or it fails.
    """
    places = [
        m for m in model.modules() if isinstance(getattr(m, "convolution", None), Convolution)
    ]
    scalar = SCALARS[network_tensors(model)[0].dtype]
    library = compile_library(library_source([m.convolution for m in places], scalar))
    for layer, module in enumerate(places):
        module.convolution = FusedConvolution(module.convolution, library, layer)
    return model
