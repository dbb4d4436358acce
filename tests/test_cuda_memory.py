"""Memory of a GPU, which is emulated (emulated.py), that is short: chunks of atoms, sentences."""

import gc
import re

import numpy as np
import pytest
import torch
from ase.build import bulk
from potentials import untrained

from eqcalc import export
from eqcalc.engine import fused
from eqcalc.engine.cuda import host
from eqcalc.engine.cuda.potential import GpuNetworkPool, GpuPotential, fuse_on_gpu, prepare
from eqcalc.errors import InputError
from eqcalc.names import find
from eqcalc.neighbors import VerletList


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    made = tmp_path_factory.mktemp("memory") / "model.pth"
    return untrained(made, channels=(5, 4), cutoff=3.6, pairs=True, crowding=True)


@pytest.fixture
def gpu(emulated_gpu, monkeypatch):
    """It works on three atoms at once at least, so that a few are many; memory is all free."""
    text, at_least = host.text, ("LEAST_CHUNK = 256", "LEAST_CHUNK = 3")
    assert at_least[0] in text("network.h")
    monkeypatch.setattr(host, "text", lambda name: text(name).replace(*at_least))
    fused.NETWORKS.forget()
    gc.collect()
    yield emulated_gpu
    emulated_gpu.fail(0)


class System:
    """Silicon oxide-like, with a list."""

    def __init__(self, potential, repeat=1, skin=0.4) -> None:
        atoms = bulk("Si", cubic=True).repeat((1, 1, repeat))
        atoms.numbers[::3] = 8
        atoms.rattle(0.1, seed=1)
        self.positions = atoms.positions
        self.species = potential.species_of(atoms.numbers)
        self.pairs = VerletList(potential.cutoff, skin).pairs(atoms)

    def step(self, potential, **options):
        return potential.step(self.species, self.positions, self.pairs, **options)


def refused(system, potential):
    """What a step gives; None where memory does not suffice, as is said."""
    sentence = r"the GPU has too little memory: use fewer atoms per process"
    try:
        return system.step(potential)
    except InputError as error:
        if not re.search(sentence, str(error)):
            raise
        return None


def kernels_of_a_step(gpu, potential, system) -> int:
    gpu.counts()
    system.step(potential)
    return gpu.counts().kernels


#: kernels of a chunk: of two layers, and forces of neighbours
PER_CHUNK = 9 + 1


def limited(path, system):
    """With the memory that sentences say is needed for a step, and no more; and these GB."""
    limit = 1e-9
    while True:
        try:
            potential = fuse_on_gpu(path, dtype="float64", memory_limit=limit)
            system.step(potential)
        except InputError as error:
            sentence = r"need at least (\S+) GB .* raise it, or use fewer atoms per process"
            more = float(re.search(sentence, str(error))[1])
            assert more > limit
            limit = more
        else:
            return potential, limit


def test_chunks_below_a_limit(gpu, path):
    """The sentence says what would do; that does, with fewer bytes and the same forces."""
    plain = fuse_on_gpu(path, dtype="float64")
    system = System(plain, 4)
    expected = system.step(plain)
    few = kernels_of_a_step(gpu, plain, system)
    short, limit = limited(path, system)
    for _ in range(2):  # the list comes again, and has its memory
        short.step(system.species, system.positions, System(plain, 4).pairs)
    for a, b in zip(system.step(short), expected, strict=True):
        assert np.abs(a - b).max() < 1e-13
    assert short.memory <= 1e9 * limit < plain.memory
    more = kernels_of_a_step(gpu, short, system) - few
    assert more > 0
    assert more % PER_CHUNK == 0


def test_lists_that_grow_below_a_limit(gpu, path):
    """Chunks become smaller; a list that does not fit is refused, and the one before still runs."""
    plain = fuse_on_gpu(path, dtype="float64")
    small, grown, large = System(plain, 2, 0.1), System(plain, 2, 1.5), System(plain, 12, 1.5)
    expected, expected_grown = small.step(plain), grown.step(plain)
    short, limit = limited(path, grown)
    few = kernels_of_a_step(gpu, short, small)
    for _ in range(2):
        for a, b in zip(grown.step(short), expected_grown, strict=True):
            assert np.abs(a - b).max() < 1e-13
        assert kernels_of_a_step(gpu, short, grown) > few
        assert short.memory <= 1e9 * limit
        with pytest.raises(InputError, match=f"memory_limit is {limit:.4g} GB"):
            large.step(short)
        for a, b in zip(small.step(short), expected, strict=True):
            assert np.abs(a - b).max() < 1e-13
        assert short.memory <= 1e9 * limit


@pytest.mark.usefixtures("gpu")
def test_a_list_of_other_proportions_below_a_limit(path):
    """More atoms with fewer pairs, and back: what the list before had is not counted."""
    plain = fuse_on_gpu(path, dtype="float64")
    dense, sparse = System(plain, 2, 2.5), System(plain, 12, 0.0)
    limits = [limited(path, system)[1] for system in (dense, sparse)]
    short = fuse_on_gpu(path, dtype="float64", memory_limit=max(limits))
    expected = [system.step(plain) for system in (dense, sparse)]
    for _ in range(2):
        for system, of_plain in zip((dense, sparse), expected, strict=True):
            for a, b in zip(system.step(short), of_plain, strict=True):
                assert np.abs(a - b).max() < 1e-13
            assert short.memory <= 1e9 * max(limits)


def test_chunks_where_the_gpu_has_no_more(gpu, path):
    """Without a limit: as many atoms at once as there is room for."""
    potential = fuse_on_gpu(path, dtype="float64")
    system, small = System(potential, 8), System(potential)
    expected_small = small.step(potential)
    before = gpu.used
    expected, few = system.step(potential), kernels_of_a_step(gpu, potential, system)
    taken = gpu.used - before
    seen = set()
    for share in (0.2, 0.5, 0.75, 0.85, 0.95, 1.2):
        fused.NETWORKS.forget()
        potential = fuse_on_gpu(path, dtype="float64")
        gc.collect()
        gpu.limit_memory(gpu.used + round(share * taken))
        got = refused(system, potential)
        if got is None:
            seen.add("none")
            for a, b in zip(small.step(potential), expected_small, strict=True):
                assert np.array_equal(a, b)
        else:
            for a, b in zip(got, expected, strict=True):
                assert np.abs(a - b).max() < 1e-13
            more = kernels_of_a_step(gpu, potential, system) - few
            assert more % PER_CHUNK == 0
            seen.add("chunks" if more else "at once")
        gpu.limit_memory(2**32)
    assert seen == {"none", "chunks", "at once"}


def test_an_allocation_that_fails_anywhere(gpu, path):
    """A sentence, or the step with less to spare; and then the same bits as without."""
    potential = fuse_on_gpu(path, dtype="float64")
    small, system = System(potential), System(potential, 2)
    expected = system.step(potential)
    failed = allocation = 0
    while True:
        allocation += 1
        fused.NETWORKS.forget()
        potential = fuse_on_gpu(path, dtype="float64")
        small.step(potential, gradient=False)  # lists grow, and virials come
        gpu.fail(allocation)
        failed += refused(system, potential) is None
        if gpu.fail(0):
            break
        for a, b in zip(system.step(potential), expected, strict=True):
            assert np.array_equal(a, b)
    assert allocation > 30
    assert 0 < failed < allocation


def test_opening_without_memory(gpu, path):
    before = gpu.used
    for allocation in (1, 2, 5):
        gpu.fail(allocation)
        with pytest.raises(InputError, match="the GPU has too little memory"):
            fuse_on_gpu(path, dtype="float64")
    gc.collect()
    assert gpu.used == before


def test_memory_that_cannot_be_pinned(gpu, path, monkeypatch):
    potential = fuse_on_gpu(path, dtype="float64")
    system = System(potential)
    monkeypatch.setenv("EQCALC_EMULATION_PINNED", "1000")
    with pytest.raises(InputError, match="the machine has too little memory that it can pin"):
        system.step(potential)
    monkeypatch.delenv("EQCALC_EMULATION_PINNED")
    system.step(potential)
    assert gpu.used > 0


@pytest.mark.usefixtures("emulated_gpu")
def test_bytes_of_an_atom():
    """Of the bundled model, the default one, with 50 neighbours: 100 kB are allowed. Nothing is
    computed: a list is placed."""
    path = find("si")
    potential = export.load(path, dtype="float64")
    library, network = prepare(potential, torch.float32, 0)
    taken = []
    for repeat in (5, 6):
        pool = GpuNetworkPool(0, 0, library, network, None)
        gpu = GpuPotential(path, potential.metadata, pool, torch.float32, 0)
        atoms = bulk("Si", a=5.1, cubic=True).repeat(repeat)
        pairs = VerletList(potential.cutoff, 0.7).pairs(atoms)
        neighbors = len(pairs.edge_src) / len(atoms)
        with pool.one() as handle:
            gpu._place(handle, np.zeros(len(atoms), dtype=np.int64), pairs)
        taken.append((len(atoms), pool.memory))
    (few, least), (many, most) = taken
    each = (most - least) / (many - few)
    print(f"{each:.0f} bytes of an atom with {neighbors:.0f} neighbours")
    assert neighbors > 45
    assert each < 35e3
