"""Particles that come and go: their exact numbers in grand canonical ensembles, and test insertions
against single energies.

A dilute gas in a box without collisions is ideal: its number of molecules is Poisson-distributed
with mean exp((mu - E) / kT) V / lambda^3, E the energy of one and lambda its thermal wavelength.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from parity import ELEMENTS, by_lammps, by_python, pair, restyle, script, silica_like

from eqcalc.errors import InputError
from eqcalc.lammps import run_lmp
from eqcalc.lammps.box import write_data

BOLTZMANN = 8.617343e-5  # eV/K, as LAMMPS has it
PLANCK = 4.135667403e-3  # eV ps
MVV2E = 1.0364269e-4  # eV / (g/mol Å^2/ps^2)
TEMPERATURE = 3000.0
SIDE = 600.0  # Å: two of ten atoms are within 4 Å of each other for one in 30 000 insertions


def chemical_potential(mean: float, mass: float, energy: float) -> float:
    """eV, for that mean number in the box; mass in g/mol, energy in eV of one molecule."""
    kt = BOLTZMANN * TEMPERATURE
    wavelength = np.sqrt(PLANCK**2 / (2 * np.pi * mass * MVV2E * kt))
    return float(energy + kt * np.log(mean * (wavelength / SIDE) ** 3))


def gas(folder: Path, atoms: Atoms, pair_: list[str], moves: str, after: tuple[str, ...]) -> Path:
    write_data(atoms, ELEMENTS, folder / "structure.data")
    lines = [
        "units metal",
        "atom_modify map array",
        "read_data structure.data",
        *pair_,
        "neighbor 1.0 nsq",
        moves,
        "thermo_style custom step atoms pe",
        "thermo_modify format float %.16g norm no",
        "thermo 1",
        *after,
    ]
    path = folder / "in.gas"
    path.write_text("\n".join(lines) + "\n")
    return path


def tables(output: str) -> list[np.ndarray]:
    """[steps, columns] of each run."""
    found = []
    for text in output.split("Step ")[1:]:
        rows = [line.split() for line in text.split("Loop time")[0].splitlines()[1:]]
        found.append(
            np.array([[float(w) for w in row] for row in rows if re.match(r"^\d+$", row[0])])
        )
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_number_of_atoms_of_a_gas(ranks, isolated, tmp_path):
    """Silicon comes and goes beside one oxygen atom, in two runs in a row. Were atoms to keep their
    energy of -3 eV when they are tested for deletion, all would go."""
    mean = 4.0
    mu = chemical_potential(mean, 28.085, -3.0)
    moves = f"group gas type 2\nfix g gas gcmc 1 20 0 2 4567 {TEMPERATURE} {mu!r} 0.1 full_energy"
    atoms = Atoms("SiO", [[1, 1, 1], [1, 1, 301]], cell=[SIDE] * 3, pbc=True)
    run = f"run {600 // ranks**2}"  # two processes are slow where cores are few
    path = gas(tmp_path, atoms, pair(isolated), moves, (run, run))
    got = tables(run_lmp(path, ranks=ranks, timeout=300))
    assert len(got) == 2
    for table in got:
        np.testing.assert_allclose(table[:, 2], 1.0 - 3.0 * table[:, 1], rtol=0, atol=1e-9)
    numbers = np.concatenate([table[50:, 1] for table in got]) - 1
    # 20 exchanges of about 4 atoms a step: every step is nearly independent
    assert numbers.mean() == pytest.approx(mean, abs=4 * np.sqrt(2 * mean / len(numbers)))
    assert numbers.var() == pytest.approx(mean, rel=0.35)


MOLECULE = """SiO

2 atoms

Coords

1 0 0 0
2 1.6 0 0

Types

1 2
2 1
"""


def test_number_of_rigid_molecules(isolated, tmp_path):
    """`intra_energy`, the energy of one molecule, is taken off: mu is that of the ideal gas."""
    one = Atoms("SiO", [[1, 1, 1], [2.6, 1, 1]], cell=[SIDE] * 3, pbc=True)
    energy = float(by_python(isolated, one).energy)
    assert abs(energy + 5.0) > 0.1  # there is a bond
    mean = 3.0
    mu = chemical_potential(mean, one.get_masses().sum(), 0.0)
    (tmp_path / "SiO.txt").write_text(MOLECULE)
    moves = (
        f"fix g all gcmc 1 20 5 0 4567 {TEMPERATURE} {mu!r} 5.0 mol gas full_energy "
        f"intra_energy {energy!r}"
    )
    path = gas(tmp_path, one, pair(isolated), moves, ("run 400", "run 400"))
    text = path.read_text().replace("atom_modify", "atom_style molecular\natom_modify")
    path.write_text(text.replace("pair_style", "molecule gas SiO.txt\npair_style"))
    restyle(tmp_path, "molecular", "1 {type}")
    got = tables(run_lmp(path, timeout=300))
    for table in got:
        np.testing.assert_allclose(table[:, 2], 0.5 * energy * table[:, 1], rtol=0, atol=1e-7)
    numbers = 0.5 * np.concatenate([table[50:, 1] for table in got])
    assert numbers.mean() == pytest.approx(mean, abs=4 * np.sqrt(2 * mean / len(numbers)))


def test_insertion_energies(quick_model, tmp_path):
    """fix widom into a region of no size: the chemical potential is one difference of energies. The
    same in a second run, and afterwards the crystal is as it was."""
    atoms = silica_like(1)
    point = np.array([2.0, 1.3, 3.1])
    region = " ".join(f"{p - 1e-7!r} {p + 1e-7!r}" for p in point.tolist())
    digits = "thermo_modify format float %.16g norm no"
    after = (
        f"region spot block {region}",
        "fix w all widom 1 2 2 77 3000 region spot full_energy",
        "thermo_style custom step pe f_w[1]",
        digits,
        "run 1",
        "run 1",
        "thermo_style custom step pe",
        digits,
        "unfix w",
        "run 0",
    )
    path = script(
        atoms, tmp_path, pair(quick_model), before=("atom_modify map array",), after=after
    )
    got = tables(run_lmp(path))
    one = by_python(quick_model, atoms).energy
    more = by_python(quick_model, atoms + Atoms("Si", [point])).energy
    for table in got[:2]:
        assert table[-1, 2] == pytest.approx(more - one, abs=1e-5)
    for table in got:
        np.testing.assert_allclose(table[:, 1], one, rtol=1e-12)


@pytest.mark.parametrize("ranks", [1, 3])
def test_groups_that_see_nothing(ranks, quick_model, tmp_path):
    """`neigh_modify exclude group X all` makes atoms absent, other exclusions are refused."""
    atoms = silica_like()
    after = ("group gone id 3 8 21 44", "neigh_modify exclude group gone all", "run 0")
    path = script(atoms, tmp_path, pair(quick_model), before=("newton on",), after=after)
    got, _, _ = by_lammps(path, ranks)
    stays = np.ones(len(atoms), dtype=bool)
    stays[[2, 7, 20, 43]] = False
    expected = by_python(quick_model, atoms[stays])
    np.testing.assert_allclose(got.energies[stays], expected.energies, rtol=0, atol=1e-10)
    np.testing.assert_allclose(got.forces[stays], expected.forces, rtol=0, atol=1e-9)
    np.testing.assert_allclose(got.virial, expected.virial, rtol=0, atol=1e-8)
    assert not got.energies[~stays].any()
    assert not got.forces[~stays].any()
    refused = path.read_text().replace("gone all", "gone gone")
    path.write_text(refused)
    with pytest.raises(InputError, match="does not support neigh_modify exclude, but for"):
        run_lmp(path, ranks=ranks)


@pytest.mark.parametrize("ranks", [1, 2])
def test_salt(ranks, isolated, tmp_path):
    """fix charge/regulation inserts and deletes pairs of ions: without energy their number is
    exact, P(n) ~ x^2n / n!^2 with x the number of the ideal gas of each."""
    kt = BOLTZMANN * TEMPERATURE
    x = 2.0
    # activity of each in mol/l, so that activity * volume = x; the bond-free ions have -2 and -3 eV
    litre = 0.602214e-3 * SIDE**3  # N_A mol/l times the volume
    plus, minus = (-np.log10(x / litre) - e / (kt * np.log(10)) for e in (-2.0, -3.0))
    moves = (
        "set group all charge 0\nset type 1 charge 1\nset type 2 charge -1\n"
        f"fix g all charge/regulation 1 2 nevery 1 nmc 20 seed 4567 temp {TEMPERATURE} "
        f"pIp {float(plus)!r} pIm {float(minus)!r} onlysalt yes 1 -1 lunit_nm 0.1"
    )
    atoms = Atoms("SiO", [[1, 1, 1], [1, 1, 301]], cell=[SIDE] * 3, pbc=True)
    run = f"run {600 // ranks**3}"
    path = gas(tmp_path, atoms, pair(isolated), moves, (run, run))
    path.write_text(path.read_text().replace("atom_modify", "atom_style charge\natom_modify", 1))
    restyle(tmp_path, "charge", "{type} 0")
    got = tables(run_lmp(path, ranks=ranks, timeout=300))
    for table in got:
        np.testing.assert_allclose(table[:, 2], -2.5 * table[:, 1], rtol=0, atol=1e-9)
    pairs = 0.5 * np.concatenate([table[50:, 1] for table in got])
    n = np.arange(60)
    weights = np.exp(2 * n * np.log(x) - 2 * np.array([math.lgamma(k + 1) for k in n]))
    exact = (n * weights).sum() / weights.sum()
    spread = np.sqrt((n**2 * weights).sum() / weights.sum() - exact**2)
    assert pairs.mean() == pytest.approx(exact, abs=4 * spread * np.sqrt(2 / len(pairs)))
