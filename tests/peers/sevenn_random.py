"""A checkpoint with random weights and the published options of a SevenNet model, by its package.

    python tests/peers/sevenn_random.py 7net-omni-i12 out.pth [--narrow]

Runs where sevenn 0.13.0 is installed. Options as in the hyperparams.yaml of both models in
Matbench Discovery (models/sevennet). --narrow divides widths by 16 and keeps few
elements.
"""

from __future__ import annotations

import argparse
import copy

import numpy as np
import sevenn._const as constants
import torch
from sevenn.model_build import build_E3_equivariant_model
from sevenn.util import chemical_species_preprocess

NATURAL = "128x0e+64x1o+32x2e+32x3o"
BOTH = "128x0e+64x1o+64x1e+32x2o+32x2e+32x3o+32x3e"
LAYERS = {
    "7net-mf-ompa": [NATURAL, BOTH, "128x0o+" + BOTH, NATURAL],
    "7net-omni-i12": [NATURAL] * 11,
}
TASKS = {
    "7net-mf-ompa": ["omat24", "mpa"],
    "7net-omni-i12": [
        *("omat24", "mpa", "omol25_low", "omol25_high", "matpes_pbe", "matpes_r2scan"),
        *("mp_r2scan", "oc20", "oc22", "spice", "qcml", "odac23", "pet_mad"),
    ],
}
#: of the training, as they stand beside the others in the published files
TRAINING = {
    "train_shift": True,
    "train_scale": False,
    "grad_clip": 1000,
    "regularization_param": {"modal": {"regularization_weight": 1e-6}},
    "model_averaging": "EMA",
    "model_averaging_param": {"ema_decay_factor": 0.999},
    "energy_loss_weight": 1.0,
    "regularization_weight": 0.0,
    "use_regularization": False,
    "train_by_batch": True,
    "compile": False,
    "loader_kwargs": {"num_workers": 2, "pin_memory": True},
}
#: kept by --narrow
ELEMENTS = ["X", "O", "Si", "Cu", "Og"]


def narrower(irreps: str) -> str:
    return "+".join(
        f"{int(mul) // 16}x{ir}" for mul, ir in (part.split("x") for part in irreps.split("+"))
    )


def options(name: str, *, narrow: bool) -> dict:
    """Of the model and its training."""
    layers, tasks = ["128x0e", *LAYERS[name], "128x0e"], TASKS[name]
    species = chemical_species_preprocess(ELEMENTS if narrow else [], universal=not narrow)
    rng = np.random.default_rng(0)
    shift = rng.uniform(-3.0, 0.0, (len(tasks), species["_number_of_species"]))
    return {
        **copy.deepcopy(constants.DEFAULT_E3_EQUIVARIANT_MODEL_CONFIG),
        **species,
        **TRAINING,
        "cutoff": 6.0,
        "channel": 8 if narrow else 128,
        "irreps_manual": [narrower(text) for text in layers] if narrow else layers,
        "lmax": 3,
        "is_parity": True,
        "num_convolution_layer": len(layers) - 1,
        "radial_basis": {"radial_basis_name": "bessel", "bessel_basis_num": 8},
        "cutoff_function": {"cutoff_function_name": "XPLOR", "cutoff_on": 5.5},
        "weight_nn_hidden_neurons": [8, 8] if narrow else [64, 64],
        "conv_denominator": [6.0 if narrow else 35.0] * (len(layers) - 1),
        "use_modal_self_inter_intro": True,
        "use_modal_self_inter_outro": True,
        "use_modal_output_block": True,
        "use_modality": True,
        "use_modal_wise_shift": True,
        "use_modal_wise_scale": False,
        "_number_of_modalities": len(tasks),
        "_modal_map": {task: place for place, task in enumerate(tasks)},
        "shift": shift.tolist(),
        "scale": 1.3,
        "version": "0.13.0",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(LAYERS))
    parser.add_argument("path")
    parser.add_argument("--narrow", action="store_true")
    given = parser.parse_args()
    config = options(given.name, narrow=given.narrow)
    torch.manual_seed(0)
    model = build_E3_equivariant_model(config)
    torch.save({"config": config, "model_state_dict": model.state_dict()}, given.path)


if __name__ == "__main__":
    main()
