"""What every check hands back: figures, tables, a drawing, and why it failed if it did."""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ase import Atoms
from ase.io import write as ase_write

from eqcalc import files

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """Cells as they are printed; the first column is the row's name."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""

    def __str__(self) -> str:
        cells = [self.columns, *self.rows]
        widths = [max(len(row[k]) for row in cells) for k in range(len(self.columns))]
        lines = [self.title] if self.title else []
        for row in cells:
            first, *others = (
                f"{cell:<{w}}" if k == 0 else f"{cell:>{w + 3}}"
                for k, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            lines.append((first + "".join(others)).rstrip())
        return "\n".join([*lines, self.note] if self.note else lines)


class Report(ABC):
    """One check's outcome.

    Attributes:
        name: of the files that are written of it.
        title: what was asked, in a few words.
        method: how it was measured and what passes, for a reader who wants to judge it.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    method: ClassVar[str]

    @property
    @abstractmethod
    def failures(self) -> list[str]:
        """Why the check did not pass, one sentence each; empty if it passed."""

    @abstractmethod
    def tables(self) -> list[Table]:
        """The figures for a reader."""

    @abstractmethod
    def figures(self) -> dict[str, Any]:
        """The figures for a program; units are in the names."""

    def draw(self) -> Figure | None:
        """A picture, where one says more than the tables."""
        return None

    @property
    def holes(self) -> list[tuple[str, Atoms]]:
        """Why structures failed, and these, for a look at them."""
        return []

    @property
    def undecided(self) -> list[str]:
        """Why there is no verdict, one sentence each; empty where there is one."""
        return []

    @property
    def verdict(self) -> str:
        """PASS, FAIL or UNDECIDED; a failure stands whatever else is undecided."""
        if self.failures:
            return "FAIL"
        return "UNDECIDED" if self.undecided else "PASS"

    @property
    def passed(self) -> bool:
        return self.verdict == "PASS"

    def to_dict(self) -> dict[str, Any]:
        about = {"passed": self.passed, "verdict": self.verdict, "failures": self.failures}
        return about | {"undecided": self.undecided, **self.figures()}

    def __str__(self) -> str:
        verdict = [self.verdict, *self.failures, *self.undecided]
        return "\n".join([*(f"{table}\n" for table in self.tables()), *verdict])

    def write(self, folder: str | os.PathLike) -> list[Path]:
        """NAME.json, NAME.png if it can be drawn, and `holes`; returns what was written."""
        folder = files.user_path(folder)
        written = [write_json(folder / f"{self.name}.json", self.to_dict())]
        figure = self.draw()
        if figure is not None:
            written.append(files.write_bytes(folder / f"{self.name}.png", png(figure)))
        return written + self.write_holes(folder)

    def write_holes(self, folder: str | os.PathLike) -> list[Path]:
        """NAME_holes.extxyz, if there are any; else that of an earlier run is removed."""
        path = files.user_path(folder) / f"{self.name}_holes.extxyz"
        if not self.holes:
            path.unlink(missing_ok=True)
            return []
        text = io.StringIO()
        for reason, atoms in self.holes:
            atoms.info = {"failure": reason}
            ase_write(text, atoms, format="extxyz")
        return [files.write_bytes(path, text.getvalue().encode())]


def png(figure: Figure, dpi: int = 110, colours: int = 96) -> bytes:
    """The picture as a file's content, in few colours: a third of the size, nothing to be seen."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    small = io.BytesIO()
    with Image.open(buffer) as image:
        image.convert("RGB").quantize(colours).save(small, format="PNG", optimize=True)
    return small.getvalue()


def write_json(path: Path, document: dict[str, Any]) -> Path:
    """Figures that are not finite are an error."""
    return files.write_json(path, document, allow_nan=False)
