"""Weights that were published: known by their SHA-256, found in an installed package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from eqcalc.errors import InputError

_FOLDER = "pretrained_potentials"
#: name -> file in the sevenn package
SEVENN = {
    "7net-0": "SevenNet_0__11Jul2024/checkpoint_sevennet_0.pth",
    "7net-l3i5": "SevenNet_l3i5/checkpoint_l3i5.pth",
    "7net-mf-0": "SevenNet_MF_0/checkpoint_sevennet_mf_0.pth",
}
_MIT = "MIT, as part of sevenn 0.12.1 and later"
#: SHA-256 -> title, licence
KNOWN = {
    "7052cb42b7b3be42b40b97fa0d21077a48c54b5548948fc4dcf346629f813c36": (
        "SevenNet-0 (11 July 2024)",
        _MIT,
    ),
    "a7ff190d41efe5b8317a03d20a468e4036a1a3e64e0b14fdbab64ac3f4bfc09d": ("SevenNet-l3i5", _MIT),
    "81791329b37d445f46b531578c182c41792d98c7814222c9e5dde276402225fd": ("SevenNet-MF-0", _MIT),
}


def find(source: str | Path) -> Path:
    """The file behind a path, or behind the name of published weights; nothing is imported.

    Raises:
        InputError: there is none.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if str(source) not in SEVENN:
        names = ", ".join(SEVENN)
        raise InputError(f"There is no file '{source}', nor published weights so called ({names}).")
    found = importlib.util.find_spec("sevenn")
    folders = list(found.submodule_search_locations or ()) if found else []
    for folder in folders:
        path = Path(folder) / _FOLDER / SEVENN[str(source)]
        if path.is_file():
            return path
    raise InputError(
        f"The weights of {source} come with the package sevenn: "
        "'pip install --no-deps sevenn==0.13.0' brings them."
    )
