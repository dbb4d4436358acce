"""A data set in a store (eqcalc.data.store), read while it is used."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols

from eqcalc.data.columns import open_column
from eqcalc.data.dataset import Batch, GraphDataset
from eqcalc.data.frames import Frame
from eqcalc.data.statistics import Statistics, gather
from eqcalc.data.store import columns_of, lengths, packed_outputs, read_header
from eqcalc.errors import InputError
from eqcalc.files import user_path
from eqcalc.graph import Graph
from eqcalc.outputs import OutputConfig, same

#: frames whose elements are counted at a time
CHUNK = 65536


class PackedDataset(GraphDataset):
    """The frames of a store, or some of them, as one-structure batches; read when asked for.

    Bit for bit what `FrameDataset` gives for the same frames. May be used from several processes.

    Args:
        path: the store.
        atomic_numbers: Z of each species of the model; None takes the elements of the store.
        cutoff: Å, of the model; None accepts that of the store.
        indices: frames of the store, in this order; None takes all.
        factors: by config_type, on the weights of the frames in the batches.
        outputs: whose labels are in the batches.

    Raises:
        InputError: no store or a truncated one; another cutoff; an element the model lacks; an
            output of which the store has no labels.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        atomic_numbers: Sequence[int] | None = None,
        cutoff: float | None = None,
        indices: Sequence[int] | None = None,
        factors: Mapping[str, float] | None = None,
        outputs: Sequence[OutputConfig] = (),
    ) -> None:
        self.path = user_path(path)
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
                f"The store '{path}' contains {chemical_symbols[lacking[0]]}, which no training "
                "frame has."
            )
        self._species = np.zeros(256, dtype=np.int64)
        self._species[self.atomic_numbers] = np.arange(len(self.atomic_numbers))
        self.outputs = list(outputs)
        for output in self.outputs:
            if not any(same(output, packed) for packed in packed_outputs(self.header)):
                raise InputError(
                    f"The store '{path}' has no labels of the output {output.name} "
                    f"({output.irreps} per {output.per}): pack the frames again with --config and "
                    "a configuration that has it in [[model.outputs]]."
                )
        self._open()
        if indices is None:
            indices = range(self.header["frames"])
        self.indices = np.asarray(indices, dtype=np.int64)
        self._factors = [(factors or {}).get(name, 1.0) for name in self.header["config_types"]]

    def _open(self) -> None:
        rows = lengths(self.header)
        self._columns = {
            name: open_column(self.path / f"{name}.npy", dtype, (rows[name], *shape))
            for name, (dtype, shape) in columns_of(packed_outputs(self.header)).items()
        }

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_columns"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def subset(self, indices: Sequence[int]) -> PackedDataset:
        """Some of these frames, by their place in this dataset, for a split."""
        part = copy.copy(self)
        part.indices = self.indices[np.asarray(indices, dtype=np.int64)]
        return part

    def for_model(
        self,
        atomic_numbers: Sequence[int],
        cutoff: float,
        factors: Mapping[str, float],
        outputs: Sequence[OutputConfig] = (),
    ) -> PackedDataset:
        """The same frames with species and outputs of a model and factors on weights."""
        return PackedDataset(self.path, atomic_numbers, cutoff, self.indices, factors, outputs)

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
        factor = self._factors[self._columns["group"][n]]
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
            weight=torch.from_numpy(row["weight"] * factor),
            atom_outputs=self._outputs("atom", n),
            structure_outputs=self._outputs("structure", n),
        )

    def _outputs(self, per: str, n: int) -> dict[str, torch.Tensor]:
        """Labels of frame n of the store, of the outputs per atom or per structure."""
        return {
            output.name: torch.from_numpy(self._output_rows(output, n))
            for output in self.outputs
            if output.per == per
        }

    def has_output(self, index: int, name: str) -> bool:
        """Whether a frame has a label of an output."""
        output = next(output for output in self.outputs if output.name == name)
        return bool(np.isfinite(self._output_rows(output, int(self.indices[index]))).all())

    def _output_rows(self, output: OutputConfig, n: int) -> np.ndarray:
        """Labels of frame n of the store [atoms or 1, columns]."""
        name = f"output_{output.name}"
        if output.per == "atom":
            return self._rows(name, n, "first_atom")
        return np.array(self._columns[name][n : n + 1])

    def _value(self, name: str, index: int) -> Any:
        return self._columns[name][self.indices[index]]

    def config_type(self, index: int) -> str:
        return self.header["config_types"][self._value("group", index)]

    def config_types(self) -> list[str]:
        names = self.header["config_types"]
        return [names[k] for k in np.array(self._columns["group"])[self.indices]]

    def source(self, index: int) -> str:
        file, number = self._value("origin", index)
        return f"{self.header['files'][file]}, frame {number}"

    def periodic(self, index: int) -> bool:
        return bool(self._value("periodic", index))

    def lacks_slab_stress(self) -> bool:
        """Whether an older version packed it, which left out the stress of slabs, and has some."""
        slabs = np.asarray(self._columns["periodic"]) & (np.asarray(self._columns["volume"]) == 0.0)
        return "labels" not in self.header and bool(slabs.any())

    def _counts(self, first: str) -> np.ndarray:
        """Atoms or edges of each frame."""
        column = self._columns[first]
        return np.array(column[self.indices + 1] - column[self.indices])

    def atom_counts(self) -> np.ndarray:
        return self._counts("first_atom")

    def edge_counts(self) -> np.ndarray:
        return self._counts("first_edge")

    def num_atoms(self, index: int) -> int:
        n = self.indices[index]
        begin, end = self._columns["first_atom"][n : n + 2]
        return int(end - begin)

    def neighbor_counts(self, index: int) -> np.ndarray:
        edge_dst = self._rows("edge_dst", self.indices[index], "first_edge")
        return np.bincount(edge_dst, minlength=self.num_atoms(index))

    @property
    def hash(self) -> str:
        """Of all frames of the store: that of the same frames in files; else of the choice too."""
        if np.array_equal(self.indices, np.arange(self.header["frames"])):
            return self.header["hash"]
        return hashlib.sha256(self.header["hash"].encode() + self.indices.tobytes()).hexdigest()[
            :16
        ]

    def energies(self) -> np.ndarray:
        return np.array(self._columns["energy"][self.indices])

    def composition(self, atomic_numbers: Sequence[int]) -> np.ndarray:
        first = self._columns["first_atom"]
        counts = np.empty((self.header["frames"], len(atomic_numbers)), dtype=np.int64)
        for begin in range(0, len(counts), CHUNK):
            end = min(begin + CHUNK, len(counts))
            numbers = self._columns["numbers"][first[begin] : first[end]]
            starts = first[begin:end] - first[begin]
            for k, z in enumerate(atomic_numbers):
                counts[begin:end, k] = np.add.reduceat(numbers == z, starts, dtype=np.int64)
        return counts[self.indices]

    def elements(self) -> list[int]:
        known = self.header["elements"]
        occurs = self.composition(known).any(axis=0)
        return [z for z, present in zip(known, occurs, strict=True) if present]

    def labelled_forces(self, index: int) -> np.ndarray | None:
        forces = self._rows("forces", self.indices[index], "first_atom")
        return None if np.isnan(forces).all() else forces

    def statistics(
        self, *, given: dict[str, float] | None = None, isolated: Sequence[Frame] = ()
    ) -> Statistics:
        """What `gather` says of the same frames, without having them in memory."""
        return gather(self, given=given, isolated=isolated)
