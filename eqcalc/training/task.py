"""The training step for the trainer: energies, forces and stress, loss, errors, optimiser."""

from __future__ import annotations

import math
from typing import Any

import lightning
import torch

from eqcalc import derivatives
from eqcalc.data.dataset import Batch
from eqcalc.engine.training import pairs_of
from eqcalc.models.base import Potential
from eqcalc.training.config import TrainingConfig
from eqcalc.training.loss import UNITS, Loss, Prediction, residuals
from eqcalc.training.muon import Muon


def predict(model: Potential, batch: Batch, *, differentiable: bool = False) -> Prediction:
    """Energy, forces and stress of a batch; `differentiable` keeps the graph for a loss."""
    graph = batch.graph
    with torch.enable_grad(), pairs_of(model, graph):
        edge_vec = graph.edge_vec.detach().requires_grad_()
        energies = model(graph.species, edge_vec, graph.edge_src, graph.edge_dst, graph.num_atoms)
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

    def add(self, difference: dict[str, torch.Tensor]) -> None:
        """Differences as from `residuals`, eV and Å."""
        for name, values in difference.items():
            self.absolute[name] += float(values.detach().abs().sum())
            self.square[name] += float(values.detach().square().sum())
            self.count[name] += values.numel()

    def summary(self) -> dict[str, dict[str, float]]:
        """{quantity: {mae, rmse, count}} in the units of `UNITS`; absent labels are left out."""
        return {
            name: {
                "mae": self.absolute[name] / n * UNITS[name][1],
                "rmse": math.sqrt(self.square[name] / n) * UNITS[name][1],
                "count": n,
            }
            for name, n in self.count.items()
            if n
        }


class PotentialTask(lightning.LightningModule):
    """One potential in training.

    Args:
        model: the network.
        config: how it is trained.
        steps_per_epoch: optimiser steps in an epoch, for the schedule.
    """

    def __init__(self, model: Potential, config: TrainingConfig, steps_per_epoch: int) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.loss = Loss(config)
        self.steps_per_epoch = steps_per_epoch

    def transfer_batch_to_device(
        self,
        batch: Batch,
        device: torch.device,
        dataloader_idx: int,  # noqa: ARG002
    ) -> Batch:
        return batch.to(device)

    def on_train_epoch_start(self) -> None:
        self.train_errors, self.train_loss = Errors(), 0.0

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:  # noqa: ARG002
        difference = residuals(predict(self.model, batch, differentiable=True), batch)
        loss = self.loss(difference)
        if not torch.isfinite(loss):
            names = [int(n) for n in batch.index]
            raise FloatingPointError(f"the loss is {float(loss)} for training frames {names}")
        self.train_errors.add(difference)
        self.train_loss += float(loss.detach()) * len(batch.index)
        return loss

    def on_validation_epoch_start(self) -> None:
        self.val_errors, self.val_loss, self.val_count = Errors(), 0.0, 0

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        difference = residuals(predict(self.model, batch), batch)
        self.val_loss += float(self.loss(difference)) * len(batch.index)
        self.val_count += len(batch.index)
        self.val_errors.add(difference)

    def on_validation_epoch_end(self) -> None:
        self.log("val_loss", self.val_loss / self.val_count)
        short = {"energy": "E", "forces": "F", "stress": "S"}
        for name, error in self.val_errors.summary().items():
            label = f"{short[name]} {UNITS[name][0]}"
            self.log(label, error["mae"], prog_bar=True)

    def configure_optimizers(self) -> dict[str, Any]:
        config = self.config
        options = {"weight_decay": config.weight_decay}
        optimizer: torch.optim.Optimizer
        if config.optimizer == "muon":
            optimizer = Muon(self.model, config.learning_rate, **options)
        else:
            optimizer = torch.optim.AdamW(
                self.model.parameters(), lr=config.learning_rate, **options
            )
        warmup, total = config.warmup_steps, config.epochs * self.steps_per_epoch

        def cosine(step: int) -> float:
            ramp = min(1.0, (step + 1) / (warmup + 1))
            return ramp * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / total)))

        if config.schedule == "cosine":
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": schedule, "interval": "step"},
            }
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=10)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss", "interval": "epoch"},
        }
