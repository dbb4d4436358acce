"""The GPU engine on a GPU that is there, and what is run on the first day of one."""

import copy
import importlib.util
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from potentials import untrained
from test_kernels import derivatives_of, mixed_batch

from eqcalc import EquivariantCalculator
from eqcalc.engine.cuda.training import fuse_convolutions
from eqcalc.models.nequip import NequIPConfig
from eqcalc.models.registry import build

SCRIPT = Path(__file__).parent / "benchmarks" / "gpu.py"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_gpu_is_the_engine_of_the_cpu(potential_path, crystal, dtype):
    options = {"engine": "fused", "dtype": dtype}
    values = []
    for device in ("cpu", "cuda", "cuda"):
        atoms = crystal.repeat(3)
        atoms.calc = EquivariantCalculator(potential_path, device=device, **options)
        values.append((atoms.get_forces(), atoms.get_stresses()))
    for cpu, gpu, again in zip(*values, strict=True):
        assert np.abs(gpu - cpu).max() < {"float64": 1e-11, "float32": 1e-5}[dtype]
        assert np.array_equal(gpu, again)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_convolutions_of_training_are_the_plain_ones():
    """In float64: energies, forces and the gradient of a loss on both."""
    torch.manual_seed(3)
    config = NequIPConfig(product_channels=0, cutoff=4.0, num_layers=3, num_channels=[40, 8, 8])
    plain = build(config, [8, 14], 20.0, [1.0, 1.0], [0.0, 0.0]).double()
    fused = fuse_convolutions(copy.deepcopy(plain)).to("cuda")
    graph = mixed_batch()
    expected = derivatives_of(plain, graph)
    for a, b in zip(expected, derivatives_of(fused, graph.to("cuda")), strict=True):
        assert (a - b.cpu()).abs().max() <= 1e-11 * a.abs().max()


@pytest.fixture(scope="module")
def script():
    """The benchmark, as a module."""
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_benchmark_needs_a_gpu():
    """One sentence, and nothing is begun."""
    command = [sys.executable, str(SCRIPT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"There is no NVIDIA driver here .* would be run\.\)\n", done.stderr)


#: prints a row, and begins what does not end
HANGS = """
import subprocess, sys, time
print('{"atoms": 8}', flush=True)
subprocess.run([sys.executable, "-c", "import time; time.sleep(100)"])
"""


def test_every_part_of_the_benchmark_ends(script):
    """With the rows that there are; or with its own status."""
    start = time.monotonic()
    rows, why = script.bounded([sys.executable, "-c", HANGS], 1.5)
    assert (rows, why) == ([{"atoms": 8}], "ended after 2 s")
    assert time.monotonic() - start < 20.0
    assert script.bounded([sys.executable, "-c", "raise SystemExit(3)"], 60.0) == (
        [],
        "failed with status 3",
    )
    assert script.bounded([sys.executable, "-c", "print('{}')"], 60.0) == ([{}], "")
    assert sum(script.SHARES.values()) == pytest.approx(1.0)


@pytest.mark.usefixtures("emulated_gpu")
def test_what_is_run_on_the_first_day(script, tmp_path, monkeypatch):
    """The benchmark's comparisons, on an emulated GPU; torch's engine needs a real one."""
    monkeypatch.delitem(script.ENGINES, "GPU torch")
    path = untrained(tmp_path / "model.pth", channels=(5, 4), cutoff=3.6, elements=(14,))
    rows = script.compare(str(path), [1], 1)
    assert rows[0]["atoms"] == 8
    assert rows[0]["difference"]["GPU fused"] < 1e-5
    assert rows[0]["µs per atom"]["GPU fused"] > 0.0
    variants = script.sweep(str(path), [1], 1, np.inf)
    differences = variants[0]["difference"]
    assert differences["as chosen"] == differences["without CUDA graphs"] == 0.0
    assert 0.0 < differences["tables of degree 5"] < 1e-5
    small = NequIPConfig(product_channels=0, cutoff=3.0, num_layers=2, l_max=1, num_channels=[4, 3])
    (training,) = script.train([1], "cpu", np.inf, small, steps=1)
    assert 0.0 < training["difference"]["generated kernels"] < 1e-4
    tables = {"engines": rows, "variants": variants, "peers": [], "training": [training]}
    json.dumps(tables)
    script.draw(tables, "emulated", tmp_path / "gpu.png")
    assert (tmp_path / "gpu.png").stat().st_size > 1000
