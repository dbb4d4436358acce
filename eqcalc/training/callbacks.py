"""What happens around the steps and epochs of a run: history, learning rate, checkpoints, end.

All decisions are functions of the history, so that a run which is resumed makes the same ones.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.loggers import TensorBoardLogger
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch import Tensor

from eqcalc.errors import InputError
from eqcalc.extras import install
from eqcalc.files import replacing, write_bytes
from eqcalc.training.optimizers import LearningRate, stopping
from eqcalc.training.options import TrainingConfig, TrainingStage
from eqcalc.training.task import PotentialTask


class History(Callback):
    """Errors after each epoch, in a CSV file.

    Attributes:
        rows: one for each epoch, in order, as in the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    numbers = {k: float(v) for k, v in row.items() if v}
                    self.rows.append(numbers | {"epoch": int(row["epoch"])})

    @property
    def losses(self) -> dict[int, float]:
        """Validation loss by epoch."""
        return {int(row["epoch"]): row["val_loss"] for row in self.rows}

    def stage_losses(self, stage: TrainingStage) -> list[float]:
        """Those of one stage, in order."""
        return [loss for epoch, loss in self.losses.items() if stage.start <= epoch < stage.end]

    def on_train_start(self, trainer: lightning.Trainer, task: PotentialTask) -> None:
        del task  # an epoch that was written down, but killed before its checkpoint, comes again
        self.rows = [row for row in self.rows if row["epoch"] < trainer.current_epoch]

    def on_train_epoch_start(self, trainer: lightning.Trainer, task: PotentialTask) -> None:
        del trainer, task
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: lightning.Trainer, task: PotentialTask) -> None:
        row = {
            "epoch": trainer.current_epoch,
            "seconds": time.perf_counter() - self.started,
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "train_loss": task.train_tally.loss(task.loss),
            "val_loss": task.val_loss,
        }
        parts = {"train": task.train_tally, "val": task.merged_errors}
        if len(task.val_tallies) > 1:
            for name, tally in task.val_tallies.items():
                row[f"val_{name}_loss"] = tally.loss(task.loss)
                parts[f"val_{name}"] = tally
        for part, errors in parts.items():
            for name, error in errors.summary().items():
                row[f"{part}_{name}_mae"] = error["mae"]
                row[f"{part}_{name}_rmse"] = error["rmse"]
        self.rows.append(row)
        if trainer.is_global_zero:
            self._write()

    def _write(self) -> None:
        names = list(dict.fromkeys(name for r in self.rows for name in r))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, names)
        writer.writeheader()
        writer.writerows(self.rows)
        write_bytes(self.path, text.getvalue().encode())


class LearningRateControl(Callback):
    """Sets the learning rate before each step; `ends` as in `LearningRate`."""

    def __init__(self, config: TrainingConfig, history: History, ends: Sequence[int] = ()) -> None:
        self.config, self.history, self.ends = config, history, ends

    def on_train_start(self, trainer: lightning.Trainer, task: PotentialTask) -> None:
        del task
        self.rate = LearningRate(self.config, trainer.num_training_batches, self.ends)

    def on_train_batch_start(
        self,
        trainer: lightning.Trainer,
        task: PotentialTask,
        batch: Any,
        batch_idx: int,
    ) -> None:
        del task, batch, batch_idx
        rate = self.rate(trainer.global_step, self.history.losses)
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = rate


class Checkpoints(Callback):
    """last.ckpt after every epoch, best.ckpt if it is the best of its stage so far.

    Written aside and renamed, so that a kill never leaves half of one; the best first, since the
    epoch is trained again if last.ckpt does not know it.
    """

    def __init__(self, out: Path, config: TrainingConfig, history: History) -> None:
        self.out, self.config, self.history = out, config, history

    def on_train_epoch_end(self, trainer: lightning.Trainer, task: PotentialTask) -> None:
        del task
        *earlier, newest = self.history.stage_losses(self.config.stage(trainer.current_epoch))
        improved = newest < min(earlier, default=math.inf)
        for name in ("best", "last") if improved or not earlier else ("last",):
            path = self.out / f"{name}.ckpt"
            # all processes take part, the first one writes
            with replacing(path) if trainer.is_global_zero else nullcontext(path) as partial:
                trainer.save_checkpoint(partial)


class EarlyStop(Callback):
    """Ends training as `eqcalc.training.optimizers.stopping` says."""

    def __init__(self, config: TrainingConfig, history: History) -> None:
        self.config, self.history = config, history

    def _judge(self, trainer: lightning.Trainer) -> None:
        losses = self.history.losses
        due = stopping(self.config, losses)
        trainer.should_stop |= due is not None and len(losses) >= due[1]

    def on_train_start(self, trainer: lightning.Trainer, task: PotentialTask) -> None:
        del task  # a finished run that is started again
        self._judge(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, task: PotentialTask) -> None:
        del task
        self._judge(trainer)


class TensorBoard(Callback):
    """The rows of the history as scalars, the epoch as their step.

    A run that is resumed declares the epochs from there on as not yet written, so that none shows
    up twice.
    """

    def __init__(self, out: Path, history: History) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise InputError(
                "training.tensorboard needs the package tensorboard: "
                f"{install('train', 'tensorboard')}."
            )
        self.out, self.history = out, history

    def on_train_start(self, trainer: lightning.Trainer, task: PotentialTask) -> None:
        del task
        epoch = trainer.current_epoch
        self.logger = TensorBoardLogger(self.out, name="", version="tensorboard", purge_step=epoch)

    def on_train_epoch_end(self, trainer: lightning.Trainer, task: PotentialTask) -> None:
        del task
        row = {k: v for k, v in self.history.rows[-1].items() if k != "epoch"}
        self.logger.log_metrics(row, step=trainer.current_epoch)
        if trainer.is_global_zero:
            self.logger.experiment.flush()

    def on_train_end(self, trainer: lightning.Trainer, task: PotentialTask) -> None:
        del trainer, task
        self.logger.finalize("success")


#: part of the steps so far that averaged weights reach back at most
MEMORY = 0.1


def share_of_newest(decay: float, steps: int) -> float:
    """What the weights after so many steps count in the average."""
    return max(1.0 - decay, 1.0 / (1.0 + MEMORY * steps))


def averaging(decay: float) -> WeightAveraging:
    """Exponential moving average, w += share (new - w), exact where nothing changes."""

    @torch.no_grad()
    def update(averaged: Any, newest: Any, count: Tensor | int) -> None:
        torch._foreach_lerp_([*averaged], [*newest], share_of_newest(decay, int(count)))

    return WeightAveraging(use_buffers=False, multi_avg_fn=update)
