"""A training that goes on by an epoch whenever it is asked, as JSON lines like worker.py.

python row_training.py CONFIG.toml FOLDER

{"compile_cpu", "eqcalc"} once: CPU seconds of the compilers, and where the package is
{"do": "epoch"} -> {"cpu", "wall"}: seconds of an epoch's steps, without its validation
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from typing import Any, TextIO

import lightning
import torch


class Turns(lightning.Callback):
    """Waits at the start of each epoch; what stands between two epochs comes before the answer."""

    def __init__(self, answers: TextIO) -> None:
        self.answers = answers
        self.answer: dict[str, Any] = {}
        self.started = 0.0, 0.0

    def on_train_epoch_start(self, *_: object) -> None:
        if not self.answer:
            import eqcalc

            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            self.answer = {"compile_cpu": used.ru_utime + used.ru_stime, "eqcalc": eqcalc.__file__}
        self.answers.write(json.dumps(self.answer) + "\n")
        self.answers.flush()
        if not sys.stdin.readline():
            os._exit(0)
        self.started = time.process_time(), time.perf_counter()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        if trainer.is_last_batch:
            cpu, wall = self.started
            self.answer = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def main(config: str, folder: str) -> None:
    from eqcalc.training import run
    from eqcalc.training.config import read_config

    turns = Turns(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)  # what is printed goes to stderr
    torch.set_num_threads(1)

    class Asked(lightning.Trainer):
        def __init__(self, *args: object, callbacks: list, **options: object) -> None:
            super().__init__(*args, callbacks=[*callbacks, turns], **options)

    run.lightning.Trainer = Asked
    run.train(read_config(config), tempfile.mkdtemp(dir=folder), quiet=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
