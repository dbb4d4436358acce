"""Neighbour lists edge by edge against all images within reach, for any cell."""

import itertools
from unittest.mock import patch

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.neighborlist import neighbor_list as ase_neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st

from eqcalc import neighbors
from eqcalc.errors import InputError
from eqcalc.neighbors import Pairs, VerletList, neighbor_list


def brute_force(positions, cell, pbc, cutoff):
    """{(i, j, shift): vector} by trying every image that can be near."""
    pairs = {}
    cell = np.where(np.asarray(pbc)[:, None], cell, 0.0)
    inverse = np.linalg.pinv(cell)  # of the periodic vectors; |n_k + f_k| <= cutoff |b_k|
    scaled = positions @ inverse
    apart = np.ptp(scaled, axis=0) + cutoff * np.linalg.norm(inverse, axis=0)
    reach = np.where(pbc, np.ceil(apart + 1e-9), 0).astype(int)
    for shift in itertools.product(*(range(-r, r + 1) for r in reach)):
        vectors = positions[None, :] + np.array(shift) @ cell - positions[:, None]
        near = np.linalg.norm(vectors, axis=2) < cutoff
        if not any(shift):
            np.fill_diagonal(near, val=False)
        for i, j in np.argwhere(near):
            pairs[int(i), int(j), *shift] = vectors[i, j]
    return pairs


def assert_same(atoms_positions, cell, pbc, cutoff):
    expected = brute_force(atoms_positions, cell, pbc, cutoff)
    got = neighbor_list(atoms_positions, cell, pbc, cutoff)
    vectors = got.vectors(atoms_positions, np.asarray(cell, dtype=float))
    found = {
        (int(i), int(j), *map(int, s)): v
        for i, j, s, v in zip(got.edge_dst, got.edge_src, got.cell_shift, vectors, strict=True)
    }
    assert found.keys() == expected.keys()
    assert len(found) == len(vectors)
    for key, vector in expected.items():
        assert np.abs(found[key] - vector).max() < 1e-9
    assert (np.diff(got.edge_dst) >= 0).all()


coordinate = st.floats(-6.0, 6.0)

#: both ways to search must do, whichever a structure would get
SEARCHES = {"bins": np.inf, "tree": 0.0}


def without_border_cases(positions, cell, pbc, cutoff):
    """Whether no pair is so near to the cutoff that rounding decides."""
    pairs = brute_force(positions, cell, pbc, cutoff + 1e-6)
    distances = np.array([np.linalg.norm(v) for v in pairs.values()])
    return not len(distances) or np.abs(distances - cutoff).min() > 1e-9


@pytest.mark.parametrize("search", SEARCHES)
@settings(max_examples=40, deadline=None)
@given(
    positions=st.lists(st.tuples(coordinate, coordinate, coordinate), min_size=1, max_size=4),
    lengths=st.tuples(*[st.floats(0.8, 7.0)] * 3),
    tilts=st.tuples(*[st.floats(-2.0, 2.0)] * 3),
    skew=st.tuples(*[st.integers(-2, 2)] * 3),
    pbc=st.tuples(*[st.booleans()] * 3),
    left_handed=st.booleans(),
    without_vacuum=st.booleans(),
    cutoff=st.floats(1.0, 4.0),
)
def test_any_cell(
    search, positions, lengths, tilts, skew, pbc, left_handed, without_vacuum, cutoff
):
    """Thin cells, sheared by whole vectors too; without vectors where they are not periodic."""
    cell = np.diag(lengths) + np.array([[0, 0, 0], [tilts[0], 0, 0], [tilts[1], tilts[2], 0]])
    cell = np.array([[1, 0, 0], [skew[0], 1, 0], [skew[1], skew[2], 1]]) @ cell
    if left_handed:
        cell = cell[[1, 0, 2]]
    if without_vacuum:
        cell = np.where(np.array(pbc)[:, None], cell, 0.0)
    positions = np.array(positions)
    if without_border_cases(positions, cell, pbc, cutoff):
        with patch.object(neighbors, "MOST_BINS", SEARCHES[search]):
            assert_same(positions, cell, pbc, cutoff)


NAMED = {
    "primitive cell, edge far below the cutoff": (bulk("Si"), 6.0),
    "one atom": (bulk("Cu"), 5.0),
    "flat cell": (Atoms("Si2", [[0, 0, 0], [1, 1, 0.4]], cell=[9, 9, 1.1], pbc=True), 4.0),
    "molecule without a cell": (molecule("CH3CH2OH"), 3.0),
    "slab with no vector across": (
        Atoms("Si2", [[0, 0, 0], [1, 1, 9]], cell=[[3, 0, 0], [1, 4, 0], [0, 0, 0]], pbc=[1, 1, 0]),
        5.0,
    ),
    "wire along b": (
        Atoms(
            "Si2", [[0, 0, 0], [5, 1, 0]], cell=[[0, 0, 0], [0, 2.5, 0], [0, 0, 0]], pbc=[0, 1, 0]
        ),
        6.0,
    ),
    "atoms far outside": (
        Atoms("Si3", [[15, -11, 4], [0, 0, 0], [-8, 12, -7]], cell=[4, 5, 6], pbc=True),
        4.0,
    ),
    "very skewed": (
        Atoms("Si", cell=[[4, 0, 0], [3.9, 2, 0], [3.5, 1.8, 3]], pbc=True),
        5.0,
    ),
    "isolated atom": (Atoms("Si"), 5.0),
    "far apart": (Atoms("Si2", [[0, 0, 0], [0, 0, 400.0]]), 5.0),
    "thinner than an atom": (Atoms("Si", cell=[0.4, 7, 7], pbc=True), 4.0),
    "on the faces of the cell": (
        Atoms("Si3", [[0, -1e-17, 3], [3, 3 - 1e-16, 0], [1.5, 3, -3]], cell=[3, 3, 3], pbc=True),
        3.5,
    ),
    "a vector turned back on itself": (
        Atoms("Si2", [[0, 0, 0], [1, 1, 1]], cell=[[4, 0, 0], [-7.7, 3, 0], [9, -8, 2]], pbc=True),
        4.5,
    ),
    "wire along a skewed vector": (
        Atoms("Si2", [[0, 0, 0], [9, 9, 9]], cell=[[0, 0, 0], [0, 0, 0], [1, 2, 2]], pbc=[0, 0, 1]),
        5.0,
    ),
    "slab periodic across b": (
        Atoms(
            "Si2", [[0, 0, 0], [3, 70, 1]], cell=[[3, 9, 0], [0, 5, 0], [0, 1, 4]], pbc=[1, 0, 1]
        ),
        4.0,
    ),
}


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("name", NAMED)
def test_named_systems(name, search, monkeypatch):
    monkeypatch.setattr(neighbors, "MOST_BINS", SEARCHES[search])
    atoms, cutoff = NAMED[name]
    assert_same(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)


@pytest.mark.parametrize("name", NAMED)
def test_both_edges_of_a_pair_have_its_number(name):
    atoms, cutoff = NAMED[name]
    got = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
    numbers, vectors = got.pair_numbers(), got.vectors(atoms.positions, atoms.cell.array)
    for n in range(len(got.edge_dst) // 2):
        a, b = np.flatnonzero(numbers == n)
        assert (got.edge_src[a], got.edge_dst[a]) == (got.edge_dst[b], got.edge_src[b])
        assert np.abs(vectors[a] + vectors[b]).max() < 1e-12
    new = np.flatnonzero(np.diff(np.maximum.accumulate(numbers), prepend=-1))
    assert np.array_equal(numbers[new], np.arange(len(got.edge_dst) // 2))


def of_ase(atoms, cutoff):
    i, j, s = ase_neighbor_list("ijS", atoms, cutoff)
    return set(zip(i.tolist(), j.tolist(), map(tuple, s.tolist()), strict=True))


@pytest.mark.parametrize("pbc", list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize("shape", ["cubic", "skewed, left-handed", "without vacuum"])
def test_equals_ase(pbc, shape):
    atoms = bulk("Si", cubic=True).repeat((2, 1, 1))
    atoms.rattle(0.1, seed=3)
    if shape == "skewed, left-handed":
        shear = np.array([[1, 0, 0], [1.7, 1, 0], [-1.3, 0.8, 1]])
        atoms.set_cell(shear[[1, 0, 2]] @ atoms.cell.array)
    elif shape == "without vacuum":
        atoms.set_cell(np.where(np.array(pbc)[:, None], atoms.cell.array, 0.0))
    atoms.pbc = pbc
    atoms.positions += [11.0, -3.0, 40.0]
    ours = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, 5.0)
    assert as_set(ours) == of_ase(atoms, 5.0)


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("distance", [1e3, 1e5, 1e7])
def test_atoms_lost_in_space(distance, periodic, monkeypatch):
    """An atom that flew away costs no memory."""
    far = [distance] * 3
    positions = np.array([[0, 0, 0], [1.5, 0, 0], far, np.add(far, [1, 0, 0])])
    cell = np.eye(3) * 3 * distance if periodic else np.zeros((3, 3))
    monkeypatch.setattr(neighbors, "_search_bins", None)  # would take gigabytes
    pairs = neighbor_list(positions, cell, [periodic] * 3, 5.0)
    assert as_set(pairs) == {(i, j, (0, 0, 0)) for i, j in ((0, 1), (1, 0), (2, 3), (3, 2))}


def test_no_atoms():
    empty = neighbor_list(np.empty((0, 3)), np.eye(3), [True] * 3, 4.0)
    assert len(empty.edge_dst) == 0


def as_set(pairs):
    columns = pairs.edge_dst, pairs.edge_src, map(tuple, pairs.cell_shift.tolist())
    return set(zip(*(list(c) for c in columns), strict=True))


def test_verlet_list_is_complete_while_atoms_move():
    rng = np.random.default_rng(0)
    atoms = bulk("Si", cubic=True).repeat(2)
    verlet = VerletList(4.0, 0.6)
    for _ in range(40):
        atoms.positions += rng.normal(scale=0.03, size=(len(atoms), 3))
        pairs, vectors = verlet.update(atoms)
        fresh = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, 4.0)
        assert as_set(pairs) == as_set(fresh)
        assert np.allclose(vectors, pairs.vectors(atoms.positions, atoms.cell.array))
    assert 1 < verlet.num_builds < 40


def test_verlet_list_is_complete_while_the_cell_changes():
    rng = np.random.default_rng(0)
    atoms = bulk("Si", cubic=True).repeat(2)
    verlet = VerletList(4.0, 0.6)
    for _ in range(40):
        strain = np.eye(3) + rng.normal(scale=0.01, size=(3, 3))
        atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        atoms.positions += rng.normal(scale=0.01, size=(len(atoms), 3))
        pairs, _ = verlet.update(atoms)
        fresh = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, 4.0)
        assert as_set(pairs) == as_set(fresh)
    assert 1 < verlet.num_builds < 40


STEPS = st.lists(
    st.sampled_from(
        ["jiggle", "strain", "turn", "wrap", "unwrap", "other vectors", "cell alone", "pbc", "jump"]
    ),
    min_size=4,
    max_size=12,
)


def act(atoms, what, rng):
    """One thing that simulations and users do between two energies."""
    if what == "jiggle":
        atoms.positions += rng.normal(scale=0.03, size=(len(atoms), 3))
    elif what == "strain":
        strain = np.eye(3) + rng.normal(scale=0.02, size=(3, 3))
        atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
    elif what == "turn":
        atoms.rotate(rng.uniform(0, 360), rng.normal(size=3), rotate_cell=True)
    elif what == "wrap":
        atoms.wrap()
    elif what == "unwrap":
        atoms.positions += (rng.integers(-2, 3, size=(len(atoms), 3)) * atoms.pbc) @ atoms.cell
    elif what == "other vectors":  # of the same lattice, left-handed every other time
        atoms.set_cell(np.array([[0, 1, 0], [1, 1, 0], [0, 0, 1]]) @ atoms.cell.array)
    elif what == "cell alone":
        atoms.set_cell(atoms.cell.array * rng.uniform(0.95, 1.05, size=3))
    elif what == "pbc":
        atoms.pbc = rng.integers(0, 2, size=3)
    else:
        atoms.positions[rng.integers(len(atoms))] += rng.normal(scale=0.5, size=3)


@settings(max_examples=40, deadline=None)
@given(steps=STEPS, seed=st.integers(0, 10_000), skin=st.sampled_from([0.0, 0.3, 1.0, 2.5]))
def test_verlet_list_is_complete_whatever_happens(steps, seed, skin):
    rng = np.random.default_rng(seed)
    atoms = bulk("Si", cubic=True)
    verlet = VerletList(4.0, skin)
    verlet.update(atoms)
    for what in steps:
        act(atoms, what, rng)
        pairs, vectors = verlet.update(atoms)
        fresh = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, 4.0)
        assert as_set(pairs) == as_set(fresh), what
        in_space = verlet.pairs(atoms)
        near = np.linalg.norm(in_space.vectors(atoms.positions), axis=1) < 4.0
        assert np.abs(in_space.vectors(atoms.positions)[near] - vectors).max(initial=0) < 1e-11


def test_a_rigid_turn_needs_no_new_list():
    atoms = bulk("Si", cubic=True)
    verlet = VerletList(4.0, 0.3)
    first = verlet.candidates(atoms)
    atoms.rotate(70.0, (1, 2, 3), rotate_cell=True)
    assert verlet.candidates(atoms) is first


def test_structures_side_by_side():
    atoms = [bulk("Si", cubic=True), molecule("CH3CH2OH"), Atoms("Si"), bulk("Cu")]
    lists = [neighbor_list(a.positions, a.cell.array, a.pbc, 3.0) for a in atoms]
    parts = [pairs.in_space(a.cell.array) for pairs, a in zip(lists, atoms, strict=True)]
    sizes = [len(a) for a in atoms]
    joined = Pairs.side_by_side(parts, sizes)
    vectors = joined.vectors(np.concatenate([a.positions for a in atoms]))
    expected = [p.vectors(a.positions) for p, a in zip(parts, atoms, strict=True)]
    assert np.array_equal(vectors, np.concatenate(expected))
    assert (np.diff(joined.edge_dst) >= 0).all()
    structure = np.repeat(np.arange(4), sizes)
    assert np.array_equal(structure[joined.edge_dst], structure[joined.edge_src])


def test_verlet_list_survives_wrapping_and_other_structures():
    atoms = bulk("Si", cubic=True)
    atoms.positions -= 0.05
    verlet = VerletList(4.0, 0.5)
    verlet.update(atoms)
    atoms.wrap()
    pairs, vectors = verlet.update(atoms)
    assert verlet.num_builds == 2
    fresh = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, 4.0)
    assert as_set(pairs) == as_set(fresh)
    assert len(vectors) == len(fresh.edge_dst)
    atoms.pbc = [True, True, False]
    assert as_set(verlet.update(atoms)[0]) < as_set(fresh)
    del atoms[0]
    verlet.update(atoms)
    assert verlet.num_builds == 4


@pytest.mark.parametrize(
    ("atoms", "sentence"),
    [
        (Atoms("Si", [[0, np.nan, 0]]), "position of atom 0 is .* not a finite number"),
        (Atoms("Si", cell=[[1, 0, 0], [2, 0, 0], [0, 0, 1]], pbc=True), "linearly dependent"),
        (Atoms("Si", pbc=[True, False, False]), "periodic along a, but"),
        (Atoms("Si", cell=[np.inf, 1, 1], pbc=True), "not finite numbers"),
    ],
)
def test_impossible_structures(atoms, sentence):
    with pytest.raises(InputError, match=sentence):
        neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, 3.0)
