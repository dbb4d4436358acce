"""The standard headers of kernels, parsed once by GCC for all kernels that tests compile.

A precompiled header belongs to one set of options; where others are asked for, GCC reads the
headers themselves. Kernels of OPTIMISED files (tiers.py) are compiled without: as users' are.
"""

import hashlib
import os
import re
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

from eqcalc import cache
from eqcalc.engine import build

CSRC = Path(build.__file__).parent / "csrc"


#: how the headers of this name are compiled
COMMANDS: dict[str, list[str]] = {}


@lru_cache
def options(*flags: str) -> str:
    """For EQCALC_CXXFLAGS: these, and the headers."""
    compiler = build.find_compiler()
    if compiler is None or "clang" in compiler[1]:
        return " ".join(flags)
    texts = (path.read_text(encoding="utf-8") for path in CSRC.glob("*.h"))
    headers = sorted({line for text in texts for line in re.findall(r"#include <\w+\S*>", text)})
    text = "\n".join([*headers, ""])
    key = hashlib.sha256("\n".join([text, compiler[1], build.machine(), *flags]).encode())
    path = cache.folder("precompiled") / key.hexdigest()[:16] / "standard.hpp"
    path.parent.mkdir(exist_ok=True)
    if not path.is_file():
        _put(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    shared = [flag for flag in build.FLAGS if flag != "-shared"]
    COMMANDS[str(path)] = [compiler[0], *shared, *flags, "-x", "c++-header", str(path), "-o"]
    return " ".join([*flags, "-include", str(path)])


def make(command: list[str]) -> None:
    """The precompiled header that this command of a compiler includes, unless it is there."""
    for name in set(command) & COMMANDS.keys():
        target = Path(f"{name}.gch")
        if not target.is_file():
            _put(target, lambda part, to=COMMANDS[name]: subprocess.run([*to, part], check=True))


def _put(path: Path, write) -> None:
    """Written aside and renamed, as several processes do it."""
    number, partial = tempfile.mkstemp(dir=path.parent)
    os.close(number)
    write(Path(partial))
    Path(partial).replace(path)
