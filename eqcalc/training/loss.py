"""Loss and errors of a batch. Labels that are NaN do not count."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from ase.units import GPa
from torch import Tensor

from eqcalc.data.dataset import Batch
from eqcalc.training.options import TrainingConfig

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
    return {k: v[known] for (k, v), known in zip(difference.items(), labelled(batch), strict=True)}


def labelled(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Which energies [B], force components [3N] and stress components [6B] are known."""
    upper = torch.triu_indices(3, 3, device=batch.energy.device)
    labels = batch.energy, batch.forces, batch.stress[:, upper[0], upper[1]]
    return tuple(torch.isfinite(label.flatten()) for label in labels)


def component_weights(batch: Batch) -> dict[str, Tensor] | None:
    """The weight of its frame for each of `residuals`; None where all weights are one."""
    if batch.weight is None or bool((batch.weight == 1.0).all()):
        return None
    weights = {
        "energy": batch.weight,
        "forces": batch.weight[batch.graph.batch].repeat_interleave(3),
        "stress": batch.weight.repeat_interleave(6),
    }
    return {k: v[known] for (k, v), known in zip(weights.items(), labelled(batch), strict=True)}


class Loss:
    """Weighted sum over energy per atom, forces and stress of the means of a function of errors.

    "huber" has slope one beyond delta and is quadratic below it, so that its weights mean the same
    as those of "mae". Weights of frames multiply what they contribute; they are not normalised, so
    that they act in batches of one frame, too.

    Args:
        config: function of errors, and the weights of each stage.
        epoch: chooses the stage.
    """

    def __init__(self, config: TrainingConfig, epoch: int = 0) -> None:
        self.kind = config.loss
        self.weights = config.stage(epoch).weights
        delta = config.huber_delta
        self.delta = {"energy": delta, "forces": 10.0 * delta, "stress": delta}

    def terms(self, name: str, difference: Tensor) -> Tensor:
        """The function of errors, for each of them."""
        if self.kind == "mse":
            return difference.square()
        if self.kind == "mae":
            return difference.abs()
        delta = self.delta[name]
        zero = torch.zeros_like(difference)
        return torch.nn.functional.huber_loss(difference, zero, "none", delta) / delta

    def sums(
        self, difference: dict[str, Tensor], weights: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Differences and weights as from `residuals` and `component_weights` -> scalars."""
        terms = {name: self.terms(name, values) for name, values in difference.items()}
        if weights is not None:
            terms = {name: weights[name] * values for name, values in terms.items()}
        return {name: values.sum() for name, values in terms.items()}

    def combine(self, sums: dict[str, Tensor], counts: dict[str, float]) -> Tensor:
        """The loss [scalar] from sums and from the number of labels that they belong to.

        On several processes the counts are those of all, the sums each one's own.
        """
        total = torch.zeros((), dtype=torch.float64, device=sums["energy"].device)
        for name, weight in self.weights.items():
            if weight and counts[name]:
                total = total + weight * sums[name] / counts[name]
        return total

    def __call__(
        self, difference: dict[str, Tensor], weights: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Loss [scalar] of a batch."""
        counts = {name: values.numel() for name, values in difference.items()}
        return self.combine(self.sums(difference, weights), counts)
