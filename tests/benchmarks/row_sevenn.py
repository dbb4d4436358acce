"""SevenNet at the same size: TorchScript as `sevenn get_model` deploys it for LAMMPS.

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
    from e3nn.util.jit import script
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
    model.delete_module_by_key("force_output")
    model.eval_type_map = False
    model.set_is_batch_data(False)
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return torch.jit.freeze(script(model))


def build(network: dict, _: dict) -> Prepare:
    torch.manual_seed(0)
    dtype = getattr(torch, network["dtype"])
    torch.set_default_dtype(dtype)
    model = make_model(network)

    def prepare(graph: dict[str, np.ndarray]) -> Evaluate:
        vectors = torch.from_numpy(graph["edge_vec"]).to(dtype)
        dst, src = torch.from_numpy(graph["edge_dst"]), torch.from_numpy(graph["edge_src"])
        species = torch.from_numpy(graph["species"])
        volume = abs(float(np.linalg.det(graph["cell"])))
        fixed = {
            "x": species,
            "edge_index": torch.stack([dst, src]),
            "num_atoms": torch.tensor(len(species)),
        }

        def evaluate() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            edge_vec = vectors.detach().requires_grad_(True)
            energy = model(fixed | {"edge_vec": edge_vec})["inferred_total_energy"].sum()
            (gradient,) = torch.autograd.grad(energy, edge_vec)
            forces = torch.zeros(len(species), 3, dtype=dtype)
            forces = forces.index_add(0, dst, gradient).index_add(0, src, -gradient)
            return energy.detach(), forces, vectors.T @ gradient / volume

        return evaluate

    return prepare


if __name__ == "__main__":
    serve(build)
