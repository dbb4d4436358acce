"""Muon: steepest descent in the spectral norm, for networks made of many small matrices.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024): the momentum of
every matrix is replaced by the nearest orthogonal matrix, found by a quintic Newton-Schulz
iteration, so that all singular directions of a matrix learn at the same rate. Equivariant linear
maps are one matrix per irrep and species, and each is treated for itself. On acetylacetone, 60
epochs reach the force error for which AdamW needed 700; on silicon, 50 that of 220.

The step is scaled as by Liu et al. (arXiv:2502.16982, eq. 4): 0.2 sqrt(max(rows, columns)), which
makes the root mean square of an update 0.2 times the learning rate. The species embedding and the
readout, the first and the last of the network, take AdamW steps at the same learning rate.

With the library of a fused network, the matrices' steps are taken in C++ (engine/csrc/muon.h).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eqcalc.engine.dense import KernelLibrary
from eqcalc.nn.linear import SpeciesLinear
from eqcalc.nn.radial import RadialNetwork
from eqcalc.nn.so2 import SO2Linear

#: of the quintic that moves singular values from [0, 1] close to 1 (Jordan et al.)
QUINTIC = (3.4445, -4.7750, 2.0315)


#: of Newton and Schulz
ITERATIONS = 5


def orthogonalize(matrices: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Nearly U V^T of each matrix U S V^T: singular values between about 0.7 and 1.2.

    A matrix of norm below 1e-7 is noise (gradients of what symmetry forbids) and stays small.

    matrices: [B, m, n] -> [B, m, n].
    """
    a, b, c = QUINTIC
    x = matrices / torch.linalg.matrix_norm(matrices, keepdim=True).clamp(min=1e-7)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT.contiguous()
    for _ in range(iterations):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


def matrix_shapes(model: nn.Module) -> dict[str, list[tuple[int, int]]]:
    """For every parameter that Muon takes: the shapes of its matrices, one after the other.

    A parameter of a radial network is one matrix; a row of a `SpeciesLinear`'s weight holds
    one matrix per irrep; that of an `SO2Linear` one per |m|.
    """
    shapes = {}
    for module in model.modules():
        if isinstance(module, SpeciesLinear):
            row = [(block[2], block[3]) for block in module._blocks if block[2]]
            shapes[module.weight] = row * module.num_species
        elif isinstance(module, SO2Linear):
            shapes[module.weight] = list(module.shapes)
        elif isinstance(module, RadialNetwork):
            for weight in module.weights:
                shapes[weight] = [(weight.shape[0], weight.shape[1])]
    return {name: shapes[p] for name, p in model.named_parameters() if p in shapes}


class Muon(torch.optim.Optimizer):
    """Muon for linear maps and radial networks, AdamW for the embedding and the readout.

    Args:
        model: its parameters are optimised, those that require no gradient left alone.
        lr: learning rate of both.
        weight_decay: decoupled, of both: w <- (1 - lr weight_decay) w.
        undecayed: names of parameters without weight decay.
        momentum: Nesterov, of Muon.
        betas: of AdamW.
        library: compiled kernels, for parameters on CPU of the precision they were made for.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        weight_decay: float = 0.0,
        *,
        undecayed: Sequence[str] = (),
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        library: KernelLibrary | None = None,
    ) -> None:
        self._library = library
        shapes = matrix_shapes(model)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad and p.numel()}
        self._shapes = {p: shapes[n] for n, p in trained.items() if n in shapes}
        groups = []
        for matrices in (True, False):
            for decayed in (True, False):
                mine = [
                    p
                    for n, p in trained.items()
                    if (n in shapes) == matrices and (n in undecayed) != decayed
                ]
                if mine:
                    decay = weight_decay if decayed else 0.0
                    groups.append({"params": mine, "matrices": matrices, "weight_decay": decay})
        super().__init__(groups, {"lr": lr, "momentum": momentum, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        for group in self.param_groups:
            if group["matrices"]:
                self._muon_step(**group)
            else:
                self._adamw_step(**group)
        return result

    def _muon_step(
        self, params: list[Tensor], lr: float, weight_decay: float, momentum: float, **_: Any
    ) -> None:
        moved = [p for p in params if p.grad is not None]
        for p in moved:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        if self._library is None:
            self._plain_step(moved, lr, weight_decay, momentum)
        else:
            self._compiled_step(moved, lr, weight_decay, momentum)

    def _plain_step(
        self, params: list[Tensor], lr: float, weight_decay: float, momentum: float
    ) -> None:
        stacks: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for p in params:
            average = self.state[p]["momentum"].lerp_(p.grad, 1.0 - momentum)
            ahead = p.grad.lerp(average, momentum)
            p.mul_(1.0 - lr * weight_decay)
            sizes = [rows * columns for rows, columns in self._shapes[p]]
            weights, updates = p.view(-1).split(sizes), ahead.view(-1).split(sizes)
            for shape, w, u in zip(self._shapes[p], weights, updates, strict=True):
                stacks.setdefault(shape, []).append((w.view(shape), u.view(shape)))
        for shape, pairs in stacks.items():
            steps = orthogonalize(torch.stack([u for _, u in pairs]))
            steps *= -0.2 * lr * max(shape) ** 0.5
            torch._foreach_add_([w for w, _ in pairs], list(steps.unbind()))

    def _compiled_step(
        self, params: list[Tensor], lr: float, weight_decay: float, momentum: float
    ) -> None:
        shapes, addresses, kept = [], [], []
        for p in params:
            tensors = p, self.state[p]["momentum"], p.grad.contiguous()
            kept.append(tensors)
            bases = [self._library.address(t) for t in tensors]
            offset = 0
            for rows, columns in self._shapes[p]:
                shapes.append((rows, columns))
                addresses.append([base + offset for base in bases])
                offset += rows * columns * p.element_size()
        places = [torch.tensor(table, dtype=torch.int64) for table in (shapes, addresses)]
        settings = (ctypes.c_double * 4)(lr, weight_decay, momentum, ITERATIONS)
        self._library.run("muon_step", len(shapes), *places, settings)

    def _adamw_step(
        self,
        params: list[Tensor],
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        **_: Any,
    ) -> None:
        for p in params:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state.update(mean=torch.zeros_like(p), square=torch.zeros_like(p), steps=0)
            state["steps"] += 1
            mean = state["mean"].lerp_(p.grad, 1.0 - betas[0]) / (1.0 - betas[0] ** state["steps"])
            square = state["square"].mul_(betas[1]).addcmul_(p.grad, p.grad, value=1.0 - betas[1])
            square = square / (1.0 - betas[1] ** state["steps"])
            p.mul_(1.0 - lr * weight_decay).addcdiv_(mean, square.sqrt() + 1e-8, value=-lr)
