"""The fused engine on a GPU, which is emulated (emulated.py), against that of the CPU."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from potentials import untrained, write
from test_crowding import Eighth
from test_fused import KINDS, SYSTEMS, graph
from test_fused_programs import SMALL

from eqcalc import EquivariantCalculator, export
from eqcalc.engine import fused
from eqcalc.engine.build import EngineUnavailable
from eqcalc.engine.cuda import platform
from eqcalc.engine.cuda.potential import fuse_on_gpu
from eqcalc.errors import InputError
from eqcalc.models.mace import MACEConfig
from eqcalc.models.nequip import NequIPConfig
from eqcalc.models.tfn import TFNConfig
from eqcalc.neighbors import Pairs, VerletList

pytestmark = pytest.mark.usefixtures("emulated_gpu")

#: kinds of networks that are compiled here: each takes some seconds
COVERED = (
    *("l_max 2 parity", "one layer", "three elements", "pairs", "so3", "irreps by layer"),
    *("products, parity", "products, l_max 3"),
)

#: differences from the CPU's kernels, which add in another order, relative to the largest number
ROUNDING = {"float64": 1e-13, "float32": 2e-6}


#: networks of other architectures, of a program
PROGRAMS = {
    "mace": MACEConfig(**SMALL, num_channels=5, l_max=2),
    "mace, agnesi, densities": MACEConfig(
        **SMALL,
        num_channels=4,
        l_max=1,
        correlation=2,
        self_connections=[False, True],
        distance_transform="agnesi",
        density_normalization=True,
    ),
    "mace, densities, crowded": MACEConfig(
        **SMALL, num_channels=4, l_max=1, correlation=2, density_normalization=True
    ),
    "norm gates": TFNConfig(**SMALL, l_max=1, num_channels=[5, 4]),
    "solid harmonics": NequIPConfig(
        product_channels=0, **SMALL, l_max=1, num_channels=[5, 4], solid_harmonics=True
    ),
}


@pytest.fixture(scope="module", params=[*COVERED, *PROGRAMS, "former crowding"])
def kind(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("kind") / "model.pth"
    if request.param == "former crowding":
        return untrained(path, channels=(5, 4), crowding=Eighth())
    if request.param in PROGRAMS:
        config, crowding = PROGRAMS[request.param], "crowded" in request.param
        return write(path, config, seed=1, crowding=crowding)
    return untrained(path, **KINDS[request.param])


@pytest.fixture(scope="module")
def small_path(tmp_path_factory):
    """Two elements and layers, l_max 1; messages to crowded atoms fade."""
    path = tmp_path_factory.mktemp("small") / "model.pth"
    return untrained(path, channels=(5, 4), cutoff=3.6, pairs=True, crowding=True)


def same(got, expected, dtype):
    size = max(1.0, np.abs(expected).max(initial=0.0))
    assert np.abs(got - expected).max(initial=0.0) < ROUNDING[dtype] * size


@pytest.mark.parametrize("dtype", ["float64"])
def test_is_the_engine_of_the_cpu(kind, dtype):
    gpu, cpu = fuse_on_gpu(kind, dtype=dtype), fused.fuse(kind, dtype=dtype)
    reference = export.load(kind, dtype="float64")
    for name, make in SYSTEMS.items():
        if name == "melt":  # has 64 atoms: the same as a crystal's, and slow
            continue
        args = graph(reference, make())
        expected, got = cpu.evaluate(*args), gpu.evaluate(*args)
        same(got.energies.numpy(), expected.energies.numpy(), dtype)
        same(got.gradient.numpy(), expected.gradient.numpy(), dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_calculator_agrees_with_the_cpu(small_path, crystal, molecule, dtype):
    options = {"dtype": dtype, "engine": "fused"}
    gpu = EquivariantCalculator(small_path, device="cuda:1", **options)
    cpu = EquivariantCalculator(small_path, **options)
    assert gpu.engine == "fused"
    assert gpu.potential.device == torch.device("cuda", 1)
    small_cell = Atoms("SiO", [[0, 0, 0], [1.2, 1.0, 0.9]], cell=[2.6, 2.4, 2.9], pbc=True)
    no_pairs = Atoms("SiO", [[0, 0, 0], [0, 0, 9.0]])
    for atoms in (molecule, crystal, small_cell, no_pairs, Atoms("O")):
        names = ["energies", "forces", *(["stress", "stresses"] if atoms.pbc.any() else [])]
        for name in names:
            same(gpu.get_property(name, atoms), cpu.get_property(name, atoms), dtype)
        same(gpu.get_atomic_virials(atoms), cpu.get_atomic_virials(atoms), dtype)
    assert gpu.get_property("energies", Atoms()).shape == (0,)


def test_forces_and_stress_are_its_own_derivatives(small_path, crystal):
    """Of the tables, crowding and pair terms, too: central differences in float64."""
    atoms = crystal
    atoms.calc = EquivariantCalculator(small_path, dtype="float64", engine="fused", device="cuda")
    forces, stress = atoms.get_forces(), atoms.get_stress(voigt=False)
    rng = np.random.default_rng(3)
    h, positions, cell = 1e-4, atoms.positions.copy(), atoms.cell.array.copy()
    for _ in range(2):
        direction = rng.normal(size=forces.shape)
        direction /= np.linalg.norm(direction)
        energies = []
        for s in (h, -h):
            atoms.positions = positions + s * direction
            energies.append(atoms.get_potential_energy())
        expected = -np.sum(forces * direction)
        assert (energies[0] - energies[1]) / (2 * h) == pytest.approx(expected, rel=1e-6)
    atoms.positions = positions
    strain = rng.normal(size=(3, 3))
    strain += strain.T
    strain /= np.linalg.norm(strain)
    energies = []
    for s in (h, -h):
        atoms.set_cell(cell @ (np.eye(3) + s * strain), scale_atoms=True)
        energies.append(atoms.get_potential_energy())
    expected = np.sum(stress * strain) * abs(np.linalg.det(cell))
    assert (energies[0] - energies[1]) / (2 * h) == pytest.approx(expected, rel=1e-6)


def test_rotations_turn_forces(small_path, molecule):
    calc = EquivariantCalculator(small_path, dtype="float64", engine="fused", device="cuda")
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]  # a reflection or none
    turned = Atoms(molecule.numbers, molecule.positions @ turn.T)
    assert calc.get_property("energy", turned) == pytest.approx(
        calc.get_property("energy", molecule)
    )
    before, after = calc.get_property("forces", molecule), calc.get_property("forces", turned)
    assert np.abs(after - before @ turn.T).max() < 1e-12


def test_the_list_stays_on_the_gpu(emulated_gpu, small_path, crystal):
    """A step takes positions there and brings results back; numbers do not depend on the past."""
    potential = fuse_on_gpu(small_path, dtype="float64")
    species = potential.species_of(crystal.numbers)
    neighbors = VerletList(potential.cutoff, 1.0)
    pairs = neighbors.pairs(crystal)
    first = potential.step(species, crystal.positions, pairs)
    emulated_gpu.counts()
    again = potential.step(species, crystal.positions, pairs)
    counts, n = emulated_gpu.counts(), len(crystal)
    assert counts.waits == 1
    assert (counts.up, counts.down) == (8 * 3 * n, 8 * (2 * n + 12 * n))
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a, b)
    moved = crystal.positions + np.random.default_rng(0).uniform(-0.2, 0.2, (n, 3))
    crystal.positions = moved
    assert neighbors.pairs(crystal) is pairs
    got = potential.step(species, moved, pairs)
    fresh = VerletList(potential.cutoff, 0.0).pairs(crystal)
    expected = potential.step(species, moved, fresh)
    for a, b in zip(got, expected, strict=True):
        assert np.abs(a - b).max() < 1e-13


def test_a_small_step_is_started_at_once(emulated_gpu, small_path, crystal, monkeypatch):
    """As a CUDA graph, which serves the next lists until these outgrow it; and the same bits."""
    potential = fuse_on_gpu(small_path, dtype="float64")
    monkeypatch.setenv("EQCALC_GPU_GRAPHS", "no")
    plain = fuse_on_gpu(small_path, dtype="float64")
    species = potential.species_of(crystal.numbers)
    started = []
    for skin in (0.3, 0.35, 0.32, 1.0):
        pairs = VerletList(potential.cutoff, skin).pairs(crystal)
        for step in range(4):
            moved = crystal.positions + 0.01 * step
            moved[0] += 0.02 * step
            emulated_gpu.counts()
            got = potential.step(species, moved, pairs, gradient=step != 3)
            started.append(emulated_gpu.counts().started)
            expected = plain.step(species, moved, pairs, gradient=step != 3)
            for a, b in zip(got, expected, strict=True):
                assert np.array_equal(a, b)
    few = [n == 1 for n in started]
    assert few == [False, True, True, False, *[True] * 8, False, True, True, False]


@pytest.mark.parametrize("crowding", [False, True])
def test_kernels_of_a_step(crowding, emulated_gpu, tmp_path, molecule):
    """Of a network of the default shape, whatever its width: about 22 are wanted, as one graph."""
    config = NequIPConfig(cutoff=3.6, num_channels=[4, 3, 2], product_channels=2, radial_mlp=[8])
    assert (config.num_layers, config.l_max) == (NequIPConfig().num_layers, NequIPConfig().l_max)
    path = write(tmp_path / "model.pth", config, crowding=crowding)
    potential = fuse_on_gpu(path)
    species = potential.species_of(molecule.numbers)
    pairs = VerletList(potential.cutoff, 0.3).pairs(molecule)
    started = []
    for _ in range(3):
        emulated_gpu.counts()
        potential.step(species, molecule.positions, pairs)
        counts = emulated_gpu.counts()
        assert counts.kernels == 19 + crowding
        started.append((counts.started, counts.graphs))
    assert started == [(19 + crowding, 0), (1, 1), (1, 0)]


def test_more_atoms_and_neighbours_than_before(small_path):
    """Memory grows, and what was there before is not seen."""
    gpu, cpu = fuse_on_gpu(small_path, dtype="float64"), fused.fuse(small_path, dtype="float64")
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=1)
    for case in (atoms[:2], atoms, Atoms("Si"), atoms.repeat((1, 1, 2)), atoms[:3]):
        case.set_cell(case.cell.array * (0.9 if len(case) == 16 else 1.0), scale_atoms=True)
        args = graph(export.load(small_path, dtype="float64"), case)
        same(gpu.evaluate(*args).gradient.numpy(), cpu.evaluate(*args).gradient.numpy(), "float64")


def test_results_do_not_depend_on_the_order_of_threads(small_path, crystal, monkeypatch):
    potential = fuse_on_gpu(small_path, dtype="float32")
    species = potential.species_of(crystal.numbers)
    pairs = VerletList(potential.cutoff, 0.3).pairs(crystal)
    first = potential.step(species, crystal.positions, pairs)
    monkeypatch.setenv("EQCALC_EMULATION_SEED", "7")
    for a, b in zip(potential.step(species, crystal.positions, pairs), first, strict=True):
        assert np.array_equal(a, b)


def test_atoms_that_overlap_are_refused(small_path):
    calc = EquivariantCalculator(small_path, engine="fused", device="cuda")
    atoms = Atoms("Si3", [[0, 0, 0], [0, 0, 2.0], [0, 0, 2.001]])
    with pytest.raises(InputError, match=r"Atoms 1 and 2 are 0\.001 Å apart"):
        calc.get_property("energy", atoms)


def test_wrong_lists_are_refused(small_path):
    potential = fuse_on_gpu(small_path)
    far = Pairs(np.array([0]), np.array([5]), np.zeros((1, 3)))
    with pytest.raises(InputError, match="out of range"):
        potential.step(np.zeros(2, dtype=np.int64), np.zeros((2, 3)), far)


def test_what_cannot_be_had_is_said(small_path, monkeypatch):
    with pytest.raises(InputError, match="there is only cuda:0 to cuda:1 here"):
        EquivariantCalculator(small_path, engine="fused", device="cuda:2")
    monkeypatch.undo()
    if not torch.cuda.is_available():
        with pytest.raises(EngineUnavailable, match="NVIDIA driver"):
            EquivariantCalculator(small_path, engine="fused", device="cuda")
    assert type(platform.PLATFORM) is platform.Platform


def test_features_of_atoms(small_path, molecule):
    gpu, cpu = fuse_on_gpu(small_path, dtype="float64"), fused.fuse(small_path, dtype="float64")
    _, vectors, src, dst = graph(export.load(small_path, dtype="float64"), molecule)
    species = cpu.species_of(molecule.numbers)
    edges = fused.EdgeArrays(src.numpy(), dst.numpy(), vectors.numpy())
    got, expected = (p.run_with(species, edges, 1, features=True)[2] for p in (gpu, cpu))
    same(got.features, expected.features, "float64")
    with pytest.raises(InputError, match="uncertainty"):
        gpu.run_with(species, edges, 1, uncertainty=True)
