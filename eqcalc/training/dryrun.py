"""What a run would be like: its data, its network, its time and memory. Nothing is written."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import cycle, islice

import torch

from eqcalc.models.base import Potential
from eqcalc.progress import duration
from eqcalc.runtime import choose_device
from eqcalc.training.distributed import World, loader
from eqcalc.training.loss import component_weights, residuals
from eqcalc.training.network import ready
from eqcalc.training.optimizers import LearningRate, make_optimizer, switch
from eqcalc.training.options import Config, TrainingConfig
from eqcalc.training.prepare import Prepared, prepare
from eqcalc.training.pretrain import check_pretraining, estimate
from eqcalc.training.report import data_rows, lines, mean_neighbors, parameter_row
from eqcalc.training.run import surroundings
from eqcalc.training.sampling import training_order
from eqcalc.training.task import make_loss, predict

#: training steps that are timed, after one that is not
STEPS = 4


def dry_run(config: Config) -> str:
    """The report, after a few training steps on the real data."""
    if config.pretrain.teacher:
        check_pretraining(config)
    with surroundings(config.training):
        prepared = prepare(config)
        rows = [*data_rows(prepared), *_neighbors(prepared), *_network(prepared)]
        rows += [*_cost(prepared), *_schedule(prepared)]
    return lines(rows)


def _neighbors(prepared: Prepared) -> Iterator[tuple[str, str]]:
    frames = prepared.train
    extremes = [(c.min(), c.max()) for c in map(frames.neighbor_counts, range(len(frames)))]
    least, most = min(low for low, _ in extremes), max(high for _, high in extremes)
    yield "neighbours", f"{least} to {most}, {mean_neighbors(prepared)}"


def _network(prepared: Prepared) -> Iterator[tuple[str, str]]:
    yield parameter_row(prepared)
    yield "by module of the network", ""
    parts: Counter[str] = Counter()
    for name, parameter in prepared.model.named_parameters():
        words = name.split(".")
        parts[words[2] if words[0] == "layers" else words[0]] += parameter.numel()
    for name, number in parts.most_common():
        yield f"  {name}", f"{number}"


def _cost(prepared: Prepared) -> Iterator[tuple[str, str]]:
    options = prepared.config.training
    device = choose_device(options.device)
    model = ready(prepared.model.to(device), options)
    before = _peak_memory(device)
    step, validation = _timings(model, prepared, device)
    steps = math.ceil(len(prepared.train) / options.batch_size)
    epoch = steps * step + validation * sum(map(len, prepared.val.values()))
    # weights, gradients, two moments and, where there is one, the average
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    copies = 5 if options.averaged else 4
    activations = max(_peak_memory(device) - before, 0.0)
    frames = f"{options.batch_size} frame{'s' * (options.batch_size > 1)}"
    yield "time of a step", f"{duration(step)} for {frames}"
    yield "time of an epoch", f"{duration(epoch)} for {steps} steps and validation"
    if prepared.config.pretrain.teacher:
        yield from _before(prepared, step)
    yield "time in all", f"{duration(epoch * options.epochs)} for {options.epochs} epochs"
    yield "memory", f"{size * copies / 1e6:.1f} MB for weights and optimizer"
    yield "", f"about {activations / 1e6:.0f} MB more during a step"


def _before(prepared: Prepared, step: float) -> Iterator[tuple[str, str]]:
    options = prepared.config.pretrain
    seconds = estimate(prepared, step)
    frames = f"{options.frames} frames of {options.teacher}"
    yield "time before", f"{duration(seconds['frames'])} for {frames}"
    yield "", f"{duration(seconds['epochs'])} for {options.epochs} epochs over them"


def _peak_memory(device: torch.device) -> float:
    """Bytes."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def _timings(model: Potential, prepared: Prepared, device: torch.device) -> tuple[float, float]:
    """Seconds of a training step, and of a frame in validation."""
    options = prepared.config.training
    optimizer = make_optimizer(model, options, prepared.undecayed)
    switch(optimizer, training=True)
    loss = make_loss(model, options)
    order = training_order(prepared.train, options)
    batches = list(islice(loader(prepared.train, order, options.batch_size, World()), 1 + STEPS))
    seconds = []
    for batch in (b.to(device) for b in islice(cycle(batches), 1 + STEPS)):
        start = time.perf_counter()
        gradient = loss.needs_gradient
        predicted = predict(model, batch, differentiable=True, gradient=gradient)
        difference = residuals(predicted, batch)
        loss(difference, component_weights(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(_elapsed(start, device))
    held_out = next(iter(prepared.val.values()))
    batch = next(iter(loader(held_out, range(len(held_out)), options.batch_size, World())))
    start = time.perf_counter()
    predict(model, batch.to(device))
    return sum(seconds[1:]) / STEPS, _elapsed(start, device) / len(batch.index)


def _elapsed(start: float, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _schedule(prepared: Prepared) -> Iterator[tuple[str, str]]:
    options = prepared.config.training
    steps = math.ceil(len(prepared.train) / options.batch_size)
    rate = LearningRate(options, steps)
    for number, stage in enumerate(options.stages, 1):
        first = max(stage.start * steps, min(options.warmup_steps, stage.end * steps - 1))
        weights = ", ".join(f"{name} {w:g}" for name, w in stage.weights.items())
        rates = f"{rate(first, {}):.2g} to {rate(stage.end * steps - 1, {}):.2g}"
        epochs = f"epochs {stage.start} to {stage.end - 1}"
        how = f"{epochs}; {_name(options)}, learning rate {rates}; weights: {weights}"
        yield f"stage {number}", how


def _name(options: TrainingConfig) -> str:
    if options.optimizer == "schedule_free":
        return options.optimizer
    return f"{options.optimizer}, {options.schedule}"
