"""A checkpoint of fairchem-core's eSEN with random weights, and what the package makes of it.

    python tests/peers/fairchem_random.py FOLDER < OPTIONS.json > RESULTS.json

Runs where fairchem-core 2.24.0 is installed. Options: "backbone" and "tasks" (normaliser, element
references) as in its configurations, and "atoms": numbers, positions, cell. Writes FOLDER/esen.pt;
prints energy (eV) and forces (eV/Å) by task, in float64.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import hydra
import numpy as np
import torch
from ase import Atoms
from fairchem.core import FAIRChemCalculator
from fairchem.core.units.mlip_unit import load_predict_unit
from fairchem.core.units.mlip_unit.api.inference import InferenceSettings, MLIPInferenceCheckpoint
from omegaconf import OmegaConf


def weights_of(names_and_shapes):
    """Numbers that follow from the places of parameters: anybody can make them again."""
    made = {}
    for name, shape in names_and_shapes:
        rng = np.random.default_rng([ord(c) for c in name])
        fan = shape[-1] if len(shape) > 1 else 10
        made[name] = torch.from_numpy(rng.normal(size=shape) / np.sqrt(fan)).float()
    return made


def task(name: str, scale: float, references: list[float]) -> dict:
    return {
        "_target_": "fairchem.core.units.mlip_unit.mlip_unit.Task",
        "name": f"{name}_energy",
        "level": "system",
        "property": "energy",
        "out_spec": {
            "_target_": "fairchem.core.units.mlip_unit.mlip_unit.OutputSpec",
            "dim": [1],
            "dtype": "float64",
        },
        "normalizer": {
            "_target_": "fairchem.core.modules.normalization.normalizer.Normalizer",
            "mean": 0.0,
            "rmsd": scale,
        },
        "element_references": {
            "_target_": "fairchem.core.modules.normalization.element_references.ElementReferences",
            "element_references": {"_target_": "torch.DoubleTensor", "_args_": [references]},
        },
        "datasets": [name],
    }


def main() -> None:
    folder, asked = Path(sys.argv[1]), json.load(sys.stdin)
    names = list(asked["tasks"])
    kind = "fairchem.core.models.uma.escn_md.MLP_EFS_Head"
    head = {"module": kind, "wrap_property": True, "prefix": names[0]}
    if len(names) > 1:
        head = {
            "module": "fairchem.core.models.uma.escn_moe.DatasetSpecificSingleHeadWrapper",
            "dataset_names": names,
            "head_cls": kind,
            "head_kwargs": {"wrap_property": False},
        }
    config = {
        "_target_": "fairchem.core.models.base.HydraModel",
        "backbone": {
            "model": "fairchem.core.models.uma.escn_md.eSCNMDBackbone",
            "direct_forces": False,
            "regress_stress": True,
            "ff_type": "spectral",
            **asked["backbone"],
        },
        "heads": {"energyandforcehead": head},
        "pass_through_head_outputs": True,
    }
    config = OmegaConf.create(config)
    model = hydra.utils.instantiate(config)
    sizes = [(n, tuple(p.shape)) for n, p in model.named_parameters()]
    weights = model.state_dict() | weights_of(sizes)
    averaged = {f"module.{n}": w for n, w in weights.items()} | {"n_averaged": torch.tensor(1)}
    tasks = [task(name, *of) for name, of in asked["tasks"].items()]
    saved = MLIPInferenceCheckpoint(config, weights, averaged, OmegaConf.create(tasks))
    torch.save(saved, folder / "esen.pt")
    settings = InferenceSettings(
        base_precision_dtype=torch.float64,
        activation_checkpointing=False,
        predict_untrained_forces=set(names),
    )
    unit = load_predict_unit(folder / "esen.pt", settings, device="cpu")
    found = {}
    for name in names:
        atoms = Atoms(**asked["atoms"], pbc=True)  # neutral, of the spin that is its default
        atoms.calc = FAIRChemCalculator(unit, task_name=name)
        found[name] = {
            "energy": float(atoms.get_potential_energy()),
            "forces": atoms.get_forces().tolist(),
        }
    json.dump({"results": found, "shapes": dict(sizes)}, sys.stdout)


if __name__ == "__main__":
    main()
