"""Potentials by path or by name, the same in Python, on the command line and in LAMMPS.

"si" is bundled. The names in `eqcalc.importers.published` stand for weights that another installed
package holds; they are imported when they are first asked for, and kept in the user's cache. A task
of several stands behind its name: "7net-mf-0:PBE".

    python -m eqcalc.names NAME SYMBOL ...

prints `ready PATH` or `error SENTENCE` for `pair_style equivariant`. Of a committee's folder there
are several paths, with tabs in between. Light until it has to import.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from eqcalc import cache
from eqcalc.errors import InputError
from eqcalc.files import user_path
from eqcalc.importers import published

PACKAGE = Path(__file__).parent
#: bundled potentials
PRETRAINED = PACKAGE / "pretrained"
#: in a committee's folder
COMMITTEE = "committee.json"


def _bundled(name: str) -> Path | None:
    return next((p for p in PRETRAINED.glob("*.pth") if p.stem == name), None)


def is_committee(path: str | os.PathLike) -> bool:
    """Whether it is the folder that `eqcalc train --committee` has finished."""
    return (user_path(path) / COMMITTEE).is_file()


def lasting(model: str | os.PathLike) -> str:
    """A name under which another process, in another folder, finds the same potential."""
    path = user_path(model)
    there = path.is_file() or is_committee(path)
    return str(path.absolute()) if there else str(model)


def find(model: str | os.PathLike, elements: Sequence[str] | None = None) -> Path:
    """The potential file behind a path or a name.

    Args:
        model: either.
        elements: symbols of those that are needed of published weights; None: all they know.

    Raises:
        InputError: there is no such file or name, or the weights are not installed.
    """
    path = user_path(model)
    if path.is_file():
        return path
    if bundled := _bundled(str(model)):
        return bundled
    if published.is_name(model):
        return _imported(str(model), elements)
    known = ", ".join(sorted(p.stem for p in PRETRAINED.glob("*.pth")))
    raise InputError(
        f"There is no model file '{model}', nor a bundled model of that name (bundled: {known}; "
        f"with the package sevenn: {', '.join(published.NAMES)})."
    )


def member_files(paths: Sequence[str | os.PathLike]) -> list[Path]:
    """The potential files of committees' folders, and files as they are.

    Raises:
        InputError: a folder without committee.json.
    """
    files: list[Path] = []
    for path in map(user_path, paths):
        if not path.is_dir() or _bundled(str(path)):
            files.append(path)
        elif is_committee(path):
            document = json.loads((path / COMMITTEE).read_text(encoding="utf-8"))
            files += [path / name for name in document["members"]]
        else:
            raise InputError(
                f"'{path}' holds no finished committee: name potential files, or the folder that "
                "'eqcalc train --committee' wrote committee.json to."
            )
    return files


def _key(weights: Path, task: str | None, elements: Sequence[str]) -> str:
    """Changes with all that an import depends on."""
    digest = hashlib.sha256("\n".join([task or "", *elements]).encode())
    for pattern in (
        "importers/*.py",
        "models/*.py",
        "nn/*.py",
        "program/*.py",
        "contract.py",
        "export.py",
    ):
        for file in sorted(PACKAGE.glob(pattern)):
            digest.update(file.read_bytes())
    digest.update(weights.read_bytes())
    return digest.hexdigest()[:24]


def _imported(name: str, elements: Sequence[str] | None) -> Path:
    """Published weights as an export in the cache."""
    weights, task = published.find(name)
    file = f"{name.replace(':', '-')}.pth"
    kept = sorted(set(elements or ()))

    def make(folder: Path) -> None:
        from eqcalc.importers.convert import import_model

        import_model(weights, folder / file, elements=kept, task=task)

    folder = cache.entry(
        "models", _key(weights, task, kept), make, lambda entry: (entry / file).is_file()
    )
    return folder / file


def main(arguments: list[str]) -> None:
    warnings.formatwarning = lambda message, *_args, **_kwargs: f"eqcalc: {message}\n"
    try:
        files = [find(str(file), arguments[1:]) for file in member_files(arguments[:1])]
        answer = "ready " + "\t".join(map(str, files))
    except InputError as reason:
        answer = f"error {reason}"
    except OSError as reason:
        answer = f"error {reason.filename}: {reason.strerror}"
    print(answer.replace("\n", " "))


if __name__ == "__main__":
    main(sys.argv[1:])
