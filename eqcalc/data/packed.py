"""A data set in a store (eqcalc.data.store), read while it is used."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from eqcalc.data.columns import open_column
from eqcalc.data.dataset import Batch
from eqcalc.data.frames import Frame
from eqcalc.data.statistics import Statistics, statistics_of
from eqcalc.data.store import COLUMNS, lengths, read_header
from eqcalc.errors import InputError
from eqcalc.graph import Graph


class PackedDataset(Dataset):
    """The frames of a store, or some of them, as one-structure batches; read when asked for.

    Bit for bit what `FrameDataset` gives for the same frames. May be used from several processes.

    Args:
        path: the store.
        atomic_numbers: Z of each species of the model; None takes the elements of the store.
        cutoff: Å, of the model; None accepts that of the store.
        indices: frames of the store, in this order; None takes all.

    Raises:
        InputError: no store or a truncated one; another cutoff; an element the model lacks.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        atomic_numbers: Sequence[int] | None = None,
        cutoff: float | None = None,
        indices: Sequence[int] | None = None,
    ) -> None:
        self.path = Path(path)
        self.header = read_header(path)
        if cutoff is not None and cutoff != self.header["cutoff"]:
            raise InputError(
                f"The store '{path}' was packed for a cutoff of {self.header['cutoff']:g} Å, the "
                f"model has {cutoff:g} Å: pack the frames again with --cutoff {cutoff:g}."
            )
        self.atomic_numbers = list(atomic_numbers or self.header["elements"])
        lacking = sorted(set(self.header["elements"]) - set(self.atomic_numbers))
        if lacking:
            raise InputError(
                f"The store '{path}' contains element Z = {lacking[0]}, which no training frame "
                "has."
            )
        self._species = np.zeros(256, dtype=np.int64)
        self._species[self.atomic_numbers] = np.arange(len(self.atomic_numbers))
        self._open()
        if indices is None:
            indices = range(self.header["frames"])
        self.indices = np.asarray(indices, dtype=np.int64)

    def _open(self) -> None:
        rows = lengths(self.header)
        self._columns = {
            name: open_column(self.path / f"{name}.npy", dtype, (rows[name], *shape))
            for name, (dtype, shape) in COLUMNS.items()
        }

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_columns"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def subset(self, indices: Sequence[int]) -> PackedDataset:
        """Some of these frames, by their place in this dataset, for a split."""
        chosen = self.indices[np.asarray(indices, dtype=np.int64)]
        return PackedDataset(self.path, self.atomic_numbers, indices=chosen)

    def __len__(self) -> int:
        return len(self.indices)

    def _rows(self, name: str, n: int, first: str) -> np.ndarray:
        """A copy of the rows of frame n of the store."""
        begin, end = self._columns[first][n : n + 2]
        return np.array(self._columns[name][begin:end])

    def __getitem__(self, index: int) -> Batch:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        n = int(self.indices[index])
        species = self._species[self._rows("numbers", n, "first_atom")]
        edges = {
            name: torch.from_numpy(self._rows(name, n, "first_edge"))
            for name in ("edge_vec", "edge_src", "edge_dst", "pair")
        }
        row = {
            name: np.array(self._columns[name][n : n + 1])
            for name in ("energy", "weight", "stress", "volume")
        }
        return Batch(
            graph=Graph(
                species=torch.from_numpy(species),
                edge_vec=edges["edge_vec"],
                edge_src=edges["edge_src"].long(),
                edge_dst=edges["edge_dst"].long(),
                batch=torch.zeros(len(species), dtype=torch.int64),
                volume=torch.from_numpy(row["volume"]),
                pair=edges["pair"].long(),
            ),
            energy=torch.from_numpy(row["energy"]),
            forces=torch.from_numpy(self._rows("forces", n, "first_atom")),
            stress=torch.from_numpy(row["stress"]),
            num_atoms=torch.tensor([len(species)]),
            index=torch.tensor([index % len(self)]),
            weight=torch.from_numpy(row["weight"]),
        )

    def _value(self, name: str, index: int) -> Any:
        return self._columns[name][self.indices[index]]

    def config_type(self, index: int) -> str:
        return self.header["config_types"][self._value("group", index)]

    def config_types(self) -> list[str]:
        """Of all frames, in order: what `split_indices` takes."""
        names = self.header["config_types"]
        return [names[k] for k in np.array(self._columns["group"])[self.indices]]

    def source(self, index: int) -> str:
        file, number = self._value("origin", index)
        return f"{self.header['files'][file]}, frame {number}"

    def num_atoms(self, index: int) -> int:
        first = self._columns["first_atom"]
        return int(first[self.indices[index] + 1] - first[self.indices[index]])

    def periodic(self, index: int) -> bool:
        """In any direction."""
        return bool(self._value("periodic", index))

    def _counts(self, first: str) -> np.ndarray:
        """Atoms or edges of each frame."""
        return np.diff(self._columns[first])[self.indices]

    def smallest(self) -> Batch:
        """The first frame of fewest edges."""
        return self[int(self._counts("first_edge").argmin())]

    @property
    def avg_num_neighbors(self) -> float:
        """Edges per atom over the whole set; 1 where no atom has a neighbour."""
        edges, atoms = (int(self._counts(f).sum()) for f in ("first_edge", "first_atom"))
        return edges / atoms or 1.0

    @property
    def hash(self) -> str:
        """Of all frames of the store: that of the same frames in files; else of the choice too."""
        if np.array_equal(self.indices, np.arange(self.header["frames"])):
            return self.header["hash"]
        return hashlib.sha256(self.header["hash"].encode() + self.indices.tobytes()).hexdigest()[
            :16
        ]

    def energies(self) -> np.ndarray:
        """[frames] eV."""
        return np.array(self._columns["energy"])[self.indices]

    def composition(self, atomic_numbers: Sequence[int]) -> np.ndarray:
        """Atoms of each element per frame: [frames, elements]."""
        chosen = np.empty((len(self), len(atomic_numbers)), dtype=np.int64)
        for row, n in enumerate(self.indices):
            numbers = self._rows("numbers", n, "first_atom")
            chosen[row] = np.bincount(numbers, minlength=119)[list(atomic_numbers)]
        return chosen

    def force_rms(self) -> float:
        """eV/Å over all labelled components; NaN where there are none."""
        total, number = 0.0, 0
        for n in self.indices:
            forces = self._rows("forces", n, "first_atom")
            known = forces[np.isfinite(forces)]
            total, number = total + float(np.square(known).sum()), number + known.size
        return float(np.sqrt(total / number)) if number else float("nan")

    def statistics(
        self, *, given: dict[str, float] | None = None, isolated: Sequence[Frame] = ()
    ) -> Statistics:
        """What `gather` says of the same frames, without having them in memory."""
        numbers = {*self.header["elements"], *(int(z) for f in isolated for z in f.atoms.numbers)}
        numbers = sorted(numbers)
        counts, energies = self.composition(numbers), self.energies()
        return statistics_of(counts, energies, numbers, self.force_rms(), given, isolated)
