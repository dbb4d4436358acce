"""The order of the training frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from eqcalc.data.dataset import EpochShuffle, GraphDataset
from eqcalc.training.options import TrainingConfig


class BalancedShuffle(EpochShuffle):
    """A shuffle whose batches cost about the same: each has one frame of every size class.

    Frames sorted by size fall into as many classes of like size as a batch has places; the n-th
    batch takes one at random from each. So two of the largest meet only if there are more of them
    than batches. The frames that fill no batch, drawn first, make the last one.

    Args:
        sizes: of each frame, in any unit.
        batch_size: frames per batch.
        seed: with the epoch it determines the order.
    """

    def __init__(self, sizes: Sequence[int] | np.ndarray, batch_size: int, seed: int) -> None:
        super().__init__(len(sizes), seed)
        self.sizes, self.batch_size = np.asarray(sizes), batch_size

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(self.size)
        batches = self.size // self.batch_size
        order, rest = np.split(order, [batches * self.batch_size])
        order = order[np.argsort(-self.sizes[order], kind="stable")]
        classes = order.reshape(self.batch_size, batches)  # [class, batch]
        chosen = generator.permuted(classes, axis=1).T
        return iter([*chosen.ravel().tolist(), *rest.tolist()])


def training_order(frames: GraphDataset, options: TrainingConfig) -> EpochShuffle:
    """The sampler that the options ask for."""
    if not options.balance:
        return EpochShuffle(len(frames), options.seed)
    return BalancedShuffle(frames.edge_counts(), options.batch_size, options.seed)
