"""Training step on compiled convolutions against the same network in plain torch.

    python tests/benchmarks/training_step.py [--channels 64 32 16] [--threads 1]

Energy, forces and the gradient of a force loss in every weight, float32, perturbed diamond silicon
(28 neighbours) and the same strongly disordered; medians of interleaved repetitions. Prints
ratios, and µs per atom for orientation only.
"""

from __future__ import annotations

import argparse
import copy
import time

import numpy as np
import torch
from ase.build import bulk

from eqcalc.data.dataset import Batch, FrameDataset
from eqcalc.data.frames import Frame
from eqcalc.engine.training import fuse
from eqcalc.models.nequip import NequIPConfig
from eqcalc.models.registry import build
from eqcalc.training.task import predict


def batch_of(displacement: float, structures: int = 4) -> Batch:
    frames = []
    for seed in range(structures):
        atoms = bulk("Si", cubic=True).repeat(2)
        atoms.rattle(displacement, seed=seed)
        frames.append(Frame(atoms, 0.0, None, None, "all", "benchmark"))
    return Batch.collate(FrameDataset(frames, [14], 5.0).items)


def step(model: torch.nn.Module, batch: Batch) -> None:
    model.zero_grad()
    prediction = predict(model, batch, differentiable=True)
    (prediction.forces.square().sum() + prediction.energy.square().sum()).backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels", type=int, nargs="+", default=[64, 32, 16])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = NequIPConfig(
        product_channels=0, num_channels=options.channels, l_max=len(options.channels) - 1
    )
    plain = build(config, [14], 28.0, [1.0], [0.0])
    fused = fuse(copy.deepcopy(plain))
    print(f"{'system':<12}{'plain µs/atom':>16}{'fused µs/atom':>16}{'ratio':>8}")
    for name, displacement in (("crystal", 0.05), ("disordered", 0.4)):
        batch = batch_of(displacement)
        seconds: dict[str, list[float]] = {"plain": [], "fused": []}
        for repeat in range(options.repeats + 2):
            for label, model in (("plain", plain), ("fused", fused)):
                start = time.perf_counter()
                step(model, batch)
                if repeat >= 2:
                    seconds[label].append(time.perf_counter() - start)
        a, b = (1e6 * np.median(seconds[k]) / batch.graph.num_atoms for k in ("plain", "fused"))
        print(f"{name:<12}{a:16.0f}{b:16.0f}{a / b:8.1f}")


if __name__ == "__main__":
    main()
