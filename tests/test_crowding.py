"""Messages to atoms that are more crowded than the training fade (eqcalc.nn.crowding)."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from potentials import some_crowding, untrained
from runs import tiny, write_frames
from torch import Tensor, nn

from eqcalc import EquivariantCalculator
from eqcalc.checks.symmetry import check_symmetry
from eqcalc.data.dataset import Batch, FrameDataset
from eqcalc.data.frames import Frame
from eqcalc.nn.crowding import UNLIMITED, Crowding, CrowdingConstants
from eqcalc.nn.crowding import fall as fading
from eqcalc.nn.radial import polynomial_envelope
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


def fall(x, begin, end):
    t = np.clip((x - begin) / (end - begin), 0.0, 1.0)
    return 1.0 - 10.0 * t**3 + 15.0 * t**4 - 6.0 * t**5


def calm_of(atoms: Atoms) -> np.ndarray:
    """The equation, written once more."""
    constants = some_crowding(2)
    species = (atoms.numbers == 14).astype(int)
    images = atoms.repeat(5)
    other = (images.numbers == 14).astype(int)
    middle = 62 * len(atoms) + np.arange(len(atoms))
    calm = []
    for n, i in enumerate(middle):
        d, b = (np.array(t)[species[n], other] for t in (constants.distances, constants.closest))
        r = np.linalg.norm(images.positions - images.positions[i], axis=1)
        own = r == 0.0
        number = fall(r / d, 1.25, 1.8)[~own].sum() / constants.coordination[species[n]]
        close = fall(r / b, 0.7, 0.88)[~own].sum()
        calm.append(fall(number, 1.25, 1.6) * fall(close, 0.0, 1.0))
    return np.array(calm)


@pytest.mark.parametrize("scale", [1.0, 0.93])
def test_factor_is_the_equation(scale):
    """Of many neighbours, and of close ones."""
    atoms = oxide(scale)
    expected = calm_of(atoms)
    assert (expected < 0.5).any()
    assert ((expected > 0.0) & (expected < 1.0)).sum() > 2
    pairs = EquivariantCalculator("si").neighbors.pairs(atoms)
    length = torch.from_numpy(np.linalg.norm(pairs.vectors(atoms.positions), axis=1))
    ends = (torch.from_numpy(x) for x in (pairs.edge_src, pairs.edge_dst))
    species = torch.from_numpy((atoms.numbers == 14).astype(int))
    got = Crowding(some_crowding(2))(species, *ends, length)
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
    atoms = oxide(1.45)
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
        cost = 10.0 * len(atoms)  # of crowded atoms
        expected = float((terms - shift).sum()) + network + cost
        assert calc.evaluate([atoms])[0]["energy"] == pytest.approx(expected, rel=1e-9)
        single = EquivariantCalculator(faded, engine=engine, dtype="float32")
        assert single.evaluate([atoms])[0]["energy"] == pytest.approx(expected, rel=1e-4)


class Eighth(nn.Module):
    """The measure of older files: c = sum (d/r)^8 u, from `onset` to twice that, at no cost."""

    cost: float

    def __init__(self) -> None:
        super().__init__()
        self.cost = 0.0
        distances = torch.tensor(some_crowding(2).distances, dtype=torch.float64)
        self.register_buffer("distances", distances)
        self.register_buffer("onset", torch.tensor([1.6, 2.0], dtype=torch.float64))

    def forward(
        self, species: Tensor, edge_src: Tensor, edge_dst: Tensor, length: Tensor
    ) -> Tensor:
        near = (self.distances[species[edge_dst], species[edge_src]].to(length.dtype) / length) ** 8
        zero = torch.zeros(species.shape[0], dtype=length.dtype)
        crowd = zero.index_add(0, edge_dst, near * polynomial_envelope(length / 4.0, 6))
        return fading(crowd / self.onset.to(length.dtype)[species], 1.0, 2.0)


def test_older_files(tmp_path):
    """They fade as they did, in all engines; training that goes on knows no coordination."""
    path = untrained(tmp_path / "old.pth", products=(4, 1), crowding=Eighth())
    plain = untrained(tmp_path / "plain.pth", products=(4, 1))
    atoms = oxide()
    expected = EquivariantCalculator(path, engine="torch", dtype="float64").evaluate([atoms])[0]
    for engine in ("fused", "exact"):
        got = EquivariantCalculator(path, engine=engine, dtype="float64").evaluate([atoms])[0]
        np.testing.assert_allclose(got["forces"], expected["forces"], rtol=0, atol=1e-9)
        assert got["energy"] == pytest.approx(expected["energy"], abs=1e-9)
    other = EquivariantCalculator(plain, dtype="float64").evaluate([atoms])[0]
    assert np.abs(other["forces"] - expected["forces"]).max() > 0.1
    known = CrowdingConstants.read({"distances": [[2.0]], "onset": [3.0]})
    assert known == CrowdingConstants([[2.0]], [[2.0]], [UNLIMITED])


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
    crowding = with_limit.model.crowding
    nearest = (
        length / crowding.distances[graph.species[graph.edge_dst], graph.species[graph.edge_src]]
    ).min()
    assert float(nearest) == pytest.approx(1.0, abs=1e-5)
    n = crowding.neighbours(*ends, 0.92 * length)
    for s in (0, 1):
        assert float(n[graph.species == s].max()) == pytest.approx(
            float(crowding.coordination[s]), rel=1e-5
        )
    assert float(crowding(*ends, 0.6 * length).min()) == 0.0
    assert (crowding.closest <= crowding.distances).all()


def test_kept_by_runs_files_and_fine_tuning(molecules, tmp_path):
    out = tmp_path / "run"
    train(tiny(molecules), out, quiet=True)
    train(tiny(molecules), out, quiet=True)  # resumed at its end
    config, model, setup, _ = load_run(out)
    constants = setup.constants.crowding
    assert config.model.crowding_limit
    assert model.crowding.coordination.tolist() == constants.coordination
    for source in (out / "model.pth", out):
        known = read_source(str(source)).constants.crowding
        assert known.coordination == constants.coordination
        assert known.distances == constants.distances
    wide = write_frames(tmp_path / "wide.xyz", 8, symbols="LiBe", seed=3)
    tuned = prepare(tiny(wide, fine_tune={"model": str(out)}))
    largest = tuned.model.crowding.coordination
    largest = dict(zip(tuned.setup.constants.atomic_numbers, largest.tolist(), strict=True))
    # no hydrogen in the new frames
    assert largest[1] == pytest.approx(constants.coordination[0])
    assert largest[3] >= constants.coordination[1]
    assert largest[4] >= 1.0


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
    fading = Crowding(made[2])
    alloy = bulk("Nb", cubic=True, a=3.2).repeat(2)
    alloy.numbers[::2] = 74
    (item,) = FrameDataset([Frame(alloy, 0.0, None, None, "alloy", "alloy")], [41, 74], 5.0)
    graph = item.graph
    ends = graph.species, graph.edge_src, graph.edge_dst
    assert not len(fading(*ends, graph.edge_vec.norm(dim=1)))
    table = [[nb, np.inf], [np.inf, np.inf]]
    old = CrowdingConstants(table, table, [made[1].coordination[0], 0.0])
    added = crowding_of(FrameDataset(frames[1:], [41, 74], 5.0), [41, 74], 5.0, old)
    assert added == made[2]
    # two elements that do not meet themselves either
    lone = [Frame(Atoms(s), 0.0, None, None, s, s) for s in ("O", "Si")]
    apart = crowding_of(FrameDataset(lone, [8, 14], 5.0), [8, 14], 5.0)
    assert apart.distances[0][1] == pytest.approx(0.9 * (0.66 + 1.11))
