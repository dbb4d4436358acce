"""Untrained models for the tests of LAMMPS."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from ase.build import bulk
from parity import edges
from potentials import some_crowding, some_pairs

from eqcalc import export
from eqcalc.contract import set_precision
from eqcalc.models.config import ModelConfig
from eqcalc.models.nequip import NequIPConfig
from eqcalc.models.registry import build, model_config

# more processes than cores: those of MPICH that wait step aside (8 on 2 cores: 4 times faster)
os.environ.setdefault("MPIR_CVAR_POLLS_BEFORE_YIELD", "1")
os.environ.setdefault("MPIR_CVAR_ENABLE_HEAVY_YIELD", "1")
os.environ.setdefault("MPIR_CVAR_CH4_PROGRESS_THROTTLE", "true")


@pytest.fixture(autouse=True)
def _nothing_opened():
    """LAMMPS opens files in processes of its own; what Python has opened stays open."""


def untrained(path: Path, config: ModelConfig, *, crowding: bool = False, **metadata) -> Path:
    """Writes a potential for Si and O with random weights in float64: nothing in it is small."""
    torch.manual_seed(0)
    network = build(config, [14, 8], 28.0, [1.0, 0.7], [-3.0, -2.0], some_pairs(2))
    if crowding:
        network.limit_crowding(some_crowding(2))
    set_precision(network, torch.float64)
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=1)
    atoms.numbers[::3] = 8
    species = torch.tensor([{14: 0, 8: 1}[z] for z in atoms.numbers])
    network.reference_structure = export.reference_structure(
        network, species, *edges(atoms, config.cutoff)
    )
    return export.save(network, path, {"architecture": config.architecture_name, **metadata})


@pytest.fixture
def untrained_file(tmp_path):
    """A function from options of a model to a file of it."""
    return lambda **options: untrained(tmp_path / "untrained.pth", model_config(options))


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """Two elements, three layers."""
    config = NequIPConfig(
        product_channels=0, num_channels=[8, 6, 4], radial_mlp=[16], num_radial=6, readout=8
    )
    return untrained(tmp_path_factory.mktemp("a folder") / "two elements.pth", config)


@pytest.fixture(scope="session")
def products(tmp_path_factory) -> Path:
    """Messages are multiplied with themselves, into scalars and into tensors."""
    config = NequIPConfig(
        cutoff=4.0,
        num_layers=3,
        num_channels=[8, 6, 4],
        product_channels=5,
        product_l_max=2,
        radial_mlp=[16],
        num_radial=6,
        readout=8,
    )
    return untrained(tmp_path_factory.mktemp("products") / "products.pth", config)


def with_option(**option) -> NequIPConfig:
    """Three layers, cutoff 4 Å."""
    channels = [8, 6, 4]
    return NequIPConfig(
        product_channels=0,
        cutoff=4.0,
        num_channels=channels,
        radial_mlp=[16],
        num_radial=6,
        readout=8,
        **option,
    )


@pytest.fixture(scope="session")
def isolated(tmp_path_factory) -> Path:
    """Atoms without neighbours have exactly their reference energy, -3 eV (Si) and -2 eV (O)."""
    path = tmp_path_factory.mktemp("isolated") / "isolated.pth"
    return untrained(path, with_option(exact_isolated_atoms=True))


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> Path:
    """With a pair potential beside the network, and distances that it is not told."""
    return untrained(
        tmp_path_factory.mktemp("pairs") / "pairs.pth", with_option(pair_potential=True)
    )


@pytest.fixture(scope="session")
def crowded(tmp_path_factory) -> Path:
    """As `pairs`, and messages to crowded atoms fade."""
    path = tmp_path_factory.mktemp("crowded") / "crowded.pth"
    return untrained(path, with_option(pair_potential=True), crowding=True)


def small(layers: int) -> NequIPConfig:
    return NequIPConfig(
        product_channels=0,
        cutoff=3.5,
        num_layers=layers,
        l_max=1,
        num_channels=[4, 3],
        radial_mlp=[8],
        num_radial=4,
        readout=4,
    )


@pytest.fixture(scope="session")
def quick_model(tmp_path_factory) -> Path:
    """Two small layers, for long runs."""
    return untrained(tmp_path_factory.mktemp("quick") / "quick.pth", small(2))


@pytest.fixture(scope="session")
def one_layer(tmp_path_factory) -> Path:
    """No message passing: the energy of an atom depends on its neighbours' positions only."""
    return untrained(tmp_path_factory.mktemp("one") / "one layer.pth", small(1))


@pytest.fixture(scope="session")
def of_architecture(tmp_path_factory):
    """Two layers of any architecture, by name."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            common = {"cutoff": 4.0, "num_layers": 2, "radial_mlp": [16], "num_radial": 6}
            config = model_config(common | ARCHITECTURES[name])
            made[name] = untrained(tmp_path_factory.mktemp(config.architecture) / "a.pth", config)
        return made[name]

    return make


BLOCKS = {"l_max": 2, "num_channels": 4, "hidden_channels": 3, "feed_forward_channels": 5}
FRAMES = {**BLOCKS, "m_max": 1}
ARCHITECTURES = {
    "mace": {"architecture": "mace", "num_channels": 5, "l_max": 2},
    "mace with densities": {
        "architecture": "mace",
        "num_channels": 4,
        "l_max": 1,
        "correlation": 2,
        "self_connections": [False, True],
        "density_normalization": True,
        "distance_transform": "agnesi",
    },
    "tfn": {"architecture": "tfn", "num_channels": [8, 6], "l_max": 1},
    "solid harmonics": {
        "architecture": "nequip",
        "num_channels": [8, 6],
        "l_max": 1,
        "solid_harmonics": True,
    },
    "esen": {**FRAMES, "architecture": "esen"},
    "equiformer": {**BLOCKS, "architecture": "equiformer", "num_heads": 2},
    "equiformer_v2": {**FRAMES, "architecture": "equiformer_v2", "num_heads": 2},
    "grid": {**FRAMES, "architecture": "equiformer_v2", "num_heads": 2, "sphere_points": 6},
}
