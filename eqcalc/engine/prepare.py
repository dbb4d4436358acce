"""Prepares a potential file for `pair_style equivariant`: python -m eqcalc.engine.prepare

    MODEL  single|double|file  table|network|gpu

prints `ready FOLDER`, `unavailable SENTENCE`, `error SENTENCE` or, for a bug of ours,
`fault SENTENCE`. The folder, in the user's cache, holds

    kernel.so      the library
    engine.txt     library (kernel.so), cutoff (Å), single (0 or 1), numbers (Z of each species),
                   references (their energies, eV)
    network.bin    for eqcalc_open
    domain.txt     limits of the training domain, if the file has them
    origin.txt     one line on where an imported potential comes from, else empty
    reference.bin  the reference structure, int64 and float64: counts of atoms and edges, species,
                   edge_src, edge_dst, edge_vec, energies, forces, strain

and is made once per model, machine and version of the engine. Light until it has to make one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import traceback
import warnings
import zipfile
from pathlib import Path

from eqcalc import cache
from eqcalc.engine.build import LIBRARY, EngineUnavailable, machine, more_flags
from eqcalc.engine.cuda import platform
from eqcalc.engine.cuda.variants import Variant
from eqcalc.errors import InputError
from eqcalc.files import user_path


def _key(model: Path, precision: str, radial: str) -> str:
    """Changes with all that the prepared files depend on."""
    settings = [precision, radial, machine(), *more_flags()]
    digest = hashlib.sha256("\n".join(settings).encode())
    here = Path(__file__).parent
    folders = [here, here / "csrc"]
    if radial == "gpu":
        gpus = platform.PLATFORM
        kind = gpus.driver, gpus.architecture(0), gpus.multiprocessors(0)
        digest.update("\n".join(map(str, kind)).encode())
        digest.update(repr(Variant.chosen()).encode())
        folders += [here / "cuda", here / "cuda" / "csrc"]
    for file in sorted(file for folder in folders for file in folder.iterdir() if file.is_file()):
        digest.update(file.read_bytes())
    digest.update(model.read_bytes())
    return digest.hexdigest()[:24]


def _whole(folder: Path) -> bool:
    return (folder / "engine.txt").is_file() and (folder / LIBRARY).is_file()


def _extra_file(model: Path, name: str) -> str:
    """The text of a file beside the network in the export; empty if it has none."""
    with zipfile.ZipFile(model) as archive:
        found = [n for n in archive.namelist() if n.endswith(f"extra/{name}")]
        return archive.read(found[0]).decode() if found else ""


def _write(folder: Path, model: Path, precision: str, radial: str) -> None:
    """Fills an empty folder."""
    import numpy as np
    import torch

    from eqcalc import export
    from eqcalc.engine.cuda.potential import prepare as prepare_gpu
    from eqcalc.engine.fused import prepare

    torch.set_num_threads(1)
    potential = export.load(model, dtype=torch.float64)
    asked = {"single": torch.float32, "double": torch.float64}.get(precision)
    dtype = export.precision(asked, potential.metadata)
    if radial == "gpu":
        library, network = prepare_gpu(potential, dtype, 0)
    else:
        library, network = prepare(potential, dtype, radial)
    try:
        os.link(library.path, folder / LIBRARY)
    except OSError:  # on another file system, or on one without links
        shutil.copy2(library.path, folder / LIBRARY)
    (folder / "network.bin").write_bytes(network)
    reference = potential.module.reference_structure
    names = ("species", "edge_src", "edge_dst", "edge_vec", "energies", "forces", "strain")
    arrays = [getattr(reference, name).numpy() for name in names]
    counts = np.array([len(arrays[0]), len(arrays[1])], dtype=np.int64)
    parts = [counts, *(np.ascontiguousarray(a) for a in arrays)]
    (folder / "reference.bin").write_bytes(b"".join(a.tobytes() for a in parts))
    lines = [
        f"library {LIBRARY}",
        f"cutoff {potential.cutoff!r}",
        f"single {int(dtype == torch.float32)}",
        "numbers " + " ".join(map(str, potential.atomic_numbers)),
        "references " + " ".join(map(repr, potential.module.reference_energy.shift.tolist())),
    ]
    for name in ("domain", "origin"):
        text = _extra_file(model, f"eqcalc_{name}.txt")
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    (folder / "engine.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def prepared(model: Path, precision: str, radial: str) -> Path:
    """The folder for these; any number of processes may ask at once."""
    key = _key(model, precision, radial)

    def make(folder: Path) -> None:
        _write(folder, model, precision, radial)
        if _key(model, precision, radial) != key:
            raise InputError(f"{model} was changed while it was read: start again.")

    return cache.entry("networks", key, make, _whole)


def main(arguments: list[str]) -> None:
    warnings.formatwarning = lambda message, *_args, **_kwargs: f"eqcalc: {message}\n"
    model, precision, radial = arguments
    try:
        answer = f"ready {prepared(user_path(model), precision, radial)}"
    except (EngineUnavailable, cache.CacheError) as reason:
        answer = f"unavailable {reason}"
    except InputError as reason:
        answer = f"error {reason}"
    except OSError as reason:
        answer = f"error {reason.filename}: {reason.strerror}"
    except Exception as fault:
        traceback.print_exc()
        answer = (
            f"fault eqcalc could not read {model} for its generated kernels ({fault!r}); please "
            "report it, and use engine torch until it is mended"
        )
    print(" ".join(answer.split()))


if __name__ == "__main__":
    main(sys.argv[1:])
