"""MACE with the same number of features in all: half the layers, each with twice the channels.

Two layers of body order 4 (correlation 3), l_max 2, radial network 64-64-64, as its calculator for
ASE runs it (eager; its TorchScript is not faster on a CPU).
"""

from __future__ import annotations

import numpy as np
import torch
from worker import Evaluate, Prepare, serve


def make_model(network: dict) -> torch.nn.Module:
    from ase.data import atomic_numbers
    from e3nn import o3
    from mace.modules import ScaleShiftMACE, interaction_classes

    channels, layers, wide = network["channels"], network["layers"], network["channels"][0]
    l_max = 3
    if network["kind"] != "mace":  # a network of about the same size
        layers, wide, l_max = layers // 2, 2 * wide, len(channels) - 1
    if len(set(channels)) > 1 or not layers:
        raise ValueError("MACE takes as many channels for every degree, and half the layers here")
    count = len(network["symbols"])
    model = ScaleShiftMACE(
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
        r_max=network["cutoff"],
        num_bessel=network["num_radial"],
        num_polynomial_cutoff=6,
        max_ell=l_max,
        interaction_cls=interaction_classes["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=interaction_classes["RealAgnosticResidualInteractionBlock"],
        num_interactions=layers,
        num_elements=count,
        hidden_irreps=o3.Irreps([(wide, (l, (-1) ** l)) for l in range(len(channels))]),  # noqa: E741
        MLP_irreps=o3.Irreps("16x0e"),
        gate=torch.nn.functional.silu,
        atomic_energies=np.zeros(count),
        avg_num_neighbors=network["avg_num_neighbors"],
        atomic_numbers=sorted(atomic_numbers[s] for s in network["symbols"]),
        correlation=3,
    ).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def build(network: dict, options: dict) -> Prepare:
    torch.manual_seed(0)
    device = options.get("device", "cpu")
    dtype = getattr(torch, network["dtype"])
    torch.set_default_dtype(dtype)
    model = make_model(network).to(device)

    def prepare(graph: dict[str, np.ndarray]) -> Evaluate:
        species = torch.from_numpy(graph["species"])
        cell = torch.from_numpy(graph["cell"]).to(dtype)
        unit_shifts = -torch.from_numpy(graph["cell_shift"]).to(dtype)  # its edges point at i
        fixed = {
            "node_attrs": torch.nn.functional.one_hot(species, len(network["symbols"])).to(dtype),
            "edge_index": torch.from_numpy(np.stack([graph["edge_src"], graph["edge_dst"]])),
            "shifts": unit_shifts @ cell,
            "unit_shifts": unit_shifts,
            "cell": cell,
            "batch": torch.zeros(len(species), dtype=torch.long),
            "ptr": torch.tensor([0, len(species)]),
        }
        fixed = {key: value.to(device) for key, value in fixed.items()}
        positions = torch.from_numpy(graph["positions"]).to(device, dtype)

        def evaluate() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            got = model(fixed | {"positions": positions.detach()}, compute_stress=True)
            return got["energy"].detach().sum(), got["forces"].detach(), got["stress"].detach()[0]

        return evaluate

    return prepare


if __name__ == "__main__":
    serve(build)
