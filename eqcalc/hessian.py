r"""Exact second derivatives of the energy.

    H_{ia,jb} = d^2 E / (dr_ia dr_jb)

Row by row, each the derivative of one force component by reverse-mode differentiation through the
TorchScript; no step size. In a periodic structure an atom moves together with all its images, so
this is the Hessian of the cell's own vibrations (the Gamma point).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms

from eqcalc.errors import InputError
from eqcalc.export import PotentialFile, quiet_torchscript
from eqcalc.neighbors import neighbor_list


def hessian(
    potential: PotentialFile, atoms: Atoms, indices: Sequence[int] | None = None
) -> np.ndarray:
    """Rows of the Hessian for some atoms, or for all.

    Args:
        potential: on the device and in the precision to use; float64 if it is to be trusted to
            more than three digits.
        atoms: the structure.
        indices: atoms whose rows are wanted; None for all.

    Returns:
        [3 n, 3 N] eV/Å^2, rows and columns atom by atom, x y z within; not made symmetric.
    """
    size = len(atoms)
    wanted = list(range(size)) if indices is None else [int(i) for i in indices]
    if any(not 0 <= i < size for i in wanted):
        raise InputError(f"indices {wanted}: the structure has atoms 0 to {size - 1}.")
    cell, device = atoms.cell.array, potential.device
    pairs = neighbor_list(atoms.positions, cell, atoms.pbc, potential.cutoff)
    if len(pairs.edge_src) == 0:
        return np.zeros((3 * len(wanted), 3 * size))
    species, src, dst, shifts, positions = (
        torch.from_numpy(np.ascontiguousarray(a)).to(device)
        for a in (
            potential.species_of(atoms.numbers),
            pairs.edge_src,
            pairs.edge_dst,
            pairs.cell_shift @ cell,
            atoms.get_positions(),
        )
    )
    rows = np.zeros((len(wanted), 3, 3 * size))
    with torch.enable_grad(), quiet_torchscript():
        positions.requires_grad_(True)
        vectors = positions[src] - positions[dst] + shifts
        energy = potential.module(species, vectors, src, dst, size).sum()
        (gradient,) = torch.autograd.grad(energy, positions, create_graph=True)
        for n, i in enumerate(wanted):
            for axis in range(3):
                (row,) = torch.autograd.grad(gradient[i, axis], positions, retain_graph=True)
                rows[n, axis] = row.flatten().cpu().numpy()
    return rows.reshape(3 * len(wanted), 3 * size)
