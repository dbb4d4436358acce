"""What a model knows of its own errors: features, quadratic forms, the file, the engines."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from potentials import untrained, write
from scipy.spatial.transform import Rotation

from eqcalc import export, uncertainty
from eqcalc.engine.backends import Wanted, open_backend
from eqcalc.errors import InputError
from eqcalc.models.mace import MACEConfig
from eqcalc.models.registry import architectures
from eqcalc.neighbors import neighbor_list
from eqcalc.uncertainty import FrameFeatures
from eqcalc.uncertainty.fit import ellipsoid

RNG = np.random.default_rng(3)


def pairs_of(atoms, cutoff=4.0):
    cell = atoms.cell.array
    return neighbor_list(atoms.positions, cell, atoms.pbc, cutoff).in_space(cell)


def graph(potential, atoms):
    pairs = pairs_of(atoms, potential.cutoff)
    arrays = potential.species_of(atoms.numbers), pairs.vectors(atoms.positions)
    return tuple(map(torch.from_numpy, (*arrays, pairs.edge_src, pairs.edge_dst)))


def two_elements(seed, scale=1.0, rattle=0.1):
    atoms = bulk("Si", a=5.43 * scale, cubic=True)
    atoms.numbers[::3] = 8
    atoms.rattle(rattle, seed=seed)
    return atoms


def features_of(path, frames):
    potential = export.load(path, dtype="float64")
    found = []
    for atoms in frames:
        args = graph(potential, atoms)
        found.append(FrameFeatures(args[0].numpy(), uncertainty.features(potential, *args).numpy()))
    return found


def calibrated(source, target):
    """A copy of an untrained potential whose training was some crystals, and their features."""
    train = features_of(source, [two_elements(seed) for seed in range(40)])
    validation = [
        replace(frame, error=float(0.01 * RNG.standard_normal()))
        for frame in features_of(source, [two_elements(seed) for seed in range(50, 60)])
    ]
    known, _ = uncertainty.fit(train, validation)
    uncertainty.write(source, target, known, {"version": 1})
    return train, known


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uncertainty")
    source = untrained(folder / "plain.pth")
    train, known = calibrated(source, folder / "model.pth")
    return folder / "model.pth", train, known


@pytest.mark.parametrize("name", architectures())
def test_energies_are_linear_in_the_last_weights(name, tmp_path):
    """Features times weights are what the energy loses without the last maps."""
    small = {"cutoff": 4.0, "num_layers": 2, "radial_mlp": [8], "num_channels": 4, "l_max": 1}
    if name in ("nequip", "tfn"):
        small["num_channels"] = [4, 4]
    if name == "invariant":
        del small["l_max"]
    path = write(tmp_path / "model.pth", architectures()[name](**small))
    potential = export.load(path, dtype="float64")
    args = graph(potential, two_elements(1))
    got, features = uncertainty.evaluate_with_features(potential, *args)
    plain = potential.evaluate(*args)
    assert torch.equal(got.energies, plain.energies)
    assert torch.allclose(got.gradient, plain.gradient, atol=1e-12)
    parameters = dict(potential.module.named_parameters())
    weights = [parameters[n] for n in uncertainty.file_weights(potential)]
    assert not any(p.requires_grad for p in potential.module.parameters())
    before = features @ torch.cat([w.reshape(-1) for w in weights])
    for weight in weights:
        weight.data.zero_()
    rest = potential.energies(*args)
    assert features.abs().max() > 0.0
    assert torch.allclose(plain.energies - rest, before, atol=1e-12)


def test_every_readout_has_its_features(tmp_path):
    config = MACEConfig(cutoff=4.0, num_layers=2, radial_mlp=[8], num_channels=4, l_max=1)
    potential = export.load(write(tmp_path / "mace.pth", config), dtype="float64")
    names = uncertainty.file_weights(potential)
    parameters = dict(potential.module.named_parameters())
    assert len(names) == 2
    features = uncertainty.features(potential, *graph(potential, two_elements(1)))
    assert features.shape == (8, sum(parameters[n].numel() for n in names))
    assert (features.abs().max(dim=0).values > 0.0).all()


def test_grade_is_one_at_the_edge_of_the_training(model):
    _, train, known = model
    grades = np.concatenate([known.grades(f.species, f.features) for f in train])
    species = np.concatenate([f.species for f in train])
    for s in (0, 1):
        assert grades[species == s].max() == pytest.approx(1.0, abs=1e-9)


def test_smallest_ellipsoid_of_a_rotated_box():
    """Corners of a box lie on its ellipsoid, whose half axes are sqrt(H) times half the sides."""
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-2, 2) for z in (-0.5, 0.5)])
    inside = RNG.uniform(-1, 1, (500, 3)) * [0.9, 1.8, 0.4]
    turn = Rotation.random(random_state=1).as_matrix()
    points = np.concatenate([corners, inside]) @ turn.T + [5.0, -3.0, 1.0]
    centre, factor = ellipsoid(points)
    assert np.allclose(centre, [5.0, -3.0, 1.0], atol=1e-2)
    half = 1.0 / np.sqrt(np.linalg.eigvalsh(factor @ factor.T))
    assert np.allclose(np.sort(half), np.sqrt(3) * np.array([0.5, 1.0, 2.0]), rtol=2e-2)


def test_ellipsoid_of_points_in_a_plane_and_of_one_point():
    flat = RNG.standard_normal((50, 4)) @ np.diag([1.0, 1.0, 1.0, 0.0])
    centre, factor = ellipsoid(flat)
    assert np.linalg.norm((flat - centre) @ factor, axis=1).max() == pytest.approx(1.0)
    assert np.linalg.norm((flat[0] + [0, 0, 0, 0.1] - centre) @ factor) > 10.0
    centre, factor = ellipsoid(np.ones((3, 4)))
    assert np.isfinite(factor).all()
    assert np.allclose(centre, 1.0)


def test_far_structures_have_grades_far_above_one(model):
    path, _, known = model
    far = features_of(path, [two_elements(1, scale=0.85), two_elements(1, rattle=0.6)])
    near = features_of(path, [two_elements(70)])[0]
    assert known.grades(near.species, near.features).max() < 2.0
    for frame in far:
        assert known.grades(frame.species, frame.features).max() > 10.0


@pytest.mark.parametrize("shape", [(60, 6), (400, 12)])
def test_deviations_fit_the_errors_of_unseen_structures(shape):
    """Errors of a linear model fitted to noisy energies are what its posterior says."""
    count, width = shape
    directions = RNG.standard_normal((width, width)) * np.geomspace(1.0, 0.05, width)
    weights = RNG.standard_normal(width)

    def frames(n, spread):
        return [RNG.standard_normal((4, width)) @ directions.T * spread for _ in range(n)]

    train = frames(count, 1.0)
    sums = np.array([x.sum(axis=0) for x in train])
    noisy = sums @ weights + 0.1 * RNG.standard_normal(count)
    fitted = np.linalg.lstsq(sums, noisy, rcond=None)[0]
    zeros = np.zeros(4, dtype=int)

    def made(features):
        return FrameFeatures(zeros, features, float(features.sum(axis=0) @ (fitted - weights)))

    known, calibration = uncertainty.fit(list(map(made, train)), list(map(made, frames(200, 1.0))))
    assert calibration.errors == 200
    for spread in (1.0, 4.0):
        unseen = list(map(made, frames(2000, spread)))
        std = np.array([known.energy_std(f.species, f.features) for f in unseen])
        ratio = np.array([f.error for f in unseen]) / std
        assert 0.7 < np.sqrt(np.mean(ratio**2)) < 1.4
        assert 0.55 < np.mean(np.abs(ratio) < 1.0) < 0.82


def test_without_errors_there_are_grades_alone(model):
    _, train, known = model
    bare, calibration = uncertainty.fit(train)
    assert calibration.likelihood is None
    assert np.isinf(bare.energies_std(train[0].species, train[0].features)).all()
    assert np.allclose(
        bare.grades(train[0].species, train[0].features),
        known.grades(train[0].species, train[0].features),
    )


def test_what_is_written_is_read_again(model, tmp_path):
    path, _, known = model
    again = uncertainty.read(path)
    assert again.content() == known.content()
    assert export.read_metadata(path)["uncertainty"] == {"version": 1}
    uncertainty.write(path, tmp_path / "twice.pth", known, {"version": 1})
    assert uncertainty.read(tmp_path / "twice.pth").content() == known.content()
    plain = export.load(path.parent / "plain.pth").module
    for a, b in zip(plain.parameters(), export.load(path).module.parameters(), strict=True):
        assert torch.equal(a, b)
    newer = np.array([99], dtype="<i8").tobytes() + known.content()[8:]
    with pytest.raises(InputError, match="newer eqcalc"):
        uncertainty.Uncertainty.from_content(newer)
    with pytest.raises(InputError, match="cut short"):
        uncertainty.Uncertainty.from_content(known.content()[:-8])


def test_unknown_species_have_no_end(model):
    _, train, _ = model
    only = [
        FrameFeatures(f.species[f.species == 1], f.features[f.species == 1], 0.1) for f in train
    ]
    known, _ = uncertainty.fit(only, only)
    frame = train[0]
    for values in (known.grades, known.energies_std):
        got = values(frame.species, frame.features)
        assert np.isinf(got[frame.species == 0]).all()
        assert np.isfinite(got[frame.species == 1]).all()
    assert known.energy_std(frame.species, frame.features) == np.inf


def systems():
    """Crowded, isolated, turned, larger ones."""
    crystal = two_elements(5, rattle=0.2)
    return {
        "crystal": crystal,
        "crowded": two_elements(5, scale=0.6, rattle=0.02),
        "alone": Atoms("SiO", positions=[[0, 0, 0], [9, 0, 0]]),
        "supercell": crystal.repeat((2, 1, 1)),
        "one": Atoms("Si"),
    }


@pytest.mark.parametrize("name", systems())
def test_engines_agree_with_numpy(model, name):
    path, _, known = model
    atoms = systems()[name]
    pairs = pairs_of(atoms)
    wanted = Wanted(gradient=True, features=True, uncertainty=True)
    for dtype, tolerance in (("float64", 1e-7), ("float32", 2e-3)):
        for engine in ("torch", "exact"):
            backend = open_backend(path, engine=engine, dtype=dtype)
            species = backend.potential.species_of(atoms.numbers)
            got = backend.compute(species, atoms.positions, pairs, wanted)
            plain = backend.compute(species, atoms.positions, pairs)
            assert np.array_equal(got.energies, plain.energies)
            assert np.allclose(got.forces, plain.forces, atol=1e-12 if dtype == "float64" else 1e-5)
            direct = features_of(path, [atoms])[0]
            scale = np.abs(direct.features).max()
            assert np.allclose(got.features, direct.features, atol=tolerance * scale)
            expected = known.of_atoms(species, got.features)
            assert np.allclose(got.grades, expected.grades, rtol=tolerance)
            assert np.allclose(got.energies_std, expected.energies_std, rtol=tolerance)
            alone = backend.compute(species, atoms.positions, pairs, Wanted(False, False, True))
            assert alone.forces is None
            assert alone.features is None
            assert np.allclose(alone.grades, got.grades, rtol=1e-5)


def test_invariance(model):
    path, *_ = model
    backend = open_backend(path, engine="exact", dtype="float64")

    def values(atoms):
        species = backend.potential.species_of(atoms.numbers)
        got = backend.compute(species, atoms.positions, pairs_of(atoms), Wanted(False, False, True))
        return np.stack([got.grades, got.energies_std])

    crystal = two_elements(5, rattle=0.2)
    expected = values(crystal)
    turn = Rotation.random(random_state=4).as_matrix()
    for matrix in (turn, -turn):
        turned = crystal.copy()
        turned.set_cell(crystal.cell.array @ matrix.T)
        turned.positions = crystal.positions @ matrix.T
        assert np.allclose(values(turned), expected, rtol=1e-8)
    order = RNG.permutation(len(crystal))
    assert np.allclose(values(crystal[order]), expected[:, order], rtol=1e-8)
    doubled = crystal.repeat((1, 2, 1))
    assert np.allclose(values(doubled), np.tile(expected, 2), rtol=1e-8)


def test_files_without_say_what_to_do(potential_path, crystal):
    for engine in ("torch", "exact"):
        backend = open_backend(potential_path, engine=engine)
        species = backend.potential.species_of(crystal.numbers)
        wanted = Wanted(False, False, True)
        with pytest.raises(InputError, match="has no uncertainty: run 'eqcalc calibrate"):
            backend.compute(species, crystal.positions, pairs_of(crystal), wanted)
        got = backend.compute(species, crystal.positions, pairs_of(crystal), Wanted(features=True))
        assert got.features is not None
        assert got.grades is None
