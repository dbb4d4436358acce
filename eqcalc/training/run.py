"""A training run: from a config to a folder with checkpoints, history, figures and a summary.

RUN/config.json      every option as it was used
RUN/setup.json       elements, reference energies, split and data hash: what a resume needs
RUN/history.csv      errors after each epoch
RUN/last.ckpt        after the newest epoch; training resumes from it
RUN/best.ckpt        of the lowest validation loss; it is what gets exported
RUN/summary.json     errors of the best model by config_type
RUN/learning_curve.png, RUN/parity.png
RUN/model.pth        the export
"""

from __future__ import annotations

import contextlib
import csv
import ctypes
import hashlib
import json
import logging
import os
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    TQDMProgressBar,
)
from torch.utils.data import DataLoader

from eqcalc import export
from eqcalc.contract import set_precision
from eqcalc.data.dataset import Batch, EpochShuffle, FrameDataset
from eqcalc.data.frames import Frame, read_frames
from eqcalc.data.statistics import Statistics, gather, suspicious
from eqcalc.engine.training import fuse
from eqcalc.errors import InputError
from eqcalc.models.nequip import NequIP
from eqcalc.training.config import Config, from_dict
from eqcalc.training.evaluate import evaluate, plot_learning_curve, plot_parity
from eqcalc.training.task import PotentialTask


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Written aside first, so that a kill leaves the old file or the new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


#: glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD, in bytes
MALLOC_OPTIONS = ((-3, 32 * 1024**2), (-1, 2**31 - 1))


def data_hash(frames: list[Frame]) -> str:
    """SHA-256 over elements, positions, cells and labels of the frames, in order."""
    digest = hashlib.sha256()
    for frame in frames:
        atoms = frame.atoms
        arrays = (atoms.numbers, atoms.positions, atoms.cell.array, frame.forces, frame.stress)
        for array in arrays:
            if array is not None:
                digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(repr(frame.energy).encode())
    return digest.hexdigest()[:16]


def split(frames: list[Frame], fraction: float, seed: int) -> tuple[list[Frame], list[Frame]]:
    """Training and held-out frames, at random but repeatable; every config_type gives its share."""
    if len(frames) < 2:
        raise InputError("A single frame cannot be split: give validation frames with data.val.")
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(frames))
    wanted = min(max(1, round(fraction * len(frames))), len(frames) - 1)
    # systematic sampling from the list sorted by group keeps the groups' shares
    by_group = sorted(order, key=lambda n: frames[n].config_type)
    picks = {by_group[int((k + 0.5) * len(frames) / wanted)] for k in range(wanted)}
    train = [f for n, f in enumerate(frames) if n not in picks]
    return train, [frames[n] for n in sorted(picks)]


def build_model(config: Config, statistics: Statistics, avg_num_neighbors: float) -> NequIP:
    """The untrained network, weights drawn from the config's seed, constants in float64."""
    state = torch.random.get_rng_state()
    try:
        torch.manual_seed(config.training.seed)
        species = len(statistics.atomic_numbers)
        model = NequIP(
            config.model,
            statistics.atomic_numbers,
            avg_num_neighbors,
            scale=[statistics.force_rms] * species,
            shift=statistics.shift,
        )
    finally:
        torch.random.set_rng_state(state)
    return model


def calibrate(model: NequIP, frames: FrameDataset, limit: int = 32) -> list[list[float]]:
    """Scales the messages by what `limit` frames, evenly spread over the set, make of them.

    Returns the scales, a part of the run's set-up.
    """
    count = min(limit, len(frames))
    picks = [frames[k * len(frames) // count] for k in range(count)]
    model.calibrate(Batch.collate(picks).graph)
    return model.message_scales()


def prepare_for_cpu(model: NequIP, *, fused: bool) -> None:
    """Compiled convolutions if they can be had, and memory that is kept between steps.

    By default glibc hands blocks of hundreds of kilobytes back to the kernel, which clears them
    again at the next use: a fifth of a training step. Other systems' allocators are left alone.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in MALLOC_OPTIONS:
            mallopt(option, value)
    if not fused:
        return
    try:
        fuse(model)
    except InputError as error:
        warnings.warn(
            f"Training without compiled kernels, several times slower: {error}", stacklevel=3
        )


class History(Callback):
    """Errors after each epoch, in a CSV file and on the screen's progress bar."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    numbers = {k: float(v) for k, v in row.items() if v}
                    self.rows.append(numbers | {"epoch": int(row["epoch"])})

    def on_train_epoch_start(self, trainer: lightning.Trainer, task: PotentialTask) -> None:
        del task
        self.started = time.perf_counter()
        self.rows = [row for row in self.rows if row["epoch"] < trainer.current_epoch]

    def on_train_epoch_end(self, trainer: lightning.Trainer, task: PotentialTask) -> None:
        row = {
            "epoch": trainer.current_epoch,
            "seconds": time.perf_counter() - self.started,
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "train_loss": task.train_loss / len(trainer.train_dataloader.dataset),
            "val_loss": task.val_loss / task.val_count,
        }
        for part, errors in (("train", task.train_errors), ("val", task.val_errors)):
            for name, error in errors.summary().items():
                row[f"{part}_{name}_mae"] = error["mae"]
                row[f"{part}_{name}_rmse"] = error["rmse"]
        self.rows.append(row)
        names = list(dict.fromkeys(name for r in self.rows for name in r))
        partial = self.path.with_name(self.path.name + ".partial")
        with partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(partial, self.path)


class AtomicCheckpoint(ModelCheckpoint):
    """Checkpoints written aside and renamed, so that a kill never leaves half of one."""

    def _save_checkpoint(self, trainer: lightning.Trainer, filepath: str) -> None:
        partial = filepath + ".partial"
        super()._save_checkpoint(trainer, partial)
        os.replace(partial, filepath)
        self._last_checkpoint_saved = filepath


def _load_frames(config: Config) -> tuple[list[Frame], list[Frame], list[Frame]]:
    data = config.data
    if not data.train:
        raise InputError("No training frames: name at least one file in data.train.")
    keys = {k: getattr(data, k) for k in ("energy_key", "forces_key", "stress_key")}
    frames = read_frames(data.train, **keys)
    isolated = read_frames(data.isolated_atoms, **keys) if data.isolated_atoms else []
    if data.val:
        return frames, read_frames(data.val, **keys), isolated
    return (*split(frames, data.val_fraction, config.training.seed), isolated)


def train(config: Config, out: str | Path, *, quiet: bool = False) -> dict[str, Any]:
    """Trains, or resumes where `out` holds an unfinished run of the same config and data.

    Returns the summary that is also written to `out/summary.json`.

    Raises:
        InputError: bad data, or a folder that holds a run of another config or other data.
    """
    out = Path(out)
    options = config.training
    train_frames, val_frames, isolated = _load_frames(config)
    statistics = gather(train_frames, given=config.data.reference_energies, isolated=isolated)
    for sentence in suspicious([*train_frames, *val_frames], statistics):
        warnings.warn(sentence, stacklevel=2)
    train_set = FrameDataset(train_frames, statistics.atomic_numbers, config.model.cutoff)
    val_set = FrameDataset(val_frames, statistics.atomic_numbers, config.model.cutoff)

    setup = {
        "atomic_numbers": statistics.atomic_numbers,
        "reference_energies": statistics.shift,
        "force_rms": statistics.force_rms,
        "avg_num_neighbors": train_set.avg_num_neighbors,
        "train_frames": len(train_frames),
        "val_frames": len(val_frames),
        "train_hash": data_hash(train_frames),
        "val_hash": data_hash(val_frames),
    }
    model = build_model(config, statistics, setup["avg_num_neighbors"])
    setup["message_scales"] = calibrate(model, train_set)
    document = config.to_dict()
    if (out / "config.json").is_file():
        _check_same_run(out, document, setup)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", document)
    write_json(out / "setup.json", setup)

    set_precision(model, getattr(torch, options.precision))
    loader = DataLoader(
        train_set,
        batch_size=options.batch_size,
        sampler=EpochShuffle(len(train_set), options.seed),
        collate_fn=Batch.collate,
    )
    val_loader = DataLoader(val_set, batch_size=options.batch_size, collate_fn=Batch.collate)
    if options.device == "cpu" or not torch.cuda.is_available():
        prepare_for_cpu(model, fused=options.fused)
    task = PotentialTask(model, options, steps_per_epoch=len(loader))
    history = History(out / "history.csv")
    callbacks: list[Callback] = [history]
    if options.ema_decay:
        callbacks.append(EMAWeightAveraging(decay=options.ema_decay, use_buffers=False))
    if options.patience:
        callbacks.append(EarlyStopping("val_loss", patience=options.patience))
    callbacks += [
        AtomicCheckpoint(
            out,
            filename=name,
            monitor=monitor,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        for name, monitor in (("best", "val_loss"), ("last", None))
    ]
    if not quiet:
        callbacks.append(TQDMProgressBar(refresh_rate=5))

    threads = torch.get_num_threads()
    if options.threads:
        torch.set_num_threads(options.threads)
    chatter = logging.getLogger("lightning.pytorch")
    level = chatter.level
    chatter.setLevel(logging.WARNING)
    try:
        trainer = lightning.Trainer(
            accelerator=options.device,
            devices=1,
            max_epochs=options.epochs,
            callbacks=callbacks,
            logger=False,
            gradient_clip_val=options.gradient_clip or None,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            enable_progress_bar=not quiet,
            inference_mode=False,
            use_distributed_sampler=False,
        )
        last = out / "last.ckpt"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            trainer.fit(
                task,
                loader,
                val_loader,
                ckpt_path=last if last.is_file() else None,
                weights_only=False,
            )
        return finish(out, train_set, val_set)
    finally:
        torch.set_num_threads(threads)
        chatter.setLevel(level)


def _check_same_run(out: Path, document: dict[str, Any], setup: dict[str, Any]) -> None:
    """A folder may be resumed by the same run only; more epochs are the same run."""
    old = json.loads((out / "config.json").read_text(encoding="utf-8"))
    same_data = json.loads((out / "setup.json").read_text(encoding="utf-8")) == setup
    changed = [
        f"{section}.{key}"
        for section in ("model", "training")
        for key, value in document[section].items()
        if old[section].get(key) != value and key not in ("threads", "device", "fused")
    ]
    if not same_data:
        changed.append("the data")
    if changed:
        raise InputError(
            f"{out} holds a run with another setting of {', '.join(changed)}: choose another "
            "folder with --out, or restore the setting to resume."
        )


def load_run(out: str | Path) -> tuple[Config, NequIP, dict[str, Any]]:
    """Config, best model and set-up of a run folder."""
    out = Path(out)
    for name in ("config.json", "setup.json", "best.ckpt"):
        if not (out / name).is_file():
            raise InputError(
                f"{out} is not a finished training run: {name} is missing; 'eqcalc train' makes it."
            )
    config = from_dict(json.loads((out / "config.json").read_text(encoding="utf-8")))
    setup = json.loads((out / "setup.json").read_text(encoding="utf-8"))
    statistics = Statistics(
        setup["atomic_numbers"], setup["reference_energies"], setup["force_rms"], 0.0
    )
    model = build_model(config, statistics, setup["avg_num_neighbors"])
    model.set_message_scales(setup["message_scales"])
    checkpoint = torch.load(out / "best.ckpt", map_location="cpu", weights_only=False)
    state = {
        name.removeprefix("model."): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith("model.")
    }
    # weights in the precision they were trained in; constants stay in float64, so that the export
    # is exactly equivariant in either precision
    for name, parameter in model.named_parameters():
        parameter.data = state[name]
    setup["epoch"] = int(checkpoint["epoch"])
    return config, model.eval(), setup


def finish(out: Path, train_set: FrameDataset, val_set: FrameDataset) -> dict[str, Any]:
    """Errors of the best model, figures, summary and export of a run."""
    _, model, setup = load_run(out)
    results = {"train": evaluate(model, train_set), "validation": evaluate(model, val_set)}
    summary = {
        "best_epoch": setup["epoch"],
        "data": {k: setup[k] for k in ("train_frames", "val_frames", "train_hash", "val_hash")},
        "errors": {name: result.summary() for name, result in results.items()},
    }
    write_json(out / "summary.json", summary)
    plot_learning_curve(out / "history.csv", out / "learning_curve.png")
    plot_parity(results, out / "parity.png")
    export_run(out, out / "model.pth", val_set)
    return summary


def export_run(
    out: str | Path, path: str | Path, frames: FrameDataset | None = None
) -> dict[str, Any]:
    """Writes the best model of a run as a potential file and returns its metadata.

    The reference structure is the smallest validation frame.
    """
    out = Path(out)
    config, model, setup = load_run(out)
    if frames is None:
        _, val_frames, _ = _load_frames(config)
        frames = FrameDataset(val_frames, setup["atomic_numbers"], config.model.cutoff)
    graph = min((item.graph for item in frames.items), key=lambda g: g.num_edges)
    model.reference_structure = export.reference_structure(
        model, graph.species, graph.edge_vec, graph.edge_src, graph.edge_dst
    )
    training: dict[str, Any] = {"best_epoch": setup["epoch"]}
    if (out / "summary.json").is_file():
        training = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    metadata = {
        "architecture": "NequIP",
        "hyperparameters": asdict(config.model) | {"avg_num_neighbors": setup["avg_num_neighbors"]},
        "training": training,
    }
    export.save(model, path, metadata)
    return export.read_metadata(path)
