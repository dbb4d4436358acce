"""The training step for the trainer: energies, forces and stress, loss, errors, optimiser."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import lightning
import torch
from torch import Tensor

from eqcalc import derivatives
from eqcalc.data.dataset import Batch
from eqcalc.engine.training import pairs_of, without_weights
from eqcalc.models.assembled import WithOutputs
from eqcalc.models.base import Potential
from eqcalc.outputs import slices
from eqcalc.training.distributed import World, total
from eqcalc.training.loss import (
    UNITS,
    Loss,
    Prediction,
    component_weights,
    residuals,
    units_of,
)
from eqcalc.training.optimizers import make_optimizer, switch
from eqcalc.training.options import TrainingConfig


def predict(
    model: Potential, batch: Batch, *, differentiable: bool = False, gradient: bool = True
) -> Prediction:
    """Energy, forces, stress and other outputs of a batch, as far as the model has them.

    differentiable: keep the graph for a loss; gradient: false leaves out forces and stress.
    """
    if isinstance(model, WithOutputs):
        prediction = _with_outputs(model, batch, differentiable=differentiable, gradient=gradient)
    else:
        prediction = _of_energy(model, batch, differentiable=differentiable)
    return prediction if differentiable else _detached(prediction)


def _detached(prediction: Prediction) -> Prediction:
    parts = {k: v for k, v in vars(prediction).items() if isinstance(v, Tensor)}
    outputs = {name: rows.detach() for name, rows in prediction.outputs.items()}
    return replace(prediction, **{k: v.detach() for k, v in parts.items()}, outputs=outputs)


def _with_outputs(
    model: WithOutputs, batch: Batch, *, differentiable: bool, gradient: bool
) -> Prediction:
    graph, size = batch.graph, batch.graph.num_graphs
    gradient = gradient and model.has_energy
    with torch.set_grad_enabled(gradient or differentiable), pairs_of(model, graph):
        edge_vec = graph.edge_vec.detach().requires_grad_(gradient)
        rest = graph.edge_src, graph.edge_dst, graph.num_atoms
        energies, rows = model.outputs(graph.species, edge_vec, *rest)
        slope = None
        if gradient:
            with without_weights(model):
                slope = derivatives.edge_gradient(energies, edge_vec, differentiable=differentiable)
        outputs = {}
        for output, place in zip(model.output_configs, slices(model.output_configs), strict=True):
            own = rows[:, place]
            if output.per == "structure":
                own = own.new_zeros(size, output.dim).index_add(0, graph.batch, own)
            outputs[output.name] = own
    return replace(_derived(energies, slope, batch, has_energy=model.has_energy), outputs=outputs)


def _of_energy(model: Potential, batch: Batch, *, differentiable: bool) -> Prediction:
    graph = batch.graph
    with torch.enable_grad(), pairs_of(model, graph):
        edge_vec = graph.edge_vec.detach().requires_grad_()
        energies = model(graph.species, edge_vec, graph.edge_src, graph.edge_dst, graph.num_atoms)
        with without_weights(model):
            gradient = derivatives.edge_gradient(energies, edge_vec, differentiable=differentiable)
    return _derived(energies, gradient, batch, has_energy=True)


def _derived(
    energies: Tensor, gradient: Tensor | None, batch: Batch, *, has_energy: bool
) -> Prediction:
    """Of structures, from energies [N] eV and their gradient [E, 3] eV/Å."""
    if not has_energy:
        return Prediction(None, None, None)
    graph, size = batch.graph, batch.graph.num_graphs
    energy = torch.zeros(size, dtype=energies.dtype, device=energies.device)
    energy = energy.index_add(0, graph.batch, energies)
    if gradient is None:
        return Prediction(energy, None, None)
    strain = derivatives.strain_derivative(
        gradient, graph.edge_vec, graph.batch[graph.edge_dst], size
    )
    volume = torch.where(graph.volume > 0.0, graph.volume, 1.0)
    return Prediction(
        energy=energy,
        forces=derivatives.forces(gradient, graph.edge_src, graph.edge_dst, graph.num_atoms),
        stress=strain / volume[:, None, None],
    )


def make_loss(model: Potential, config: TrainingConfig, epoch: int = 0) -> Loss:
    """The loss of a network in an epoch."""
    if isinstance(model, WithOutputs):
        return Loss(config, epoch, model.output_configs, model.output_constants().rms)
    return Loss(config, epoch)


class Errors:
    """Mean absolute and root mean square errors, accumulated over batches.

    units: of each quantity in reports, and what one unit of the data is in it.
    """

    def __init__(self, units: Mapping[str, tuple[str, float]] = UNITS) -> None:
        self.units = units
        self.absolute = dict.fromkeys(units, 0.0)
        self.square = dict.fromkeys(units, 0.0)
        self.count = dict.fromkeys(units, 0)

    @staticmethod
    def merged(parts: Iterable[Errors]) -> Errors:
        """Of several sets together, at least one."""
        parts = list(parts)
        result = Errors(parts[0].units)
        for part in parts:
            for name in result.units:
                result.absolute[name] += part.absolute[name]
                result.square[name] += part.square[name]
                result.count[name] += part.count[name]
        return result

    def add(self, difference: dict[str, Tensor]) -> None:
        """Differences as from `residuals`, eV and Å."""
        for name, values in difference.items():
            self.absolute[name] += float(values.detach().abs().sum())
            self.square[name] += float(values.detach().square().sum())
            self.count[name] += values.numel()

    def summary(self) -> dict[str, dict[str, Any]]:
        """{quantity: {mae, rmse, count, unit}} in reported units; absent labels are left out."""
        return {
            name: {
                "mae": self.absolute[name] / n * self.units[name][1],
                "rmse": math.sqrt(self.square[name] / n) * self.units[name][1],
                "count": n,
                "unit": self.units[name][0],
            }
            for name, n in self.count.items()
            if n
        }


class DivergenceError(FloatingPointError):
    """The loss is not a finite number; `frames` are the positions of those in the batch."""

    def __init__(self, frames: list[int]) -> None:
        super().__init__(f"the loss is not a finite number for training frames {frames}")
        self.frames = frames


class SetErrors(Errors):
    """Errors and loss of a whole set of frames, whatever its batches and processes were."""

    def __init__(self, units: Mapping[str, tuple[str, float]] = UNITS) -> None:
        super().__init__(units)
        self.sums = dict.fromkeys(units, 0.0)
        self.frames = 0

    def add(self, difference: dict[str, Tensor], sums: dict[str, Tensor], frames: int) -> None:
        """Differences as from `residuals` of so many frames, and their `Loss.sums`."""
        super().add(difference)
        self.frames += frames
        for name, value in sums.items():
            self.sums[name] += float(value.detach())

    def reduce(self, device: torch.device) -> None:
        """Sums over all processes."""
        parts = (self.absolute, self.square, self.count, self.sums)
        rows = [[*(part[name] for name in self.units), self.frames] for part in parts]
        rows = total(torch.tensor(rows, dtype=torch.float64, device=device)).tolist()
        for part, row in zip(parts, rows, strict=True):
            part.update(zip(self.units, row[:-1], strict=True))
        self.count = {name: round(n) for name, n in self.count.items()}
        self.frames = round(rows[0][-1])

    def loss(self, loss: Loss) -> float:
        """As if the set were one batch."""
        sums = {k: torch.tensor(v, dtype=torch.float64) for k, v in self.sums.items()}
        return float(loss.combine(sums, self.count))


class PotentialTask(lightning.LightningModule):
    """One potential in training.

    Args:
        model: the network.
        config: how it is trained.
        val_names: of the validation sets, in the order of their loaders.
        world: the processes that train it.
        undecayed: parameters without weight decay.
    """

    def __init__(
        self,
        model: Potential,
        config: TrainingConfig,
        val_names: Sequence[str],
        world: World,
        undecayed: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.val_names = list(val_names)
        self.world_size = world.size
        self.undecayed = [*undecayed]
        outputs = model.output_configs
        self.units = units_of(outputs, energy=model.has_energy)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        steps = int(self.trainer.estimated_stepping_batches)
        return make_optimizer(self.model, self.config, self.undecayed, steps)

    def transfer_batch_to_device(
        self,
        batch: Batch,
        device: torch.device,
        dataloader_idx: int,  # noqa: ARG002
    ) -> Batch:
        return batch.to(device)

    def on_train_epoch_start(self) -> None:
        self.loss = make_loss(self.model, self.config, self.current_epoch)
        self.train_tally = SetErrors(self.units)
        switch(self.optimizers(use_pl_optimizer=False), training=True)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
        gradient = self.loss.needs_gradient
        prediction = predict(self.model, batch, differentiable=True, gradient=gradient)
        difference = residuals(prediction, batch)
        sums = self.loss.sums(difference, component_weights(batch))
        numbers = [values.numel() for values in difference.values()]
        counts = total(torch.tensor(numbers, device=batch.energy.device)).tolist()
        loss = self.loss.combine(sums, dict(zip(difference, counts, strict=True)))
        if not torch.isfinite(loss):
            raise DivergenceError(batch.index.tolist())
        self.train_tally.add(difference, sums, len(batch.index))
        return loss * self.world_size

    def on_validation_epoch_start(self) -> None:
        self.val_tallies = {name: SetErrors(self.units) for name in self.val_names}
        switch(self.optimizers(use_pl_optimizer=False), training=False)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:  # noqa: ARG002
        difference = residuals(predict(self.model, batch), batch)
        sums = self.loss.sums(difference, component_weights(batch))
        self.val_tallies[self.val_names[dataloader_idx]].add(difference, sums, len(batch.index))

    def on_validation_epoch_end(self) -> None:
        for tally in (self.train_tally, *self.val_tallies.values()):
            tally.reduce(self.device)
        self.log("val_loss", self.val_loss, prog_bar=True)
        short = {"energy": "E", "forces": "F", "stress": "S"}
        for name, error in self.merged_errors.summary().items():
            label = f"{short.get(name, name)} {self.units[name][0]}".strip()
            self.log(label, error["mae"], prog_bar=True)

    @property
    def merged_errors(self) -> Errors:
        """Of all validation sets together."""
        return Errors.merged(self.val_tallies.values())

    @property
    def val_loss(self) -> float:
        """Of the validation sets that `training.monitor` names, each counting by its frames."""
        names = self.config.monitor or self.val_names
        tallies = [self.val_tallies[name] for name in names]
        frames = sum(t.frames for t in tallies)
        return sum(t.loss(self.loss) * (t.frames / frames) for t in tallies)
