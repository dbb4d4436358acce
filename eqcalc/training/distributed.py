"""Several processes, started by torchrun: whose share of a batch is whose, and sums over all.

Gradients are averaged over processes by torch's DistributedDataParallel. The loss of a process is
its part of the loss of the whole batch, times the number of processes, so that the average is the
gradient that one process would find on its own.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from eqcalc.data.dataset import Batch, GraphDataset
from eqcalc.errors import InputError
from eqcalc.training.options import usual_batch


@dataclass(frozen=True)
class World:
    """How many processes there are, in all and on this machine, and which one this is."""

    size: int = 1
    local_size: int = 1
    rank: int = 0

    @classmethod
    def from_environment(cls) -> World:
        """What torchrun says; without it one process."""
        names = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK")
        if not all(name in os.environ for name in names):
            return cls()
        return cls(*(int(os.environ[name]) for name in names))

    def usual_batch(self, frames: int) -> int:
        """As many frames as suit a set of so many, the same number for each process."""
        return math.ceil(usual_batch(frames) / self.size) * self.size

    @property
    def trainer_options(self) -> dict[str, Any]:
        """Of lightning's Trainer."""
        if self.size == 1:
            return {"devices": 1}
        from lightning.pytorch.strategies import DDPStrategy

        return {
            "devices": self.local_size,
            "num_nodes": self.size // self.local_size,
            "strategy": DDPStrategy(broadcast_buffers=False),  # buffers are constants
        }


class Shares(Sampler[list[int]]):
    """Batches that do not depend on the number of processes, and of each every size-th frame.

    Every process gets the same number of batches; some of the last one's shares may be empty.

    Args:
        sampler: the order of all frames; one with `set_epoch` is found by the trainer.
        batch_size: frames per batch, over all processes.
    """

    def __init__(self, sampler: Sampler[int] | range, batch_size: int, world: World) -> None:
        if batch_size % world.size:
            raise InputError(
                f"training.batch_size = {batch_size} cannot be shared by {world.size} processes: "
                "it counts the frames of all of them, so make it a multiple of their number."
            )
        self.sampler, self.size, self.world = sampler, batch_size, world

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.sampler)
        for first in range(0, len(order), self.size):
            yield order[first : first + self.size][self.world.rank :: self.world.size]

    def __len__(self) -> int:
        return math.ceil(len(self.sampler) / self.size)


def loader(
    frames: GraphDataset, sampler: Sampler[int] | range, batch_size: int, world: World
) -> DataLoader:
    """Batches of this process; an empty share becomes a frame without labels."""
    nan = float("nan")
    first = frames[0]
    unlabelled = replace(
        first,
        energy=torch.full_like(first.energy, nan),
        forces=torch.full_like(first.forces, nan),
        stress=torch.full_like(first.stress, nan),
    )

    def collate(items: Sequence[Batch]) -> Batch:
        return Batch.collate(items or [unlabelled])

    return DataLoader(frames, batch_sampler=Shares(sampler, batch_size, world), collate_fn=collate)


def total(values: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values


def wait() -> None:
    """Until all processes are here."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
