"""Messages to atoms that are more crowded than the training fade (eqcalc.nn.crowding)."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from potentials import some_crowding, untrained
from runs import tiny, write_frames

from eqcalc import EquivariantCalculator
from eqcalc.checks.symmetry import check_symmetry
from eqcalc.data.dataset import Batch, FrameDataset
from eqcalc.data.frames import Frame
from eqcalc.nn.crowding import Crowding, CrowdingConstants
from eqcalc.training.domain import crowding_of
from eqcalc.training.finetune import read_source
from eqcalc.training.folder import load_run
from eqcalc.training.prepare import prepare
from eqcalc.training.run import train


@pytest.fixture(scope="module")
def faded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crowding")
    return untrained(folder / "faded.pth", products=(4, 1), pairs=True, crowding=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("plain") / "plain.pth", products=(4, 1), pairs=True)


def oxide(scale: float = 1.0) -> Atoms:
    atoms = bulk("Si", cubic=True, a=5.43 * scale)
    atoms.numbers[::2] = 8
    atoms.rattle(0.15 * scale, seed=4)
    return atoms


def calm_of(atoms: Atoms, cutoff: float = 4.0) -> np.ndarray:
    """The equation, written once more."""
    constants = some_crowding(2)
    species = (atoms.numbers == 14).astype(int)
    images = atoms.repeat(5)
    middle = 62 * len(atoms) + np.arange(len(atoms))
    calm = []
    for n, i in enumerate(middle):
        r = np.linalg.norm(images.positions - images.positions[i], axis=1)
        near = (r < cutoff) & (r > 0.0)
        x = r[near] / cutoff
        other = (images.numbers[near] == 14).astype(int)
        d = np.array(constants.distances)[species[n], other]
        u = 1.0 - 28.0 * x**6 + 48.0 * x**7 - 21.0 * x**8
        t = ((d / r[near]) ** 8 * u).sum() / constants.onset[species[n]] - 1.0
        t = min(max(t, 0.0), 1.0)
        calm.append(1.0 - 10.0 * t**3 + 15.0 * t**4 - 6.0 * t**5)
    return np.array(calm)


def test_factor_is_the_equation():
    atoms = oxide()
    expected = calm_of(atoms)
    assert (expected < 0.5).any()
    assert ((expected > 0.0) & (expected < 1.0)).sum() > 2
    pairs = EquivariantCalculator("si").neighbors.pairs(atoms)
    length = torch.from_numpy(np.linalg.norm(pairs.vectors(atoms.positions), axis=1))
    ends = (torch.from_numpy(x) for x in (pairs.edge_src, pairs.edge_dst))
    species = torch.from_numpy((atoms.numbers == 14).astype(int))
    got = Crowding(some_crowding(2), 4.0)(species, *ends, length)
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-12)


def test_engines_agree(faded, plain):
    """On any number of threads; the factor changes the forces."""
    atoms = oxide()
    for dtype, tolerance in (("float64", 1e-9), ("float32", 2e-3)):
        expected = EquivariantCalculator(faded, engine="torch", dtype=dtype).evaluate([atoms])[0]
        for engine, threads in (("fused", 1), ("fused", 3), ("exact", 1)):
            calc = EquivariantCalculator(faded, engine=engine, dtype=dtype, threads=threads)
            got = calc.evaluate([atoms])[0]
            assert got["energy"] == pytest.approx(expected["energy"], abs=tolerance)
            for name in ("forces", "stress", "energies"):
                np.testing.assert_allclose(got[name], expected[name], rtol=0, atol=tolerance)
    other = EquivariantCalculator(plain, dtype="float64").evaluate([atoms])[0]
    assert np.abs(other["forces"] - expected["forces"]).max() > 0.1


@pytest.mark.parametrize("engine", ["fused", "torch"])
def test_forces_and_stress_are_derivatives(faded, engine):
    atoms = oxide()
    calc = EquivariantCalculator(faded, engine=engine, dtype="float64")
    result = calc.evaluate([atoms])[0]
    step = 1e-4
    moved, strained = [], []
    for sign in (1.0, -1.0):
        for i, axis in ((0, 0), (3, 1), (5, 2)):
            moved.append(atoms.copy())
            moved[-1].positions[i, axis] += sign * step
        strained.append(atoms.copy())
        strain = np.eye(3)
        strain[0, 1] = strain[1, 0] = 0.5 * sign * step
        strained[-1].set_cell(atoms.cell.array @ strain, scale_atoms=True)
    e = [r["energy"] for r in calc.evaluate([*moved, *strained])]
    numeric = -(np.array(e[:3]) - np.array(e[3:6])) / (2.0 * step)
    analytic = [result["forces"][0, 0], result["forces"][3, 1], result["forces"][5, 2]]
    np.testing.assert_allclose(analytic, numeric, rtol=1e-4, atol=1e-6)
    shear = (e[6] - e[7]) / (2.0 * step * atoms.get_volume())
    assert result["stress"][5] == pytest.approx(shear, rel=1e-4, abs=1e-8)


def test_symmetries(faded):
    """Rotations, reflections, permutations, images and supercells."""
    calc = EquivariantCalculator(faded, dtype="float64")
    report = check_symmetry(oxide(), {"float64": calc})
    assert report.passed, str(report)


def test_calm_structures_are_untouched(faded, plain):
    """Bit by bit: the factor is exactly one, and nothing is computed from it."""
    atoms = oxide(1.35)
    assert (calm_of(atoms) == 1.0).all()
    for engine in ("fused", "torch"):
        one, other = (
            EquivariantCalculator(m, engine=engine).evaluate([atoms])[0] for m in (faded, plain)
        )
        assert one["energy"] == other["energy"]
        assert np.array_equal(one["forces"], other["forces"])


@pytest.mark.parametrize("engine", ["fused", "exact", "torch"])
def test_dense_structures_have_pair_terms_alone(faded, engine):
    """The network of every atom is that of an isolated one, and float32 does not overflow."""
    calc = EquivariantCalculator(faded, engine=engine, dtype="float64")
    alone = calc.evaluate([Atoms("O"), Atoms("Si")])
    module = EquivariantCalculator(faded, engine="torch", dtype="float64").potential.module
    for scale in (0.75, 0.6, 0.5):
        atoms = oxide(scale)
        pairs = calc.neighbors.pairs(atoms)
        length = torch.from_numpy(np.linalg.norm(pairs.vectors(atoms.positions), axis=1))
        species = torch.from_numpy((atoms.numbers == 14).astype(int))
        ends = (torch.from_numpy(x) for x in (pairs.edge_src, pairs.edge_dst))
        silent = torch.zeros(len(atoms), dtype=torch.float64)
        terms = module.reference_energy(species, *ends, length, silent)
        shift = module.reference_energy.shift[species]
        network = sum(r["energy"] * n for r, n in zip(alone, (4, 4), strict=True))
        expected = float((terms - shift).sum()) + network
        assert calc.evaluate([atoms])[0]["energy"] == pytest.approx(expected, rel=1e-9)
        single = EquivariantCalculator(faded, engine=engine, dtype="float32")
        assert single.evaluate([atoms])[0]["energy"] == pytest.approx(expected, rel=1e-4)


@pytest.fixture(scope="module")
def molecules(tmp_path_factory):
    return write_frames(tmp_path_factory.mktemp("data") / "lih.xyz", 12)


def test_no_training_frame_is_crowded_and_denser_ones_are(molecules):
    with_limit, without = (
        prepare(tiny(molecules, model={"crowding_limit": on})) for on in (True, False)
    )
    assert without.model.crowding is None
    graph = Batch.collate([*with_limit.train]).graph
    ends = graph.species, graph.edge_src, graph.edge_dst
    length = graph.edge_vec.norm(dim=1)
    assert not len(with_limit.model.crowding(*ends, length))
    largest = with_limit.model.crowding.crowd(*ends, length)
    onset = with_limit.model.crowding.onset[graph.species]
    per_species = [float((largest / onset)[graph.species == s].max()) for s in (0, 1)]
    assert per_species == pytest.approx([0.5, 0.5], rel=1e-5)
    assert float(with_limit.model.crowding(*ends, 0.8 * length).min()) == 0.0


def test_kept_by_runs_files_and_fine_tuning(molecules, tmp_path):
    out = tmp_path / "run"
    train(tiny(molecules), out, quiet=True)
    train(tiny(molecules), out, quiet=True)  # resumed at its end
    config, model, setup = load_run(out)
    constants = setup["crowding"]
    assert config.model.crowding_limit
    assert model.crowding.onset.tolist() == constants["onset"]
    for source in (out / "model.pth", out):
        known = read_source(str(source)).constants.crowding
        assert known.onset == constants["onset"]
        assert known.distances == constants["distances"]
    wide = write_frames(tmp_path / "wide.xyz", 8, symbols="LiBe", seed=3)
    tuned = prepare(tiny(wide, fine_tune={"model": str(out)}))
    onset = dict(zip(tuned.setup["atomic_numbers"], tuned.model.crowding.onset, strict=True))
    assert onset[1] == pytest.approx(constants["onset"][0])  # no hydrogen in the new frames
    assert onset[3] >= constants["onset"][1]
    assert onset[4] > 0.0


def test_elements_that_never_meet():
    """Frames of each alone do not make an alloy of both crowded, nor does one that is added."""
    frames = []
    for symbol, a in (("Nb", 3.3), ("W", 3.17)):
        atoms = bulk(symbol, cubic=True, a=a).repeat(2)
        atoms.rattle(0.1, seed=len(frames))
        frames.append(Frame(atoms, 0.0, None, None, symbol, symbol))
    both, alone = ([41, 74], frames), ([41], frames[:1])
    made = {
        len(numbers): crowding_of(FrameDataset(some, numbers, 5.0), numbers, 5.0)
        for numbers, some in (both, alone)
    }
    (nb, mixed), (_, w) = made[2].distances
    assert mixed == pytest.approx(0.5 * (nb + w), rel=1e-5)
    fading = Crowding(made[2], 5.0)
    alloy = bulk("Nb", cubic=True, a=3.2).repeat(2)
    alloy.numbers[::2] = 74
    (item,) = FrameDataset([Frame(alloy, 0.0, None, None, "alloy", "alloy")], [41, 74], 5.0)
    graph = item.graph
    ends = graph.species, graph.edge_src, graph.edge_dst
    assert not len(fading(*ends, graph.edge_vec.norm(dim=1)))
    old = CrowdingConstants([[nb, np.inf], [np.inf, np.inf]], [made[1].onset[0], 0.0])
    added = crowding_of(FrameDataset(frames[1:], [41, 74], 5.0), [41, 74], 5.0, old)
    assert added == made[2]
    # two elements that do not meet themselves either
    lone = [Frame(Atoms(s), 0.0, None, None, s, s) for s in ("O", "Si")]
    apart = crowding_of(FrameDataset(lone, [8, 14], 5.0), [8, 14], 5.0)
    assert apart.distances[0][1] == pytest.approx(0.9 * (0.66 + 1.11))
