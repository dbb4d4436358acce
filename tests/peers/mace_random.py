"""Files of MACE with random weights and what it says of one structure: run with mace-torch 0.3.16.

    python tests/peers/mace_random.py tests/data/mace

writes NAME.model.xz, without the code that e3nn has compiled, and expected.json.
"""

import json
import lzma
import sys
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from e3nn import o3
from e3nn.util.codegen import CodeGenMixin
from mace.calculators import MACECalculator
from mace.modules import ScaleShiftMACE, interaction_classes

PLAIN, RESIDUAL = "RealAgnosticInteractionBlock", "RealAgnosticResidualInteractionBlock"
DENSITY = "RealAgnosticDensityInteractionBlock"
RESIDUAL_DENSITY = "RealAgnosticDensityResidualInteractionBlock"

FILES = {  # first block, others, options
    "residual": (RESIDUAL, RESIDUAL, {}),
    "repulsion": (PLAIN, RESIDUAL, {"pair_repulsion": True, "correlation": 2}),
    "density": (
        DENSITY,
        RESIDUAL_DENSITY,
        {"pair_repulsion": True, "distance_transform": "Agnesi", "correlation": 2},
    ),
    "heads": (
        PLAIN,
        RESIDUAL,
        {
            "heads": ["pbe", "scan"],
            "atomic_energies": np.array([[-1.5, -2.5, -3.5], [-1.0, -2.0, -3.0]]),
            "atomic_inter_scale": [0.8, 1.1],
            "atomic_inter_shift": [0.1, -0.2],
            "correlation": 2,
            "num_interactions": 3,
        },
    ),
}


def structure():
    return Atoms(
        "OSi2AlO",
        positions=[[0, 0, 0], [1.6, 0.1, 0], [-0.3, 1.7, 0.2], [0.1, -0.4, 2.1], [2.2, 1.5, -0.4]],
        cell=[[4.5, 0.2, 0], [0, 5.0, 0.3], [0.4, 0, 5.5]],
        pbc=True,
    )


def make(first, others, options):
    torch.manual_seed(0)
    plain = {
        "atomic_energies": np.array([-1.5, -2.5, -3.5]),
        "atomic_inter_scale": 0.8,
        "atomic_inter_shift": 0.1,
        "correlation": 3,
        "num_interactions": 2,
    }
    return ScaleShiftMACE(
        r_max=3.0,
        num_bessel=4,
        num_polynomial_cutoff=5,
        max_ell=2,
        interaction_cls=interaction_classes[others],
        interaction_cls_first=interaction_classes[first],
        num_elements=3,
        hidden_irreps=o3.Irreps("2x0e+2x1o"),
        MLP_irreps=o3.Irreps("3x0e"),
        gate=torch.nn.functional.silu,
        avg_num_neighbors=9.0,
        atomic_numbers=[8, 13, 14],
        radial_MLP=[5, 6],
        **(plain | options),
    )


def without_code(module):
    """State of a module that e3nn has compiled."""
    state = module.__dict__.copy()
    compiled = state.pop("__codegen__", [])
    state["_modules"] = {k: v for k, v in state["_modules"].items() if k not in compiled}
    return state


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    expected = {}
    for name, (first, others, options) in FILES.items():
        model = make(first, others, options)
        kept = CodeGenMixin.__getstate__
        CodeGenMixin.__getstate__ = without_code
        torch.save(model, folder / "partial.model")
        CodeGenMixin.__getstate__ = kept
        content = (folder / "partial.model").read_bytes()
        (folder / f"{name}.model.xz").write_bytes(lzma.compress(content, preset=9))
        (folder / "partial.model").unlink()
        for head in options.get("heads", [None]):
            extra = {"head": head} if head else {}
            atoms = structure()
            atoms.calc = MACECalculator(
                models=[model], device="cpu", default_dtype="float64", **extra
            )
            expected[f"{name}:{head}" if head else name] = {
                "energy": atoms.get_potential_energy(),
                "forces": atoms.get_forces().tolist(),
                "stress": atoms.get_stress().tolist(),
            }
    (folder / "expected.json").write_text(json.dumps(expected, indent=1))
