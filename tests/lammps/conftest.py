"""An untrained model for all tests of LAMMPS."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ase.build import bulk
from parity import edges

from eqcalc import export
from eqcalc.contract import set_precision
from eqcalc.models.nequip import NequIP, NequIPConfig


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """Two elements, three layers, float64, not trained: nothing in it is small."""
    torch.manual_seed(0)
    config = NequIPConfig(num_channels=[8, 6, 4], radial_mlp=[16], num_radial=6, readout=8)
    network = NequIP(config, [14, 8], 28.0, [1.0, 0.7], [-3.0, -2.0])
    set_precision(network, torch.float64)
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=1)
    atoms.numbers[::3] = 8
    species = torch.tensor([{14: 0, 8: 1}[z] for z in atoms.numbers])
    network.reference_structure = export.reference_structure(
        network, species, *edges(atoms, config.cutoff)
    )
    path = tmp_path_factory.mktemp("a folder") / "two elements.pth"
    return export.save(network, path, {"architecture": "NequIP"})
