"""Prepares a potential file for `pair_style equivariant`: python -m eqcalc.engine.prepare

    MODEL  single|double|file  table|network

prints `ready FOLDER`, `unavailable SENTENCE` or `error SENTENCE`. The folder, in the user's cache,
holds

    engine.txt     library, cutoff (Å), single (0 or 1), numbers (Z of each species)
    network.bin    for eqcalc_open
    reference.bin  the reference structure, int64 and float64: counts of atoms and edges, species,
                   edge_src, edge_dst, edge_vec, energies, forces, strain

and is made once per model, machine and version of the engine. Light until it has to make one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from eqcalc.engine.build import EngineUnavailable, machine
from eqcalc.errors import InputError
from eqcalc.toolchain import cache_folder

#: folders that nothing has used for so long (seconds) are removed
UNUSED = 30 * 24 * 3600.0


def _key(model: Path, precision: str, radial: str) -> str:
    """Changes with all that the prepared files depend on."""
    digest = hashlib.sha256("\n".join([precision, radial, machine()]).encode())
    here = Path(__file__).parent
    for file in sorted([*here.glob("*.py"), *(here / "csrc").iterdir()]):
        digest.update(file.read_bytes())
    digest.update(model.read_bytes())
    return digest.hexdigest()[:24]


def _usable(folder: Path) -> bool:
    try:
        lines = (folder / "engine.txt").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    return Path(lines[0].removeprefix("library ")).is_file()


def _write(folder: Path, model: Path, precision: str, radial: str) -> None:
    """Fills an empty folder."""
    import numpy as np
    import torch

    from eqcalc import export
    from eqcalc.engine.fused import prepare

    torch.set_num_threads(1)
    potential = export.load(model, dtype=torch.float64)
    asked = {"single": torch.float32, "double": torch.float64}.get(precision)
    dtype = export.precision(asked, potential.metadata)
    library, network = prepare(potential, dtype, radial)
    (folder / "network.bin").write_bytes(network)
    reference = potential.module.reference_structure
    names = ("species", "edge_src", "edge_dst", "edge_vec", "energies", "forces", "strain")
    arrays = [getattr(reference, name).numpy() for name in names]
    counts = np.array([len(arrays[0]), len(arrays[1])], dtype=np.int64)
    parts = [counts, *(np.ascontiguousarray(a) for a in arrays)]
    (folder / "reference.bin").write_bytes(b"".join(a.tobytes() for a in parts))
    lines = [
        f"library {library.path}",
        f"cutoff {potential.cutoff!r}",
        f"single {int(dtype == torch.float32)}",
        "numbers " + " ".join(map(str, potential.atomic_numbers)),
    ]
    (folder / "engine.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def prepared(model: Path, precision: str, radial: str) -> Path:
    """The folder for these; any number of processes may ask at once."""
    cache = cache_folder("networks")
    folder = cache / _key(model, precision, radial)
    if _usable(folder):
        os.utime(folder)
        return folder
    for old in cache.iterdir():
        if old.stat().st_mtime < time.time() - UNUSED:
            shutil.rmtree(old, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix="partial-", dir=cache))
    try:
        _write(partial, model, precision, radial)
        partial.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            os.replace(partial, folder)
        except OSError:
            if not _usable(folder):  # else another process was faster
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def main(arguments: list[str]) -> None:
    model, precision, radial = arguments
    try:
        answer = f"ready {prepared(Path(model), precision, radial)}"
    except EngineUnavailable as reason:
        answer = f"unavailable {reason}"
    except InputError as reason:
        answer = f"error {reason}"
    except OSError as reason:
        answer = f"error {reason.filename}: {reason.strerror}"
    print(" ".join(answer.split()))


if __name__ == "__main__":
    main(sys.argv[1:])
