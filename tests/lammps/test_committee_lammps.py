"""Several potentials in pair_coeff: the mean of all, and how far they differ, on any ranks."""

from __future__ import annotations

import json

import numpy as np
import pytest
from parity import (
    SYSTEMS,
    Result,
    assert_equal,
    by_lammps,
    by_python,
    read_dump,
    script,
    silica_like,
)

from eqcalc import EquivariantCalculator
from eqcalc.errors import InputError
from eqcalc.lammps import run_lmp

DEVIATIONS = "fix dev all pair 1 equivariant energy_deviation 0 force_deviation 0"
DUMP_THEM = (
    "dump dev all custom 1 dev.out id f_dev[1] f_dev[2]",
    "dump_modify dev sort id format float %.17g",
)


@pytest.fixture(scope="session")
def members(model, quick_model, one_layer):
    """Cutoffs 5, 3.5 and 3.5 Å; three, two and one layers."""
    return [model, quick_model, one_layer]


def committee(files, options="", elements="O Si"):
    names = " ".join(f'"{file}"' for file in files)
    return [f"pair_style equivariant {options}".strip(), f"pair_coeff * * {names} {elements}"]


def mean(files, atoms):
    parts = [by_python(file, atoms) for file in files]
    names = ("energies", "forces", "virial", "symmetric", "atomic_virials")
    return Result(*(np.mean([getattr(p, name) for p in parts], axis=0) for name in names)), parts


@pytest.mark.parametrize(
    ("system", "ranks", "engine", "before"),
    [
        ("silica_like", 1, "fused", "newton on"),
        ("molecule", 1, "torch", "newton on"),
        ("slab", 2, "fused", "newton off"),
        ("triclinic", 4, "exact", "comm_style tiled"),
        ("tiny", 2, "torch", "newton on"),
        ("corner", 4, "fused", "newton off"),
    ],
)
def test_mean_and_deviations(system, ranks, engine, before, members, tmp_path):
    """Energies, forces, pressure, atomic virials; and what fix pair makes of the deviations."""
    atoms = SYSTEMS[system]()
    path = script(
        atoms,
        tmp_path,
        committee(members, f"engine {engine}"),
        before=(before,),
        after=(DEVIATIONS, *DUMP_THEM, "run 0"),
    )
    got, _, output = by_lammps(path, ranks)
    expected, parts = mean(members, atoms)
    assert_equal(got, expected)
    assert "the mean of 3 potentials" in output
    _, energies, forces = read_dump(tmp_path / "dev.out").T
    spread = np.std([p.energies for p in parts], axis=0)
    np.testing.assert_allclose(energies, spread, rtol=1e-9, atol=1e-9 * spread.max())
    calc = EquivariantCalculator(members, dtype="float64", engine="torch")
    disagreement = calc.get_property("forces_deviation", atoms)
    assert disagreement.max() > 0.01
    np.testing.assert_allclose(forces, disagreement, rtol=1e-9, atol=1e-9 * disagreement.max())


def test_engines_may_differ(of_architecture, quick_model, tmp_path):
    """SiLU on a grid of each edge's sphere runs on torch beside a network with kernels. A grid's
    energies change when all is turned, and LAMMPS turns cells, but not this one."""
    files, atoms = [of_architecture("grid"), quick_model], silica_like(1)
    got, _, output = by_lammps(script(atoms, tmp_path, committee(files)), 2)
    assert_equal(got, mean(files, atoms)[0])
    assert "engine torch" in output
    assert "engine fused" in output


def test_folder_and_order_of_elements(members, tmp_path):
    """A committee's folder stands for its members, in one word or beside other files."""
    folder = tmp_path / "a committee"
    folder.mkdir()
    names = []
    for number, file in enumerate(members[1:]):
        names.append(f"model_{number}.pth")
        (folder / names[-1]).symlink_to(file)
    (folder / "committee.json").write_text(json.dumps({"members": names}))
    atoms = silica_like(1)
    got, _, _ = by_lammps(script(atoms, tmp_path, committee([folder])))
    assert_equal(got, mean(members[1:], atoms)[0])
    path = script(
        atoms, tmp_path, committee([members[0], folder], elements="Si O"), elements=["Si", "O"]
    )
    got, _, _ = by_lammps(path, 2)
    assert_equal(got, mean(members, atoms)[0])


def test_alike_members_agree(quick_model, tmp_path):
    """The same file three times is that file, with deviations of 0 in every step."""
    atoms = silica_like(1)
    path = script(
        atoms,
        tmp_path,
        committee([quick_model] * 3),
        after=(DEVIATIONS, *DUMP_THEM, "fix 1 all nve", "run 3"),
    )
    run_lmp(path)
    frames = (tmp_path / "dev.out").read_text().split("ITEM: ATOMS")[1:]
    values = np.array([[line.split()[1:] for line in f.splitlines()[1:9]] for f in frames], float)
    assert values.shape == (4, 8, 2)
    assert values.max() < 1e-12


def test_every_third_step_with_a_trigger(members, tmp_path):
    """Trigger 1 computes deviations in the steps of fix pair only; in `real` units as well."""
    atoms = silica_like(1)
    after = (
        "fix dev all pair 3 equivariant force_deviation 1",
        "dump dev all custom 3 dev.out id x y z f_dev",
        "dump_modify dev sort id format float %.17g",
        "velocity all create 3000 1",
        "fix 1 all nve",
        "timestep 2.0",
        "run 6",
    )
    run_lmp(script(atoms, tmp_path, committee(members), after=after, units_="real"), ranks=2)
    calc = EquivariantCalculator(members, dtype="float64", engine="torch")
    frames = (tmp_path / "dev.out").read_text().split("ITEM: ATOMS")[1:]
    assert len(frames) == 3
    for frame in frames:
        rows = np.array([line.split() for line in frame.splitlines()[1 : len(atoms) + 1]], float)
        atoms.positions = rows[:, 1:4]
        expected = 23.060549 * calc.get_property("forces_deviation", atoms)
        np.testing.assert_allclose(rows[:, 4], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("files", "elements", "sentence"),
    [
        (2, "O", "as its last words, but '"),
        (1, "O Si Si", "names 3 elements, but there are 2 atom types"),
        (2, "O si", "but 'si' is the symbol of no element"),
        (3, "O C", "small.pth knows Si, O, but pair_coeff names C for atom type 2"),
    ],
)
def test_wrong_words(files, elements, sentence, quick_model, tmp_path):
    small_one = tmp_path / "small.pth"
    small_one.symlink_to(quick_model)
    path = script(silica_like(1), tmp_path, committee([small_one] * files, elements=elements))
    with pytest.raises(InputError) as error:
        run_lmp(path, ranks=2)
    assert sentence in str(error.value)


def test_one_model_has_no_deviation(quick_model, tmp_path):
    path = script(silica_like(1), tmp_path, committee([quick_model]), after=(DEVIATIONS, "run 0"))
    with pytest.raises(InputError, match=r"energy_deviation is not known: .* has no uncertainty"):
        run_lmp(path)


def test_folder_without_a_committee(tmp_path):
    path = script(silica_like(1), tmp_path, committee([tmp_path]))
    with pytest.raises(InputError, match="holds no finished committee"):
        run_lmp(path, ranks=2)
