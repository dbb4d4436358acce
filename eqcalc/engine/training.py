"""The generated kernels as convolutions and products that can be trained: twice differentiable.

A `FusedConvolution` takes the place of a `Convolution` in an eager model, a `FusedProduct` that of
a `ChannelProduct`, a `FusedContraction` that of a `Contraction`, a `PairedRadial` that of a radial
network, which then runs once per pair of atoms instead of once per edge, and linear maps and gates
are those of `eqcalc.engine.dense`.
Parameters, buffers and results (to rounding) are the same. Exports are always made of the plain
ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from eqcalc.contract import network_tensors
from eqcalc.engine.arrays import require_shape
from eqcalc.engine.build import compile_library
from eqcalc.engine.dense import FusedRadial, KernelLibrary, Passes, fuse_dense, open_library
from eqcalc.engine.generate import library_source
from eqcalc.engine.generate_contraction import is_moderate, ordered_terms, padded_channels
from eqcalc.errors import InputError
from eqcalc.graph import Graph
from eqcalc.nn.contraction import Contraction
from eqcalc.nn.convolution import Convolution
from eqcalc.nn.product import ChannelProduct
from eqcalc.nn.radial import EdgeRadialNetwork, RadialNetwork

SCALARS = {torch.float32: "float", torch.float64: "double"}


class _Edges(NamedTuple):
    """Where the kernels run: islands [K + 1] (see `islands_of`), src, dst, pair [E] int64."""

    islands: Tensor
    src: Tensor
    dst: Tensor
    pair: Tensor


class _Kernels:
    """The kernels of one convolution or, with a prefix, of one product or contraction."""

    def __init__(self, library: KernelLibrary, number: int, prefix: str = "") -> None:
        self._library = library
        names = ("forward", "backward", "weights", "second")
        self._functions = {name: f"{prefix}{name}_{number}" for name in names}

    def run(self, name: str, count: int, *arrays: Tensor) -> None:
        """Over `count` islands or atoms."""
        self._library.run(self._functions[name], count, *arrays)

    def run_edges(self, name: str, edges: _Edges, *arrays: Tensor) -> None:
        self.run(name, len(edges.islands) - 1, *edges, *arrays)


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, r: Tensor, kernels: _Kernels, edges, shape):
        x, y, r = x.contiguous(), y.contiguous(), r.contiguous()
        out = x.new_zeros(shape)
        kernels.run_edges("forward", edges, x, out, r, y)
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
        dx, dy, dr = torch.zeros_like(x), torch.zeros_like(y), torch.zeros_like(r)
        kernels.run_edges("backward", edges, x, g, dx, r, dr, y, dy)
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
        dy, dr = torch.zeros_like(y), torch.zeros_like(r)
        kernels.run_edges("second", edges, x, ux, g, dg, dx, r, ur, dr, y, uy, dy)
        return dg, dx, dy, dr, None, None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, kernels: _Kernels, width: int):
        a = a.contiguous()
        out = a.new_empty(len(a), width)
        kernels.run("forward", len(a), a, out)
        ctx.save_for_backward(a)
        ctx.kernels = kernels
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor):
        return _ProductBackward.apply(g, *ctx.saved_tensors, ctx.kernels), None, None


class _ProductBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, a: Tensor, kernels: _Kernels):
        g = g.contiguous()
        da = torch.zeros_like(a)
        kernels.run("backward", len(a), a, g, da)
        ctx.save_for_backward(g, a)
        ctx.kernels = kernels
        return da

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor):
        g, a = ctx.saved_tensors
        dg, da = torch.empty_like(g), torch.zeros_like(a)
        ctx.kernels.run("second", len(a), a, u.contiguous(), g, dg, da)
        return dg, da, None


class _Contraction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, c: Tensor, species: Tensor, kernels: _Kernels, passes, width):
        x, c = x.contiguous(), c.contiguous()
        out = x.new_empty(len(x), width)
        kernels.run("forward", len(x), species, x, c, out)
        ctx.save_for_backward(x, c, species)
        ctx.rest = kernels, passes
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor):
        kernels, passes = ctx.rest
        wanted = passes.weights and ctx.needs_input_grad[1]
        dx, dc = _ContractionBackward.apply(g, *ctx.saved_tensors, kernels, wanted)
        return dx, dc, None, None, None, None


class _ContractionBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, c: Tensor, species: Tensor, kernels, wanted):
        g = g.contiguous()
        dx, dc = torch.empty_like(x), None
        kernels.run("backward", len(x), species, x, c, g, dx)
        if wanted:
            dc = torch.zeros_like(c)
            kernels.run("weights", len(x), species, x, g, dc)
        ctx.save_for_backward(g, x, c, species)
        ctx.set_materialize_grads(False)
        ctx.kernels = kernels
        return dx, dc

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, ux: Tensor | None, uc: Tensor | None):
        g, x, c, species = ctx.saved_tensors
        dg, dx, dc = torch.zeros_like(g), torch.zeros_like(x), torch.zeros_like(c)
        if ux is not None:
            ctx.kernels.run("second", len(x), species, x, c, g, ux.contiguous(), dg, dx, dc)
        if uc is not None:  # y and its gradient are linear in c
            uc = uc.contiguous()
            of_g, of_x = torch.empty_like(g), torch.empty_like(x)
            ctx.kernels.run("forward", len(x), species, x, uc, of_g)
            ctx.kernels.run("backward", len(x), species, x, uc, g, of_x)
            dg, dx = dg + of_g, dx + of_x
        return dg, dx, dc, None, None, None


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


class Pairing:
    """The pairs and islands of the graph that a fused model is being run on.

    pair: [E] number of each edge's pair, or None: every edge for itself. first: [P] the first edge
    of each. islands: [K + 1], or None: to be found.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.pair: Tensor | None = None
        self.first: Tensor | None = None
        self.islands: Tensor | None = None

    def set(self, graph: Graph) -> None:
        highest = torch.cummax(graph.pair, 0).values if graph.num_edges else graph.pair
        new = torch.diff(highest, prepend=highest.new_full((1,), -1))
        self.pair, self.first = graph.pair, torch.nonzero(new).squeeze(1)
        self.islands = islands_of(graph.edge_src, graph.edge_dst)

    def of(self, src: Tensor, dst: Tensor, num_local: int, nodes: int) -> _Edges:  # noqa: ARG002
        """What kernels of the CPU run on."""
        pair, islands = self.pair, self.islands
        if pair is None:
            pair = torch.arange(len(src))
        if islands is None:
            islands = islands_of(src, dst)
        require_shape(pair, len(src))
        return _Edges(*(t.contiguous() for t in (islands, src, dst, pair)))


class FusedConvolution(Convolution):
    """`Convolution` on generated kernels, in the precision they were generated for.

    Args:
        kernels: `run_edges` has "forward", "backward" and "second" of `eqcalc.engine.generate`.
        edges: `of(src, dst, num_local, nodes)` is what these run on (`Pairing`, and on a GPU
            `eqcalc.engine.cuda.training.EdgeLists`).
    """

    def __init__(self, plain: Convolution, kernels: Any, edges: Any) -> None:
        nn.Module.__init__(self)
        self.__dict__.update({k: v for k, v in plain.__dict__.items() if k != "_buffers"})
        self._buffers = plain._buffers
        self._kernels, self._edges = kernels, edges

    def forward(
        self,
        node_feats: Tensor,
        edge_attrs: Tensor,
        weights: Tensor,
        edge_src: Tensor,
        edge_dst: Tensor,
        num_local: int,
    ) -> Tensor:
        require_shape(node_feats, None, self.irreps_in.dim)
        require_shape(edge_attrs, len(edge_src), (self.l_max + 1) ** 2)
        require_shape(weights, None, self.num_weights)
        require_shape(edge_dst, len(edge_src))
        edges = self._edges.of(edge_src, edge_dst, num_local, len(node_feats))
        shape = (num_local, self.irreps_out.dim)
        return _Forward.apply(node_feats, edge_attrs, weights, self._kernels, edges, shape)


class FusedProduct(ChannelProduct):
    """`ChannelProduct` on the generated kernels."""

    def __init__(self, plain: ChannelProduct, library: KernelLibrary, number: int) -> None:
        nn.Module.__init__(self)
        self.__dict__.update({k: v for k, v in plain.__dict__.items() if k != "_buffers"})
        self._buffers = plain._buffers
        self._kernels = _Kernels(library, number, "product_")

    def forward(self, a: Tensor) -> Tensor:
        require_shape(a, None, self.irreps_in.dim)
        return _Product.apply(a, self._kernels, self.irreps_out.dim)


class FusedContraction(Contraction):
    """`Contraction` on the generated kernels."""

    def __init__(
        self, plain: Contraction, library: KernelLibrary, number: int, passes: Passes
    ) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(
            {k: v for k, v in plain.__dict__.items() if k not in ("_buffers", "_parameters")}
        )
        self._buffers, self._parameters = plain._buffers, plain._parameters
        self._kernels, self._passes = _Kernels(library, number, "contraction_"), passes
        matrix = torch.from_numpy(ordered_terms(plain)[1].T.copy())
        self._of_weights = matrix.to(plain.weight.dtype)  # [terms, paths]
        self._spare = padded_channels(plain) - plain.num_channels

    def forward(self, x: Tensor, species: Tensor) -> Tensor:
        require_shape(x, None, self.irreps_in.dim)
        require_shape(species, len(x))
        if len(species) and not 0 <= int(species.min()) <= int(species.max()) < self.num_species:
            raise InputError("A species is not one of the model's.")
        coefficients = nn.functional.pad(self._of_weights @ self.weight, (0, self._spare))
        rest = species.contiguous(), self._kernels, self._passes, self.irreps_out.dim
        return _Contraction.apply(x, coefficients, *rest)


class PairedRadial(FusedRadial):
    """A radial network that runs once per pair of atoms: [E, in] -> [P, out].

    What the energy owes to a pair's distance is then part of the gradient of the pair's first edge
    alone. Forces and stress are the same sums; atomic virials are not.
    """

    def __init__(
        self, plain: RadialNetwork, library: KernelLibrary, passes: Passes, pairing: Pairing
    ) -> None:
        super().__init__(plain, library, passes)
        self._pairing = pairing

    def forward(self, x: Tensor) -> Tensor:
        first = self._pairing.first
        return super().forward(x if first is None else x.index_select(0, first))


class PairedEdgeRadial(PairedRadial):
    """The same, with a row for each edge: [E, in] -> [E, out]."""

    def forward(self, x: Tensor) -> Tensor:
        pair, rows = self._pairing.pair, super().forward(x)
        return rows if pair is None else rows.index_select(0, pair)


@dataclass(frozen=True)
class Fused:
    """What a fused model shares: the CPU's library, if it is there, its graph, its kind of pass."""

    library: KernelLibrary | None
    pairing: Any  # has `set(graph)` and `clear()`
    passes: Passes


def places_of(model: nn.Module, kind: type[nn.Module]) -> list[tuple[nn.Module, str]]:
    """Parents and names of all submodules whose type is exactly `kind`."""
    return [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is kind
    ]


def fuse(model: nn.Module) -> nn.Module:
    """Puts generated kernels into an eager model, in place, for CPU training.

    Within `with pairs_of(model, graph):` radial networks run once per pair.

    Raises:
        InputError: there is no C++ compiler, or it fails.
    """
    convolutions, products, contractions, radials = (
        places_of(model, kind) for kind in (Convolution, ChannelProduct, Contraction, RadialNetwork)
    )
    contractions = [place for place in contractions if is_moderate(getattr(*place))]
    scalar = SCALARS[network_tensors(model)[0].dtype]
    parts = ([getattr(*place) for place in some] for some in (convolutions, products, contractions))
    source = library_source(*parts, scalar)
    kernels = KernelLibrary(compile_library(source), scalar)
    pairing, passes, library = Pairing(), Passes(), open_library(scalar)
    for layer, place in enumerate(convolutions):
        setattr(*place, FusedConvolution(getattr(*place), _Kernels(kernels, layer), pairing))
    for place in radials:
        setattr(*place, PairedRadial(getattr(*place), library, passes, pairing))
    for place in places_of(model, EdgeRadialNetwork):
        setattr(*place, PairedEdgeRadial(getattr(*place), library, passes, pairing))
    for number, place in enumerate(products):
        setattr(*place, FusedProduct(getattr(*place), kernels, number))
    for number, place in enumerate(contractions):
        setattr(*place, FusedContraction(getattr(*place), kernels, number, passes))
    fuse_dense(model, library, passes)
    model.fused = Fused(library, pairing, passes)
    return model


def fused_parts(model: nn.Module) -> Fused | None:
    """What `fuse` left with the model; None for any other model."""
    return getattr(model, "fused", None)


def without_weights(model: nn.Module) -> AbstractContextManager:
    """Within it, backward passes of a fused model may leave out what only weights need."""
    fused = fused_parts(model)
    return nullcontext() if fused is None else fused.passes.without_weights()


@contextmanager
def pairs_of(model: nn.Module, graph: Graph) -> Iterator[None]:
    """Within it, a fused model runs on this graph; any other model is left alone."""
    fused = fused_parts(model)
    if fused is None or graph.pair is None:
        yield
        return
    fused.pairing.set(graph)
    try:
        yield
    finally:
        fused.pairing.clear()
