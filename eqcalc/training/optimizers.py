"""Optimisers, and the learning rate as a function of what has happened so far."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from eqcalc.engine.training import fused_parts
from eqcalc.errors import InputError
from eqcalc.extras import install
from eqcalc.training.muon import Muon
from eqcalc.training.options import TrainingConfig

#: part of a run's steps that its warm-up takes at most
WARMUP = 0.1


def warmup(config: TrainingConfig, steps: int) -> int:
    """Steps of the warm-up in a run of so many: a short run is not spent on it."""
    return min(config.warmup_steps, int(WARMUP * steps))


def make_optimizer(
    model: nn.Module,
    config: TrainingConfig,
    undecayed: Sequence[str] = (),
    steps: int | None = None,
) -> torch.optim.Optimizer:
    """The optimiser that `config` asks for, of all parameters that are not frozen.

    Args:
        model: the network.
        config: how it is trained.
        undecayed: names of parameters without weight decay.
        steps: of the whole run; None: many.

    Raises:
        InputError: its package is missing, or everything is frozen.
    """
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad or not p.numel()}
    if not any(p.numel() for p in trained.values()):
        raise InputError("fine_tune.freeze leaves nothing to train: name fewer parameters.")
    options = {"lr": config.learning_rate, "weight_decay": config.weight_decay}

    def groups(names: Iterable[str]) -> list[dict[str, Any]]:
        plain = {"params": [trained[n] for n in names if n not in undecayed]}
        kept = {"params": [trained[n] for n in names if n in undecayed], "weight_decay": 0.0}
        return [group for group in (plain, kept) if group["params"]]

    if config.optimizer == "muon":
        fused = fused_parts(model)
        library = fused.library if fused else None
        return Muon(model, undecayed=undecayed, library=library, **options)
    if config.optimizer == "schedule_free":
        try:
            from schedulefree import AdamWScheduleFree
        except ImportError:
            raise InputError(
                'training.optimizer = "schedule_free" needs the package schedulefree: '
                f"{install('train', 'schedulefree')}."
            ) from None
        # Defazio et al., arXiv:2405.15682
        first = config.warmup_steps if steps is None else warmup(config, steps)
        return AdamWScheduleFree(groups(trained), warmup_steps=first, **options)
    return torch.optim.AdamW(groups(trained), **options)


def switch(optimizer: torch.optim.Optimizer, *, training: bool) -> None:
    """Puts the weights that are to be trained, or validated and saved, into the model.

    They differ for schedule-free optimisers alone: gradients are taken at y, the average is x.
    """
    change = getattr(optimizer, "train" if training else "eval", None)
    if change is not None:
        change()


#: part of the epochs so far that the learning rate falls in once early stopping is due
COOLING = 0.1


def stopping(config: TrainingConfig, losses: Mapping[int, float]) -> tuple[int, int] | None:
    """Early stopping: epochs from which on the learning rate falls to zero, and the end.

    It is due after `patience` epochs of the last stage without a better one. A learning rate that
    is still high keeps the loss from falling, and weights that are left there are worse than need
    be, so it falls first. Schedule-free optimisers stop at once, as their average has it already.

    Args:
        config: how the network is trained.
        losses: by epoch.
    """
    stage = config.stages[-1]
    best, since = math.inf, 0
    for epoch in range(stage.start, stage.end):
        if not config.patience or epoch not in losses:
            return None
        better = losses[epoch] < best
        best, since = min(best, losses[epoch]), 0 if better else since + 1
        if since >= config.patience:
            free = config.optimizer == "schedule_free"
            cooling = 0 if free else max(1, round(COOLING * (epoch + 1)))
            return epoch + 1, min(epoch + 1 + cooling, stage.end)
    return None


class LearningRate:
    """The learning rate, from the step and the validation losses of earlier epochs.

    It has no state, so that a resumed run follows the same path.

    Args:
        config: how the network is trained.
        steps_per_epoch: of the training frames.
        ends: epochs at which the run was to end before it was extended. A cosine that has come to
            its end begins anew there (warm restart: Loshchilov and Hutter, arXiv:1608.03983), so
            that no earlier epoch has another learning rate than it had; other schedules go on.
    """

    def __init__(
        self, config: TrainingConfig, steps_per_epoch: int, ends: Sequence[int] = ()
    ) -> None:
        self.config = config
        self.steps_per_epoch = steps_per_epoch
        self.ends = sorted(ends)
        # of the run as it was before it was extended, so that no earlier rate changes
        self.warmup = warmup(config, min([*self.ends, config.epochs]) * steps_per_epoch)

    def __call__(self, step: int, losses: Mapping[int, float]) -> float:
        """Step from 0; losses by epoch, those of its own epoch and later ones are not looked at."""
        config = self.config
        epoch = step // self.steps_per_epoch
        stage = config.stage(epoch)
        if config.optimizer == "schedule_free":  # warms up by itself
            return stage.learning_rate
        ramp = min(1.0, (step + 1) / (self.warmup + 1))
        # the epochs of one schedule: both stages', unless the second has a learning rate
        own = config.second_stage.learning_rate is not None
        start, end = (stage.start, stage.end) if own else (0, config.epochs)
        if config.schedule == "cosine":
            start = max([start, *(e for e in self.ends if e <= epoch)])
            end = min([end, *(e for e in self.ends if e > epoch)])
            done = (step - start * self.steps_per_epoch) / ((end - start) * self.steps_per_epoch)
            ramp *= 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        elif config.schedule == "plateau":
            for part in config.stages:
                if start <= part.start <= epoch:  # losses of different stages are not compared
                    past = [
                        losses[e] for e in range(part.start, min(part.end, epoch)) if e in losses
                    ]
                    ramp *= config.plateau_factor ** stalls(past, config.plateau_patience)
        earlier = {e: loss for e, loss in losses.items() if e < epoch} if config.patience else {}
        if due := stopping(config, earlier):
            first, last = (e * self.steps_per_epoch for e in due)
            ramp *= 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - first) / (last - first))))
        return stage.learning_rate * ramp


def stalls(losses: Sequence[float], patience: int) -> int:
    """How often more than `patience` epochs in a row brought no improvement of 1e-4, relative."""
    best, bad, count = math.inf, 0, 0
    for loss in losses:
        if loss < best * (1.0 - 1e-4):
            best, bad = loss, 0
        else:
            bad += 1
        if bad > patience:
            count, bad = count + 1, 0
    return count
