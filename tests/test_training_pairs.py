"""The pair potential below the network: fitted, kept through files, resumption and fine-tuning."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import covalent_radii
from ase.io import read, write
from runs import history, tiny, train_in_pieces, weights, write_frames

from eqcalc import EquivariantCalculator, derivatives
from eqcalc.data.dataset import Batch, FrameDataset
from eqcalc.data.frames import Frame, read_frames
from eqcalc.data.store import pack
from eqcalc.errors import InputError
from eqcalc.models.nequip import NequIPConfig
from eqcalc.models.registry import build
from eqcalc.nn.radial import InnerLimit
from eqcalc.nn.reference import CoreRepulsion, PairConstants, PairEnergy, zbl_slope
from eqcalc.training import pairs
from eqcalc.training.dryrun import dry_run
from eqcalc.training.folder import load_run
from eqcalc.training.pairs import CORE, INNER, MOST_ELEMENTS, fit_pairs
from eqcalc.training.prepare import prepare
from eqcalc.training.run import train
from eqcalc.training.task import predict

CUTOFF = 4.0
PAIRS = {"pair_potential": True}


@pytest.fixture(scope="module")
def molecules(tmp_path_factory) -> str:
    """Of lithium and hydrogen, with labels of a Morse potential."""
    return write_frames(tmp_path_factory.mktemp("data") / "lih.xyz", 24)


def relabel(frames, module, numbers, offset):
    """Frames with the energies and forces of a pair term, and energies `offset` of the atoms."""
    made = []
    for frame, item in zip(frames, FrameDataset(frames, numbers, CUTOFF), strict=True):
        graph = item.graph
        vec = graph.edge_vec.clone().requires_grad_()
        energy = module(graph.species, graph.edge_src, graph.edge_dst, vec.norm(dim=1)).sum()
        (gradient,) = torch.autograd.grad(energy, vec)
        forces = derivatives.forces(gradient, graph.edge_src, graph.edge_dst, graph.num_atoms)
        total = float(energy.detach()) + sum(offset[z] for z in frame.atoms.numbers)
        made.append(replace(frame, energy=total, forces=forces.numpy()))
    return made


def slope_and_curvature(
    coefficients: list[float], r: np.ndarray, cutoff: float = CUTOFF
) -> tuple[np.ndarray, np.ndarray]:
    """V' [n] eV/Å and V'' [n] eV/Å^2 of one pair at r [n] Å."""
    module = PairEnergy([[coefficients]], cutoff)
    length = torch.from_numpy(r).requires_grad_()
    one = torch.zeros(len(r), dtype=torch.int64)
    energy = 2.0 * module(one, one, one, length)
    (slope,) = torch.autograd.grad(energy.sum(), length, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), length)
    return slope.detach().numpy(), curvature.numpy()


def assert_convex(coefficients: list[float], cutoff: float = CUTOFF) -> None:
    """Repulsion that never weakens on the way in; bonds have curvatures of tens of eV/Å^2."""
    slope, curvature = slope_and_curvature(coefficients, np.linspace(1e-3, cutoff, 4001), cutoff)
    assert slope.max() < 1e-6
    assert curvature.min() > -2e-3


def test_repulsion_that_pairs_can_explain_is_found(molecules):
    """Labels of such a potential: forces and relative energies to 1 %, atoms' energies aside."""
    coefficients = [
        [[0.0] * 6, [0.0, 0.0, 900.0, 0, 0, 0]],
        [[0.0] * 6, [9.0, 50.0, 0, 0, 0, 0]],
    ]
    coefficients[1][0] = coefficients[0][1]
    coefficients[0][0] = [4.0, 30.0, 0.0, 0.0, 0.0, 0.0]
    module = PairEnergy(coefficients, CUTOFF)
    frames = relabel(read_frames(molecules), module, [1, 3], {1: -13.0, 3: -200.0})
    dataset = FrameDataset(frames, [1, 3], CUTOFF)
    before = np.sqrt(np.mean(np.concatenate([f.forces.ravel() for f in frames]) ** 2))
    fit = fit_pairs(dataset, [1, 3], [-10.0, -190.0], CUTOFF)
    assert fit.force_rms < 0.01 * before
    left = fit.energies - fit.counts @ [-13.0, -200.0]
    spread = np.std([f.energy for f in frames] - fit.counts @ [-13.0, -200.0])
    # least squares of what is left finds other energies of the atoms, but no frame is off them
    residual = left - fit.counts @ np.linalg.lstsq(fit.counts, left, rcond=None)[0]
    assert np.abs(residual).max() < 0.01 * spread


def test_pairs_only_repel(molecules):
    """Whatever the labels, at all distances, and ever more the closer two atoms are."""
    frames = read_frames(molecules)
    rng = np.random.default_rng(0)
    random = [replace(f, forces=rng.normal(size=f.forces.shape)) for f in frames]
    attracting = [replace(f, forces=-f.forces, energy=-f.energy) for f in frames]
    for labels in (frames, random, attracting):
        dataset = FrameDataset(labels, [1, 3], CUTOFF)
        constants = fit_pairs(dataset, [1, 3], [-2.1, -2.3], CUTOFF).constants
        core, inner = np.array(constants.core_cutoffs), np.array(constants.inner_limits)
        for a, b in ((0, 0), (0, 1), (1, 1)):
            numbers = [1, 3]
            distances = [
                f.atoms.get_all_distances()[i, j]
                for f in labels
                for i in range(len(f.atoms))
                for j in range(i)
                if {f.atoms.numbers[i], f.atoms.numbers[j]} == {numbers[a], numbers[b]}
            ]
            shortest = min(distances)
            assert_convex(constants.coefficients[a][b])
            at = np.array([0.7 * shortest])
            assert slope_and_curvature(constants.coefficients[a][b], at)[0] < -1.0
            expected = pytest.approx(INNER * shortest, abs=1e-4)
            assert inner[a, b] == inner[b, a] == expected
            covalent = float(CoreRepulsion(numbers).pair_cutoff[a, b])
            assert (
                core[a, b] == core[b, a] == pytest.approx(min(covalent, CORE * shortest), abs=1e-4)
            )


def silicon() -> list[Frame]:
    return read_frames(Path(__file__).parent / "data" / "silicon_surfaces.xyz")


def test_convex_in_a_crystal():
    """Of DFT labels, with a cutoff that takes in many shells."""
    constants = fit_pairs(FrameDataset(silicon(), [14], 5.0), [14], [-5.4], 5.0).constants
    assert_convex(constants.coefficients[0][0], 5.0)


def test_least_squares_with_known_answers():
    """The free minimum where it is allowed; else on the plane that it violates, or in a corner."""
    rng = np.random.default_rng(0)
    half = rng.normal(size=(6, 6))
    square, right = half @ half.T + np.eye(6), rng.normal(size=6)
    free = np.linalg.solve(square, right)
    allowed = np.sign(free)[:, None] * np.eye(6)
    assert pairs._least_squares(square, right, allowed) == pytest.approx(free, rel=1e-10)
    # one plane p.x >= 0: x = free + S^-1 p l with p.x = 0, by Lagrange
    plane = -free / np.linalg.norm(free)
    step = np.linalg.solve(square, plane)
    on_plane = free - step * (plane @ free) / (plane @ step)
    got = pairs._least_squares(square, right, plane[None])
    assert got == pytest.approx(on_plane, rel=1e-10)
    # nearest point of the quadrant x >= 0, y >= x to (1, -2)
    corner = pairs._least_squares(np.eye(2), np.array([1.0, -2.0]), np.array([[1, 0], [-1, 1.0]]))
    assert corner == pytest.approx(np.zeros(2), abs=1e-12)
    edge = pairs._least_squares(np.eye(2), np.array([2.0, 1.0]), np.array([[1, 0], [-1, 1.0]]))
    assert edge == pytest.approx([1.5, 1.5], rel=1e-12)


@pytest.mark.parametrize("kind", ["molecules", "crystal"])
def test_walls(molecules, monkeypatch, kind):
    """Of bonds, the slope below the shortest distance is near that of a fit that may attract.

    Elements that are not bonded (H and H, here) have the bare nuclei's wall where a bond would be,
    and no other: of the free fit's slope at their shortest distance little is left.
    """
    if kind == "molecules":
        frames, numbers, shift, cutoff = read_frames(molecules), [1, 3], [-2.1, -2.3], CUTOFF
    else:
        frames, numbers, shift, cutoff = silicon(), [14], [-5.4], 5.0

    def fitted():
        return fit_pairs(FrameDataset(frames, numbers, cutoff), numbers, shift, cutoff).constants

    drawn = fitted()
    monkeypatch.setattr(pairs, "WALL_WEIGHT", 0.0)
    convex = fitted()
    monkeypatch.setattr(pairs, "_least_squares", lambda s, right, _: np.linalg.solve(s, right))
    free = fitted()
    for a, b in zip(*np.triu_indices(len(numbers)), strict=True):
        shortest = drawn.inner_limits[a][b] / INNER
        bond = pairs.BONDED * covalent_radii[[numbers[a], numbers[b]]].sum()

        def slopes(r, of=(free, drawn, convex), at=(a, b)):
            return [slope_and_curvature(c.coefficients[at[0]][at[1]], r, cutoff)[0] for c in of]

        if (a, b) == (0, 0) and kind == "molecules":
            assert shortest > bond
            r = np.linspace(*pairs.BARE, 12) * bond
            wall = zbl_slope(torch.from_numpy(r), 1, 1).numpy()
            assert np.sqrt(np.mean((slopes(r)[1] / wall - 1.0) ** 2)) < 0.3
            wall, got, _ = slopes(np.array([0.93 * shortest]))
            assert abs(got) < 0.3 * abs(wall)
            continue
        assert shortest < bond
        wall, *rest = slopes(np.linspace(*pairs.WALL, 12) * shortest)
        off, before = (np.sqrt(np.mean((s / wall - 1.0) ** 2)) for s in rest)
        assert off < 0.3
        assert off < 0.7 * before


def test_elements_that_never_meet():
    """They get the mean of what they have with themselves."""
    frames = []
    for n, symbol in enumerate(("Ne", "Ar") * 6):
        atoms = bulk(symbol, "fcc", a=4.4, cubic=True)
        atoms.rattle(0.1, seed=n)
        atoms.calc = LennardJones(epsilon=0.1 + 0.1 * (n % 2), sigma=2.7, rc=5.0)
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        frames.append(Frame(atoms, energy, forces, None, symbol, f"frame {n}"))
    fit = fit_pairs(FrameDataset(frames, [10, 18], CUTOFF), [10, 18], [0.0, 0.0], CUTOFF)
    neon, argon = (np.array(fit.constants.coefficients[k][k]) for k in (0, 1))
    assert np.abs(neon - argon).max() > 0.0
    for mixed in (fit.constants.coefficients[0][1], fit.constants.coefficients[1][0]):
        assert mixed == pytest.approx(0.5 * (neon + argon), rel=1e-5)


def test_labels_without_forces(molecules):
    """Energies alone give a potential."""
    module = PairEnergy([[[0.0, 90.0, 0, 0, 0, 0]] * 2] * 2, CUTOFF)
    frames = relabel(read_frames(molecules), module, [1, 3], {1: -2.0, 3: -2.3})
    frames = [replace(f, forces=None) for f in frames]
    fit = fit_pairs(FrameDataset(frames, [1, 3], CUTOFF), [1, 3], [-2.1, -2.3], CUTOFF)
    assert np.isnan(fit.force_rms)
    offset = fit.counts @ np.linalg.lstsq(fit.counts, fit.energies, rcond=None)[0]
    energies = np.array([f.energy for f in frames])
    before = energies - fit.counts @ np.linalg.lstsq(fit.counts, energies, rcond=None)[0]
    assert np.std(fit.energies - offset) < 0.3 * np.std(before)


def test_training_starts_from_what_is_left(molecules):
    """Forces of the untrained network differ from the labels by its own noise only."""
    plain, paired = prepare(tiny(molecules)), prepare(tiny(molecules, model=PAIRS))
    documents = plain.setup.to_dict(), paired.setup.to_dict()
    for key in ("train_hash", "force_rms", "message_scales"):
        assert documents[0][key] == documents[1][key]
    # of a Morse potential, the repulsion alone
    assert plain.setup.force_rms > 1.2 * paired.setup.constants.scale[0]
    items = Batch.collate([*paired.train])
    errors = [
        float((predict(p.model, items).forces - items.forces).square().mean().sqrt())
        for p in (plain, paired)
    ]
    assert errors[1] < 0.8 * errors[0]
    report = dry_run(tiny(molecules, model=PAIRS))
    row = next(line for line in report.splitlines() if line.startswith("left by a pair potential"))
    assert float(row.split()[-2]) == pytest.approx(paired.setup.constants.scale[0], abs=1e-4)
    reference = paired.model.reference_energy
    assert reference.shift.tolist() == paired.setup.constants.shift
    pairs = paired.setup.constants.pair_constants
    assert reference.pair.coefficients.tolist() == pairs.coefficients


def test_files_stores_and_interrupted_runs_agree(molecules, tmp_path, monkeypatch):
    pack(molecules, tmp_path / "lih.eqdata", CUTOFF)
    for out, source in (("f", molecules), ("s", str(tmp_path / "lih.eqdata"))):
        config = tiny(source, model=PAIRS)
        if out == "f":
            train(config, tmp_path / out, quiet=True)
        else:
            train_in_pieces(config, tmp_path / out, monkeypatch)
    assert history(tmp_path / "f") == history(tmp_path / "s")
    setups = [json.loads((tmp_path / out / "setup.json").read_text()) for out in "fs"]
    assert setups[0]["pair_potential"] == setups[1]["pair_potential"]
    for name, tensor in weights(tmp_path / "f").items():
        assert torch.equal(tensor, weights(tmp_path / "s")[name]), name


@pytest.mark.parametrize("kind", ["model.pth", ""])
def test_fine_tuning_keeps_it(molecules, tmp_path, kind):
    """From a file and from a run; a new element has no pairs, and elements stay in order."""
    train(tiny(molecules, model=PAIRS, epochs=2, fused=True), tmp_path / "first", quiet=True)
    more = write_frames(tmp_path / "more.xyz", 12, symbols="LiHeH", seed=3)
    source = {"model": str(tmp_path / "first" / kind)}
    config = tiny(more, fine_tune=source, epochs=1, fused=True)
    prepared = prepare(config)
    old, new = load_run(tmp_path / "first")[1], prepared.model
    assert new.atomic_numbers == [1, 2, 3]
    term = new.reference_energy
    assert torch.equal(
        term.pair.coefficients[[0, 2]][:, [0, 2]], old.reference_energy.pair.coefficients
    )
    assert not term.pair.coefficients[1].any()
    core = CoreRepulsion([1, 2, 3]).pair_cutoff
    assert torch.equal(term.repulsion.pair_cutoff[1], core[1])
    known = old.inner_limit.distances
    limits = new.inner_limit.distances
    assert not limits[1].any()
    assert (limits[[0, 2]][:, [0, 2]] <= known + 1e-6).all()
    assert limits[[0, 2]][:, [0, 2]].all()
    frames = read_frames(molecules)
    forces = [
        predict(m, Batch.collate([*FrameDataset(frames, m.atomic_numbers, CUTOFF)])).forces
        for m in (old, new)
    ]
    assert torch.allclose(*forces, atol=1e-5)
    train(config, tmp_path / "second", quiet=True)
    values = []
    for engine in ("fused", "torch"):
        atoms = Atoms("HLiHe", [[0, 0, 0], [1.7, 0, 0], [0, 1.8, 0.2]])
        atoms.calc = EquivariantCalculator(
            tmp_path / "second" / "model.pth",
            engine=engine,
            dtype="float64",
            on_domain_exit="ignore",
        )
        values.append(atoms.get_forces())
    assert values[0] == pytest.approx(values[1], abs=1e-8)


def test_shorter_distances_than_before(molecules, tmp_path):
    """Fine-tuning tells the network of those that it now learns; longer ones change nothing."""
    train(tiny(molecules, model=PAIRS, epochs=1), tmp_path / "first", quiet=True)
    source = {"model": str(tmp_path / "first" / "model.pth")}
    old = load_run(tmp_path / "first")[1]
    for factor in (0.9, 1.1):
        images = read(molecules, ":")
        for atoms in images:
            forces, energy = atoms.get_forces(), atoms.get_potential_energy()
            atoms.positions *= factor
            atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        write(tmp_path / "scaled.xyz", images)
        data = {"val": [molecules], "val_fraction": 0.0}
        new = prepare(tiny(str(tmp_path / "scaled.xyz"), fine_tune=source, data=data)).model
        expected = old.inner_limit.distances * min(factor, 1.0)
        if factor < 1.0:  # all frames are here, a quarter of them was held out before
            assert (new.inner_limit.distances <= expected + 1e-3).all()
            assert (new.inner_limit.distances > 0.5 * expected).all()
        else:
            assert torch.allclose(new.inner_limit.distances.double(), expected, atol=1e-6)


def test_another_method_sets_limits_of_its_own(molecules, tmp_path):
    """What was known of another method at shorter distances than the new labels' is not trusted."""
    images = read(molecules, ":")
    for atoms in images:
        forces, energy = atoms.get_forces(), atoms.get_potential_energy()
        atoms.positions *= 1.1
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    write(tmp_path / "longer.xyz", images)
    longer = str(tmp_path / "longer.xyz")
    train(tiny(molecules, model=PAIRS, epochs=1), tmp_path / "first", quiet=True)
    source = {"model": str(tmp_path / "first"), "refit_energies": True}
    before = load_run(tmp_path / "first")[1]
    after = prepare(tiny(longer, fine_tune=source)).model
    alone = prepare(tiny(longer, model=PAIRS)).model  # from these frames, no other method's
    for model in (after, alone):
        assert (model.inner_limit.distances > 1.05 * before.inner_limit.distances).all()
    assert torch.equal(after.inner_limit.distances, alone.inner_limit.distances)
    assert torch.equal(
        after.reference_energy.repulsion.pair_cutoff, alone.reference_energy.repulsion.pair_cutoff
    )
    pairs = (m.reference_energy.pair.coefficients for m in (before, after))
    assert torch.equal(*pairs)


def test_what_the_network_is_told():
    """Distances from the limit on as they are; below, ever less of what changes, then nothing."""
    limit = InnerLimit([[2.0, 0.0], [0.0, 1.0]])

    def told(r, a, b):
        length = torch.as_tensor(r, dtype=torch.float64)
        species = torch.tensor([a, b])
        src, dst = torch.ones(len(length), dtype=torch.int64), torch.zeros(len(length), dtype=int)
        return limit(species, src, dst, length)

    r = torch.linspace(0.1, 3.0, 200, dtype=torch.float64)
    assert torch.equal(told(r, 0, 1), r)
    for species, at in ((0, 2.0), (1, 1.0)):
        length = r.clone().requires_grad_()
        got = told(length, species, species)
        (slope,) = torch.autograd.grad(got.sum(), length)
        assert torch.equal(got[r >= at], r[r >= at])
        assert got[r <= 0.95 * at].detach().numpy() == pytest.approx(0.975 * at)
        assert not slope[r <= 0.95 * at].any()
        assert ((slope >= 0.0) & (slope <= 1.0)).all()
        for edge in (0.95 * at, at):
            sides = torch.tensor(
                [edge - 1e-6, edge + 1e-6], dtype=torch.float64, requires_grad=True
            )
            (slope,) = torch.autograd.grad(
                told(sides, species, species).sum(), sides, create_graph=True
            )
            (curvature,) = torch.autograd.grad(slope.sum(), sides)
            assert abs(slope[0] - slope[1]) < 1e-9
            assert curvature.abs().max() < 1e-2


def test_a_bond_pushed_together_repels():
    """Acetylacetone's O-H, training down to 0.936 Å; without the limits its network explodes."""
    here = Path(__file__).parent
    calc = EquivariantCalculator(
        here.parent / "examples" / "acac.pth", engine="torch", on_domain_exit="ignore"
    )
    molecule = read(here / "data" / "acac.xyz")
    oxygen, hydrogen = (np.flatnonzero(molecule.numbers == z) for z in (8, 1))
    distances = molecule.get_all_distances()[np.ix_(oxygen, hydrogen)]
    i, j = (
        a[n]
        for a, n in zip(
            (oxygen, hydrogen), np.unravel_index(distances.argmin(), distances.shape), strict=True
        )
    )
    direction = molecule.get_distance(i, j, vector=True) / distances.min()

    def force(r):
        atoms = molecule.copy()
        atoms.positions[j] = atoms.positions[i] + r * direction
        atoms.calc = calc
        return atoms.get_forces()[j] @ direction

    forces = np.array([force(r) for r in np.linspace(0.5, 0.92, 43)])
    assert forces.min() > 3.0
    assert forces.max() < 1000.0
    calc.potential.module.inner_limit.distances.zero_()
    calc.potential.module.crowding.closest.fill_(1e-3)
    assert max(abs(force(r)) for r in np.linspace(0.6, 0.66, 4)) > 1e5


def test_constants_that_a_network_has_no_use_for():
    """The core repulsion of a network without the option ends where it always did."""
    config = NequIPConfig(product_channels=0, num_channels=[4, 3, 2], radial_mlp=[4], readout=2)
    constants = PairConstants([[[1.0] * PairEnergy.TERMS]], [[1.0]], [[1.0]])
    model = build(config, [14], 10.0, [1.0], [0.0], constants)
    reference = model.reference_energy
    assert model.inner_limit is None
    assert reference.pair is None
    assert reference.repulsion.pair_cutoff.tolist() == [[2.22]]


def test_many_elements():
    """Up to the limit; beyond, a sentence."""
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    frames = []
    for n in range(6):
        image = atoms.copy()
        image.rattle(0.1, seed=n)
        image.numbers = 3 + (np.arange(len(atoms)) + n) % MOST_ELEMENTS
        image.calc = LennardJones(epsilon=0.2, sigma=2.3, rc=5.0)
        energy, forces = image.get_potential_energy(), image.get_forces()
        frames.append(Frame(image, energy, forces, None, "x", f"frame {n}"))
    numbers = list(range(3, 3 + MOST_ELEMENTS))
    dataset = FrameDataset(frames, numbers, CUTOFF)
    fit = fit_pairs(dataset, numbers, [0.0] * MOST_ELEMENTS, CUTOFF)
    # of Lennard-Jones forces the repulsion alone
    assert fit.force_rms < 0.7 * np.sqrt(np.mean([f.forces**2 for f in frames]))
    with pytest.raises(InputError, match=f"at most {MOST_ELEMENTS} elements, and the frames have"):
        fit_pairs(dataset, [*numbers, 50], [0.0] * (MOST_ELEMENTS + 1), CUTOFF)


def test_slope_of_the_nuclear_repulsion():
    """That of the core repulsion where its envelope is one to rounding."""
    core = CoreRepulsion([8, 14])
    core.limit([[1e3, 1e3], [1e3, 1e3]])
    r = torch.tensor([0.5, 1.0, 1.7], dtype=torch.float64, requires_grad=True)
    zero, one = torch.zeros(2, dtype=torch.int64)[:1], torch.ones(1, dtype=torch.int64)
    species = torch.tensor([0, 1])
    energy = 2.0 * core(species, one.expand(3), zero.expand(3), r)
    (expected,) = torch.autograd.grad(energy.sum(), r)
    torch.testing.assert_close(zbl_slope(r, 8, 14), expected, rtol=1e-12, atol=0.0)
