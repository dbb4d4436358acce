"""Compiled kernels under sanitizers, and by other compilers: recorded calls are called again.

ThreadSanitizer does not see OpenMP's barriers, and would report what is no race; under it the one
function that starts threads (csrc/threads.h) takes std::thread instead. All else is the same code.
"""

import ctypes
import os
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from potentials import untrained
from test_fused import graph
from test_kernels import forces_of, mixed_batch

from eqcalc.contract import set_precision
from eqcalc.engine import build, dense, fused, training
from eqcalc.engine.build import header
from eqcalc.models import registry
from eqcalc.models.nequip import NequIPConfig
from eqcalc.toolchain import output

HERE = Path(__file__).parent
CSRC = Path(fused.__file__).parent / "csrc"
SANITIZED = ["-std=c++17", "-O0", "-g1", "-march=native", "-Wno-attributes"]
BOUNDS = [
    *SANITIZED, "-fopenmp", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
    "-DEQCALC_EXACT_BUFFERS",
]  # fmt: skip
RACES = [*SANITIZED, "-pthread", "-fsanitize=thread", "-DEQCALC_STD_THREADS=4"]

#: what Debian 12 has of the oldest and newest that are supported, beside the default
COMPILERS = ["g++-11", "g++-12", "clang++-14", "clang++-19"]

OPENMP_OF_CLANG_14 = [
    *("-idirafter", "/usr/lib/llvm-14/lib/clang/14.0.6/include"),
    *("-L/usr/lib/llvm-14/lib", "-Wl,-rpath,/usr/lib/llvm-14/lib"),
]

#: writes one element too many, which is the first of another thread's
PLANTED = """
extern "C" int planted(I count, double *x)
{
  return guarded([&] {
    in_ranges(count, 4, [&](I begin, I end) { for (I k = begin; k <= end; k++) x[k] += 1.0; });
  });
}
"""


def record(file, name, count, *arrays):
    """arrays: before and after the call."""
    parts = [struct.pack("q", len(name)), name.encode(), struct.pack("2q", count, len(arrays))]
    for before, after in arrays:
        bytes_ = [np.ascontiguousarray(a).tobytes() for a in (before, after)]
        is_number = int(np.asarray(before).dtype == np.float64)
        parts += [struct.pack("2q", is_number, len(bytes_[0])), *bytes_]
    file.write(b"".join(parts))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Sources and the file of recorded calls: inference and training in float64."""
    folder = tmp_path_factory.mktemp("recorded")
    sources = {}
    with pytest.MonkeyPatch.context() as patch, (folder / "calls").open("wb") as file:
        compile_library = build.compile_library

        def spy(source, *flags):
            sources[source] = len(sources)
            return compile_library(source, *flags)

        for module in (fused, training, dense):
            patch.setattr(module, "compile_library", spy)
        _record_inference(folder, file, patch)
        _record_training(file, patch)
    paths = []
    for source, n in sources.items():
        paths.append(folder / f"source-{n}.cpp")
        paths[-1].write_text(source)
    return paths, folder / "calls"


def _record_inference(folder, file, patch):
    model = untrained(
        folder / "model.pth", channels=(3, 2, 2), products=(2, 1), cutoff=4.0, pairs=True
    )
    opened = fused.prepare

    def spy(*arguments):
        library, network = opened(*arguments)
        record(file, "open", 0, (np.frombuffer(network, np.uint8),) * 2)
        return library, network

    patch.setattr(fused, "prepare", spy)
    engine = fused.fuse(model, dtype="float64")
    crystal = bulk("Si", cubic=True)
    crystal.rattle(0.1, seed=2)
    crystal.numbers[::3] = 8
    molecule = Atoms("SiO2", [[0, 0, 0], [1.6, 0.1, 0], [-0.3, 1.7, 0.2]])
    for atoms in (crystal, molecule, Atoms("SiO", [[0, 0, 0], [9, 0, 0]]), Atoms(), crystal):
        species, vec, src, dst = (a.numpy() for a in graph(engine, atoms))
        for threads in (1, 4):
            results = engine.run(species, fused.EdgeArrays(src, dst, vec), threads)
            record(
                file, "evaluate", threads, *((a, a) for a in (species, src, dst, vec)),
                *((np.zeros_like(a), a) for a in results),
            )  # fmt: skip


def _record_training(file, patch):
    run = dense.KernelLibrary.run

    def spy(self, name, count, *arrays):
        # what is not yet written is not compared by its bits
        before = [np.nan_to_num(t.detach().numpy().copy()) for t in arrays]
        run(self, name, count, *arrays)
        after = [t.detach().numpy().copy() for t in arrays]
        record(file, name, count, *zip(before, after, strict=True))

    patch.setattr(dense.KernelLibrary, "run", spy)
    torch.manual_seed(3)
    _record_muon(file, run)
    config = NequIPConfig(
        cutoff=4.0, num_layers=2, l_max=1, num_channels=[5, 3], product_channels=3, radial_mlp=[9]
    )
    model = registry.build(config, [8, 14], 20.0, [1.0, 1.0], [0.0, 0.0])
    model = training.fuse(set_precision(model, torch.float64))
    batch = mixed_batch()
    forces_of(model, batch)
    large = torch.randn(3000, model.layers[1].up_1._kernels.width_in).double()
    model.layers[1].up_1(large, torch.arange(3000) % 2)  # on several threads


def _record_muon(file, run):
    shapes = torch.tensor([(5, 3), (3, 7), (16, 16), (33, 20), (1, 1)])
    sizes = shapes.prod(1)
    settings = (ctypes.c_double * 4)(0.02, 0.1, 0.95, 2)
    flat = [torch.randn(int(sizes.sum()), dtype=torch.float64) for _ in range(3)]
    before = [t.numpy().copy() for t in flat]
    offsets = 8 * (sizes.cumsum(0) - sizes)
    addresses = torch.stack([offsets + t.data_ptr() for t in flat], 1)
    run(dense.open_library("double"), "muon_step", len(shapes), shapes, addresses, settings)
    settings = np.array(settings)
    record(
        file, "muon", len(shapes), (shapes, shapes), (settings, settings),
        *zip(before, (t.numpy() for t in flat), strict=True),
    )  # fmt: skip


def built(sources, folder, command):
    """The program that calls the recorded calls, by this compiler and these options."""
    program = folder / "replay"
    done = subprocess.run(
        [*command, f"-I{CSRC}", str(HERE / "replay.cpp"), *map(str, sources), "-o", str(program),
         "-rdynamic", "-ldl"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return program


def replay(program, calls, **environment):
    environment = {**os.environ, "OMP_NUM_THREADS": "4", **environment}
    return subprocess.run(
        [program, calls], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("options", [BOUNDS, RACES], ids=["bounds", "races"])
def test_nothing_is_found(options, recorded, tmp_path):
    sources, calls = recorded
    program = built(sources, tmp_path, ["g++", *options])
    for limit in ("1", "3", "8"):
        done = replay(program, calls, OMP_THREAD_LIMIT=limit)
        assert done.returncode == 0, done.stderr[:3000]
        assert done.stderr == ""
        assert int(done.stdout.split()[0]) > 40


@pytest.mark.parametrize(
    ("options", "finding"),
    [(BOUNDS, "AddressSanitizer: heap-buffer-overflow"), (RACES, "ThreadSanitizer: data race")],
    ids=["bounds", "races"],
)
def test_something_planted_is_found(options, finding, tmp_path):
    source = tmp_path / "planted.cpp"
    source.write_text(header("callee.h") + header("threads.h") + PLANTED)
    with (tmp_path / "calls").open("wb") as file:
        record(file, "planted", 40, (np.zeros(40), np.ones(40)))
    done = replay(built([source], tmp_path, ["g++", *options]), tmp_path / "calls")
    assert done.returncode != 0
    assert finding in done.stderr


@pytest.mark.parametrize("compiler", COMPILERS)
def test_other_compilers_make_the_same_numbers(compiler, recorded, tmp_path):
    if not shutil.which(compiler):
        if os.environ.get("CI"):
            pytest.fail(f"{compiler} is not installed")
        pytest.skip(f"{compiler} is not installed")
    default, this = build.find_compiler()[1], output([compiler, "--version"]).splitlines()[0]
    if default.partition(" ")[2] == this.partition(" ")[2]:  # but for its name
        pytest.skip(f"{compiler} is the default here, with which the calls were recorded")
    sources, calls = recorded
    flags = [flag for flag in build.FLAGS if flag not in ("-fPIC", "-shared")]
    if compiler == "clang++-19":  # Debian has no OpenMP for it
        flags = [*flags, *OPENMP_OF_CLANG_14]
    done = replay(built(sources, tmp_path, [compiler, *flags]), calls)
    assert done.returncode == 0, done.stderr[:3000]
