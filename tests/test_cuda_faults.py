"""Faults planted in the GPU engine's kernels and host are noticed, by the check of every load."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from emulated import Emulated
from potentials import untrained

from eqcalc.engine.cuda import host, platform
from eqcalc.engine.cuda.potential import fuse_on_gpu
from eqcalc.errors import InputError

TILE = "__syncthreads();     // the tile before has been read"

#: what is replaced in the kernels' source (everywhere), and how the fault shows
FAULTS = {
    "tile overwritten": ((TILE, ""), "does not reproduce"),
    "tile read before it is there": (
        ("\n      }\n      __syncthreads();", "\n      }"),
        "reproduce",
    ),
    "steps without barriers": (("  __syncthreads();\n  ", "  "), "does not reproduce"),
    "divergent shuffle": (
        ("for (int d = 16; d > 0; d /= 2)", "if (lane < 31) for (int d = 16; d > 0; d /= 2)"),
        "CUDA_ERROR_LAUNCH_FAILED",
    ),
    "barrier that some do not reach": (
        ("if (threadIdx.x < count) {", "if (threadIdx.x < count) { __syncthreads();"),
        "CUDA_ERROR_LAUNCH_FAILED",
    ),
    "one lane is left out": (("for (int d = 16;", "for (int d = 8;"), "does not reproduce"),
}

#: in a process of its own, which may end at a page that nobody may touch; it prints what it is told
PROCESS = """
import sys
sys.path.insert(0, {tests!r})
from emulated import Emulated
from eqcalc.engine.cuda import host, platform, potential
from eqcalc.errors import InputError
text = host.text
{fault}
try:
    potential.fuse_on_gpu({path!r}, dtype="float64")
    print("unnoticed")
except InputError as error:
    print(error)
"""


def of_process(path: Path, fault: str) -> tuple[int, str]:
    """Exit status and what it prints."""
    code = PROCESS.format(tests=str(Path(__file__).parent), path=str(path), fault=fault)
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    made = tmp_path_factory.mktemp("faults") / "model.pth"
    return untrained(made, channels=(4, 3), cutoff=5.6)  # tiles are of 32 edges, atoms have 34


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_kernels_are_noticed(path, fault, monkeypatch):
    (right, wrong), sentence = FAULTS[fault]

    def change(source: str) -> str:
        assert right in source
        return source.replace(right, wrong)

    monkeypatch.setattr(platform, "PLATFORM", Emulated(change))
    with pytest.raises(InputError, match=sentence):
        fuse_on_gpu(path, dtype="float64")


def test_writing_beyond_an_array_is_noticed(path):
    right, wrong = "EACH(e, 0, t.num_edges)", "EACH(e, 0, t.num_edges + 2)"
    fault = f"platform.PLATFORM = Emulated(lambda s: s.replace({right!r}, {wrong!r}))"
    assert of_process(path, fault) == (-signal.SIGSEGV, "")


def test_a_missing_wait_is_noticed(path):
    """Results that are read before the device has made them, which it writes later, somewhere."""
    right = "device_.down(gradient, gradient_.data(), 3 * list_.num_edges * sizeof(double));"
    right += "\n    device_.wait();"
    assert right in host.text("network.h")
    fault = (
        "platform.PLATFORM = Emulated()\n"
        f"host.text = lambda name: text(name).replace({right!r}, {right.splitlines()[0]!r})"
    )
    status, said = of_process(path, fault)
    assert "does not reproduce" in said or (status, said) == (-signal.SIGSEGV, "")


def test_without_a_fault_nothing_is_noticed(path):
    assert of_process(path, "platform.PLATFORM = Emulated()") == (0, "unnoticed\n")
