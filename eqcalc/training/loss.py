"""Loss and errors of a batch. Labels that are NaN do not count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from ase.units import GPa
from torch import Tensor

from eqcalc.data.dataset import Batch
from eqcalc.outputs import OutputConfig
from eqcalc.training.options import TrainingConfig

#: reported unit of each quantity, and what one eV-Å unit is in it
UNITS = {"energy": ("meV/atom", 1e3), "forces": ("meV/Å", 1e3), "stress": ("GPa", 1 / GPa)}


def units_of(
    outputs: Sequence[OutputConfig], *, energy: bool = True
) -> dict[str, tuple[str, float]]:
    """The reported units of a network: those of its outputs are the labels' own."""
    own = {output.name: (output.unit, 1.0) for output in outputs}
    return UNITS | own if energy else own


@dataclass(frozen=True)
class Prediction:
    """energy [B] eV, forces [N, 3] eV/Å, stress [B, 3, 3] eV/Å^3 (no
    meaning where the volume is zero); None where they are not asked for, or there is no energy.

    outputs: rows of other outputs by name, [N, columns] or [B, columns] (`eqcalc.outputs`).
    """

    energy: Tensor | None
    forces: Tensor | None
    stress: Tensor | None
    outputs: dict[str, Tensor] = field(default_factory=dict)


def residuals(prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
    """Flat differences of what is labelled and predicted: energy per atom, force and stress
    components, columns of other outputs.

    The six independent stress components count once each.
    """
    upper = torch.triu_indices(3, 3, device=batch.energy.device)
    difference = {}
    if prediction.energy is not None:
        difference["energy"] = (prediction.energy - batch.energy) / batch.num_atoms
    if prediction.forces is not None:
        difference["forces"] = (prediction.forces - batch.forces).flatten()
        stress = (prediction.stress - batch.stress)[:, upper[0], upper[1]]
        difference["stress"] = stress.flatten()
    for name, label in (batch.atom_outputs | batch.structure_outputs).items():
        difference[name] = (prediction.outputs[name] - label).flatten()
    known = labelled(batch)
    return {name: values[known[name]] for name, values in difference.items()}


def labelled(batch: Batch) -> dict[str, Tensor]:
    """Which energies [B], force components [3N], stress components [6B] and columns of other
    outputs are known.
    """
    upper = torch.triu_indices(3, 3, device=batch.energy.device)
    stress = batch.stress[:, upper[0], upper[1]]
    labels = {"energy": batch.energy, "forces": batch.forces, "stress": stress}
    labels |= batch.atom_outputs | batch.structure_outputs
    return {name: torch.isfinite(label.flatten()) for name, label in labels.items()}


def component_weights(batch: Batch) -> dict[str, Tensor] | None:
    """The weight of its frame for each of `residuals`; None where all weights are one."""
    if batch.weight is None or bool((batch.weight == 1.0).all()):
        return None
    of_atoms = batch.weight[batch.graph.batch]
    weights = {
        "energy": batch.weight,
        "forces": of_atoms.repeat_interleave(3),
        "stress": batch.weight.repeat_interleave(6),
    }
    for name, rows in batch.atom_outputs.items():
        weights[name] = of_atoms.repeat_interleave(rows.shape[1])
    for name, rows in batch.structure_outputs.items():
        weights[name] = batch.weight.repeat_interleave(rows.shape[1])
    known = labelled(batch)
    return {name: values[known[name]] for name, values in weights.items()}


class Loss:
    """Weighted sum over energy per atom, forces and stress of the means of a function of errors.

    "huber" has slope one beyond delta and is quadratic below it, so that its weights mean the same
    as those of "mae". Weights of frames multiply what they contribute; they are not normalised, so
    that they act in batches of one frame, too.

    Errors of other outputs are divided by the root mean square of their labels.

    Args:
        config: function of errors, and the weights of each stage.
        epoch: chooses the stage.
        outputs: beside the energy, with their weights.
        rms: of their labels (`eqcalc.nn.output_constants`).
    """

    def __init__(
        self,
        config: TrainingConfig,
        epoch: int = 0,
        outputs: Sequence[OutputConfig] = (),
        rms: Sequence[float] = (),
    ) -> None:
        self.kind = config.loss
        self.weights = config.stage(epoch).weights | {out.name: out.weight for out in outputs}
        self.rms = dict(zip((output.name for output in outputs), rms, strict=True))
        delta = config.huber_delta
        self.delta = {"energy": delta, "forces": 10.0 * delta, "stress": delta}
        self.delta |= dict.fromkeys(self.rms, 10.0 * delta)

    @property
    def needs_gradient(self) -> bool:
        """Whether forces or stresses count."""
        return bool(self.weights["forces"] or self.weights["stress"])

    def terms(self, name: str, difference: Tensor) -> Tensor:
        """The function of errors, for each of them."""
        if name in self.rms:
            difference = difference / self.rms[name]
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

        On several processes the counts are those of all, the sums each one's own. Outputs that no
        frame has a label of count as zero, so that their weights have a gradient in every step.
        """
        device = next(iter(sums.values())).device
        total = torch.zeros((), dtype=torch.float64, device=device)
        for name, weight in self.weights.items():
            count = counts.get(name, 0.0)
            if weight and (count or (name in self.rms and name in sums)):
                total = total + weight * sums[name] / max(count, 1.0)
        return total

    def __call__(
        self, difference: dict[str, Tensor], weights: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Loss [scalar] of a batch."""
        counts = {name: values.numel() for name, values in difference.items()}
        return self.combine(self.sums(difference, weights), counts)
