"""Weights that were published: known by their SHA-256, found where another package has them."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from eqcalc.errors import InputError
from eqcalc.files import user_path

_FOLDER = "pretrained_potentials"
#: name -> file in the sevenn package
SEVENN = {
    "7net-0": "SevenNet_0__11Jul2024/checkpoint_sevennet_0.pth",
    "7net-0_22May2024": "SevenNet_0__22May2024/checkpoint_sevennet_0.pth",
    "7net-l3i5": "SevenNet_l3i5/checkpoint_l3i5.pth",
    "7net-mf-0": "SevenNet_MF_0/checkpoint_sevennet_mf_0.pth",
}
#: those that sevenn fetches when they are first asked for, likewise
DOWNLOADED = {
    "7net-mf-ompa": "SevenNet_MF_ompa/checkpoint_sevennet_mf_ompa.pth",
    "7net-omat": "SevenNet_omat/checkpoint_sevennet_omat.pth",
    "7net-omni": "SevenNet_omni/checkpoint_sevennet_omni.pth",
    "7net-omni-i8": "SevenNet_omni_i8/checkpoint_sevennet_omni_i8.pth",
    "7net-omni-i12": "SevenNet_omni_i12/checkpoint_sevennet_omni_i12.pth",
}
NAMES = SEVENN | DOWNLOADED
#: where sevenn keeps them if its own folder cannot be written to
_CACHE = "~/.cache/sevennet"
_MIT = "MIT, as part of sevenn 0.12.1 and later"
#: SHA-256 -> title, licence
KNOWN = {
    "7052cb42b7b3be42b40b97fa0d21077a48c54b5548948fc4dcf346629f813c36": (
        "SevenNet-0 (11 July 2024)",
        _MIT,
    ),
    "5d389fafd512e6ae2830d74d0b66ffc49a55d3832653ff8e7bf7f1343013c1d1": (
        "SevenNet-0 (22 May 2024)",
        _MIT,
    ),
    "a7ff190d41efe5b8317a03d20a468e4036a1a3e64e0b14fdbab64ac3f4bfc09d": ("SevenNet-l3i5", _MIT),
    "81791329b37d445f46b531578c182c41792d98c7814222c9e5dde276402225fd": ("SevenNet-MF-0", _MIT),
}


def is_name(source: str | os.PathLike) -> bool:
    """Whether these are published weights, with or without a task (NAME:TASK)."""
    return str(source).partition(":")[0] in NAMES


def find(source: str | os.PathLike) -> tuple[Path, str | None]:
    """The file behind a path or the name of published weights, and the task behind the name.

    Raises:
        InputError: there is none.
    """
    path = user_path(source)
    if path.is_file():
        return path, None
    name, _, task = str(source).partition(":")
    if name not in NAMES:
        names = ", ".join(NAMES)
        raise InputError(f"There is no file '{source}', nor published weights so called ({names}).")
    found = importlib.util.find_spec("sevenn")
    folders = list(found.submodule_search_locations or ()) if found else []
    for folder in (*(Path(folder) / _FOLDER for folder in folders), Path(_CACHE).expanduser()):
        path = folder / NAMES[name]
        if path.is_file():
            return path, task or None
    if name in DOWNLOADED:
        raise InputError(
            f"The weights of {name} are no part of the package sevenn, which fetches them when its "
            f"calculator is first asked for '{name}': do that once, or name their file, "
            f"{Path(DOWNLOADED[name]).name}."
        )
    raise InputError(
        f"The weights of {name} come with the package sevenn: "
        "'pip install --no-deps sevenn==0.13.0' brings them."
    )
