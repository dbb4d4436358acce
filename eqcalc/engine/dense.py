r"""Linear maps and gates in C++ for training, differentiable as often as one likes, or twice.

A linear map y = x w is linear in both of its arguments, so that three functions are each other's
derivatives (csrc/dense.h): for a function phi of the result,

    y  = x w      dphi/dx = (dphi/dy) w^T      dphi/dw = x^T (dphi/dy)

What a force needs of them is dE/dx alone: within `Passes.without_weights` the derivatives with
respect to weights are left out.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from eqcalc.engine.arrays import require_shape, tensor_address
from eqcalc.engine.build import compile_library, header, load_library
from eqcalc.errors import InputError
from eqcalc.nn.gate import Gate
from eqcalc.nn.linear import SpeciesLinear, block_offsets
from eqcalc.nn.radial import RadialNetwork
from eqcalc.program.activations import SCALES

#: what the kernels' return codes mean (csrc/threads.h)
FAILURES = {
    1: "A species is not one of the model's.",
    2: "Out of memory in training: use smaller batches.",
}


class Passes:
    """Which derivatives the backward pass under way is for."""

    def __init__(self) -> None:
        self.weights = True

    @contextmanager
    def without_weights(self) -> Iterator[None]:
        self.weights = False
        try:
            yield
        finally:
            self.weights = True


class KernelLibrary:
    """Functions of a compiled library; copies and pickles open it again.

    Args:
        scalar: what it was compiled for, "float" or "double".
    """

    def __init__(self, path: Path, scalar: str) -> None:
        self._path, self._scalar = path, scalar
        self._dtype = {"float": torch.float32, "double": torch.float64}[scalar]
        self._library = load_library(path)

    def __reduce__(self) -> tuple[type, tuple[Path, str]]:
        return type(self), (self._path, self._scalar)

    def address(self, tensor: Tensor) -> int:
        """Of numbers in the library's precision."""
        return tensor_address(tensor, self._dtype).value or 0

    def run(self, name: str, count: int, *arrays: Tensor | ctypes.Array) -> None:
        """Calls a function of a number, of islands or atoms, and of arrays.

        Raises:
            InputError: out of memory, or an index out of range.
        """
        addresses = [
            a if isinstance(a, ctypes.Array) else tensor_address(a, self._dtype) for a in arrays
        ]
        failed = getattr(self._library, name)(ctypes.c_int64(count), *addresses)
        if failed:
            raise InputError(FAILURES[failed])


def open_library(scalar: str) -> KernelLibrary:
    """The kernels for "float" or "double", compiled if need be.

    Raises:
        InputError: there is no C++ compiler, or it fails.
    """
    scales = ", ".join(f"{name.upper()} = {scale!r}" for name, scale in SCALES.items())
    begin = f"using T = {scalar};\nnamespace {{ constexpr double {scales}; }}\n"
    names = ("callee.h", "threads.h", "simd.h", "gemm.h", "dense.h", "muon.h")
    return KernelLibrary(compile_library("".join([begin, *map(header, names)])), scalar)


class LinearKernels:
    """The three kernels of one linear map.

    Args:
        blocks: per irrep out: first column in, 2l + 1, channels in, channels out, first weight,
            first column out.
        width_in, width_out: columns.
        num_weights: of one species.
        num_species: matrices per block.
    """

    def __init__(
        self,
        library: KernelLibrary,
        passes: Passes,
        blocks: list[tuple[int, int, int, int, int, int]],
        width_in: int,
        width_out: int,
        num_weights: int,
        num_species: int,
    ) -> None:
        self.library, self.passes = library, passes
        self.width_in, self.width_out = width_in, width_out
        self.shape = (num_species, num_weights)
        self.complete = sum(b[1] * b[2] for b in blocks) == width_in
        sizes = [len(blocks), width_in, width_out, num_weights, num_species]
        self.constants = torch.tensor(sizes), torch.tensor(blocks, dtype=torch.int64)

    def check(self, x: Tensor, w: Tensor, species: Tensor) -> None:
        """Shapes of what `apply` takes; autograd sees to those of gradients."""
        require_shape(x, None, self.width_in)
        require_shape(w, *self.shape)
        if self.shape[0] > 1:
            require_shape(species, len(x))

    def apply(self, x: Tensor, w: Tensor, species: Tensor) -> Tensor:
        y = x.new_empty(len(x), self.width_out)
        self.library.run("linear_apply", len(x), *self.constants, species, x, w, y)
        return y

    def transposed(self, g: Tensor, w: Tensor, species: Tensor) -> Tensor:
        new = g.new_empty if self.complete else g.new_zeros
        dx = new(len(g), self.width_in)
        self.library.run("linear_transposed", len(g), *self.constants, species, g, w, dx)
        return dx

    def outer(self, x: Tensor, g: Tensor, species: Tensor) -> Tensor:
        dw = x.new_empty(self.shape)
        self.library.run("linear_outer", len(x), *self.constants, species, x, g, dw)
        return dw


class _Apply(torch.autograd.Function):
    """(x, w) -> x w."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, species: Tensor, kernels: LinearKernels) -> Tensor:
        x, w = x.contiguous(), w.contiguous()
        ctx.save_for_backward(x, w, species)
        ctx.kernels = kernels
        return kernels.apply(x, w, species)

    @staticmethod
    def backward(ctx: Any, g: Tensor):
        x, w, species = ctx.saved_tensors
        rest = species, ctx.kernels
        need_x, need_w = ctx.needs_input_grad[:2]
        dx = _Transposed.apply(g, w, *rest) if need_x else None
        dw = _Outer.apply(x, g, *rest) if need_w and ctx.kernels.passes.weights else None
        return dx, dw, None, None


class _Transposed(torch.autograd.Function):
    """(g, w) -> g w^T."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, w: Tensor, species: Tensor, kernels: LinearKernels) -> Tensor:
        g = g.contiguous()
        ctx.save_for_backward(g, w, species)
        ctx.kernels = kernels
        return kernels.transposed(g, w, species)

    @staticmethod
    def backward(ctx: Any, u: Tensor):
        g, w, species = ctx.saved_tensors
        rest = species, ctx.kernels
        need_g, need_w = ctx.needs_input_grad[:2]
        dg = _Apply.apply(u, w, *rest) if need_g else None
        dw = _Outer.apply(u, g, *rest) if need_w and ctx.kernels.passes.weights else None
        return dg, dw, None, None


class _Outer(torch.autograd.Function):
    """(x, g) -> x^T g."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor, species: Tensor, kernels: LinearKernels) -> Tensor:
        x, g = x.contiguous(), g.contiguous()
        ctx.save_for_backward(x, g, species)
        ctx.kernels = kernels
        return kernels.outer(x, g, species)

    @staticmethod
    def backward(ctx: Any, u: Tensor):
        x, g, species = ctx.saved_tensors
        rest = species, ctx.kernels
        dx = _Transposed.apply(g, u.contiguous(), *rest) if ctx.needs_input_grad[0] else None
        dg = _Apply.apply(x, u, *rest) if ctx.needs_input_grad[1] else None
        return dx, dg, None, None


class GateKernels:
    """The three kernels of one gate, or of an activation alone.

    Args:
        blocks: first column in, 2l + 1, channels, first gate, kind, first column out.
    """

    def __init__(
        self,
        library: KernelLibrary,
        blocks: list[tuple[int, int, int, int, int, int]],
        width_in: int,
        width_out: int,
    ) -> None:
        self.library = library
        self.width_in, self.width_out = width_in, width_out
        self.constants = (
            torch.tensor([len(blocks), width_in, width_out]),
            torch.tensor(blocks, dtype=torch.int64),
        )

    def run(self, name: str, *arrays: Tensor) -> None:
        self.library.run(f"gate_{name}", len(arrays[0]), *self.constants, *arrays)


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernels: GateKernels) -> Tensor:
        x = x.contiguous()
        y = x.new_empty(len(x), kernels.width_out)
        kernels.run("forward", x, y)
        ctx.save_for_backward(x)
        ctx.kernels = kernels
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor):
        return _GateBackward.apply(g, *ctx.saved_tensors, ctx.kernels), None


class _GateBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, kernels: GateKernels) -> Tensor:
        g, dx = g.contiguous(), torch.empty_like(x)
        kernels.run("backward", x, g, dx)
        ctx.save_for_backward(g, x)
        ctx.kernels = kernels
        return dx

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor):
        g, x = ctx.saved_tensors
        dg, dx = torch.empty_like(g), torch.empty_like(x)
        ctx.kernels.run("second", x, g, u.contiguous(), dg, dx)
        return dg, dx, None


def _take_over(new: nn.Module, plain: nn.Module) -> None:
    """Parameters, buffers and all else of the module that `new` takes the place of."""
    nn.Module.__init__(new)
    new.__dict__.update(plain.__dict__)


class FusedLinear(SpeciesLinear):
    """`SpeciesLinear` on these kernels."""

    def __init__(self, plain: SpeciesLinear, library: KernelLibrary, passes: Passes) -> None:
        _take_over(self, plain)
        blocks, at = [], 0
        for block in plain._blocks:
            blocks.append((*block, at))
            at += block[1] * block[3]
        self._kernels = LinearKernels(
            library, passes, blocks, sum(plain._widths), at, plain.weight.shape[1],
            plain.num_species,
        )  # fmt: skip

    def forward(self, x: Tensor, species: Tensor) -> Tensor:
        self._kernels.check(x, self.weight, species)
        return _Apply.apply(x, self.weight, species.contiguous(), self._kernels)


class FusedGate(Gate):
    """`Gate` on these kernels."""

    def __init__(self, plain: Gate, library: KernelLibrary) -> None:
        _take_over(self, plain)
        offsets = block_offsets(plain.irreps_out)
        blocks = [(*block, at) for block, at in zip(plain._blocks, offsets, strict=False)]
        self._kernels = GateKernels(library, blocks, plain.irreps_in.dim, plain.irreps_out.dim)

    def forward(self, x: Tensor) -> Tensor:
        require_shape(x, None, self._kernels.width_in)
        return _Gate.apply(x, self._kernels)


class FusedRadial(RadialNetwork):
    """`RadialNetwork` on these kernels."""

    def __init__(self, plain: RadialNetwork, library: KernelLibrary, passes: Passes) -> None:
        _take_over(self, plain)
        shapes = [tuple(w.shape) for w in plain.weights]
        self._linear = [
            LinearKernels(library, passes, [(0, 1, a, b, 0, 0)], a, b, a * b, 1) for a, b in shapes
        ]
        self._silu = [GateKernels(library, [(0, 1, b, 0, 0, 0)], b, b) for _, b in shapes[:-1]]
        self._one_species = torch.empty(0, dtype=torch.int64)

    def forward(self, x: Tensor) -> Tensor:
        for i, (weight, linear) in enumerate(zip(self.weights, self._linear, strict=True)):
            weights = weight.reshape(1, -1)
            linear.check(x, weights, self._one_species)
            x = _Apply.apply(x, weights, self._one_species, linear)
            if i + 1 < self.num_layers:
                x = _Gate.apply(x, self._silu[i])
        return x


def fuse_dense(model: nn.Module, library: KernelLibrary, passes: Passes) -> None:
    """Puts these kernels in the place of all linear maps and gates."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is SpeciesLinear:
                setattr(module, name, FusedLinear(child, library, passes))
            elif type(child) is Gate:
                setattr(module, name, FusedGate(child, library))
