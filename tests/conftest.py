"""Untrained potentials for the tests: random weights obey every law of physics that we check."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from eqcalc import export
from eqcalc.models.nequip import NequIP, NequIPConfig
from eqcalc.neighbors import neighbor_list

torch.set_num_threads(1)


def untrained(path, *, channels=(8, 6, 4), parity=False, layers=2, elements=(8, 14), seed=0):
    """Writes an export with random weights and returns its path."""
    torch.manual_seed(seed)
    config = NequIPConfig(
        cutoff=4.0,
        num_layers=layers,
        l_max=len(channels) - 1,
        num_channels=list(channels),
        parity=parity,
        radial_mlp=[16],
    )
    count = len(elements)
    model = NequIP(config, list(elements), 16.0, [1.0] * count, [-1.0 - k for k in range(count)])
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=1)
    pairs = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, 4.0)
    vectors = torch.from_numpy(pairs.vectors(atoms.positions, atoms.cell.array))
    species = torch.arange(len(atoms)) % count
    model.reference_structure = export.reference_structure(
        model, species, vectors, torch.from_numpy(pairs.edge_src), torch.from_numpy(pairs.edge_dst)
    )
    return export.save(model, path, {"architecture": "NequIP"})


@pytest.fixture(scope="session")
def potential_path(tmp_path_factory):
    """Two elements (O, Si), l_max 2, natural parity, weights in float32."""
    return untrained(tmp_path_factory.mktemp("potential") / "model.pth")


@pytest.fixture(scope="session")
def parity_path(tmp_path_factory):
    """The same with features of both parities and three layers."""
    folder = tmp_path_factory.mktemp("potential")
    return untrained(folder / "parity.pth", channels=(4, 3, 2), parity=True, layers=3)


@pytest.fixture
def crystal() -> Atoms:
    """Silicon oxide-like: cubic cell with 8 atoms of two elements, displaced, sheared."""
    atoms = bulk("Si", cubic=True)
    atoms.numbers[::3] = 8
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.03 * np.ones((3, 3))), scale_atoms=True)
    atoms.rattle(0.15, seed=2)
    return atoms


@pytest.fixture
def molecule() -> Atoms:
    """Five atoms without any symmetry, no cell."""
    positions = [[0, 0, 0], [1.6, 0.1, 0], [-0.3, 1.7, 0.2], [0.1, -0.4, 1.8], [-1.2, -0.9, -0.8]]
    return Atoms("SiO2SiO", positions=positions)
