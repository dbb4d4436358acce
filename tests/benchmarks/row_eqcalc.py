"""Our own potential file, with one of its engines."""

from __future__ import annotations

import numpy as np
import torch
from worker import Evaluate, Prepare, serve

from eqcalc import derivatives, export
from eqcalc.engine.fused import FusedPotential, fuse


def load(path: str, dtype: str, engine: str) -> export.PotentialFile | FusedPotential:
    """The file on one of its engines."""
    if engine == "torch":
        return export.load(path, dtype=dtype)
    return fuse(path, dtype=dtype, radial="network" if engine == "exact" else "table")


def build(network: dict, options: dict) -> Prepare:
    potential = load(options["model"], network["dtype"], options["engine"])

    def prepare(graph: dict[str, np.ndarray]) -> Evaluate:
        species = torch.from_numpy(potential.species_of(graph["numbers"]))
        edge_vec = torch.from_numpy(graph["edge_vec"])
        edge_src, edge_dst = (torch.from_numpy(graph[k]) for k in ("edge_src", "edge_dst"))
        volume = abs(float(np.linalg.det(graph["cell"])))

        def evaluate() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            got = potential.evaluate(species, edge_vec, edge_src, edge_dst)
            forces = derivatives.forces(got.gradient, edge_src, edge_dst, len(species))
            return got.energies.sum(), forces, edge_vec.T @ got.gradient / volume

        return evaluate

    return prepare


if __name__ == "__main__":
    serve(build)
