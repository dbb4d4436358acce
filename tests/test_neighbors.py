"""Neighbour lists edge by edge against all images within reach, for any cell."""

import itertools

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.neighborlist import neighbor_list as ase_neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st

from eqcalc.errors import InputError
from eqcalc.neighbors import VerletList, neighbor_list


def brute_force(positions, cell, pbc, cutoff):
    """{(i, j, shift): vector} by trying every image that can be near."""
    pairs = {}
    cell = np.where(np.asarray(pbc)[:, None], cell, 0.0)
    spread = np.ptp(positions, axis=0).max() if len(positions) else 0.0
    reach = [0, 0, 0]
    if any(pbc):
        inverse = np.linalg.pinv(cell)
        width = cutoff + np.sqrt(3) * spread
        reach = [
            int(np.ceil(width * np.linalg.norm(inverse[:, k]))) + 1 if pbc[k] else 0
            for k in range(3)
        ]
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


@settings(max_examples=60, deadline=None)
@given(
    positions=st.lists(st.tuples(coordinate, coordinate, coordinate), min_size=1, max_size=4),
    lengths=st.tuples(*[st.floats(1.5, 7.0)] * 3),
    tilts=st.tuples(*[st.floats(-2.0, 2.0)] * 3),
    pbc=st.tuples(*[st.booleans()] * 3),
    left_handed=st.booleans(),
    cutoff=st.floats(1.0, 4.0),
)
def test_any_cell(positions, lengths, tilts, pbc, left_handed, cutoff):
    cell = np.diag(lengths) + np.array([[0, 0, 0], [tilts[0], 0, 0], [tilts[1], tilts[2], 0]])
    if left_handed:
        cell = cell[[1, 0, 2]]
    positions = np.array(positions)
    pairs = brute_force(positions, cell, pbc, cutoff + 1e-6)
    distances = np.array([np.linalg.norm(v) for v in pairs.values()])
    if len(distances) and np.abs(distances - cutoff).min() < 1e-9:
        return  # on the border rounding decides
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
        Atoms("Si3", [[25, -31, 4], [0, 0, 0], [-8, 90, -17]], cell=[4, 5, 6], pbc=True),
        4.0,
    ),
    "very skewed": (
        Atoms("Si", cell=[[4, 0, 0], [3.9, 2, 0], [3.5, 1.8, 3]], pbc=True),
        5.0,
    ),
    "isolated atom": (Atoms("Si"), 5.0),
    "far apart": (Atoms("Si2", [[0, 0, 0], [0, 0, 400.0]]), 5.0),
}


@pytest.mark.parametrize("name", NAMED)
def test_named_systems(name):
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


def test_equals_ase():
    atoms = bulk("Si", cubic=True).repeat((2, 1, 1))
    atoms.rattle(0.1, seed=3)
    ours = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, 5.0)
    i, j, s = ase_neighbor_list("ijS", atoms, 5.0)
    theirs = set(zip(i.tolist(), j.tolist(), map(tuple, s.tolist()), strict=True))
    shifts = map(tuple, ours.cell_shift.tolist())
    assert theirs == set(zip(ours.edge_dst.tolist(), ours.edge_src.tolist(), shifts, strict=True))


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
