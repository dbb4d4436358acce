"""The GPU engine's kernels under NVIDIA's compilers, which need no GPU."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from potentials import write

from eqcalc import export
from eqcalc.engine.build import EngineUnavailable
from eqcalc.engine.cuda import nvrtc
from eqcalc.engine.cuda.platform import Multiprocessors
from eqcalc.engine.cuda.potential import PADDING
from eqcalc.engine.cuda.source import DeviceCode
from eqcalc.engine.cuda.training_kernels import TrainingKernels, training_source
from eqcalc.engine.cuda.variants import Variant
from eqcalc.engine.fused import TABLES
from eqcalc.engine.plan import RadialTable
from eqcalc.engine.readers import read
from eqcalc.engine.training import places_of
from eqcalc.models.mace import MACEConfig
from eqcalc.models.nequip import NequIPConfig
from eqcalc.models.registry import build
from eqcalc.nn.convolution import Convolution

NVCC = shutil.which("nvcc")

#: bytes that a thread of any kernel may keep in memory for want of registers
MOST_SPILLED = 64

#: registers of a thread, at most, of kernels by the start of their names
MOST_REGISTERS = {"slices": 80, "forward": 128, "edges": 128, "gather": 128, "": 255}

#: where slices of tables fit: of a GPU of each architecture
MULTIPROCESSORS = {
    "sm_80": Multiprocessors(108, 163 * 1024),
    "sm_90": Multiprocessors(132, 227 * 1024),
    "sm_100": Multiprocessors(148, 227 * 1024),
    "sm_120": Multiprocessors(170, 99 * 1024),
}
#: intervals of cubic tables, as many as those of the bundled silicon model have
INTERVALS = 579

NETWORKS = {
    "plain": NequIPConfig(product_channels=0),
    "l_max 3": NequIPConfig(
        product_channels=0, l_max=3, num_channels=[128, 64, 32, 32], num_layers=2
    ),
    "mace": MACEConfig(),
}


class TrainingCode:
    """Of an eager model: source, and names of kernels."""

    def __init__(self, model) -> None:
        places = places_of(model, Convolution)
        made = [TrainingKernels(getattr(*place), k, "float") for k, place in enumerate(places)]
        self.source = training_source(made, "float")
        self.kernels = [name for kernels in made for name in kernels.threads]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compilers")
    made = {}
    for name, config in NETWORKS.items():
        path = write(folder / "model.pth", config, elements=(14,), crowding=True)
        potential = export.load(path, dtype="float64")
        for scalar, (degree, _) in TABLES.items():
            made[name, scalar] = DeviceCode(read(potential, scalar, PADDING), degree)
        if name == "plain":
            plan, degree = read(potential, "float", PADDING), Variant().degree
            for layer in plan.layers:
                empty = np.empty((INTERVALS, degree + 1, layer.num_weights))
                layer.table = RadialTable([(0.0, INTERVALS)], empty)
            for architecture, gpu in MULTIPROCESSORS.items():
                made[architecture, "float"] = DeviceCode(plan, degree, gpu, "counted")
    model = build(NETWORKS["plain"], [14], 30.0, [1.0], [0.0])
    made["training", "float"] = TrainingCode(model)
    return made


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
@pytest.mark.parametrize(
    ("architecture", "network", "scalar"),
    [
        *((architecture, architecture, "float") for architecture in MULTIPROCESSORS),
        ("sm_90", "plain", "double"),
        ("sm_90", "l_max 3", "float"),
        ("sm_90", "mace", "float"),
        ("sm_90", "training", "float"),
    ],
)
def test_kernels_spill_hardly_anything(sources, tmp_path, architecture, network, scalar):
    code = sources[network, scalar]
    source = tmp_path / "kernels.cu"
    source.write_text(code.source, encoding="utf-8")
    command = [NVCC, "-std=c++17", f"-arch={architecture}", "-cubin", "-Xptxas", "-v"]
    command += [str(source), "-o", str(tmp_path / "kernels.cubin")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.findall(
        r"Function properties for (\w+)\n.*?(\d+) bytes spill stores, (\d+) bytes spill loads\n"
        r".*?Used (\d+) registers",
        done.stderr,
    )
    assert {name for name, *_ in found} == set(code.kernels)
    slices = sum(name.startswith("slices") for name in code.kernels)
    # on sm_120 some do not fit beside 16 warps
    assert slices == {"sm_120": 4}.get(network, 9 if network in MULTIPROCESSORS else 0)
    for name, stores, loads, registers in found:
        start = next(s for s in MOST_REGISTERS if name.startswith(s))
        print(
            f"{architecture} {network} {scalar} {name}: {registers} registers, {stores} B spilled"
        )
        assert int(registers) <= MOST_REGISTERS[start], name
        assert max(int(stores), int(loads)) <= MOST_SPILLED, name


@pytest.fixture
def compiler():
    try:
        return nvrtc.compilers()[0]
    except EngineUnavailable as reason:
        pytest.skip(str(reason))


def test_nvrtc_makes_the_same_kernels(sources, compiler):
    cubin = compiler.compile(sources["sm_90", "float"].source, "sm_90")
    assert cubin.startswith(b"\x7fELF")
    assert all(name.encode() in cubin for name in sources["sm_90", "float"].kernels)


def test_gpus_that_the_compiler_does_not_know(compiler):
    """Of newer ones the driver compiles PTX; the oldest are refused."""
    source = 'extern "C" __global__ void f(float *x) { x[0] = 1.0f; }'
    newest = compiler.architectures[-1]
    ptx = compiler.compile(source, f"sm_{newest + 1}")
    assert f".target sm_{newest}".encode() in ptx
    assert ptx.endswith(b"\0")
    assert b"\0" not in ptx[:-1]
    first = compiler.architectures[0]
    with pytest.raises(EngineUnavailable, match=rf"\(sm_30\), but those from sm_{first} on"):
        compiler.compile(source, "sm_30")


def test_what_does_not_compile_is_said(compiler):
    with pytest.raises(EngineUnavailable, match="identifier"):
        compiler.compile("__global__ void f() { missing(); }", "sm_90")


#: NVRTC of a version, which knows some architectures
NVRTC = """
extern "C" {
const char *nvrtcGetErrorString(int) { return "none"; }
int nvrtcVersion(int *major, int *minor) { return *major = MAJOR, *minor = 1, 0; }
static const int known[] = {KNOWN};
int nvrtcGetNumSupportedArchs(int *count) { return *count = sizeof(known) / sizeof(int), 0; }
int nvrtcGetSupportedArchs(int *to) { for (int n : known) *to++ = n; return 0; }
}
"""


@pytest.fixture
def two_compilers(tmp_path, monkeypatch):
    paths = []
    for major, known in ((13, "75, 80, 90, 120"), (12, "50, 70, 80, 90")):
        source, path = tmp_path / f"{major}.cpp", tmp_path / f"libnvrtc.so.{major}"
        source.write_text(NVRTC)
        flags = ["-shared", "-fPIC", f"-DMAJOR={major}", f"-DKNOWN={known}"]
        subprocess.run(["g++", *flags, str(source), "-o", str(path)], check=True)
        paths.append(str(path))
    monkeypatch.setattr(nvrtc, "_candidates", lambda: ["nothing.so", *paths])
    nvrtc.compilers.cache_clear()
    yield
    nvrtc.compilers.cache_clear()


@pytest.mark.usefixtures("two_compilers")
def test_the_compiler_for_a_driver_and_a_gpu():
    """No newer than the driver; of these the one that knows most."""
    chosen = {
        ("sm_90", 13): 13,
        ("sm_90", 12): 12,
        ("sm_120", 13): 13,
        ("sm_120", 12): 12,  # as PTX for sm_90
        ("sm_70", 13): 12,
        ("sm_130", 14): 13,
    }
    for (architecture, cuda), major in chosen.items():
        assert nvrtc.compiler(architecture, cuda).version == (major, 1), (architecture, cuda)
    with pytest.raises(
        EngineUnavailable, match="newer than the NVIDIA driver, which is of CUDA 11"
    ):
        nvrtc.compiler("sm_80", 11)
