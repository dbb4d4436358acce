r"""Forces, stress and virials from one gradient, g_ij = dE/dr_ij.

With r_ij = r_j - r_i the vector of edge (i <- j) and E the total energy,

    F_i     = sum_j g_ij - sum_j g_ji                     (eV/Å)
    W       = - sum_ij r_ij (x) g_ij                      (eV, the virial)
    stress  = dE/d(strain) / V = sum_ij r_ij (x) g_ij / V (eV/Å^3, ASE's sign)

The sum over edges is symmetric in its two indices because E is invariant under rotations; the
antisymmetric rounding noise is removed. The virial of an atom is the sum over the edges it is the
neighbour of, which makes the heat flux right for many-body potentials of one layer (Fan et al.,
Phys. Rev. B 92, 094301 (2015), eq. 23).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def stress_volume(cell: np.ndarray, pbc: np.ndarray) -> float | None:
    """The volume V (Å^3) in stress = dE/d(strain) / V, or None where a structure has no stress.

    A stress exists where at least one direction is periodic, and V is that of the whole cell, its
    vacuum included, as in ASE and in the codes that it drives: for a slab in a cell of height c,
    stress times c is the in-plane force per length, whatever c is. Without a periodic direction
    nothing holds a strain, and a cell without volume (a slab whose third vector is zero) has no V.

    Args:
        cell: [3, 3] Å, vectors as rows.
        pbc: [3], which of them are periodic.
    """
    if not np.any(pbc):
        return None
    return _volume(np.asarray(cell, dtype=np.float64).tobytes())


@lru_cache(maxsize=64)  # most structures have the cell of the one before
def _volume(entries: bytes) -> float | None:
    cell = np.frombuffer(entries).reshape(3, 3)
    volume = abs(float(np.linalg.det(cell)))
    # flat up to rounding, like a zero vector
    flat = volume <= 1e-9 * float(np.prod(np.linalg.norm(cell, axis=1)))
    return None if flat else volume


def edge_gradient(energies: Tensor, edge_vec: Tensor, *, differentiable: bool = False) -> Tensor:
    """dE/dr_ij. energies [N] eV; edge_vec [E, 3] Å with requires_grad -> [E, 3] eV/Å."""
    if not energies.requires_grad:  # no edges at all: nothing depends on them
        return torch.zeros_like(edge_vec)
    (gradient,) = torch.autograd.grad(
        energies.sum(), edge_vec, create_graph=differentiable, allow_unused=True
    )
    return torch.zeros_like(edge_vec) if gradient is None else gradient


def forces(gradient: Tensor, edge_src: Tensor, edge_dst: Tensor, num_atoms: int) -> Tensor:
    """F_i [N, 3] eV/Å from g [E, 3] eV/Å."""
    zero = gradient.new_zeros(num_atoms, 3)
    return zero.index_add(0, edge_dst, gradient).index_add(0, edge_src, -gradient)


def atomic_virials(gradient: Tensor, edge_vec: Tensor, edge_src: Tensor, num_atoms: int) -> Tensor:
    """-sum_i r_ij (x) g_ij per neighbour j: [N, 3, 3] eV, not symmetric per atom."""
    outer = edge_vec.unsqueeze(2) * gradient.unsqueeze(1)
    return -gradient.new_zeros(num_atoms, 3, 3).index_add(0, edge_src, outer)


def strain_derivative(
    gradient: Tensor, edge_vec: Tensor, edge_graph: Tensor, num_graphs: int
) -> Tensor:
    """dE/d(strain) per structure: [B, 3, 3] eV, symmetric. Divide by the volume for the stress."""
    outer = edge_vec.unsqueeze(2) * gradient.unsqueeze(1)
    total = gradient.new_zeros(num_graphs, 3, 3).index_add(0, edge_graph, outer)
    return 0.5 * (total + total.transpose(1, 2))


def hessian(energies: Tensor, positions: Tensor) -> Tensor:
    """d2E / dr_ia dr_jb, row by row through the graph of the first derivative.

    energies [N] eV as a function of positions [N, 3] Å with requires_grad -> [3N, 3N] eV/Å^2. What
    rounding leaves of an antisymmetric part is removed.
    """
    size = positions.numel()
    slope = edge_gradient(energies, positions, differentiable=True).reshape(-1)
    rows = positions.new_zeros(size, size)
    if slope.requires_grad:
        for k in range(size):
            (row,) = torch.autograd.grad(slope[k], positions, retain_graph=True)
            rows[k] = row.reshape(-1)
    return 0.5 * (rows + rows.T)
