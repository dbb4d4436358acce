"""What a run says of itself before and while it trains, for people."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import lightning
from ase.data import chemical_symbols
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from eqcalc.progress import duration
from eqcalc.training.callbacks import History
from eqcalc.training.options import TrainingConfig
from eqcalc.training.prepare import Prepared
from eqcalc.training.task import PotentialTask

Rows = Iterator[tuple[str, str]]

#: steps of the first epoch after which its time is known well enough; the first one is left out
TIMED = 10

#: column heads of the quantities that have a short one
SHORT = {"energy": "E", "forces": "F", "stress": "S"}


def lines(rows: Iterable[tuple[str, str]]) -> str:
    """Names and texts in two columns."""
    return "\n".join(f"{name:<28}{text}" for name, text in rows)


def data_rows(prepared: Prepared) -> Rows:
    """Frames, reference energies, forces, neighbours."""
    for name, frames in {"training": prepared.train, **prepared.val}.items():
        groups = Counter(frames.config_types())
        atoms = int(frames.atom_counts().sum())
        named = ", ".join(f"{group} {n}" for group, n in groups.most_common())
        yield f"{name} frames", f"{len(frames)} with {atoms} atoms ({named})"
    setup, constants = prepared.setup, prepared.setup.constants
    symbols = [chemical_symbols[z] for z in constants.atomic_numbers]
    if prepared.model.has_energy:
        pairs = zip(symbols, constants.shift, strict=True)
        yield "reference energies", ", ".join(f"{s} {e:.4f} eV" for s, e in pairs)
        yield "root mean square force", f"{setup.force_rms:.4f} eV/Å"
    rms = constants.outputs.rms if constants.outputs else ()
    for output, size in zip(prepared.model.output_configs, rms, strict=True):
        labels = f"{output.irreps} per {output.per}, root mean square {size:.4g} {output.unit}"
        yield f"output {output.name}", labels.strip()
    if constants.pair_constants and not prepared.config.fine_tune.model:
        yield "left by a pair potential", f"{constants.scale[0]:.4f} eV/Å"
    if setup.pulay_pressure:
        yield "pressure added to stresses", f"{setup.pulay_pressure:+g} GPa"


def mean_neighbors(prepared: Prepared) -> str:
    """Of the training frames."""
    frames = prepared.train
    mean = frames.edge_counts().sum() / frames.atom_counts().sum()
    return f"{mean:.1f} on average within {prepared.model.cutoff:g} Å"


def parameter_row(prepared: Prepared) -> tuple[str, str]:
    """How many, and how many of them are frozen."""
    sizes = [(p.numel(), p.requires_grad) for p in prepared.model.parameters()]
    total, trained = sum(n for n, _ in sizes), sum(n for n, free in sizes if free)
    return "parameters", f"{total}" + (f", {total - trained} of them frozen" * (trained < total))


def announcement(prepared: Prepared, out: object) -> str:
    """What is going to be trained on what, before the first step."""
    options = prepared.config.training
    name = prepared.config.model.architecture_name
    rows = [
        *data_rows(prepared),
        ("neighbours", mean_neighbors(prepared)),
        ("network", f"{name}, {options.precision}"),
        parameter_row(prepared),
        ("run folder", str(out)),
    ]
    return lines(rows)


class EpochLines(Callback):
    """A line for each epoch; on a terminal, a bar of the steps of the present one as well.

    Epochs are counted from 0, as in history.csv. Errors are mean absolute errors of all validation
    frames; an asterisk marks the lowest validation loss of the stage so far. The bar shows the
    errors of the training frames of its epoch with the weights as they are, beside the last ones
    of validation, which are of averaged weights: these come behind while much is learned.
    """

    def __init__(self, options: TrainingConfig, history: History) -> None:
        self.options, self.history = options, history
        self._bar: Any = None
        self._titled = False
        self.first = -1

    def _say(self, text: str) -> None:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def on_train_start(self, trainer: lightning.Trainer, task: PotentialTask) -> None:
        del task
        self.first, self.started = trainer.current_epoch, time.monotonic()
        self.steps = int(trainer.num_training_batches)
        last, size = self.options.epochs - 1, self.options.batch_size
        frames = f"{size} frame{'s' * (size > 1)} each"
        if self.first:
            self._say(f"Resuming at epoch {self.first}; the last one is epoch {last}.")
        else:
            self._say(f"Training for {self.options.epochs} epochs of {self.steps} steps, {frames}.")

    def on_fit_end(self, trainer: lightning.Trainer, task: PotentialTask) -> None:
        del trainer, task
        if self.first < 0:  # nothing was left to train
            self._say(f"All {self.options.epochs} epochs are done: raise training.epochs for more.")

    def on_train_epoch_start(self, trainer: lightning.Trainer, task: PotentialTask) -> None:
        del task
        if sys.stderr.isatty():
            epoch = f"epoch {trainer.current_epoch}"
            self._bar = tqdm(total=self.steps, desc=epoch, leave=False, unit="step")

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        task: PotentialTask,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        del outputs, batch
        if self._bar is not None:
            self._bar.set_postfix_str(self.compared(task), refresh=False)
            self._bar.update()
        if trainer.current_epoch != self.first or self.steps <= 2 * TIMED:
            return
        if batch_idx == 0:
            self._second = time.monotonic()
        elif batch_idx == TIMED:
            epoch = (time.monotonic() - self._second) / TIMED * self.steps
            whole = epoch * (self.options.epochs - self.first)
            self._say(
                f"About {duration(epoch)} per epoch, without validation, and {duration(whole)} "
                "in all."
            )

    def compared(self, task: PotentialTask) -> str:
        """Mean absolute errors of the steps of this epoch, and of the last validation."""
        last = self.history.rows[-1] if self.history.rows else {}
        averaged = "averaged" if self.options.averaged else "validation"
        parts = []
        for name, error in task.train_tally.summary().items():
            head = f"{SHORT.get(name, name)} {error['mae']:.3g}"
            if f"val_{name}_mae" in last:
                head += f" ({averaged} {last[f'val_{name}_mae']:.3g})"
            parts.append(f"{head} {error['unit']}".strip())
        return ", ".join(parts)

    def on_train_epoch_end(self, trainer: lightning.Trainer, task: PotentialTask) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        row, epoch = self.history.rows[-1], trainer.current_epoch
        *earlier, newest = self.history.stage_losses(self.options.stage(epoch))
        best = "*" if all(newest < loss for loss in earlier) else " "
        known = [name for name in task.units if f"val_{name}_mae" in row]
        heads = [f"{SHORT.get(name, name)} {task.units[name][0]}".strip() for name in known]
        widths = [max(13, len(head) + 2) for head in heads]
        if not self._titled:
            self._titled = True
            titles = "".join(f"{head:>13}" for head in ("loss", "validation"))
            titles += "".join(f"{head:>{w}}" for head, w in zip(heads, widths, strict=True))
            self._say(
                "Mean absolute errors of all validation frames; * marks the lowest loss so far."
            )
            self._say(f"epoch{titles}   time      left")
        columns = zip(known, widths, strict=True)
        errors = "".join(f"{row[f'val_{name}_mae']:>{width}.4g}" for name, width in columns)
        passed = (time.monotonic() - self.started) / (epoch + 1 - self.first)
        left = duration(passed * (self.options.epochs - 1 - epoch))
        self._say(
            f"{epoch:>5}{row['train_loss']:>13.5g}{row['val_loss']:>12.5g}{best}{errors}"
            f"   {duration(row['seconds']):<8}  {left}"
        )
