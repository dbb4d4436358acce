"""fairchem-core's eSEN at the same size: conservative forces and stress by its own head.

Its fastest backend for CPUs that takes any l_max. Its radial networks have as many Gaussians as
ours have Bessel functions, and see embeddings of both species beside them. Its matrices for |m| > 0
have a second part, which ours lack (it is not symmetric under reflections), and the feed-forward
part has as many channels as the messages have inside.
"""

from __future__ import annotations

import numpy as np
import torch
from worker import Evaluate, Prepare, serve


class Graph(dict):
    """What the backbone reads, by name; it counts systems with len()."""

    def __len__(self) -> int:
        return 1

    def get(self, key: str, default: object = None) -> object:
        """With a default that has a name."""
        return super().get(key, default)


def make_model(network: dict) -> tuple[torch.nn.Module, torch.nn.Module]:
    from fairchem.core.models.uma.escn_md import MLP_EFS_Head, eSCNMDBackbone

    channels, width = network["channels"], network["radial_mlp"]
    if len(set(channels)) > 1 or len(set(width)) > 1 or len(width) != 2:
        raise ValueError("its widths are equal, and its radial networks have two hidden layers")
    backbone = eSCNMDBackbone(
        max_num_elements=100,
        sphere_channels=channels[0],
        lmax=len(channels) - 1,
        mmax=min(2, len(channels) - 1),
        otf_graph=False,
        cutoff=network["cutoff"],
        edge_channels=width[0],
        num_distance_basis=network["num_radial"],
        direct_forces=False,
        regress_forces=True,
        regress_stress=True,
        num_layers=network["layers"],
        hidden_channels=channels[0],
        norm_type="rms_norm_sh",
        act_type="gate",
        ff_type="spectral",
        use_dataset_embedding=False,
        always_use_pbc=False,
        execution_mode="umas_fast_pytorch",
    )
    return backbone, MLP_EFS_Head(backbone, wrap_property=False)


def build(network: dict, options: dict) -> Prepare:
    del options
    torch.manual_seed(0)
    dtype = getattr(torch, network["dtype"])
    torch.set_default_dtype(dtype)
    backbone, head = make_model(network)
    for module in (backbone, head):
        module.eval()
        for parameter in module.parameters():
            parameter.requires_grad_(False)
    backbone.backend.prepare_model_for_inference(backbone)

    def prepare(graph: dict[str, np.ndarray]) -> Evaluate:
        count = len(graph["numbers"])
        fixed = {
            "atomic_numbers": torch.from_numpy(graph["numbers"]).long(),
            "natoms": torch.tensor([count]),
            "batch": torch.zeros(count, dtype=torch.long),
            "edge_index": torch.from_numpy(np.stack([graph["edge_src"], graph["edge_dst"]])),
            "cell_offsets": torch.from_numpy(graph["cell_shift"]).to(dtype),
            "nedges": torch.tensor([len(graph["edge_dst"])]),
            "charge": torch.zeros(1),
            "spin": torch.zeros(1),
        }
        positions = torch.from_numpy(graph["positions"]).to(dtype)
        cell = torch.from_numpy(graph["cell"]).to(dtype)[None]

        def evaluate() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            data = Graph(fixed, pos=positions.detach().clone(), cell=cell.detach().clone())
            got = head(data, backbone(data))
            return got["energy"].detach().sum(), got["forces"], got["stress"].view(3, 3)

        return evaluate

    return prepare


if __name__ == "__main__":
    serve(build)
