"""SevenNet at the same size, as its calculator for ASE runs it (its TorchScript is not faster).

Without parity, as its published potentials: 15 paths of all SO(3) couplings where ours has 11.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from worker import Evaluate, Prepare, serve


def irreps(channels: list[int]) -> str:
    return "+".join(f"{mul}x{l}e" for l, mul in enumerate(channels))  # noqa: E741


def make_model(network: dict) -> torch.nn.Module:
    import sevenn._keys as key
    from ase.data import atomic_numbers
    from sevenn._const import DEFAULT_E3_EQUIVARIANT_MODEL_CONFIG
    from sevenn.model_build import build_E3_equivariant_model

    channels, layers = network["channels"], network["layers"]
    scalars = irreps(channels[:1])
    radial = {key.RADIAL_BASIS_NAME: "bessel", key.BESSEL_BASIS_NUM: network["num_radial"]}
    config = copy.deepcopy(DEFAULT_E3_EQUIVARIANT_MODEL_CONFIG) | {
        key.CUTOFF: network["cutoff"],
        key.NODE_FEATURE_MULTIPLICITY: channels[0],
        key.IRREPS_MANUAL: [scalars, *[irreps(channels)] * (layers - 1), scalars],
        key.LMAX: len(channels) - 1,
        key.IS_PARITY: False,
        key.NUM_CONVOLUTION: layers,
        key.RADIAL_BASIS: radial,
        key.CONVOLUTION_WEIGHT_NN_HIDDEN_NEURONS: network["radial_mlp"],
        key.CONV_DENOMINATOR: network["avg_num_neighbors"] ** 0.5,
        key.SHIFT: 0.0,
        key.SCALE: 1.0,
        key.NUM_SPECIES: len(network["symbols"]),
        key.TYPE_MAP: {atomic_numbers[s]: k for k, s in enumerate(network["symbols"])},
    }
    model = build_E3_equivariant_model(config)
    model.set_is_batch_data(False)
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def build(network: dict, options: dict) -> Prepare:
    if network["dtype"] != "float32":
        raise ValueError("its embedding of the species is float32 only")
    torch.manual_seed(0)
    device = options.get("device", "cpu")
    dtype = getattr(torch, network["dtype"])
    torch.set_default_dtype(dtype)
    model = make_model(network).to(device)

    def prepare(graph: dict[str, np.ndarray]) -> Evaluate:
        vectors = torch.from_numpy(graph["edge_vec"]).to(device, dtype)
        numbers = torch.from_numpy(graph["numbers"])
        fixed = {
            "x": numbers,
            "atomic_numbers": numbers,
            "edge_index": torch.from_numpy(np.stack([graph["edge_dst"], graph["edge_src"]])),
            "num_atoms": torch.tensor(len(numbers)),
            "cell_volume": torch.tensor(abs(float(np.linalg.det(graph["cell"])))),
        }
        fixed = {key: value.to(device) for key, value in fixed.items()}

        def evaluate() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            got = model(fixed | {"edge_vec": vectors.detach()})
            energy = got["inferred_total_energy"].detach().sum()
            return energy, got["inferred_force"], got["inferred_stress"]

        return evaluate

    return prepare


if __name__ == "__main__":
    serve(build)
