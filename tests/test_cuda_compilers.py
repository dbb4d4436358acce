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


def test_nvrtc_makes_the_same_kernels(sources):
    try:
        nvrtc.version()
    except EngineUnavailable as reason:
        pytest.skip(str(reason))
    cubin = nvrtc.compile_source(sources["sm_90", "float"].source, "sm_90")
    assert cubin.startswith(b"\x7fELF")
    assert all(name.encode() in cubin for name in sources["sm_90", "float"].kernels)


def test_what_does_not_compile_is_said():
    try:
        nvrtc.version()
    except EngineUnavailable as reason:
        pytest.skip(str(reason))
    with pytest.raises(EngineUnavailable, match="identifier"):
        nvrtc.compile_source("__global__ void f() { missing(); }", "sm_90")
