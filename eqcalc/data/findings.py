"""What a check of frames finds, and how it is put into words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from eqcalc.data.frames import Frame

#: an error spoils training; a warning deserves a look; a note is good to know
LEVELS = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing worth knowing.

    Attributes:
        level: one of LEVELS.
        check: which check found it.
        sentence: what it is and what to do.
        sources: the frames, as "file, frame n" counted from 0; empty where it is about all.
    """

    level: str
    check: str
    sentence: str
    sources: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "level": self.level,
            "check": self.check,
            "sentence": self.sentence,
            "sources": list(self.sources),
        }


def sources(frames: Iterable[Frame]) -> tuple[str, ...]:
    """Names of frames, each once, in order."""
    return tuple(dict.fromkeys(frame.source for frame in frames))


def count(number: int, thing: str) -> str:
    """'1 frame', '2 frames'."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def such_as(names: Sequence[str], most: int = 3) -> str:
    """'a.xyz, frames 1, 2, 3 and 4 more'."""
    files: dict[str, list[str]] = {}
    for name in names[:most]:
        file, _, number = name.rpartition(", frame ")
        files.setdefault(file, []).append(number)
    parts = [
        f"{file}, frame{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"
        for file, numbers in files.items()
    ]
    more = len(names) - most
    return "; ".join(parts) + (f" and {more} more" if more > 0 else "")
