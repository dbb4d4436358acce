"""How the GPU engine uses CUDA's driver, which is emulated (emulated.py) and refuses what NVIDIA's
does."""

import ctypes
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from emulated import Emulated
from potentials import untrained, write

from eqcalc import export
from eqcalc.engine.cuda import host, platform
from eqcalc.engine.cuda.potential import PADDING, fuse_on_gpu
from eqcalc.engine.cuda.source import DeviceCode
from eqcalc.engine.cuda.training_kernels import TrainingKernels, training_source
from eqcalc.engine.plan import RadialTable
from eqcalc.engine.readers import read
from eqcalc.engine.training import places_of
from eqcalc.errors import InputError
from eqcalc.models.mace import MACEConfig
from eqcalc.models.nequip import NequIPConfig
from eqcalc.models.registry import build
from eqcalc.neighbors import Pairs, VerletList
from eqcalc.nn.convolution import Convolution


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    made = tmp_path_factory.mktemp("driver") / "model.pth"
    return untrained(made, channels=(4, 3), cutoff=3.6)


def step(potential):
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=1)
    species = potential.species_of(atoms.numbers)
    return potential.step(species, atoms.positions, VerletList(potential.cutoff, 0.3).pairs(atoms))


@pytest.mark.usefixtures("emulated_gpu")
def test_two_gpus_and_several_threads_of_one_process(path):
    """What is of one GPU's context is used in that one, by whichever thread."""
    potentials = [fuse_on_gpu(path, dtype="float64", number=n) for n in (0, 1)]
    expected = step(potentials[0])
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(step, potentials * 4))
    for got in found:
        for a, b in zip(got, expected, strict=True):
            assert np.array_equal(a, b)


def test_a_gpu_that_somebody_else_has(path, emulated_gpu, monkeypatch):
    """In compute mode "exclusive process", without NVIDIA's MPS."""
    monkeypatch.setenv("EQCALC_EMULATION_TAKEN", "1")
    sentence = r"DEVICE_UNAVAILABLE\): another process has it to itself .*; start NVIDIA's MPS"
    with pytest.raises(InputError, match=sentence):
        fuse_on_gpu(path)
    monkeypatch.undo()
    assert emulated_gpu.used == 0


#: a potential is closed after the driver has ended; destructors must not throw
END = """
import sys
sys.path.insert(0, {tests!r})
import numpy as np
from ase.build import bulk
from emulated import Emulated
from eqcalc.engine import fused
from eqcalc.engine.cuda import platform, potential
from eqcalc.neighbors import VerletList
gpu = platform.PLATFORM = Emulated()
opened = potential.fuse_on_gpu({path!r})
atoms = bulk("Si", cubic=True)
pairs = VerletList(opened.cutoff, 0.0).pairs(atoms)
for _ in range(2):
    opened.step(np.zeros(8, dtype=np.int64), atoms.positions, pairs)
with gpu.gone():
    del opened
    fused.NETWORKS.forget()
print("ended")
"""


def test_a_driver_that_ends_first(path):
    code = END.format(tests=str(Path(__file__).parent), path=str(path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr


#: what is replaced in the host, and how the fault shows
FAULTS = {
    "no context": (
        "    const Device::Use use(device_);\n    if (!placed_) throw",
        "    if (!placed_) throw",
        "INVALID_CONTEXT",
    ),
    "more threads than a kernel was compiled for": (
        "device_.launch(kernel.function, blocks, kernel.threads, t);",
        "device_.launch(kernel.function, blocks, 2 * kernel.threads, t);",
        "LAUNCH_OUT_OF_RESOURCES",
    ),
    "more than was allocated": (
        "energies_.data(), list_.num_local * sizeof(double)",
        "energies_.data(), list_.num_local * 3 * sizeof(double)",
        "INVALID_VALUE",
    ),
    "recorded copies of memory that is not pinned": (
        "driver.cuMemHostAlloc(&p, bytes, 0)",
        "((p = std::malloc(bytes)) ? 0 : 2)",
        "STREAM_CAPTURE_UNSUPPORTED",
    ),
    "a wait while work is recorded": (
        "    run(positions_.data(), exchange, shape.forces, false);\n",
        "    run(positions_.data(), exchange, shape.forces, false);\n    device_.wait();\n",
        "STREAM_CAPTURE_UNSUPPORTED",
    ),
}


@pytest.mark.usefixtures("emulated_gpu")
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_the_host_are_noticed(fault, path, monkeypatch):
    right, wrong, name = FAULTS[fault]
    text = host.text
    assert any(right in text(file) for file in ("network.h", "device.h"))
    monkeypatch.setattr(host, "text", lambda file: text(file).replace(right, wrong))
    with pytest.raises(InputError, match=name):
        step_twice(fuse_on_gpu(path, dtype="float64"))


def step_twice(potential):
    step(potential)
    atoms = bulk("Si", cubic=True)
    pairs = VerletList(potential.cutoff, 0.3).pairs(atoms)
    for _ in range(2):
        potential.step(potential.species_of(atoms.numbers), atoms.positions, pairs)


def test_what_the_driver_refuses():
    """Of NVIDIA's limits those that a small system does not meet."""
    gpu = Emulated()
    driver = gpu.library()
    source = 'struct Task { int n; };\nextern "C" __global__ void __launch_bounds__(64) empty('
    text = f"#include EQCALC_EMULATION\n{source}const Task t) {{}}\n"
    image = ctypes.create_string_buffer(gpu.image(text, "sm_90").read_bytes())
    contexts = [ctypes.c_void_p() for _ in range(2)]
    module, function, stream = (ctypes.c_void_p() for _ in range(3))
    address = ctypes.c_uint64()
    numbers = (ctypes.c_char * 64)()
    for number, context in enumerate(contexts):
        assert driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), number) == 0
    assert driver.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(64)) == 201
    assert driver.cuCtxPushCurrent_v2(contexts[0]) == 0
    assert driver.cuModuleLoadData(ctypes.byref(module), image) == 0
    assert driver.cuModuleGetFunction(ctypes.byref(function), module, b"empty") == 0
    assert driver.cuStreamCreate(ctypes.byref(stream), 1) == 0
    assert driver.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(64)) == 0
    arguments = (ctypes.c_void_p * 1)(ctypes.cast((ctypes.c_int * 1)(), ctypes.c_void_p))

    def launch(blocks, threads, y=1):
        shape = (ctypes.c_uint(n) for n in (blocks, y, 1, threads, 1, 1, 0))
        return driver.cuLaunchKernel(function, *shape, stream, arguments, None)

    def copy(size):
        return driver.cuMemcpyHtoDAsync_v2(address, numbers, ctypes.c_size_t(size), stream)

    assert (launch(1, 64), launch(1, 65), launch(0, 64), launch(1, 64, 2)) == (0, 701, 1, 1)
    assert launch(2**31, 64) == 1
    assert (copy(64), copy(65)) == (0, 1)
    assert driver.cuStreamSynchronize(stream) == 0
    assert driver.cuCtxPushCurrent_v2(contexts[1]) == 0
    assert (launch(1, 64), copy(64), driver.cuStreamSynchronize(stream)) == (400, 400, 400)
    assert driver.cuMemFree_v2(address) == 1
    assert driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p())) == 0
    assert driver.cuMemFree_v2(address) == 0
    assert driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p())) == 0
    assert driver.cuDevicePrimaryCtxRelease_v2(1) == 0
    if driver.cuDevicePrimaryCtxRelease_v2(1):  # nobody else holds it
        assert driver.cuCtxPushCurrent_v2(contexts[1]) == 709


def table_of(layer):
    return RadialTable([(0.0, 500)], np.empty((500, 4, layer.num_weights)))


def test_rows_beyond_2_to_the_31_numbers(emulated_gpu, tmp_path, monkeypatch):
    """A million atoms of 2240 columns, of which the last eight have neighbours, and are computed:
    their numbers are those of eight atoms alone, bit by bit."""
    wide = untrained(tmp_path / "wide.pth", channels=(700, 500), cutoff=3.0)
    potential = fuse_on_gpu(wide, dtype="float32")
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=1)
    pairs = VerletList(potential.cutoff, 0.0).pairs(atoms)
    expected = potential.step(potential.species_of(atoms.numbers), atoms.positions, pairs)
    many = 1_000_000
    before = many - len(atoms)
    emulated_gpu.limit_memory(2**40)
    monkeypatch.setenv("EQCALC_EMULATION_LAST_BLOCKS", "16")
    positions = np.zeros((many, 3))
    positions[before:] = atoms.positions
    far = Pairs(pairs.edge_dst + before, pairs.edge_src + before, pairs.shift)
    species = np.full(many, potential.species_of(atoms.numbers)[0])
    got = potential.step(species, positions, far)
    assert potential.memory > 3 * 4 * 2**31
    for a, b in zip(got[:3], expected[:3], strict=True):
        assert np.array_equal(a[before:], b)


#: what numbers an atom, an edge or a row, which times a width needs 64 bits
ARRAYS = r"ROW|PLACE|t\.(?:src|dst|place|sent|rows|row_edge|row_first|first_edge|sources)"
NUMBERS = rf"(?:(?<![\w.])(?:[eijn]|edge|atom|neighbour|blockIdx\.x)\b|\b(?:{ARRAYS})\[[^\]]+\])"


def short_products(source: str) -> list[str]:
    """Products of such numbers that are made with 32 bits."""
    source = re.sub(r"//.*", "", source)
    source = re.sub(r"blockIdx\.x \* (ATOMS|WARPS)|\bn \* n\b", "", source)  # atoms; no places
    found = []
    for match in re.finditer(rf"({NUMBERS})\s*\*\s*(?!=)", source):
        before = source[: match.start()]
        if not re.search(r"\(long long\)\(?$|\d+LL \* $", before):
            found.append(source[max(0, match.start() - 60) : match.end() + 40])
    reverse = re.finditer(rf"(?<![\w.])\d+\s*\*\s*{NUMBERS}", source)
    return [*found, *(source[max(0, m.start() - 60) : m.end() + 40] for m in reverse)]


NETWORKS = {
    "nequip": NequIPConfig(l_max=3, num_channels=[64, 32, 32, 32], num_layers=2),
    "mace": MACEConfig(density_normalization=True, distance_transform="agnesi"),
}


@pytest.mark.parametrize("name", [*NETWORKS, "training"])
def test_places_in_memory_have_64_bits(name, tmp_path):
    """Millions of atoms times hundreds of columns are more than 2^31, as are edges."""
    if name == "training":
        model = build(NETWORKS["nequip"], [14], 30.0, [1.0], [0.0])
        places = enumerate(places_of(model, Convolution))
        made = [TrainingKernels(getattr(*place), k, "float") for k, place in places]
        source = training_source(made, "float")
    else:
        file = write(tmp_path / "model.pth", NETWORKS[name], elements=(8, 14), crowding=True)
        plan = read(export.load(file, dtype="float64"), "float", PADDING)
        for layer in plan.layers:
            layer.table = table_of(layer)
        gpu = platform.Multiprocessors(132, 227 * 1024)
        code = DeviceCode(plan, 3, gpu, "yes")
        assert bool(code.slices) == (name == "nequip")
        source = code.source
    assert short_products(source) == []
    assert source.count("(long long)") > 10


def test_short_products_are_found():
    """What the test above looks for."""
    for line in ("x[e * NUM_Y]", "t.x + ROW[e] * 480 + lane", "v + 3 * e", "t.sent[k] * t.width"):
        assert len(short_products(line)) == 1, line
    for line in ("x[(long long)e * NUM_Y]", "v + 3LL * e", "2 * PARTS", "if (e < 3) s *= 2;"):
        assert short_products(line) == [], line
