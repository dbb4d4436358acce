"""What the commands have in common: models, structures, precisions, and where results go.

MODEL comes before STRUCTURE. `-o, --output` names a file, `--out` a folder. Precisions are float32
and float64.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from eqcalc import precisions
from eqcalc.errors import InputError
from eqcalc.files import user_path

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A potential file, or a model's name: si, 7net-0, 7net-mf-0:PBE."
    ),
]
Structure = Annotated[
    Path | None,
    typer.Argument(metavar="STRUCTURE", help="A structure that ASE reads.", show_default=False),
]
#: for the earlier order, STRUCTURE --model MODEL, which still works
OldModel = Annotated[str | None, typer.Option("--model", hidden=True)]
Output = Annotated[Path | None, typer.Option("-o", "--output")]
Precision = Annotated[str | None, typer.Option(help="float32 or float64; default: the file's own.")]
#: the earlier name of --precision, which still works
OldDtype = Annotated[str | None, typer.Option("--dtype", hidden=True)]


def model_and_structure(first: str, second: Path | None, old_model: str | None) -> tuple[str, Path]:
    """MODEL STRUCTURE, or STRUCTURE --model MODEL as it was before.

    Raises:
        InputError: one of the two is missing.
    """
    if old_model is not None and second is None:
        return old_model, Path(first)
    if second is None or old_model is not None:
        raise InputError("Give a model, then a structure: eqcalc ... MODEL STRUCTURE.")
    return first, second


def models_and_structure(words: list[str], old_model: str | None) -> tuple[list[str], Path]:
    """MODEL ... STRUCTURE, also as --model MODEL ... STRUCTURE or STRUCTURE --model MODEL ...

    Raises:
        InputError: there are no models, or there is no structure.
    """
    first = [] if old_model is None else [old_model]
    before = old_model is not None and words[-1].endswith(".pth")
    structure, models = (words[0], words[1:]) if before else (words[-1], words[:-1])
    if not first + models:
        raise InputError(
            "Give a model, or several, then a structure: eqcalc lammps input MODEL ... STRUCTURE."
        )
    return first + models, Path(structure)


def precision(value: str | None, old: str | None = None) -> str | None:
    """float32 or float64, however it was spelled; None for the file's own.

    Raises:
        InputError: it is neither.
    """
    return precisions.named_or_file(old if value is None else value, "--precision")


def _writable(folder: Path, named: str) -> None:
    """InputError unless a folder is there, or can be made, and files can be made in it."""
    for place in (folder, *folder.parents):
        if place.exists():
            if not place.is_dir():
                raise InputError(f"{named}: '{place}' is not a folder.")
            try:
                Path(tempfile.mkdtemp(prefix=".eqcalc-", dir=place)).rmdir()
            except OSError:
                raise InputError(
                    f"{named}: nothing can be written to the folder '{place}'."
                ) from None
            return


def will_write(*paths: Path | None, endings: tuple[str, ...] = ()) -> None:
    """Files that a command is going to write: checked before its work.

    Raises:
        InputError: a folder of that name, another ending, a place that cannot be written to.
    """
    for path in filter(None, paths):
        target = user_path(path).absolute()
        if target.is_dir():
            raise InputError(f"'{path}' is a folder: name a file to write to.")
        if endings and target.suffix not in endings:
            raise InputError(f"'{path}': the file's name must end in {' or '.join(endings)}.")
        _writable(target.parent, f"'{path}'")


def will_write_to(folder: Path) -> None:
    """A folder for results: checked before the work.

    Raises:
        InputError: a file of that name, or a place that cannot be written to.
    """
    _writable(user_path(folder).absolute(), f"--out {folder}")
