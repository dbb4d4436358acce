"""What outputs beside the energy are measured in, from the labels of the training frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from eqcalc.data.dataset import GraphDataset
from eqcalc.nn.output_constants import OutputConstants
from eqcalc.outputs import OutputConfig


def output_constants(
    frames: GraphDataset, atomic_numbers: Sequence[int], outputs: Sequence[OutputConfig]
) -> OutputConstants:
    """Shifts of even scalars by least squares on the composition; scales of what they leave.

    The scale of an irrep is the root mean square of its columns; of an output per structure that of
    its sum over the root of the number of atoms, so that the numbers of an atom are near one.
    Rounded to six digits, so that machines agree on them.
    """
    scale: list[float] = []
    shift: list[np.ndarray] = []
    rms: list[float] = []
    for output in outputs:
        counts, labels = _labels(frames, output, len(atomic_numbers))
        own = np.zeros((len(atomic_numbers), output.dim))
        at = 0
        for part in output.parts:
            if (part.l, part.p) == (0, 1):
                columns = slice(at, at + part.dim)
                # the smallest shifts where the frames leave a choice
                own[:, columns] = np.linalg.lstsq(counts, labels[:, columns], rcond=1e-10)[0]
            at += part.dim
        own = _rounded(own)
        left = labels - counts @ own
        each = left / np.sqrt(counts.sum(axis=1, keepdims=True))
        at = 0
        for part in output.parts:
            scale += [_size(each[:, at : at + part.dim])] * part.dim
            at += part.dim
        shift.append(own)
        rms.append(_size(left))
    return OutputConstants(scale, np.concatenate(shift, axis=1).tolist(), rms)


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.vectorize(lambda x: float(f"{x:.6g}"))(values)


def _size(values: np.ndarray) -> float:
    """Root mean square; 1 where all is zero."""
    size = float(f"{np.sqrt(np.square(values).mean()):.6g}")
    return size if size > 1e-12 else 1.0


def _labels(
    frames: GraphDataset, output: OutputConfig, num_species: int
) -> tuple[np.ndarray, np.ndarray]:
    """Atoms of each species and labels, of every labelled atom or structure."""
    rows = list(_rows(frames, output, num_species))
    return tuple(np.concatenate(part) for part in zip(*rows, strict=True))


def _rows(
    frames: GraphDataset, output: OutputConfig, num_species: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for item in frames:
        labels = (item.atom_outputs | item.structure_outputs)[output.name].numpy()
        known = np.isfinite(labels).all(axis=1)
        one_hot = np.eye(num_species)[item.graph.species.numpy()]
        counts = one_hot if output.per == "atom" else one_hot.sum(axis=0, keepdims=True)
        if known.any():
            yield counts[known], labels[known]
