"""Random networks over a grid of options, as the packages themselves make them.

Runs where EQCALC_NEQUIP is `install`, which makes environments with NequIP 0.5.6, 0.6.2 and 0.19.1
in build/peers (minutes, once), or names interpreters, separated by colons, that have a NequIP each.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from imported import peer_python, results, structure

from eqcalc.errors import InputError
from eqcalc.importers import import_model
from eqcalc.importers.nequip_original import NequIPOriginal

HERE = Path(__file__).parent
SCRIPT = HERE / "peers" / "nequip_random.py"
PYTHONS = [p for p in os.environ.get("EQCALC_NEQUIP", "").split(":") if p]
if PYTHONS == ["install"]:
    PYTHONS = ["nequip-0.5", "nequip-0.6", "nequip"]  # of benchmarks/environments.py
pytestmark = pytest.mark.skipif(
    not PYTHONS, reason="EQCALC_NEQUIP is not 'install' and names no interpreters"
)

FULL = {
    "l_max": None,
    "parity": None,
    "num_features": None,
    "chemical_embedding_irreps_out": "5x0e",
    "conv_to_output_hidden_irreps_out": "3x0e",
    "model_builders": ["EnergyModel", "PerSpeciesRescale", "ForceOutput", "RescaleEnergyEtc"],
}
OLD = {  # 0.5 and 0.6
    "both": {},
    "so3": {"parity": False},
    "so3, four layers": {"parity": False, "num_layers": 4},
    "both, four layers": {"num_layers": 4, "num_features": 2},
    "l_max 0": {"l_max": 0, "parity": False},
    "l_max 1": {"l_max": 1},
    "l_max 3": {"l_max": 3, "num_layers": 2},
    "mixed irreps": {
        **FULL,
        "feature_irreps_hidden": "4x0o + 3x0e + 2x1o + 5x1e + 2x2e",
        "irreps_edge_sh": "0e + 1o",
    },
    "natural": {**FULL, "feature_irreps_hidden": "3x2e + 4x0e + 2x1o", "irreps_edge_sh": 2},
    "plain": {
        "use_sc": False,
        "PolynomialCutoff_p": 4,
        "avg_num_neighbors": None,
        "BesselBasis_trainable": False,
        "global_rescale_scale": None,
    },
    "one layer": {"num_layers": 1, "invariant_layers": 3},
    "linear radial functions": {"invariant_layers": 0},
}
THREE = {"radial_mlp_depth": [2, 2, 2], "radial_mlp_width": [6, 6, 6], "type_embed_num_features": 4}
TWO = {
    "radial_mlp_depth": [1, 1],
    "radial_mlp_width": [6, 6],
    "type_embed_num_features": 4,
    "feature_irreps_hidden": ["4x0e+3x1o", "5x0e"],
    "irreps_edge_sh": "1x0e+1x1o",
}
NEW = {  # 0.7 and later
    "natural": {},
    "both, repulsion": {"zbl": True, "parity": True},
    "four layers": {"parity": True, "num_layers": 4, "num_features": 2},
    "linear readout of three": {
        "readout_mlp_hidden_layers_depth": 2,
        "readout_mlp_nonlinearity": None,
        "radial_mlp_depth": 3,
    },
    "readout": {"readout_mlp_hidden_layers_depth": 1, "readout_mlp_hidden_layers_width": 6},
    "linear radial functions": {"radial_mlp_depth": 0, "bessel_trainable": False},
    "l_max 3": {"l_max": 3, "num_layers": 2, "parity": True},
    "one layer": {"l_max": 1, "num_layers": 1},
    "one scale": {
        "per_type_energy_scales": None,
        "per_type_energy_shifts": -2.0,
        "polynomial_cutoff_p": 4,
    },
    "trained scales": {
        "per_type_energy_scales_trainable": True,
        "per_type_energy_shifts_trainable": True,
    },
    "so3": {
        **THREE,
        "feature_irreps_hidden": ["4x0e+3x1e+2x2e", "3x0e+2x1e", "5x0e"],
        "irreps_edge_sh": "1x0e+1x1e+1x2e",
    },
    "irreps by layer": {
        **THREE,
        "feature_irreps_hidden": ["4x0e+2x0o+3x1o+2x2e+2x3o", "2x1o+3x0e+2x2e", "5x0e"],
        "irreps_edge_sh": "1x0e+1x1o+1x2e",
    },
    "no self-connections": {**TWO, "convnet_sc": False},
    "self-connections everywhere": {**TWO, "learnable_shift": True},
    "neighbours by type": {"avg_num_neighbors": {"O": 10.0, "Cu": 12.0, "Si": 14.0}},
    "cutoffs of pairs": {
        "per_edge_type_cutoff": {"O": 3.0, "Cu": {"Si": 3.5}},
        "zbl": True,
    },
}
REFUSED = {
    "readout of three": ({"readout_mlp_hidden_layers_depth": 2}, "layers_depth = 2"),
    "mish": (
        {"readout_mlp_hidden_layers_depth": 1, "readout_mlp_nonlinearity": "mish"},
        "(?i)class mish",
    ),
    "resnet": (
        {
            **THREE,
            "feature_irreps_hidden": ["4x0e+3x1o", "4x0e+3x1o", "5x0e"],
            "irreps_edge_sh": "1x0e+1x1o",
            "convnet_resnet": True,
        },
        "resnet = True",
    ),
}


def made(python, folder, options):
    done = subprocess.run(
        [python, str(SCRIPT), str(folder), json.dumps(options)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "expected.json").read_text())


@pytest.fixture
def python(request):
    """An interpreter, by its path or by the name of an environment."""
    if "/" in request.param:
        return request.param
    return peer_python(request.param)


def release(python):
    code = "from importlib.metadata import version; print(version('nequip'))"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return tuple(int(part) for part in found.stdout.strip().split(".")[:2])


@pytest.mark.parametrize("python", PYTHONS, indirect=True)
def test_grid(python, tmp_path):
    version = release(python)
    options = dict(OLD if version < (0, 7) else NEW)
    if version < (0, 7):
        endings = [".pth", ""]
        if version == (0, 6):
            options["repulsion"] = {"zbl": True}
    else:
        endings = [".nequip.zip", ".ckpt"]
        options |= {name: of for name, (of, _) in REFUSED.items()}
    for name, expected in made(python, tmp_path / "files", options).items():
        for end in endings:
            path = tmp_path / "files" / f"{name}{end}"
            if name in REFUSED:
                with pytest.raises(InputError, match=REFUSED[name][1]):
                    import_model(path, tmp_path / "m.pth")
                continue
            import_model(path, tmp_path / "m.pth", dtype="float64")
            energy, forces = results(tmp_path / "m.pth", engine="torch")
            assert energy == pytest.approx(expected["energy"], abs=1e-10), path
            assert forces == pytest.approx(np.array(expected["forces"]), abs=1e-10), path
            if end == ".pth":  # runs without the package
                assert results_of_original(path) == pytest.approx(expected["energy"], abs=1e-10)


def results_of_original(path):
    atoms = structure()
    atoms.calc = NequIPOriginal(path)
    return atoms.get_potential_energy()
