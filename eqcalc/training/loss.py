"""Loss and errors of a batch. Labels that are NaN do not count."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from ase.units import GPa
from torch import Tensor

from eqcalc.data.dataset import Batch
from eqcalc.training.config import TrainingConfig

#: reported unit of each quantity, and what one eV-Å unit is in it
UNITS = {"energy": ("meV/atom", 1e3), "forces": ("meV/Å", 1e3), "stress": ("GPa", 1 / GPa)}


@dataclass(frozen=True)
class Prediction:
    """energy [B] eV, forces [N, 3] eV/Å, stress [B, 3, 3] eV/Å^3 (no
    meaning where the volume is zero).
    """

    energy: Tensor
    forces: Tensor
    stress: Tensor


def residuals(prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
    """Flat differences of what is labelled: energy per atom, force and stress components.

    The six independent stress components count once each.
    """
    upper = torch.triu_indices(3, 3, device=batch.energy.device)
    difference = {
        "energy": (prediction.energy - batch.energy) / batch.num_atoms,
        "forces": (prediction.forces - batch.forces).flatten(),
        "stress": (prediction.stress - batch.stress)[:, upper[0], upper[1]].flatten(),
    }
    labels = {
        "energy": batch.energy,
        "forces": batch.forces.flatten(),
        "stress": batch.stress[:, upper[0], upper[1]].flatten(),
    }
    return {k: v[torch.isfinite(labels[k])] for k, v in difference.items()}


class Loss:
    """Weighted sum over energy per atom, forces and stress.

    "huber" has slope one beyond delta and is quadratic below it, so that its weights mean the same
    as those of "mae".
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.kind = config.loss
        self.weights = {
            "energy": config.energy_weight,
            "forces": config.force_weight,
            "stress": config.stress_weight,
        }
        delta = config.huber_delta
        self.delta = {"energy": delta, "forces": 10.0 * delta, "stress": delta}

    def term(self, name: str, difference: Tensor) -> Tensor:
        if self.kind == "mse":
            return difference.square().mean()
        if self.kind == "mae":
            return difference.abs().mean()
        delta = self.delta[name]
        zero = torch.zeros_like(difference)
        return torch.nn.functional.huber_loss(difference, zero, delta=delta) / delta

    def __call__(self, difference: dict[str, Tensor]) -> Tensor:
        """Differences as from `residuals` -> scalar."""
        total = torch.zeros((), dtype=torch.float64, device=difference["energy"].device)
        for name, weight in self.weights.items():
            if weight and difference[name].numel():
                total = total + weight * self.term(name, difference[name])
        return total
