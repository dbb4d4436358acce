"""Slices of radial tables in shared memory, on a GPU that is emulated (emulated.py)."""

import ctypes
import signal

import numpy as np
import pytest
from ase.build import bulk
from emulated import Emulated
from potentials import untrained
from test_cuda_engine import same
from test_cuda_faults import of_process

from eqcalc import EquivariantCalculator
from eqcalc.engine.cuda import platform
from eqcalc.engine.cuda.couplings import Couplings
from eqcalc.engine.cuda.potential import fuse_on_gpu
from eqcalc.engine.cuda.slices import SliceKernels, Slicing
from eqcalc.engine.plan import ConvolutionPlan, Path
from eqcalc.errors import InputError
from eqcalc.neighbors import VerletList

#: bytes: of a block of threads on an H100; so many that tables of degree 7 in float64 fit
H100, MANY = 227 * 1024, 6 << 20


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Two elements and layers, l_max 2, 34 neighbours; messages to crowded atoms fade."""
    made = tmp_path_factory.mktemp("slices") / "model.pth"
    return untrained(made, channels=(36, 5, 4), cutoff=5.6, crowding=True)


@pytest.fixture(scope="module")
def small_path(tmp_path_factory):
    made = tmp_path_factory.mktemp("slices") / "small.pth"
    return untrained(made, channels=(4, 3), cutoff=5.6)


@pytest.fixture
def slices(monkeypatch):
    """Wherever they fit."""
    monkeypatch.setenv("EQCALC_GPU_SLICES", "yes")
    monkeypatch.setenv("EQCALC_EMULATION_SHARED", str(H100))


@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize(("dtype", "shared"), [("float64", MANY), ("float32", H100)])
def test_are_the_engine_of_the_cpu(path, small_path, dtype, shared, emulated_gpu, monkeypatch):
    """Forward and both ways back of two layers; the first has no features to give gradients to."""
    path = path if dtype == "float64" else small_path
    monkeypatch.setenv("EQCALC_EMULATION_SHARED", str(shared))
    atoms = bulk("Si", cubic=True)
    atoms.numbers[::3] = 8
    atoms.rattle(0.1, seed=1)
    gpu, cpu = (
        EquivariantCalculator(path, device=device, dtype=dtype, engine="fused")
        for device in ("cuda", "cpu")
    )
    emulated_gpu.counts()
    for name in ("forces", "energies", "stresses"):
        same(gpu.get_property(name, atoms), cpu.get_property(name, atoms), dtype)
    assert emulated_gpu.counts().slices == 5


@pytest.mark.usefixtures("slices")
def test_results_do_not_depend_on_threads_or_blocks(small_path, emulated_gpu, monkeypatch):
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=1)
    results = []
    for seed, processors in (("1", "1"), ("7", "1"), ("1", "5")):
        monkeypatch.setenv("EQCALC_EMULATION_SEED", seed)
        monkeypatch.setenv("EQCALC_EMULATION_PROCESSORS", processors)
        potential = fuse_on_gpu(small_path, dtype="float32")
        pairs = VerletList(potential.cutoff, 0.3).pairs(atoms)
        species = potential.species_of(atoms.numbers)
        results.append(potential.step(species, atoms.positions, pairs))
    assert emulated_gpu.counts().slices > 0
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert np.array_equal(a, b)


@pytest.mark.usefixtures("slices")
def test_are_chosen_by_a_count(small_path, emulated_gpu, monkeypatch):
    """Where every warp has an atom and reading the table once costs less than for each edge."""
    monkeypatch.setenv("EQCALC_GPU_SLICES", "counted")
    monkeypatch.setenv("EQCALC_EMULATION_PROCESSORS", "1")
    chosen = fuse_on_gpu(small_path, dtype="float32")
    monkeypatch.setenv("EQCALC_GPU_SLICES", "no")
    plain = fuse_on_gpu(small_path, dtype="float32")
    started = []
    for repeat in ((1, 1, 1), (2, 2, 1)):
        atoms = bulk("Si", cubic=True).repeat(repeat)
        atoms.rattle(0.1, seed=1)
        species = chosen.species_of(atoms.numbers)
        pairs = VerletList(chosen.cutoff, 0.0).pairs(atoms)
        emulated_gpu.counts()
        got = chosen.step(species, atoms.positions, pairs)
        started.append(emulated_gpu.counts().slices)
        expected = plain.step(species, atoms.positions, pairs)
        assert emulated_gpu.counts().slices == 0
        for a, b in zip(got[:3], expected[:3], strict=True):
            same(a, b, "float32")
    assert started[0] == 0 < started[1]


def counted(intervals: int, shared: int) -> SliceKernels:
    """Of a convolution of 64 scalars with harmonics up to degree 2, in float32, cubic."""
    paths = []
    for degree in range(3):
        harmonics = range(degree**2, (degree + 1) ** 2)
        terms = tuple((0, m, m - degree**2, 1.0) for m in harmonics)
        out, weight = 64 * degree**2, 32 * degree
        paths.append(Path(0, 1, out, 2 * degree + 1, 64, weight, 96, 64, terms))
    plan = ConvolutionPlan(64, 576, 192, tuple(paths))
    return SliceKernels.of(Slicing(plan, 2, 3, intervals, "float", False, shared), 0)


def test_shapes_that_the_count_chooses():
    """By hand, bytes of an edge that go forward: 12 of itself, 32 of harmonics where there are
    some, 256 of features (64 numbers), 16 of the table for each of 192 functions."""
    forward = counted(500, H100).kernels["forward"]
    assert forward.plain == 12 + 32 + 256 + 16 * 192
    # 8 channels of three paths, 3 * 500 * 8 * 16 bytes: eight slices
    assert (forward.width, forward.most) == (8, 3)
    assert forward.moved == 8 * (12 + 32 + 32)
    assert forward.shared() == 3 * 500 * 8 * 16 + forward.threads // 32 * forward.tile <= H100
    assert forward.least_edges(500, 132) == -(-500 * 16 * 192 * 132 // (3372 - 608))
    # all three paths no longer fit, nor two; 16 channels of one do, and that is less than 8 of one
    small = counted(500, 163 * 1024).kernels["forward"]
    assert (small.width, small.most) == (16, 1)
    assert small.moved == 4 * (12 + 64) + 2 * 4 * (12 + 64 + 32)
    assert not counted(5000, H100).kernels


def test_couplings_are_numbered_as_they_are_met():
    assert Couplings(1).scalar(((3, -1.0),)) == "-Y[2][e]"


#: what is replaced in the kernels, and how the fault shows
FAULTS = {
    "slice overwritten": ("__syncthreads();     // the slice before has been read", ""),
    "slice read before it is there": ("intervals, t);\n    __syncthreads();", "intervals, t);"),
    "tile overwritten": ("__syncwarp();     // the tile of the warp before has been read", ""),
    "parts not added": ("for (int d = WIDTH; d < 32; d *= 2)", "for (int d = 32; d < 32; d *= 2)"),
}


@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_noticed(small_path, fault, monkeypatch):
    right, wrong = FAULTS[fault]

    def change(source: str) -> str:
        assert right in source
        return source.replace(right, wrong)

    monkeypatch.setattr(platform, "PLATFORM", Emulated(change))
    with pytest.raises(InputError, match="does not reproduce"):
        fuse_on_gpu(small_path, dtype="float32")


@pytest.mark.usefixtures("slices")
def test_writing_beyond_shared_memory_is_noticed(small_path, monkeypatch):
    monkeypatch.setenv("EQCALC_EMULATION_SHARED", str(MANY))
    right, wrong = "n < intervals * EACH", "n < intervals * (EACH + 1)"
    fault = f"platform.PLATFORM = Emulated(lambda s: s.replace({right!r}, {wrong!r}))"
    assert of_process(small_path, fault) == (-signal.SIGSEGV, "")


@pytest.mark.usefixtures("slices")
def test_more_shared_memory_must_be_asked_for(emulated_gpu):
    """As of NVIDIA's driver: 48 kB without, and never more than there is."""
    source = 'struct Task { int n; };\nextern "C" __global__ void empty(const Task t) {}\n'
    text = f"#include EQCALC_EMULATION\n{source}"
    image = ctypes.create_string_buffer(emulated_gpu.image(text, "sm_90").read_bytes())
    driver = emulated_gpu.library()
    context, module, function = (ctypes.c_void_p() for _ in range(3))
    driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
    driver.cuCtxPushCurrent_v2(context)
    try:
        assert driver.cuModuleLoadData(ctypes.byref(module), image) == 0
        assert driver.cuModuleGetFunction(ctypes.byref(function), module, b"empty") == 0
        arguments = (ctypes.c_void_p * 1)(ctypes.cast((ctypes.c_int * 1)(), ctypes.c_void_p))

        def launch(shared: int) -> int:
            shape = (ctypes.c_uint(n) for n in (1, 1, 1, 32, 1, 1, shared))
            return driver.cuLaunchKernel(function, *shape, None, arguments, None)

        assert (launch(48 * 1024), launch(48 * 1024 + 1)) == (0, 1)
        assert driver.cuFuncSetAttribute(function, 8, H100 + 1) == 1
        assert driver.cuFuncSetAttribute(function, 8, H100) == 0
        assert (launch(H100), launch(H100 + 1)) == (0, 1)
        assert driver.cuStreamSynchronize(None) == 0
    finally:
        driver.cuCtxPopCurrent_v2(ctypes.byref(context))


@pytest.mark.usefixtures("emulated_gpu")
def test_unknown_words_are_refused(small_path, monkeypatch):
    monkeypatch.setenv("EQCALC_GPU_SLICES", "maybe")
    with pytest.raises(InputError, match="EQCALC_GPU_SLICES = 'maybe': it must be counted or yes"):
        fuse_on_gpu(small_path)
