"""The training step for the trainer: energies, forces and stress, loss, errors, optimiser."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import lightning
import torch
from torch import Tensor

from eqcalc import derivatives
from eqcalc.data.dataset import Batch
from eqcalc.engine.training import pairs_of, without_weights
from eqcalc.models.base import Potential
from eqcalc.training.distributed import World, total
from eqcalc.training.loss import UNITS, Loss, Prediction, component_weights, residuals
from eqcalc.training.optimizers import make_optimizer, switch
from eqcalc.training.options import TrainingConfig


def predict(model: Potential, batch: Batch, *, differentiable: bool = False) -> Prediction:
    """Energy, forces and stress of a batch; `differentiable` keeps the graph for a loss."""
    graph = batch.graph
    with torch.enable_grad(), pairs_of(model, graph):
        edge_vec = graph.edge_vec.detach().requires_grad_()
        energies = model(graph.species, edge_vec, graph.edge_src, graph.edge_dst, graph.num_atoms)
        with without_weights(model):
            gradient = derivatives.edge_gradient(energies, edge_vec, differentiable=differentiable)
    size = graph.num_graphs
    energy = torch.zeros(size, dtype=energies.dtype, device=energies.device)
    strain = derivatives.strain_derivative(
        gradient, graph.edge_vec, graph.batch[graph.edge_dst], size
    )
    volume = torch.where(graph.volume > 0.0, graph.volume, 1.0)
    prediction = Prediction(
        energy=energy.index_add(0, graph.batch, energies),
        forces=derivatives.forces(gradient, graph.edge_src, graph.edge_dst, graph.num_atoms),
        stress=strain / volume[:, None, None],
    )
    if differentiable:
        return prediction
    return Prediction(**{name: value.detach() for name, value in vars(prediction).items()})


class Errors:
    """Mean absolute and root mean square errors, accumulated over batches."""

    def __init__(self) -> None:
        self.absolute = dict.fromkeys(UNITS, 0.0)
        self.square = dict.fromkeys(UNITS, 0.0)
        self.count = dict.fromkeys(UNITS, 0)

    @staticmethod
    def merged(parts: Iterable[Errors]) -> Errors:
        """Of several sets together."""
        result = Errors()
        for part in parts:
            for name in UNITS:
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
        """{quantity: {mae, rmse, count, unit}}, unit as in `UNITS`; absent labels left out."""
        return {
            name: {
                "mae": self.absolute[name] / n * UNITS[name][1],
                "rmse": math.sqrt(self.square[name] / n) * UNITS[name][1],
                "count": n,
                "unit": UNITS[name][0],
            }
            for name, n in self.count.items()
            if n
        }


class DivergenceError(FloatingPointError):
    """The loss is not a finite number; `frames` are the positions of those in the batch."""

    def __init__(self, frames: list[int]) -> None:
        super().__init__(f"the loss is not a finite number for training frames {frames}")
        self.frames = frames


class Tally(Errors):
    """Errors and loss of a whole set of frames, whatever its batches and processes were."""

    def __init__(self) -> None:
        super().__init__()
        self.sums = dict.fromkeys(UNITS, 0.0)

    def add(self, difference: dict[str, Tensor], sums: dict[str, Tensor]) -> None:
        """Differences as from `residuals`, and their `Loss.sums`."""
        super().add(difference)
        for name, value in sums.items():
            self.sums[name] += float(value.detach())

    def reduce(self, device: torch.device) -> None:
        """Sums over all processes."""
        parts = (self.absolute, self.square, self.count, self.sums)
        rows = [[part[name] for name in UNITS] for part in parts]
        rows = total(torch.tensor(rows, dtype=torch.float64, device=device)).tolist()
        for part, row in zip(parts, rows, strict=True):
            part.update(zip(UNITS, row, strict=True))
        self.count = {name: round(n) for name, n in self.count.items()}

    def loss(self, loss: Loss) -> float:
        """As if the set were one batch."""
        sums = {k: torch.tensor(v, dtype=torch.float64) for k, v in self.sums.items()}
        return float(loss.combine(sums, self.count))

    @property
    def frames(self) -> int:
        return self.count["energy"]


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

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self.model, self.config, self.undecayed)

    def transfer_batch_to_device(
        self,
        batch: Batch,
        device: torch.device,
        dataloader_idx: int,  # noqa: ARG002
    ) -> Batch:
        return batch.to(device)

    def on_train_epoch_start(self) -> None:
        self.loss = Loss(self.config, self.current_epoch)
        self.train_tally = Tally()
        switch(self.optimizers(use_pl_optimizer=False), training=True)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
        difference = residuals(predict(self.model, batch, differentiable=True), batch)
        sums = self.loss.sums(difference, component_weights(batch))
        numbers = [values.numel() for values in difference.values()]
        counts = total(torch.tensor(numbers, device=batch.energy.device)).tolist()
        loss = self.loss.combine(sums, dict(zip(difference, counts, strict=True)))
        if not torch.isfinite(loss):
            raise DivergenceError(batch.index.tolist())
        self.train_tally.add(difference, sums)
        return loss * self.world_size

    def on_validation_epoch_start(self) -> None:
        self.val_tallies = {name: Tally() for name in self.val_names}
        switch(self.optimizers(use_pl_optimizer=False), training=False)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:  # noqa: ARG002
        difference = residuals(predict(self.model, batch), batch)
        sums = self.loss.sums(difference, component_weights(batch))
        self.val_tallies[self.val_names[dataloader_idx]].add(difference, sums)

    def on_validation_epoch_end(self) -> None:
        for tally in (self.train_tally, *self.val_tallies.values()):
            tally.reduce(self.device)
        self.log("val_loss", self.val_loss, prog_bar=True)
        short = {"energy": "E", "forces": "F", "stress": "S"}
        for name, error in self.merged_errors.summary().items():
            self.log(f"{short[name]} {UNITS[name][0]}", error["mae"], prog_bar=True)

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
