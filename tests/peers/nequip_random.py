"""Randomly initialised NequIP networks: runs in an environment with the nequip package alone.

    python nequip_random.py FOLDER '{"name": {options}, ...}' [small]

For each name, versions 0.5 and 0.6 write FOLDER/name (the training folder: best_model.pth and
config.yaml) and FOLDER/name.pth (by nequip-deploy); 0.7 and later write FOLDER/name.ckpt and
FOLDER/name.nequip.zip; with "small", .pth and .nequip.zip are compressed and hold no code, as
those in tests/data/nequip. FOLDER/expected.json holds energies and forces of `structure`.
"""

import json
import os
import sys
import warnings
import zipfile
from pathlib import Path

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # e3nn 0.4 reads its constants so

import numpy as np
import torch
from ase import Atoms
from ase.neighborlist import neighbor_list

warnings.filterwarnings("ignore")
TYPES = ["O", "Cu", "Si"]


def structure():
    return Atoms(
        "OSi2CuO",
        positions=[[0, 0, 0], [1.6, 0.1, 0], [-0.3, 1.7, 0.2], [0.1, -0.4, 2.1], [2.2, 1.5, -0.4]],
        cell=[[4.5, 0.2, 0], [0, 5.0, 0.3], [0.4, 0, 5.5]],
        pbc=True,
    )


def graph(atoms, cutoff):
    """What both generations take: edge_index [2, E] of centre and neighbour."""
    centre, neighbour, shift = neighbor_list("ijS", atoms, cutoff)
    types = [TYPES.index(s) for s in atoms.get_chemical_symbols()]
    return {
        "pos": torch.tensor(atoms.positions),
        "cell": torch.tensor(atoms.cell.array).view(1, 3, 3),
        "pbc": torch.tensor(atoms.pbc),
        "edge_index": torch.tensor(np.stack([centre, neighbour])),
        "edge_cell_shift": torch.tensor(shift, dtype=torch.float64),
        "atom_types": torch.tensor(types),
    }


def randomised(model, seed=0):
    """Zeros and repeated values would hide faults: all parameters become different ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
            if "bessel" in name or "scale" in name or "shift" in name:
                p.mul_(1.0 + 0.05 * noise)
            else:
                p.copy_(noise)
    return model


def old(folder, name, options):
    from nequip.model import model_from_config
    from nequip.scripts import deploy
    from nequip.scripts.train import default_config
    from nequip.utils import Config

    torch.set_default_dtype(torch.float64)
    zbl = options.pop("zbl", False)
    values = {
        **default_config,
        "default_dtype": "float64",
        "model_dtype": "float64",
        "model_builders": [
            *("SimpleIrrepsConfig", "EnergyModel", "PerSpeciesRescale"),
            *(["PairPotentialTerm"] if zbl else []),
            *("StressForceOutput", "RescaleEnergyEtc"),
        ],
        **({"pair_style": "ZBL", "units": "metal"} if zbl else {}),
        "r_max": 4.0,
        "num_layers": 3,
        "l_max": 2,
        "parity": True,
        "num_features": 4,
        "num_basis": 5,
        "invariant_layers": 2,
        "invariant_neurons": 6,
        "avg_num_neighbors": 11.0,
        "use_sc": True,
        "nonlinearity_type": "gate",
        "resnet": False,
        "nonlinearity_scalars": {"e": "silu", "o": "tanh"},
        "nonlinearity_gates": {"e": "silu", "o": "tanh"},
        "type_names": TYPES,
        "num_types": len(TYPES),
        "chemical_symbol_to_type": {s: n for n, s in enumerate(TYPES)},
        "per_species_rescale_scales": [1.1, 0.8, 0.9],
        "per_species_rescale_shifts": [-1.5, 0.4, -3.0],
        "per_species_rescale_arguments_in_dataset_units": True,
        "global_rescale_scale": 0.7,
        "global_rescale_shift": None,
        **options,
    }
    for option in ("l_max", "parity", "num_features"):  # others say the same
        if values[option] is None:
            del values[option]
    config = Config.from_dict(values)
    model = randomised(model_from_config(config, initialize=True, dataset=None))
    where = folder / name
    where.mkdir(exist_ok=True)
    torch.save(model.state_dict(), where / "best_model.pth")
    config.save(str(where / "config.yaml"), "yaml")
    deploy.main(["build", "--train-dir", str(where), str(folder / f"{name}.pth")])
    scripted, _ = deploy.load_deployed_model(folder / f"{name}.pth", set_global_options=False)
    data = graph(structure(), float(config["r_max"]))
    data["cell"] = data["cell"][0]
    data["atom_types"] = data["atom_types"].view(-1, 1)
    return scripted(data)


def new(folder, name, options):
    from nequip.model import FullNequIPGNNModel, NequIPGNNModel
    from nequip.utils.global_state import set_global_state

    set_global_state()
    full = "feature_irreps_hidden" in options
    layers = {} if full else {"num_layers": 3, "l_max": 2, "parity": False, "num_features": 4}
    radial = {} if full else {"radial_mlp_depth": 1, "radial_mlp_width": 6}
    zbl = {
        "_target_": "nequip.nn.pair_potential.ZBL",
        "units": "metal",
        "chemical_species": TYPES,
        "polynomial_cutoff_p": 5,
    }
    if options.pop("zbl", False):
        options["pair_potential"] = zbl
    scales, shifts = [1.1, 0.8, 0.9], [-1.5, 0.4, -3.0]
    if RELEASE >= (0, 9):
        scales, shifts = (dict(zip(TYPES, x, strict=True)) for x in (scales, shifts))
    if RELEASE < (0, 12):  # scripted modules cannot be pickled
        options["compile_mode"] = "eager"
    if RELEASE < (0, 17):  # the repulsion has the network's envelope
        zbl.pop("polynomial_cutoff_p")
    config = {
        "seed": 1,
        "model_dtype": "float64",
        "r_max": 4.0,
        "type_names": TYPES,
        **layers,
        **radial,
        "num_bessels": 5,
        "bessel_trainable": True,
        "polynomial_cutoff_p": 6,
        "avg_num_neighbors": 11.0,
        "per_type_energy_scales": scales,
        "per_type_energy_shifts": shifts,
        **options,
    }
    build = FullNequIPGNNModel if full else NequIPGNNModel
    model = randomised(build(**config)).eval()
    modules = torch.nn.ModuleDict({"sole_model": model})
    write_checkpoint(folder / f"{name}.ckpt", modules, config, build.__name__)
    write_package(folder / f"{name}.nequip.zip", modules)
    data = graph(structure(), config["r_max"])
    data["num_atoms"] = torch.tensor([len(data["pos"])])
    data["batch"] = torch.zeros(len(data["pos"]), dtype=torch.int64)
    return model(data)


def versions():
    from nequip.utils.versions import get_current_code_versions

    return {k: str(v) for k, v in get_current_code_versions().items()}


def write_checkpoint(path, modules, config, builder):
    """As Lightning does for nequip-train, without what training alone needs."""
    chosen = {"_target_": f"nequip.model.{builder}", **config}
    module = {"_target_": "nequip.train.NequIPLightningModule", "model": chosen}
    info = {"versions": versions(), "training_module": module, "data": {}, "trainer": {}}
    content = {
        "state_dict": {f"model.{k}": v for k, v in modules.state_dict().items()},
        "hyper_parameters": {"model": chosen, "num_datasets": {"train": 1}, "info_dict": info},
        "pytorch-lightning_version": "2.6.6",
    }
    content["state_dict"]["run_stage"] = torch.zeros(1, dtype=torch.int64)
    torch.save(content, path)


def write_package(path, modules):
    """As nequip-package does, without a data set."""
    import yaml

    outside = ("triton", "io", "sys", "opt_einsum_fx", "numpy", "packaging", "openequivariance")
    with torch.package.PackageExporter(path) as exporter:
        exporter.mock(["matplotlib.**"])
        exporter.extern([f"{name}.**" for name in (*outside, "cuequivariance", "yaml")])
        exporter.intern(["e3nn.**", "nequip.**"])
        metadata = {
            "versions": versions(),
            "package_version_id": 2,
            "available_models": ["eager"],
            "atom_types": dict(enumerate(TYPES)),
        }
        exporter.save_text("model", "package_metadata.txt", yaml.dump(metadata))
        exporter.save_text("model", "config.yaml", "training_module: {}\n")
        exporter.save_pickle("model", "eager_model.pkl", modules, dependencies=True)


def without_code(path):
    """What an importer reads: no code, and nothing that only code needs."""
    with zipfile.ZipFile(path) as file:
        kept = {
            name: file.read(name)
            for name in file.namelist()
            if not name.endswith((".py", ".debug_pkl")) and ".data/extern" not in name
        }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for name, content in kept.items():
            file.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED, 9)


if __name__ == "__main__":
    import nequip

    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    RELEASE = tuple(int(part) for part in nequip.__version__.split(".")[:2])
    make = old if RELEASE < (0, 7) else new
    expected = {}
    for name, options in json.loads(sys.argv[2]).items():
        results = make(folder, name, options)
        expected[name] = {
            "energy": float(results["total_energy"]),
            "forces": results["forces"].detach().tolist(),
        }
        if sys.argv[3:] == ["small"]:
            for path in folder.glob(f"{name}.*"):
                if path.suffix in (".pth", ".zip"):
                    without_code(path)
    (folder / "expected.json").write_text(json.dumps(expected))
