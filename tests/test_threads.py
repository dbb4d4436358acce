"""Results do not depend on how many threads OpenMP grants, fewer than are asked for or none."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from potentials import untrained

#: what is asked for; prints energies, forces and stress, and what training kernels make of it
EVALUATE = """
import sys
import numpy as np, torch
from ase.build import bulk
from eqcalc import EquivariantCalculator
atoms = bulk("Si", cubic=True).repeat((2, 1, 1))
atoms.rattle(0.2, seed=4)
atoms.numbers[::3] = 8
found = []
for engine in ("fused", "exact"):
    for threads in (1, 2, 4):
        atoms.calc = EquivariantCalculator(
            sys.argv[1], dtype="float64", engine=engine, threads=threads
        )
        found.append(
            np.concatenate([atoms.get_potential_energies(), atoms.get_forces().ravel(),
                            atoms.get_stress()])
        )
np.save(sys.argv[2], found)
"""

TRAIN = """
import sys
import numpy as np, torch
from test_kernels import forces_of, mixed_batch
from eqcalc.contract import set_precision
from eqcalc.engine.training import fuse
from eqcalc.models.nequip import NequIPConfig
from eqcalc.models.registry import build
from eqcalc.training.muon import Muon
config = NequIPConfig(
    cutoff=4.0, num_layers=2, l_max=1, num_channels=[150, 100], product_channels=4
)
graph = mixed_batch()
for threads in (1, 2, 4):
    torch.manual_seed(3)
    model = build(config, [8, 14], 20.0, [1.0, 1.0], [0.0, 0.0])
    model = fuse(set_precision(model, torch.float64))
    torch.set_num_threads(threads)
    results = [t.numpy() for t in forces_of(model, graph)]
    Muon(model, 0.02, library=model.fused.library).step()
    results += [p.detach().numpy() for p in model.parameters()]
    np.save(f"{sys.argv[3]}-{threads}.npy", np.concatenate([r.ravel() for r in results]))
"""


def run(code, *arguments, limit):
    environment = {**os.environ, "OMP_THREAD_LIMIT": str(limit), "OMP_NUM_THREADS": "4"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], env=environment, check=True)


#: threads that are granted
LIMITS = (1, 2, 3, 4)


@pytest.fixture(scope="module")
def granted(tmp_path_factory):
    """Folders with what both make of it, a process for each limit."""
    folder = tmp_path_factory.mktemp("granted")
    model = untrained(folder / "model.pth", products=(5, 2), layers=3)
    for limit in LIMITS:
        files = folder / f"found-{limit}.npy", folder / f"trained-{limit}"
        run(EVALUATE + TRAIN, model, *files, limit=limit)
    return folder


def test_inference(granted):
    found = [np.load(granted / f"found-{limit}.npy") for limit in LIMITS]  # [engine, threads, ...]
    for other in found[:-1]:
        assert np.array_equal(other, found[-1])  # to the last bit
    fused, exact = found[0][:3], found[0][3:]
    for engine in (fused, exact):
        assert np.abs(engine - engine[0]).max() < 1e-12 * np.abs(engine).max()
    assert np.abs(fused - exact).max() < 1e-8


def test_training(granted):
    found = [np.load(granted / f"trained-{limit}-{n}.npy") for limit in LIMITS for n in (1, 2, 4)]
    assert np.abs(found[0]).max() > 0.1
    scale = np.abs(found[0])
    for other in found[1:]:
        # torch's own sums differ between thread counts
        assert (np.abs(other - found[0]) <= 1e-11 * scale.max()).all()
