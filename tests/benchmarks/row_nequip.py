"""NequIP through its own `nequip-compile --mode aotinductor`, compiled once per network.

The checkpoint holds an untrained model of `nequip.model.NequIPGNNModel`; what is not part of a
network's size (type embedding, readout) is NequIP's default.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from worker import Evaluate, Prepare, serve


def arguments(network: dict) -> dict:
    """Of NequIPGNNModel: those that are given, or of one of cases.py."""
    if "arguments" in network:
        return network["arguments"] | {"model_dtype": network["dtype"]}
    depth, (width,) = len(network["radial_mlp"]), set(network["radial_mlp"])
    return {
        "model_dtype": network["dtype"],
        "type_names": network["symbols"],
        "r_max": network["cutoff"],
        "num_layers": network["layers"],
        "l_max": len(network["channels"]) - 1,
        "parity": False,
        "num_features": network["channels"],
        "radial_mlp_depth": depth,
        "radial_mlp_width": width,
        "num_bessels": network["num_radial"],
        "avg_num_neighbors": network["avg_num_neighbors"],
        "per_type_energy_scales": 1.0,
        "per_type_energy_shifts": 0.0,
    }


def write_checkpoint(network: dict, checkpoint: Path, example: Path) -> None:
    """An untrained checkpoint, and a structure for `nequip-compile --data-path`."""
    import lightning
    from ase.build import bulk
    from nequip.data import from_ase
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
    from nequip.train import NequIPLightningModule
    from nequip.utils import get_current_code_versions
    from nequip.utils.global_state import set_global_state

    set_global_state(allow_tf32=False)
    module = NequIPLightningModule(
        model={"_target_": "nequip.model.NequIPGNNModel", "seed": 0, **arguments(network)},
        num_datasets={"train": 1, "val": 1, "test": 0, "predict": 0},
        info_dict={
            "versions": get_current_code_versions(verbose=False),
            "training_module": {"_target_": "nequip.train.NequIPLightningModule"},
        },
    )
    torch.save(
        {
            "state_dict": module.state_dict(),
            "hyper_parameters": dict(module.hparams),
            "pytorch-lightning_version": lightning.__version__,
        },
        checkpoint,
    )
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=0)
    symbols = network["symbols"]
    atoms.set_chemical_symbols([symbols[k % len(symbols)] for k in range(len(atoms))])
    data = from_ase(atoms)
    for transform in (
        ChemicalSpeciesToAtomTypeMapper(model_type_names=symbols),
        NeighborListTransform(r_max=network["cutoff"]),
    ):
        data = transform(data)
    holder = torch.nn.Module()
    for key, value in data.items():
        holder.register_buffer(key, value)
    torch.jit.script(holder).save(str(example))


def compiled(network: dict, folder: Path, device: str = "cpu") -> Path:
    """The compiled model in `folder`, made there if need be (minutes)."""
    folder.mkdir(parents=True, exist_ok=True)
    described = json.dumps([network, version("nequip"), torch.__version__, device], sort_keys=True)
    name = hashlib.sha256(described.encode()).hexdigest()[:12]
    path = folder / f"{name}.nequip.pt2"
    if path.is_file():
        return path
    checkpoint, example = folder / f"{name}.ckpt", folder / f"{name}.data.pth"
    partial = folder / f"{name}.partial.nequip.pt2"
    tool = Path(sys.executable).with_name("nequip-compile")
    options = ["--mode", "aotinductor", "--device", device, "--target", "ase"]
    for command in (  # in processes of their own, so that this one's memory stays clean
        [sys.executable, __file__, "--checkpoint", json.dumps(network), checkpoint, example],
        [tool, checkpoint, partial, *options, "--data-path", example],
    ):
        subprocess.run([str(word) for word in command], check=True, stdin=subprocess.DEVNULL)
    partial.rename(path)
    return path


def build(network: dict, options: dict) -> Prepare:
    device = options.get("device", "cpu")
    path = compiled(network, Path(options["folder"]), device)
    from nequip.data import AtomicDataDict as Key
    from nequip.model.inference_models.compiled import load_compiled_model

    model, _ = load_compiled_model(str(path), device)

    def prepare(graph: dict[str, np.ndarray]) -> Evaluate:
        data = {
            Key.POSITIONS_KEY: torch.from_numpy(graph["positions"]),
            Key.CELL_KEY: torch.from_numpy(graph["cell"]).unsqueeze(0),
            Key.ATOM_TYPE_KEY: torch.from_numpy(graph["species"]),
            Key.EDGE_INDEX_KEY: torch.from_numpy(np.stack([graph["edge_dst"], graph["edge_src"]])),
            Key.EDGE_CELL_SHIFT_KEY: torch.from_numpy(graph["cell_shift"].astype(np.float64)),
        }
        data = {key: value.to(device) for key, value in data.items()}

        def evaluate() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            got = model(dict(data))
            return got[Key.TOTAL_ENERGY_KEY].sum(), got[Key.FORCE_KEY], got[Key.STRESS_KEY][0]

        return evaluate

    return prepare


def dynamics(network: dict, folder: Path, structure: Path, steps: int) -> tuple[float, float]:
    """Steps per second, of the clock and of CPU time: NVE at 300 K, NequIP's calculator in ASE."""
    from ase import units
    from ase.io import read
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
    from ase.md.verlet import VelocityVerlet
    from nequip.integrations.ase import NequIPCalculator

    torch.set_num_threads(1)
    atoms = read(structure)
    path = compiled(network, folder)
    atoms.calc = NequIPCalculator.from_compiled_model(path, device="cpu")
    rng = np.random.default_rng(1)
    MaxwellBoltzmannDistribution(atoms, temperature_K=300.0, rng=rng)
    run = VelocityVerlet(atoms, timestep=units.fs)
    run.run(2)
    wall, cpu = time.perf_counter(), time.process_time()
    run.run(steps)
    return steps / (time.perf_counter() - wall), steps / (time.process_time() - cpu)


if __name__ == "__main__":
    if sys.argv[1] == "--checkpoint":
        write_checkpoint(json.loads(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
    elif sys.argv[1] == "--md":
        where, structure, steps = sys.argv[3:6]
        print(*dynamics(json.loads(sys.argv[2]), Path(where), Path(structure), int(steps)))
    else:
        serve(build)
