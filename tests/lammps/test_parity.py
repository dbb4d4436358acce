"""LAMMPS equals Python: energies, forces, pressure and atomic virials, on any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from parity import (
    DUMP,
    DUMP_DIGITS,
    ELEMENTS,
    SYSTEMS,
    assert_equal,
    by_lammps,
    by_python,
    pair,
    read_dump,
    script,
    silica_like,
)


@pytest.mark.parametrize("system", SYSTEMS)
def test_one_rank(system, model, tmp_path):
    atoms = SYSTEMS[system]()
    got, thermo, _ = by_lammps(script(atoms, tmp_path, pair(model)))
    expected = by_python(model, atoms)
    assert_equal(got, expected)
    assert thermo["PotEng"][-1] == pytest.approx(expected.energy, rel=1e-12)
    # the parts sum up to the whole
    np.testing.assert_allclose(got.energy, thermo["PotEng"][-1], rtol=1e-12)
    np.testing.assert_allclose(
        got.symmetric.sum(0), got.virial, atol=1e-9 * np.abs(got.virial).max()
    )


@pytest.mark.parametrize(
    ("system", "ranks", "before"),
    [
        ("silica_like", 1, "newton off"),
        ("silica_like", 2, "newton on"),
        ("silica_like", 3, "newton off"),
        ("silica_like", 4, "comm_style tiled"),
        ("triclinic", 2, "comm_style tiled"),
        ("triclinic", 4, "newton off"),
        ("slab", 3, "newton on"),
        ("slab", 2, "newton off"),
        ("molecule", 2, "newton off"),
        ("molecule", 4, "newton on"),
        ("tiny", 2, "newton on"),
        ("tiny", 4, "newton off"),
        ("needle", 3, "newton on"),
        ("corner", 4, "newton on"),
        ("corner", 3, "newton off"),
        ("silica_like", 8, "newton on"),
        ("triclinic", 8, "newton off"),
        ("slab", 8, "comm_style tiled"),
    ],
)
def test_other_ranks(system, ranks, before, model, tmp_path):
    atoms = SYSTEMS[system]()
    got, _, _ = by_lammps(script(atoms, tmp_path, pair(model), before=(before,)), ranks)
    assert_equal(got, by_python(model, atoms))


@pytest.mark.parametrize("engine", ["fused", "exact", "torch"])
@pytest.mark.parametrize(("system", "ranks"), [("silica_like", 1), ("slab", 2), ("triclinic", 4)])
def test_products_of_messages(system, ranks, engine, products, tmp_path):
    atoms = SYSTEMS[system]()
    path = script(atoms, tmp_path, pair(products, f"engine {engine}"))
    got, _, output = by_lammps(path, ranks)
    assert f"engine {engine}" in output
    assert_equal(got, by_python(products, atoms))


@pytest.mark.parametrize("option", ["isolated", "pairs"])
@pytest.mark.parametrize("engine", ["fused", "exact", "torch"])
@pytest.mark.parametrize(("system", "ranks"), [("molecule", 1), ("slab", 2), ("triclinic", 4)])
def test_options(system, ranks, engine, option, request, tmp_path):
    """Exact isolated atoms; a pair potential."""
    atoms, path = SYSTEMS[system](), request.getfixturevalue(option)
    got, _, _ = by_lammps(script(atoms, tmp_path, pair(path, f"engine {engine}")), ranks)
    assert_equal(got, by_python(path, atoms))
    if (system, option) == ("molecule", "isolated"):  # its last atom, oxygen, is alone
        assert got.energy == pytest.approx(by_python(path, atoms[:-1]).energy - 2.0, abs=1e-12)


@pytest.mark.parametrize(
    ("architecture", "system", "ranks"),
    [
        ("mace", "triclinic", 4),
        ("mace with densities", "silica_like", 1),
        ("mace with densities", "slab", 2),
        ("mace with densities", "triclinic", 4),
        ("tfn", "silica_like", 1),
        ("solid harmonics", "molecule", 1),
        ("solid harmonics", "slab", 2),
        ("solid harmonics", "triclinic", 4),
        ("esen", "silica_like", 1),
        ("esen", "slab", 2),
        ("esen", "triclinic", 4),
        ("equiformer", "slab", 2),
        ("equiformer", "triclinic", 4),
        ("equiformer_v2", "molecule", 1),
        ("equiformer_v2", "slab", 2),
        ("equiformer_v2", "triclinic", 4),
    ],
)
def test_architectures(architecture, system, ranks, of_architecture, tmp_path):
    atoms, path = SYSTEMS[system](), of_architecture(architecture)
    got, _, output = by_lammps(script(atoms, tmp_path, pair(path)), ranks)
    assert_equal(got, by_python(path, atoms))
    assert "engine fused" in output


def test_balanced_tiles(model, tmp_path):
    """Tiles of unequal size, made by recursive bisection around an uneven density."""
    atoms = silica_like()
    del atoms[atoms.positions[:, 0] > 7.0]
    before, after = ("comm_style tiled",), ("balance 1.0 rcb", "run 0")
    got, _, _ = by_lammps(script(atoms, tmp_path, pair(model), before=before, after=after), 4)
    assert_equal(got, by_python(model, atoms))


@pytest.mark.parametrize("ranks", [1, 3])
def test_single_precision(ranks, model, tmp_path):
    """A float64 file run in float32, whose messages are packed two floats to a double."""
    atoms = silica_like()
    got, _, output = by_lammps(script(atoms, tmp_path, pair(model, "precision single")), ranks)
    assert "single precision" in output
    assert_equal(got, by_python(model, atoms), tolerance=2e-5)
    assert np.abs(got.forces - by_python(model, atoms).forces).max() > 0


def test_permuted_and_repeated_types(model, tmp_path):
    """Three types for two elements, in an order that is not the model's."""
    atoms = silica_like()
    labelled = atoms.copy()
    labelled.numbers[::4][labelled.numbers[::4] == 14] = 6  # some silicon goes by type C
    path = script(
        labelled,
        tmp_path,
        pair(model, elements="O Si Si"),
        elements=["O", "C", "Si"],
    )
    got, _, _ = by_lammps(path)
    assert_equal(got, by_python(model, atoms))


@pytest.mark.parametrize("ranks", [1, 4])
def test_after_migration(ranks, model, tmp_path):
    """Atoms change their rank and lists are rebuilt many times; then all is as if new."""
    atoms = silica_like()
    after = (
        "velocity all create 6000 7",
        "fix 1 all nve",
        "fix 2 all langevin 6000 6000 0.05 11",
        "timestep 0.002",
        "run 150",
        "unfix 1",
        "unfix 2",
        "velocity all set 0 0 0",
        "run 0 post no",
        "write_dump all custom last.out id type x y z vx modify sort id format float %.17g",
        "undump out",
        DUMP,
        DUMP_DIGITS,
        "run 0",
    )
    path = script(atoms, tmp_path, pair(model), before=("newton on",), after=after)
    got, _, output = by_lammps(path, ranks)
    assert "Dangerous builds = 0" in output
    last = read_dump(tmp_path / "last.out")
    moved = Atoms(
        [ELEMENTS[int(t) - 1] for t in last[:, 1]], last[:, 2:5], cell=atoms.cell, pbc=True
    )
    assert np.abs(moved.get_distances(0, range(len(moved)), mic=True)).max() > 1.0
    assert_equal(got, by_python(model, moved))


def test_real_units(model, tmp_path):
    atoms = silica_like(1)
    path = script(atoms, tmp_path, pair(model), units_="real")
    got, thermo, _ = by_lammps(path)
    kcal_per_mol = 23.060549
    expected = by_python(model, atoms)
    assert thermo["PotEng"][-1] == pytest.approx(kcal_per_mol * expected.energy, rel=1e-6)
    np.testing.assert_allclose(got.forces / kcal_per_mol, expected.forces, atol=1e-4)


@pytest.mark.parametrize("ranks", [1, 4])
def test_hybrid_with_null(ranks, model, tmp_path):
    """Silicon has the network, the rest nothing: as if silicon were alone."""
    atoms = silica_like()
    lines = [
        "pair_style hybrid equivariant lj/cut 3.0",
        f'pair_coeff * * equivariant "{model}" NULL Si',
        "pair_coeff 1 * lj/cut 0.0 1.0",
    ]
    got, _, _ = by_lammps(script(atoms, tmp_path, lines), ranks)
    silicon = atoms.numbers == 14
    expected = by_python(model, atoms[silicon])
    np.testing.assert_allclose(got.forces[silicon], expected.forces, rtol=0, atol=1e-9)
    np.testing.assert_allclose(got.energies[silicon], expected.energies, rtol=1e-10)
    np.testing.assert_allclose(got.virial, expected.virial, rtol=1e-8, atol=1e-8)
    assert np.abs(got.forces[~silicon]).max() == 0.0


@pytest.mark.parametrize("ranks", [1, 4])
def test_overlay(ranks, model, tmp_path):
    """hybrid/overlay adds: with the core repulsion of another style."""
    atoms = silica_like()
    zbl = ["pair_coeff 1 1 zbl 8 8", "pair_coeff 1 2 zbl 8 14", "pair_coeff 2 2 zbl 14 14"]
    both = [
        "pair_style hybrid/overlay equivariant zbl 2.0 2.8",
        f'pair_coeff * * equivariant "{model}" O Si',
        *zbl,
    ]
    folders = [tmp_path / "both", tmp_path / "zbl"]
    for folder in folders:
        folder.mkdir()
    got, _, _ = by_lammps(script(atoms, folders[0], both), ranks)
    alone = ["pair_style hybrid/overlay zbl 2.0 2.8", *zbl]
    repulsion, _, _ = by_lammps(script(atoms, folders[1], alone))
    expected = by_python(model, atoms)
    assert np.abs(repulsion.forces).max() > 0.1
    np.testing.assert_allclose(got.forces, expected.forces + repulsion.forces, atol=1e-9)
    np.testing.assert_allclose(got.energies, expected.energies + repulsion.energies, atol=1e-9)
    np.testing.assert_allclose(got.virial, expected.virial + repulsion.virial, atol=1e-8)


def test_scaled(model, quick_model, tmp_path):
    """hybrid/scaled mixes two potentials, as thermodynamic integration does: 0.7 A + 0.3 B."""
    atoms = silica_like()
    lines = [
        "pair_style hybrid/scaled 0.7 equivariant 0.3 equivariant",
        f'pair_coeff * * equivariant 1 "{model}" O Si',
        f'pair_coeff * * equivariant 2 "{quick_model}" O Si',
    ]
    got, thermo, _ = by_lammps(script(atoms, tmp_path, lines), 2)
    a, b = by_python(model, atoms), by_python(quick_model, atoms)
    assert thermo["PotEng"][-1] == pytest.approx(0.7 * a.energy + 0.3 * b.energy, rel=1e-12)
    for name in ("energies", "forces", "virial"):
        expected = 0.7 * getattr(a, name) + 0.3 * getattr(b, name)
        np.testing.assert_allclose(getattr(got, name), expected, rtol=0, atol=1e-9, err_msg=name)
