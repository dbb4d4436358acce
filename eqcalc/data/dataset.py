"""Frames as graphs with labels, made once, and batches of them without padding."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from eqcalc.data.frames import Frame
from eqcalc.data.tables import FrameList, FrameTable
from eqcalc.derivatives import stress_volume
from eqcalc.errors import InputError
from eqcalc.graph import Graph
from eqcalc.neighbors import neighbor_list
from eqcalc.outputs import OutputConfig


@dataclass(frozen=True)
class Batch:
    """Structures side by side and their labels; a label that a frame lacks is NaN.

    graph: B structures, N atoms. energy [B] eV, forces [N, 3] eV/Å, stress [B, 3, 3] eV/Å^3,
    num_atoms [B], index [B] position of each frame in its dataset, weight [B] of each frame in the
    loss; None: 1 for all. atom_outputs [N, columns] and structure_outputs [B, columns], by name:
    labels beside the energy's, as rows of their irreps (`eqcalc.outputs`).
    """

    graph: Graph
    energy: Tensor
    forces: Tensor
    stress: Tensor
    num_atoms: Tensor
    index: Tensor
    weight: Tensor | None = None
    atom_outputs: dict[str, Tensor] = field(default_factory=dict)
    structure_outputs: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> Batch:
        parts = {name: value for name, value in vars(self).items() if value is not None}
        tables = {name: parts.pop(name) for name in ("atom_outputs", "structure_outputs")}
        return Batch(
            **{name: value.to(device) for name, value in parts.items()},  # Graph, too
            **{name: {k: v.to(device) for k, v in t.items()} for name, t in tables.items()},
        )

    @staticmethod
    def collate(items: Sequence[Batch]) -> Batch:
        return Batch(
            graph=Graph.collate([b.graph for b in items]),
            energy=torch.cat([b.energy for b in items]),
            forces=torch.cat([b.forces for b in items]),
            stress=torch.cat([b.stress for b in items]),
            num_atoms=torch.cat([b.num_atoms for b in items]),
            index=torch.cat([b.index for b in items]),
            weight=torch.cat([b.weight for b in items])
            if all(b.weight is not None for b in items)
            else None,
            atom_outputs=_joined([b.atom_outputs for b in items]),
            structure_outputs=_joined([b.structure_outputs for b in items]),
        )


def _joined(tables: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([table[name] for table in tables]) for name in tables[0]}


def frame_to_graph(frame: Frame, atomic_numbers: Sequence[int], cutoff: float) -> Graph:
    """The graph of one frame; InputError for an element that the model lacks."""
    table = {z: s for s, z in enumerate(atomic_numbers)}
    try:
        species = [table[int(z)] for z in frame.atoms.numbers]
    except KeyError as missing:
        raise InputError(
            f"{frame.source} contains {chemical_symbols[missing.args[0]]}, which no training frame "
            "has."
        ) from None
    atoms = frame.atoms
    # whatever type a reader or a program gave the arrays
    positions = np.ascontiguousarray(atoms.positions, dtype=np.float64)
    cell = np.ascontiguousarray(atoms.cell.array, dtype=np.float64)
    pairs = neighbor_list(positions, cell, atoms.pbc, cutoff)
    vectors = pairs.vectors(positions, cell)
    if len(vectors) and np.square(vectors).sum(axis=1).min() < 0.01:
        raise InputError(f"{frame.source} has two atoms less than 0.1 Å apart.")
    return Graph(
        species=torch.tensor(species),
        edge_vec=torch.from_numpy(vectors),
        edge_src=torch.from_numpy(pairs.edge_src),
        edge_dst=torch.from_numpy(pairs.edge_dst),
        batch=torch.zeros(len(atoms), dtype=torch.int64),
        volume=torch.tensor([stress_volume(cell, atoms.pbc) or 0.0], dtype=torch.float64),
        pair=torch.from_numpy(pairs.pair_numbers()),
    )


def _output_labels(
    frame: Frame, outputs: Sequence[OutputConfig], per: str, count: int
) -> dict[str, Tensor]:
    """Rows [count, columns] of the outputs per atom or per structure; NaN where there are none."""
    rows = {out.name: np.full((count, out.dim), np.nan) for out in outputs if out.per == per}
    rows |= {name: value for name, value in frame.outputs.items() if name in rows}
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in rows.items()}


def frame_to_batch(
    frame: Frame,
    atomic_numbers: Sequence[int],
    cutoff: float,
    index: int,
    outputs: Sequence[OutputConfig] = (),
) -> Batch:
    """One frame, which has `index` in its dataset; raises as `frame_to_graph`."""
    size = len(frame.atoms)
    forces = np.full((size, 3), np.nan) if frame.forces is None else frame.forces
    stress = np.full((3, 3), np.nan) if frame.stress is None else frame.stress
    return Batch(
        graph=frame_to_graph(frame, atomic_numbers, cutoff),
        energy=torch.tensor([frame.energy], dtype=torch.float64),
        forces=torch.from_numpy(np.array(forces, dtype=np.float64, order="C")),
        stress=torch.from_numpy(np.array(stress, dtype=np.float64, order="C")).unsqueeze(0),
        num_atoms=torch.tensor([size]),
        index=torch.tensor([index]),
        weight=torch.tensor([frame.weight], dtype=torch.float64),
        atom_outputs=_output_labels(frame, outputs, "atom", size),
        structure_outputs=_output_labels(frame, outputs, "structure", 1),
    )


class GraphDataset(Dataset, FrameTable):
    """Frames as one-structure batches, in memory (`FrameDataset`) or in a store on disk."""

    @abstractmethod
    def __getitem__(self, index: int) -> Batch: ...

    def __iter__(self) -> Iterator[Batch]:
        return (self[n] for n in range(len(self)))

    @abstractmethod
    def config_type(self, index: int) -> str: ...

    @abstractmethod
    def periodic(self, index: int) -> bool:
        """In any direction."""

    @abstractmethod
    def atom_counts(self) -> np.ndarray:
        """[frames]."""

    @abstractmethod
    def edge_counts(self) -> np.ndarray:
        """[frames]."""

    @abstractmethod
    def neighbor_counts(self, index: int) -> np.ndarray:
        """[atoms] of one frame."""

    @abstractmethod
    def num_atoms(self, index: int) -> int: ...

    def smallest(self) -> Batch:
        """The first frame of fewest edges."""
        return self[int(self.edge_counts().argmin())]

    @property
    def avg_num_neighbors(self) -> float:
        """Edges per atom over the whole set; 1 where no atom has a neighbour."""
        return int(self.edge_counts().sum()) / int(self.atom_counts().sum()) or 1.0


class FrameDataset(FrameList, GraphDataset):
    """All frames as one-structure batches, held in memory.

    Args:
        frames: labelled structures.
        atomic_numbers: Z of each species of the model.
        cutoff: Å.
        factors: by config_type, on the weights of the frames in the batches.
        outputs: whose labels are in the batches.
    """

    def __init__(
        self,
        frames: Sequence[Frame],
        atomic_numbers: Sequence[int],
        cutoff: float,
        factors: Mapping[str, float] | None = None,
        outputs: Sequence[OutputConfig] = (),
    ) -> None:
        super().__init__(frames)
        factors = factors or {}
        self.items = [
            frame_to_batch(
                replace(frame, weight=frame.weight * factors.get(frame.config_type, 1.0)),
                atomic_numbers,
                cutoff,
                n,
                outputs,
            )
            for n, frame in enumerate(self.frames)
        ]

    def __getitem__(self, index: int) -> Batch:
        return self.items[index]

    def config_type(self, index: int) -> str:
        return self.frames[index].config_type

    def num_atoms(self, index: int) -> int:
        return len(self.frames[index].atoms)

    def periodic(self, index: int) -> bool:
        return bool(self.frames[index].atoms.pbc.any())

    def atom_counts(self) -> np.ndarray:
        return np.array([len(f.atoms) for f in self.frames])

    def edge_counts(self) -> np.ndarray:
        return np.array([item.graph.num_edges for item in self.items])

    def neighbor_counts(self, index: int) -> np.ndarray:
        graph = self.items[index].graph
        return np.bincount(graph.edge_dst.numpy(), minlength=graph.num_atoms)


def split_indices(
    config_types: Sequence[str], fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Training and held-out frames, at random but repeatable; every config_type gives its share.

    Raises:
        InputError: there is a single frame.
    """
    count = len(config_types)
    if count < 2:
        raise InputError("A single frame cannot be split: give validation frames with data.val.")
    order = np.random.default_rng(seed).permutation(count)
    wanted = min(max(1, round(fraction * count)), count - 1)
    # systematic sampling from the list sorted by group keeps the groups' shares
    by_group = sorted(order.tolist(), key=lambda n: config_types[n])
    picks = {by_group[int((k + 0.5) * count / wanted)] for k in range(wanted)}
    return [n for n in range(count) if n not in picks], sorted(picks)


class EpochShuffle(Sampler[int]):
    """A shuffle that depends on the seed and the epoch only, so that a resumed run repeats it."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.epoch = size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The trainer calls this before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch])
        return iter(generator.permutation(self.size).tolist())

    def __len__(self) -> int:
        return self.size
