"""Labels, elements and names of frames, wherever the frames are kept."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np

from eqcalc.data.frames import Frame, FrameHash


class FrameTable(ABC):
    """Labels, elements and names of frames."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def energies(self) -> np.ndarray:
        """[frames] eV."""

    @abstractmethod
    def composition(self, atomic_numbers: Sequence[int]) -> np.ndarray:
        """Atoms of each element per frame: [frames, elements]."""

    @abstractmethod
    def elements(self) -> list[int]:
        """Z of all elements that occur, ascending."""

    @abstractmethod
    def labelled_forces(self, index: int) -> np.ndarray | None:
        """[atoms, 3] eV/Å of one frame, None where there are none."""

    @abstractmethod
    def config_types(self) -> list[str]:
        """Of all frames, in order: what `split_indices` takes."""

    @abstractmethod
    def source(self, index: int) -> str:
        """What to call a frame in messages."""

    @property
    @abstractmethod
    def hash(self) -> str:
        """The same for the same frames in the same order."""

    def known_forces(self) -> Iterator[np.ndarray]:
        """Forces [atoms, 3] eV/Å of the frames that have them, one after another."""
        found = (self.labelled_forces(n) for n in range(len(self)))
        return (forces for forces in found if forces is not None)


class FrameList(FrameTable):
    """Frames in memory."""

    def __init__(self, frames: Sequence[Frame]) -> None:
        self.frames = list(frames)

    def __len__(self) -> int:
        return len(self.frames)

    def energies(self) -> np.ndarray:
        return np.array([f.energy for f in self.frames])

    def composition(self, atomic_numbers: Sequence[int]) -> np.ndarray:
        counts = [[np.sum(f.atoms.numbers == z) for z in atomic_numbers] for f in self.frames]
        return np.array(counts, dtype=np.int64).reshape(len(self.frames), len(atomic_numbers))

    def elements(self) -> list[int]:
        return sorted({int(z) for f in self.frames for z in f.atoms.numbers})

    def labelled_forces(self, index: int) -> np.ndarray | None:
        return self.frames[index].forces

    def config_types(self) -> list[str]:
        return [f.config_type for f in self.frames]

    def has_output(self, index: int, name: str) -> bool:
        """Whether a frame has a label of an output."""
        return name in self.frames[index].outputs

    def periodic(self, index: int) -> bool:
        """In any direction."""
        return bool(self.frames[index].atoms.pbc.any())

    def source(self, index: int) -> str:
        return self.frames[index].source

    def subset(self, indices: Sequence[int]) -> FrameList:
        """Some of these frames, for a split."""
        return FrameList([self.frames[n] for n in indices])

    @property
    def hash(self) -> str:
        digest = FrameHash()
        for frame in self.frames:
            digest.add(frame)
        return digest.hexdigest()


class Joined(FrameTable):
    """Several tables, one behind the other."""

    def __init__(self, parts: Sequence[FrameTable]) -> None:
        self.parts = list(parts)
        self.ends = list(accumulate(map(len, self.parts)))

    def __len__(self) -> int:
        return self.ends[-1]

    def _place(self, index: int) -> tuple[FrameTable, int]:
        """The table that has a frame, and where there."""
        k = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[k], index - self.ends[k] + len(self.parts[k])

    def energies(self) -> np.ndarray:
        return np.concatenate([part.energies() for part in self.parts])

    def composition(self, atomic_numbers: Sequence[int]) -> np.ndarray:
        return np.concatenate([part.composition(atomic_numbers) for part in self.parts])

    def elements(self) -> list[int]:
        return sorted({z for part in self.parts for z in part.elements()})

    def labelled_forces(self, index: int) -> np.ndarray | None:
        part, n = self._place(index)
        return part.labelled_forces(n)

    def config_types(self) -> list[str]:
        return [name for part in self.parts for name in part.config_types()]

    def source(self, index: int) -> str:
        part, n = self._place(index)
        return part.source(n)

    @property
    def hash(self) -> str:
        """Of frames in memory that of one list, else of the parts' hashes."""
        if len(self.parts) == 1:
            return self.parts[0].hash
        if all(isinstance(part, FrameList) for part in self.parts):
            return FrameList([f for part in self.parts for f in part.frames]).hash
        return hashlib.sha256("".join(part.hash for part in self.parts).encode()).hexdigest()[:16]
