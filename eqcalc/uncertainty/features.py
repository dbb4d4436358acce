"""Features of atoms, dE_i / dw, from the modules of any potential."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from eqcalc.errors import InputError
from eqcalc.export import Evaluation, PotentialFile, program_document
from eqcalc.program import Program, Readout
from eqcalc.runtime import TurnLock

#: held while weights of a module, which copies of a calculator share, have derivatives
_WEIGHTS = TurnLock()


def last_weights(module: nn.Module, program: Program | None) -> list[str]:
    """Names of the parameters that the energy is linear in, in the order of the program's readouts.

    program: None for files that are older than programs.

    Raises:
        InputError: the network has no readouts.
    """
    names = [name for name, p in module.named_parameters() if p.numel()]
    found: list[str] = []
    if program:
        operations = program.reaching("energy").operations
        ends = [f".{op.name}.outer" for op in operations if isinstance(op, Readout)]
        found = [name for end in ends for name in names if name.endswith(end)]
    # files of NequIP from before its modules were those of its program
    found = found or [name for name in names if name.endswith(".readout_out")]
    if not found:
        raise InputError("The network has no readout, and so no uncertainty of an energy.")
    return found


def _linear_in(energies: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """dE_i / dw [N, H] of energies that are linear in the weights.

    The derivative of sum_i v_i E_i by w is linear in v; that of its components by v is what is
    sought. Neither reaches beyond the readouts.
    """
    v = torch.ones_like(energies).requires_grad_(True)
    slopes = torch.autograd.grad(energies, weights, v, create_graph=True, allow_unused=True)
    rows = []
    for weight, slope in zip(weights, slopes, strict=True):
        count = weight.numel()
        if slope is None or not slope.requires_grad:
            rows.append(energies.new_zeros(count, len(energies)))
            continue
        flat = slope.reshape(-1)
        of_v = [torch.autograd.grad(flat[c], v, retain_graph=True)[0] for c in range(count)]
        rows.append(torch.stack(of_v))
    return torch.cat(rows).T.to(torch.float64)


def module_features(
    module: nn.Module,
    names: Sequence[str],
    species: Tensor,
    edge_vec: Tensor,
    edge_src: Tensor,
    edge_dst: Tensor,
    *,
    gradient: bool = True,
) -> tuple[Evaluation, Tensor]:
    """Energies and gradient, and features [N, H], from one pass through a module.

    names: of its last weights. Without `gradient` that of the evaluation is empty.
    """
    parameters = dict(module.named_parameters())
    weights = [parameters[name] for name in names]
    before = [weight.requires_grad for weight in weights]
    with _WEIGHTS, torch.enable_grad():
        try:
            for weight in weights:
                weight.requires_grad_(True)
            edge_vec = edge_vec.detach().requires_grad_(gradient)
            energies = module(species, edge_vec, edge_src, edge_dst, species.shape[0])
            slope = torch.zeros_like(edge_vec) if gradient else edge_vec[:0]
            if gradient and edge_vec.numel():
                (slope,) = torch.autograd.grad(energies.sum(), edge_vec, retain_graph=True)
            rows = _linear_in(energies, weights)
        finally:
            for weight, was in zip(weights, before, strict=True):
                weight.requires_grad_(was)
    return Evaluation(energies.detach(), slope.detach()), rows.detach()


def evaluate_with_features(
    potential: PotentialFile,
    species: Tensor,
    edge_vec: Tensor,
    edge_src: Tensor,
    edge_dst: Tensor,
    *,
    gradient: bool = True,
) -> tuple[Evaluation, Tensor]:
    """As `PotentialFile.evaluate`, and features [N, H] eV, from one pass (`module_features`).

    Raises:
        InputError: a network without an energy.
    """
    if not potential.has_energy:
        raise InputError(f"{potential.path.name} has no energy, and so no uncertainty of it.")
    graph = species, edge_vec, edge_src, edge_dst
    names = file_weights(potential)
    return module_features(potential.module, names, *graph, gradient=gradient)


def file_weights(potential: PotentialFile) -> list[str]:
    """`last_weights` of a file, looked for once."""
    if potential.last_weights is None:
        document = program_document(potential.path)
        program = Program.from_document(document) if document else None
        potential.last_weights = last_weights(potential.module, program)
    return potential.last_weights


def features(
    potential: PotentialFile, species: Tensor, edge_vec: Tensor, edge_src: Tensor, edge_dst: Tensor
) -> Tensor:
    """Features [N, H] eV of atoms; arguments as of `PotentialFile.evaluate`."""
    graph = species, edge_vec, edge_src, edge_dst
    return evaluate_with_features(potential, *graph, gradient=False)[1]
