"""Packages that not everybody needs, and how to install those that are missing."""

from __future__ import annotations

import re
from importlib import metadata


def install(extra: str, *only: str) -> str:
    """The `pip install` line for what an extra of this package names, or for some of it.

    eqcalc itself is not on a package registry, where pip would look for `eqcalc[extra]`.
    """
    mark = re.compile(rf"extra == ['\"]{extra}['\"]")
    lines = [line for line in metadata.requires("eqcalc") or () if mark.search(line)]
    wanted = [line.partition(";")[0].strip() for line in lines]
    names = [w for w in wanted if not only or w.startswith(only)]
    return "pip install " + " ".join(f"'{name}'" for name in names)
