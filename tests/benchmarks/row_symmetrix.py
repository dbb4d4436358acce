"""MACE in Symmetrix-XL: C++ compiled at the first call; whole calls of its calculator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from row_mace import make_model
from worker import Evaluate, Prepare, serve


def build(network: dict, options: dict) -> Prepare:
    folder = Path(options["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("SYMMETRIX_JIT_CACHE", str(folder / "symmetrix"))
    from symmetrix import Symmetrix

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    model, made = folder / "mace.model", folder / "mace.json"
    torch.save(make_model(network), model)
    extract = Path(sys.executable).parent / "symmetrix_extract_mace"
    subprocess.run([extract, "--model", model, "--output", made], check=True, stdout=sys.stderr)
    calc = Symmetrix(str(made), dtype=network["dtype"], **options.get("symmetrix", {}))

    def prepare(graph: dict[str, np.ndarray]) -> Evaluate:
        atoms = Atoms(graph["numbers"], graph["positions"], cell=graph["cell"], pbc=True)

        def evaluate() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            calc.calculate(atoms, ["energy", "forces", "stress"])
            return tuple(
                torch.as_tensor(np.asarray(calc.results[key]))
                for key in ("energy", "forces", "stress")
            )

        return evaluate

    return prepare


if __name__ == "__main__":
    serve(build)
