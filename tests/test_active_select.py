"""What is chosen of a pool, what is left out, and that a choice is worth more than chance."""

import json

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read, write
from matplotlib.image import imread
from potentials import calibrated, untrained
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from eqcalc import EquivariantCalculator, InputError
from eqcalc.active.choose import METHODS, d_optimal, farthest, novelty, whitened
from eqcalc.active.select import select
from eqcalc.cli import app


def clouds(count, seed=0, elements=(1, 8)):
    """Frames of five atoms in a space of features; the tenth of them are far from the rest."""
    rng = np.random.default_rng(seed)
    return [
        {z: rng.normal(size=(3, 4)) * (5.0 if n % 10 == 9 else 1.0) for z in elements}
        for n in range(count)
    ]


def information(frames):
    """sum over elements of log det (1 + sum X^T X)."""
    total = 0.0
    for z in {z for f in frames for z in f}:
        x = np.concatenate([f[z] for f in frames if z in f])
        total += np.linalg.slogdet(np.eye(x.shape[1]) + x.T @ x)[1]
    return total


def test_d_optimal_takes_what_adds_most_each_time():
    """As a plain search over all that are left does."""
    pool, train = clouds(40), clouds(8, seed=1)
    white_pool, white_train = whitened(pool, train)
    found = d_optimal(pool, train, 6)
    expected: list[int] = []
    while len(expected) < 6:
        taken = [*white_train, *(white_pool[k] for k in expected)]
        left = [k for k in range(40) if k not in expected]
        expected.append(max(left, key=lambda k: information([*taken, white_pool[k]])))
    assert found == expected
    assert d_optimal(pool, train, 100)[:6] == expected
    assert sorted(d_optimal(pool, train, 100)) == list(range(40))


def test_d_optimal_does_not_depend_on_units_or_order_of_features():
    pool, train = clouds(40), clouds(8, seed=1)
    mixing = np.random.default_rng(5).normal(size=(4, 4)) * [1.0, 10.0, 0.1, 3.0]

    def mixed(frames):
        return [{z: x @ mixing + 7.0 for z, x in f.items()} for f in frames]

    assert d_optimal(mixed(pool), mixed(train), 10) == d_optimal(pool, train, 10)


def test_farthest_goes_where_nothing_is_known():
    pool, train = clouds(40), clouds(8, seed=1)
    found = farthest(pool, train, 4)
    assert {k % 10 for k in found} == {9}
    assert found[0] == int(novelty(pool, train).argmax())
    after = novelty(pool, [*train, *(pool[k] for k in found)])
    assert after[found] == pytest.approx(0.0, abs=1e-6)
    assert sorted(farthest(pool, [], 99)) == list(range(40))


def test_an_element_that_the_training_lacks_is_news():
    pool, train = clouds(20), clouds(8, seed=1)
    pool[3][26] = np.full((1, 4), 0.1)
    train_alone = [{1: f[1]} for f in train]
    assert d_optimal(pool, train, 1) == d_optimal(pool, train, 1)
    assert np.isfinite(novelty(pool, train_alone)).all()
    assert np.isfinite(novelty(pool, [])).all()


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("select")
    members = [untrained(folder / f"{k}.pth", seed=k) for k in range(2)]
    (folder / "committee.json").write_text(json.dumps({"members": [p.name for p in members]}))
    return members


def calculator(model):
    return EquivariantCalculator(model, engine="torch")


def crystal(rattle, seed):
    atoms = bulk("Si", cubic=True)
    atoms.numbers[::2] = 8
    atoms.rattle(rattle, seed=seed)
    return atoms


def turned(atoms, seed):
    """The same structure, turned, moved, its atoms in another order."""
    rotation = Rotation.random(rng=np.random.default_rng(seed)).as_matrix()
    order = np.random.default_rng(seed).permutation(len(atoms))
    copy = atoms[order]
    copy.set_cell(atoms.cell.array @ rotation.T)
    copy.positions = copy.positions @ rotation.T + 0.3
    return copy


@pytest.fixture(scope="module")
def pool():
    """Twelve cool frames, four hot ones, then copies: of two cool frames and two of training."""
    frames = [crystal(0.03, k) for k in range(12)] + [crystal(0.3, 50 + k) for k in range(4)]
    return [*frames, turned(frames[0], 1), frames[13].copy(), *map(turned, train()[:2], (2, 3))]


def train():
    return [crystal(0.03, 100 + k) for k in range(6)]


def named(frames, name="pool.xyz"):
    return [(atoms, f"{name}, frame {k}") for k, atoms in enumerate(frames)]


@pytest.mark.parametrize("method", METHODS)
def test_copies_are_never_chosen(paths, pool, method):
    calc = calculator(paths[0])
    found = select(calc, named(pool), named(train()), number=99, method=method)
    assert found.copies_of_training == [18, 19]
    assert found.copies == [16, 17]
    assert sorted(found.chosen) == list(range(16))
    assert "16 of 20 frames; left out: 2 are copies of training frames, 2 are copies" in str(found)
    assert np.isnan(found.novelty[16:]).all()


@pytest.mark.parametrize("method", ["d-optimal", "farthest"])
def test_hot_frames_come_first_and_copies_of_the_training_would_not(paths, pool, method):
    calc = calculator(paths[0])
    found = select(calc, named(pool), named(train()), number=4, method=method)
    assert sorted(found.chosen) == [12, 13, 14, 15]
    more = named([*train(), *pool[12:16]], "train.xyz")
    rest = select(calc, named(pool), more, number=4, method=method)
    assert set(rest.chosen) < set(range(1, 12)) | {0}


def test_a_choice_does_not_depend_on_chance_and_random_on_its_seed(paths, pool):
    def chosen(method, seed):
        calc = calculator(paths[0])
        found = select(calc, named(pool), named(train()), number=5, method=method, seed=seed)
        return found.chosen

    for method in ("d-optimal", "farthest"):
        assert chosen(method, 1) == chosen(method, 2)
    assert chosen("random", 1) == chosen("random", 1) != chosen("random", 2)


def test_window_of_a_committee(paths, pool):
    calc = calculator(paths)
    deviation = []
    for atoms in pool[:16]:
        copy = atoms.copy()
        copy.calc = calc
        deviation.append(calc.get_property("forces_deviation", copy).max())
    low, high = np.mean(sorted(deviation)[3:5]), np.mean(sorted(deviation)[-3:-1])
    found = select(calc, named(pool), named(train()), number=99, window=(low, high))
    assert found.measure.values[:16] == pytest.approx(deviation, rel=1e-4)
    assert sorted(found.chosen) == [k for k, d in enumerate(deviation) if low <= d <= high]
    assert (len(found.below), len(found.above)) == (4, 2)
    with pytest.raises(InputError, match=r"None of the 20 frames is left.*16 are below"):
        select(calc, named(pool), named(train()), number=9, window=(1e9, None))
    with pytest.raises(InputError, match="window 2 to 1 is empty"):
        select(calc, named(pool), named(train()), number=9, window=(2.0, 1.0))
    alone = calculator(paths[0])
    with pytest.raises(InputError, match="does not say how uncertain"):
        select(alone, named(pool), named(train()), number=9, window=(1.0, None))


def test_what_the_model_cannot_compute_is_named(paths, pool):
    gold, overlapping = crystal(0.03, 70), crystal(0.03, 71)
    gold.numbers[0] = 79
    overlapping.positions[1] = overlapping.positions[0]
    frames = named([gold, *pool[:4], overlapping])
    lone = Atoms("Xe", info={"config_type": "IsolatedAtom"})
    found = select(calculator(paths[0]), frames, [(lone, "x")], number=9)
    assert sorted(found.chosen) == [1, 2, 3, 4]
    assert set(found.impossible) == {"pool.xyz, frame 0", "pool.xyz, frame 5"}
    assert "Au" in found.impossible["pool.xyz, frame 0"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"number": 0}, "number of frames is 0"),
        ({"method": "d_optimal"}, r"no method 'd_optimal' \(did you mean 'd-optimal'"),
    ],
)
def test_wrong_input(paths, pool, options, sentence):
    with pytest.raises(InputError, match=sentence):
        select(calculator(paths[0]), named(pool), **{"number": 3, **options})


def test_no_frames(paths):
    with pytest.raises(InputError, match="no frames to choose from"):
        select(calculator(paths[0]), [], number=3)


def drawn(path):
    """The share of the picture that is not white."""
    return float((imread(path)[..., :3].min(axis=2) < 0.9).mean())


@pytest.mark.slow
def test_command(paths, pool, tmp_path):
    for k, atoms in enumerate(pool):
        copy = atoms.copy()
        copy.info.update(config_type=f"hot_{k}", REF_energy=-3.0)
        write(tmp_path / "pool.xyz", copy, append=True, format="extxyz")
    write(tmp_path / "train.xyz", train(), format="extxyz")
    arguments = [
        *("select", str(paths[0].parent), str(tmp_path / "pool.xyz"), "-n", "5"),
        *("--train", str(tmp_path / "train.xyz"), "-o", str(tmp_path / "chosen.xyz")),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "chosen.xyz: 5 of 20 frames; left out: 2 are copies of training" in result.output
    chosen = read(tmp_path / "chosen.xyz", ":")
    assert len(chosen) == 5
    committee = calculator(paths)
    for frame in chosen:
        place = int(frame.info["selected_from"].split()[-1])
        assert frame.positions == pytest.approx(pool[place].positions, abs=1e-7)
        assert frame.info["config_type"] == f"hot_{place}"
        assert "REF_energy" not in frame.info
        frame.calc = committee
        worst = committee.get_property("forces_deviation", frame).max()
        assert frame.info["forces_deviation"] == pytest.approx(worst, rel=1e-3)
    assert 0.01 < drawn(tmp_path / "chosen.png") < 0.5
    result = CliRunner().invoke(
        app, [*arguments[:-1], str(tmp_path / "again.xyz"), "--keep-labels"]
    )
    assert read(tmp_path / "again.xyz", 0).info["REF_energy"] == -3.0
    alone = ["select", str(paths[0]), *arguments[2:5], "-o", str(tmp_path / "alone.xyz")]
    result = CliRunner().invoke(app, [*alone, "--plot", str(tmp_path / "alone_picture.png")])
    assert result.exit_code == 0, result.output
    assert 0.01 < drawn(tmp_path / "alone_picture.png") < 0.5
    result = CliRunner().invoke(app, [*alone, "--plot", str(tmp_path / "a.txt")])
    assert "must end in .png" in str(result.exception)


def test_window_of_grades(paths, pool, tmp_path):
    """By itself it begins at the edge of the training."""
    known = [crystal(0.03, 200 + k) for k in range(30)]
    path = calibrated(paths[0], tmp_path / "graded.pth", known)
    calc = calculator(path)
    grades = [r["grade"].max() for r in calc.evaluate(pool[:16], uncertainty=True)]
    assert min(grades[12:]) > max(grades[:12])
    found = select(calc, named(pool), named(train()), number=99)
    assert found.measure.values[:16] == pytest.approx(grades, rel=1e-4)
    assert sorted(found.chosen) == [k for k, g in enumerate(grades) if g >= 1.0]
    assert found.window == (1.0, np.inf)
    low, high = np.mean(sorted(grades)[3:5]), np.mean(sorted(grades)[-3:-1])
    found = select(calc, named(pool), named(train()), number=99, window=(low, high))
    assert sorted(found.chosen) == [k for k, g in enumerate(grades) if low <= g <= high]
