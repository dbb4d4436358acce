"""Seconds of each training epoch, without validation; for any package that trains with Lightning.

As a script, it trains eqcalc: python epoch_timer.py CONFIG.toml FOLDER TIMES.jsonl (each time in
a new run folder within FOLDER, for a run that has ended is not made again).
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import lightning


class EpochTimer(lightning.Callback):
    """Appends {"wall", "cpu"} s of the training steps of each epoch to a file of JSON lines."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.started = None

    def on_train_epoch_start(self, *_: object) -> None:
        self.started = time.perf_counter(), time.process_time()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        if self.started is None or not trainer.is_last_batch:
            return
        wall, cpu = self.started
        took = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(took) + "\n")
        self.started = None


def train_eqcalc(config: str, folder: str, times: str) -> None:
    """`eqcalc train` with a timer on its trainer."""
    from eqcalc.training import run
    from eqcalc.training.config import read_config

    class Timed(lightning.Trainer):
        def __init__(self, *args: object, callbacks: list, **options: object) -> None:
            super().__init__(*args, callbacks=[*callbacks, EpochTimer(times)], **options)

    run.lightning.Trainer = Timed
    run.train(read_config(config), tempfile.mkdtemp(dir=folder), quiet=True)


if __name__ == "__main__":
    train_eqcalc(*sys.argv[1:])
