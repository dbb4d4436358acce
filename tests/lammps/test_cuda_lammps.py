"""`device cuda engine fused` of the pair style, on GPUs that are emulated (../emulated.py)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from parity import assert_equal, by_lammps, pair, script, silica_like

from eqcalc.errors import InputError
from eqcalc.lammps import run_lmp

TESTS = Path(__file__).parent.parent

#: what Python does when it starts: the pair style has it prepare files
CUSTOMIZE = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
if "eqcalc.engine.prepare" in sys.orig_argv:
    from emulated import Emulated
    from eqcalc.engine.cuda import platform
    platform.PLATFORM = Emulated()
"""


@pytest.fixture
def emulated(tmp_path, monkeypatch):
    folder = tmp_path / "customized"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(CUSTOMIZE)
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(("device", "ranks"), [("cuda:1", 1), ("cuda", 2), ("cuda", 4)])
def test_is_the_engine_of_the_cpu(device, ranks, crowded, tmp_path):
    """Ghosts' features and their gradients go through the host, layer by layer."""
    atoms = silica_like(1)
    options = "precision double engine fused"
    expected, _, _ = by_lammps(script(atoms, tmp_path, pair(crowded, options)))
    path = script(atoms, tmp_path, pair(crowded, f"{options} device {device}"))
    got, _, output = by_lammps(path, ranks)
    assert "engine fused, on a GPU" in output
    assert_equal(got, expected, 1e-12)


@pytest.mark.usefixtures("emulated")
def test_a_gpu_that_is_not_there_is_said(crowded, tmp_path):
    commands = pair(crowded, "precision double engine fused device cuda:5")
    with pytest.raises(InputError, match="GPU 5 was asked for, but there are 2"):
        run_lmp(script(silica_like(1), tmp_path, commands))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(crowded, tmp_path):
    commands = pair(crowded, "engine fused device cuda")
    with pytest.raises(InputError, match="There is no NVIDIA driver here"):
        run_lmp(script(silica_like(1), tmp_path, commands))
