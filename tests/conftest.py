"""Fixtures that several test modules share."""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import precompiled
import pytest
import tiers
import torch
from ase import Atoms
from ase.build import bulk
from emulated import Emulated
from potentials import untrained

from eqcalc.engine import build
from eqcalc.engine.cuda import platform
from eqcalc.engine.fused import NETWORKS
from eqcalc.export import MODULES

torch.set_num_threads(1)


def compile_with_headers(command, source, folder, *, compile_=build._compile):
    precompiled.make(command)
    compile_(command, source, folder)


build._compile = compile_with_headers


def pytest_collection_modifyitems(items):
    for item in items:
        tiers.mark(item)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    os.environ[build.MORE_FLAGS] = tiers.compiler_flags(item)


@pytest.fixture(autouse=True)
def _nothing_opened():
    """Files are opened anew in every test, as in a new process."""
    MODULES.forget()
    NETWORKS.forget()


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """Training runs draw only where they are made in fixtures of modules, whose pictures are
    looked at: drawing takes two thirds of the time of a tiny run."""
    run = sys.modules.get("eqcalc.training.run")
    if run:
        for name in ("plot_learning_curve", "plot_parity"):
            monkeypatch.setattr(run, name, lambda *_: None)


@pytest.fixture
def no_potential_file(monkeypatch):
    """Training runs end without an export, where weights and histories alone are looked at: it is
    a third of the time of a tiny run."""
    monkeypatch.setattr("eqcalc.training.run.export_run", lambda *_: {})


@pytest.fixture
def emulated_gpu(monkeypatch):
    """Two GPUs on the CPU (see emulated.py)."""
    gpu = Emulated()
    gpu.limit_memory(2**32)
    gpu.counts()
    monkeypatch.setattr(platform, "PLATFORM", gpu)
    return gpu


@pytest.fixture(scope="session")
def potential_path(tmp_path_factory):
    """Two elements (O, Si), l_max 2, natural parity, weights in float32."""
    return untrained(tmp_path_factory.mktemp("potential") / "model.pth")


@pytest.fixture(scope="session")
def parity_path(tmp_path_factory):
    """The same with features of both parities and three layers."""
    folder = tmp_path_factory.mktemp("potential")
    return untrained(folder / "parity.pth", channels=(4, 3, 2), parity=True, layers=3)


@pytest.fixture
def crystal() -> Atoms:
    """Silicon oxide-like: cubic cell with 8 atoms of two elements, displaced, sheared."""
    atoms = bulk("Si", cubic=True)
    atoms.numbers[::3] = 8
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.03 * np.ones((3, 3))), scale_atoms=True)
    atoms.rattle(0.15, seed=2)
    return atoms


@pytest.fixture
def molecule() -> Atoms:
    """Five atoms without any symmetry, no cell."""
    positions = [[0, 0, 0], [1.6, 0.1, 0], [-0.3, 1.7, 0.2], [0.1, -0.4, 1.8], [-1.2, -0.9, -0.8]]
    return Atoms("SiO2SiO", positions=positions)
