"""The same network written by hand with e3nn and scripted: what one gets without a package.

Layer: x' = Gate(SC(x, species) + L_mix sum_j TP(L_up x_j, Y_ij; R(r_ij)) / sqrt(n)).
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from e3nn import o3
from e3nn.nn import FullyConnectedNet, Gate
from e3nn.util.jit import compile_mode, script
from torch import Tensor, nn
from worker import Evaluate, Prepare, serve

silu = nn.functional.silu


def couplings(irreps: o3.Irreps, harmonics: o3.Irreps, wanted: o3.Irreps):
    """Irreps of the messages, sorted, and the "uvu" instructions that make them."""
    made, instructions = [], []
    for i, (mul, ir) in enumerate(irreps):
        for j, (_, ir_edge) in enumerate(harmonics):
            for ir_out in ir * ir_edge:
                if ir_out in wanted:
                    instructions.append((i, j, len(made)))
                    made.append((mul, ir_out))
    made, place, _ = o3.Irreps(made).sort()
    return made, [(i, j, place[k], "uvu", True) for i, j, k in instructions]


@compile_mode("script")
class Layer(nn.Module):
    def __init__(self, irreps_in, irreps_out, harmonics, num_species, network):
        super().__init__()
        scalars = o3.Irreps([x for x in irreps_out if x.ir.l == 0])
        gated = o3.Irreps([x for x in irreps_out if x.ir.l > 0])
        gates = o3.Irreps([(gated.num_irreps, "0e")] if len(gated) else [])
        self.gate = Gate(scalars, [silu], gates, [silu] * len(gates), gated)
        before_gate = self.gate.irreps_in.simplify()
        messages, instructions = couplings(irreps_in, harmonics, before_gate)
        self.up = o3.Linear(irreps_in, irreps_in)
        self.product = o3.TensorProduct(
            irreps_in,
            harmonics,
            messages,
            instructions,
            shared_weights=False,
            internal_weights=False,
        )
        widths = [network["num_radial"], *network["radial_mlp"], self.product.weight_numel]
        self.radial = FullyConnectedNet(widths, silu)
        self.mix = o3.Linear(messages.simplify(), before_gate)
        species = o3.Irreps([(num_species, "0e")])
        self.self_connection = o3.FullyConnectedTensorProduct(irreps_in, species, before_gate)
        self.norm = 1.0 / math.sqrt(network["avg_num_neighbors"])

    def forward(self, x: Tensor, species, radial, harmonics, dst, src):
        own = self.self_connection(x, species)
        messages = self.product(self.up(x)[src], harmonics, self.radial(radial))
        total = torch.zeros(x.shape[0], messages.shape[1], dtype=x.dtype, device=x.device)
        total = total.index_add(0, dst, messages) * self.norm
        return self.gate(own + self.mix(total))


@compile_mode("script")
class Network(nn.Module):
    """species one-hot [N, S], edge vectors [E, 3] Å -> energy."""

    def __init__(self, network: dict) -> None:
        super().__init__()
        channels, count = network["channels"], len(network["symbols"])
        l_max = len(channels) - 1
        self.cutoff: float = network["cutoff"]
        orders = torch.arange(1, network["num_radial"] + 1) * (math.pi / self.cutoff)
        self.register_buffer("orders", orders)
        harmonics = o3.Irreps.spherical_harmonics(l_max)
        self.harmonics = o3.SphericalHarmonics(harmonics, normalize=True)
        scalars = o3.Irreps([(channels[0], "0e")])
        features = o3.Irreps([(mul, (l, (-1) ** l)) for l, mul in enumerate(channels)])  # noqa: E741
        self.embed = o3.Linear(o3.Irreps([(count, "0e")]), scalars)
        steps = [scalars, *[features] * (network["layers"] - 1), scalars]
        self.layers = nn.ModuleList(
            Layer(a, b, harmonics, count, network) for a, b in pairwise(steps)
        )
        self.readout = o3.Linear(scalars, "1x0e")

    def forward(self, species: Tensor, edge_vec: Tensor, dst: Tensor, src: Tensor) -> Tensor:
        r = edge_vec.square().sum(1, keepdim=True).sqrt()
        u = r / self.cutoff
        envelope = 1.0 - 28.0 * u.pow(6) + 48.0 * u.pow(7) - 21.0 * u.pow(8)
        radial = (2.0 / self.cutoff) ** 0.5 * torch.sin(self.orders * r) / r * envelope
        harmonics = self.harmonics(edge_vec)
        x = self.embed(species)
        for layer in self.layers:
            x = layer(x, species, radial, harmonics, dst, src)
        return self.readout(x).sum()


def build(network: dict, options: dict) -> Prepare:
    torch.manual_seed(0)
    device = options.get("device", "cpu")
    dtype = getattr(torch, network["dtype"])
    torch.set_default_dtype(dtype)
    model = Network(network).eval().to(device)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model = torch.jit.freeze(script(model))

    def prepare(graph: dict[str, np.ndarray]) -> Evaluate:
        species = nn.functional.one_hot(
            torch.from_numpy(graph["species"]), len(network["symbols"])
        ).to(device, dtype)
        vectors = torch.from_numpy(graph["edge_vec"]).to(device, dtype)
        dst, src = (torch.from_numpy(graph[key]).to(device) for key in ("edge_dst", "edge_src"))
        volume = abs(float(np.linalg.det(graph["cell"])))

        def evaluate() -> tuple[Tensor, Tensor, Tensor]:
            edge_vec = vectors.detach().requires_grad_(True)
            energy = model(species, edge_vec, dst, src)
            (gradient,) = torch.autograd.grad(energy, edge_vec)
            forces = torch.zeros(len(species), 3, dtype=dtype, device=device)
            forces = forces.index_add(0, dst, gradient).index_add(0, src, -gradient)
            return energy.detach(), forces, vectors.T @ gradient / volume

        return evaluate

    return prepare


if __name__ == "__main__":
    serve(build)
