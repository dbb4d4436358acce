"""Every architecture on the GPU engine, which is emulated (emulated.py): as on the CPU, or a
sentence and the torch engine."""

import lzma
from pathlib import Path

import pytest
from imported import structure
from potentials import write
from test_cuda_engine import same

from eqcalc import EquivariantCalculator
from eqcalc.engine.build import EngineUnavailable
from eqcalc.importers import import_model
from eqcalc.models.registry import architectures, model_config

DATA = Path(__file__).parent / "data"
EDGES = "The GPU engine does not know messages that operations on edges make"

SMALL = {"cutoff": 4.0, "num_layers": 2, "radial_mlp": [8]}
BLOCKS = {**SMALL, "l_max": 1, "num_channels": 4, "hidden_channels": 3, "feed_forward_channels": 5}

#: options of each, and why it is not covered
ARCHITECTURES = {
    "nequip": ({**SMALL, "num_channels": [4, 3, 2], "product_channels": 2}, None),
    "mace": ({**SMALL, "num_channels": 4, "l_max": 1}, None),
    "tfn": ({**SMALL, "num_channels": [4, 3], "l_max": 1}, None),
    "invariant": ({**SMALL, "num_channels": 4}, None),
    "equiformer": ({**BLOCKS, "num_heads": 2}, EDGES),
    "equiformer_v2": ({**BLOCKS, "m_max": 1, "num_heads": 2}, EDGES),
    "esen": ({**BLOCKS, "m_max": 1}, EDGES),
}

#: files of other packages (data/README.md)
IMPORTED = {
    "MACE": "mace/residual.model.xz",
    "MACE, densities": "mace/density.model.xz",
    "SevenNet": "sevennet/parity.pth",
    "NequIP": "nequip/natural.nequip.zip",
}


def test_none_is_left_out():
    assert set(ARCHITECTURES) == set(architectures())


def on_both(path, atoms):
    options = {"engine": "fused", "dtype": "float64", "on_domain_exit": "ignore"}
    gpu = EquivariantCalculator(path, device="cuda", **options)
    cpu = EquivariantCalculator(path, **options)
    for name in ("energies", "forces", "stresses"):
        same(gpu.get_property(name, atoms), cpu.get_property(name, atoms), "float64")


@pytest.mark.usefixtures("emulated_gpu")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_is_covered_or_said(name, tmp_path, crystal):
    options, sentence = ARCHITECTURES[name]
    config = model_config({"architecture": name, **options})
    path = write(tmp_path / "model.pth", config)
    if sentence is None:
        on_both(path, crystal)
        return
    with pytest.raises(EngineUnavailable, match=sentence):
        EquivariantCalculator(path, device="cuda", engine="fused")
    torch = EquivariantCalculator(path, engine="torch")
    assert torch.get_property("forces", crystal).shape == (len(crystal), 3)


@pytest.mark.usefixtures("emulated_gpu")
@pytest.mark.parametrize("kind", IMPORTED)
def test_imported_files_are_covered(kind, tmp_path):
    source = DATA / IMPORTED[kind]
    if source.suffix == ".xz":
        (tmp_path / source.stem).write_bytes(lzma.decompress(source.read_bytes()))
        source = tmp_path / source.stem
    path = import_model(source, tmp_path / "model.pth", elements=["O", "Si"], dtype="float64").path
    on_both(path, structure("Si"))
