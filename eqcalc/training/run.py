"""A training run: from a config to a folder with checkpoints, history, figures and a summary.

See `eqcalc.training.folder` for the files. Under torchrun all processes read the data and share the
steps; the first one alone writes, and evaluates at the end.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import pickle
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerStatus

from eqcalc import export
from eqcalc.data.dataset import GraphDataset
from eqcalc.errors import InputError, Interrupted
from eqcalc.files import user_path, write_json
from eqcalc.runtime import choose_device
from eqcalc.training import calibration
from eqcalc.training.callbacks import (
    Checkpoints,
    EarlyStop,
    History,
    LearningRateControl,
    TensorBoard,
    averaging,
)
from eqcalc.training.distributed import World, loader, wait
from eqcalc.training.evaluate import evaluate, plot_learning_curve, plot_parity
from eqcalc.training.folder import (
    check_same_run,
    ends_before,
    is_finished,
    load_run,
    not_a_checkpoint,
    read_json,
)
from eqcalc.training.former import renew
from eqcalc.training.frames import UNNAMED, dataset, load_frames
from eqcalc.training.loss import units_of
from eqcalc.training.network import build_model, ready
from eqcalc.training.optimizers import make_optimizer
from eqcalc.training.options import Config, TrainingConfig
from eqcalc.training.prepare import Prepared, prepare
from eqcalc.training.pretrain import (
    PRETRAINING,
    check_pretraining,
    first_run,
    label_frames,
    second_run,
)
from eqcalc.training.report import EpochLines, announcement
from eqcalc.training.sampling import training_order
from eqcalc.training.task import DivergenceError, PotentialTask

#: glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD, in bytes, and what both are by default
KEEP_MEMORY = {-3: 32 * 1024**2, -1: 2**31 - 1}
MALLOC_DEFAULT = 128 * 1024

#: of the set-up, what the summary says of the data
DATA = "train_frames", "val_frames", "train_hash", "val_hash"

__all__ = ["build_model", "export_run", "finish", "load_run", "train", "write_json"]


def train(config: Config, out: str | Path, *, quiet: bool = False) -> dict[str, Any]:
    """Trains, or resumes where `out` holds an unfinished run of the same config and data.

    A run whose training.epochs are raised goes on, finished or not (`LearningRate` says how).

    With a teacher in [pretrain], a run in `out/pretrain` comes first.

    Returns the summary that is also written to `out/summary.json`; processes other than the first
    return an empty one.

    Raises:
        InputError: bad data, a folder that holds a run of another config or other data, or a loss
            that is not finite any more.
        Interrupted: ctrl-c.
    """
    out = user_path(out)
    world = World.from_environment()
    quiet = quiet or world.rank > 0
    with surroundings(config.training):
        start = config
        if config.pretrain.teacher:
            pretrain(config, out / PRETRAINING, world, quiet=quiet)
            start = second_run(config, out / PRETRAINING)
        prepared = prepare(start)
        # as it was asked for: the folder may move
        asked = replace(prepared.config, pretrain=config.pretrain, fine_tune=config.fine_tune)
        return learn(replace(prepared, config=asked), out, world, quiet=quiet)


def pretrain(config: Config, out: Path, world: World, *, quiet: bool) -> None:
    """The run that comes first, unless it is finished; the data of the second one are checked."""
    check_pretraining(config)
    prepared = prepare(config)
    frames = label_frames(prepared, out, world, quiet=quiet)
    first = first_run(prepared, frames, config.training.batch_size)
    if not is_finished(out, first):
        of_data = prepared.setup.constants.outputs
        learn(prepare(first, of_data), out, world, quiet=quiet, extend=False)
        wait()  # for what the first process writes at the end


def learn(
    prepared: Prepared, out: Path, world: World, *, quiet: bool, extend: bool = True
) -> dict[str, Any]:
    """Trains what is prepared; see `train`. A run that another one began from is not extended."""
    begun = (out / "last.ckpt").is_file()  # else there is nothing yet that could be lost
    if begun and (ends := ends_before(out, prepared.config)):
        prepared = replace(prepared, setup=replace(prepared.setup, ends=ends))
    if world.rank == 0:
        if begun:
            check_same_run(out, prepared.config, prepared.setup, extend=extend)
        out.mkdir(parents=True, exist_ok=True)
        # in this order: the earlier last epoch is in config.json until setup.json has it
        write_json(out / "setup.json", prepared.setup.to_dict())
        write_json(out / "config.json", prepared.config.to_dict())
    if not quiet:
        print(announcement(prepared, out), flush=True)
    fit(prepared, out, world, quiet=quiet)
    return finish(out, prepared) if world.rank == 0 else {}


def fit(prepared: Prepared, out: Path, world: World, *, quiet: bool) -> None:
    """The epochs that are left."""
    options = prepared.config.training
    order = training_order(prepared.train, options)
    train_loader = loader(prepared.train, order, options.batch_size, world)
    val_loaders = [
        loader(frames, range(len(frames)), options.batch_size, world)
        for frames in prepared.val.values()
    ]
    model = ready(prepared.model, options)
    task = PotentialTask(model, options, list(prepared.val), world, prepared.undecayed)
    trainer = lightning.Trainer(
        accelerator=choose_device(options.device).type,
        max_epochs=options.epochs,
        callbacks=callbacks(out, options, prepared.setup.ends, quiet=quiet),
        logger=False,
        gradient_clip_val=options.gradient_clip or None,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        inference_mode=False,
        use_distributed_sampler=False,
        **world.trainer_options,
    )
    last = out / "last.ckpt"
    try:
        if last.is_file() and world.rank == 0:
            renew(last, task, make_optimizer(model, options, prepared.undecayed))
        wait()
        trainer.fit(
            task,
            train_loader,
            val_loaders,
            ckpt_path=last if last.is_file() else None,
            weights_only=True,
        )
    except pickle.UnpicklingError:
        raise not_a_checkpoint(last) from None
    except DivergenceError as error:
        sources = "; ".join(prepared.train.source(n) for n in error.frames)
        raise InputError(
            f"The loss ceased to be a finite number in epoch {trainer.current_epoch} on {sources}: "
            "lower training.learning_rate, or check these frames."
        ) from error
    except (SystemExit, KeyboardInterrupt):  # the trainer exits after a ctrl-c
        if trainer.state.status != TrainerStatus.INTERRUPTED:
            raise
        raise Interrupted(
            f"Interrupted in epoch {trainer.current_epoch} of {options.epochs}: run the same "
            f"command again to go on from its start; 'eqcalc export {out}' writes the best model "
            "so far."
        ) from None


def callbacks(
    out: Path, options: TrainingConfig, ends: Sequence[int] = (), *, quiet: bool
) -> list[Callback]:
    """In the order in which they must run: what has been decided is in the checkpoint."""
    history = History(out / "history.csv")
    chosen: list[Callback] = [history, LearningRateControl(options, history, ends)]
    if options.averaged:
        chosen.append(averaging(options.ema_decay))
    if options.patience:
        chosen.append(EarlyStop(options, history))
    if options.tensorboard:
        chosen.append(TensorBoard(out, history))
    chosen.append(Checkpoints(out, options, history))
    if not quiet:
        chosen.append(EpochLines(options, history))
    return chosen


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """Within it, this process reuses blocks of memory from step to step; glibc alone.

    By default glibc hands blocks of hundreds of kilobytes back to the kernel, which clears them
    again at the next use: up to a fifth of a training step on CPUs.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another system's allocator
        yield
        return
    for option, value in KEEP_MEMORY.items():
        mallopt(option, value)
    try:
        yield
    finally:
        for option in KEEP_MEMORY:
            mallopt(option, MALLOC_DEFAULT)


@contextlib.contextmanager
def surroundings(options: TrainingConfig) -> Iterator[None]:
    """Threads, memory, and a trainer that keeps to itself what users need not know.

    Raises:
        InputError: the device is not there.
    """
    choose_device(options.device)
    threads = torch.get_num_threads()
    if options.threads:
        torch.set_num_threads(options.threads)
    chatter = logging.getLogger("lightning.pytorch")
    level = chatter.level
    chatter.setLevel(logging.WARNING)
    try:
        with kept_memory(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            if World.from_environment().rank:  # the first process says it for all
                warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)
        chatter.setLevel(level)


def finish(out: Path, prepared: Prepared) -> dict[str, Any]:
    """Errors of the best model, figures, summary and export of a run."""
    run = load_run(out)
    model = ready(run.model, prepared.config.training)
    results = {"train": evaluate(model, prepared.train)}
    for name, frames in prepared.val.items():
        label = name if name == UNNAMED else f"{UNNAMED} {name}"
        results[label] = evaluate(model, frames)
    summary = {
        "best_epoch": run.epoch,
        "data": {
            k: getattr(run.setup, k)
            for k in ("train_frames", "val_frames", "train_hash", "val_hash")
        },
        "errors": {name: result.summary() for name, result in results.items()},
    }
    write_json(out / "summary.json", summary)
    units = units_of(model.output_configs, energy=model.has_energy)
    plot_learning_curve(out / "history.csv", out / "learning_curve.png", units)
    plot_parity(results, out / "parity.png")
    export_run(out, out / "model.pth", (prepared.train, list(prepared.val.values())))
    return summary


def export_run(
    out: str | Path,
    path: str | Path,
    sets: tuple[GraphDataset, Sequence[GraphDataset]] | None = None,
) -> dict[str, Any]:
    """Writes the best model of a run as a potential file and returns its metadata.

    The reference structure is the smallest validation frame; the uncertainty is that of the
    training frames, fitted to errors of the validation frames.

    sets: training and validation frames, if they have been read.
    """
    out = user_path(out)
    config, model, setup, epoch = load_run(out)
    if sets is None:
        loaded, numbers = load_frames(config), setup.constants.atomic_numbers
        of_val = [dataset(frames, numbers, config) for frames in loaded.val.values()]
        sets = dataset(loaded.train, numbers, config), of_val
    train, val = sets
    graph = min((frames.smallest().graph for frames in val), key=lambda g: g.num_edges)
    model.reference_structure = export.reference_structure(
        model, graph.species, graph.edge_vec, graph.edge_src, graph.edge_dst
    )
    training: dict[str, Any] = {"best_epoch": epoch}
    if (out / "summary.json").is_file():
        training = read_json(out / "summary.json")
    if setup.pulay_pressure:
        training["pulay_pressure"] = setup.pulay_pressure
    neighbors = setup.constants.avg_num_neighbors
    metadata = {
        "architecture": config.model.architecture_name,
        "hyperparameters": asdict(config.model) | {"avg_num_neighbors": neighbors},
        "training": training,
    }
    known = {"domain": setup.domain, "origin": setup.origin}
    metadata |= {name: document for name, document in known.items() if document}
    export.save(model, path, metadata)
    if model.has_energy:
        calibration.add_to(path, path, calibration.of_module(model), train, val)
    return export.read_metadata(path)
