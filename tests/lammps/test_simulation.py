"""Input scripts that run as they are written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import units
from parity import SYSTEMS, by_python, silica_like

from eqcalc.errors import InputError
from eqcalc.lammps import lammps_cell, read_thermo, run_lmp, write_input


@pytest.mark.parametrize(
    ("system", "ensemble", "ranks"),
    [
        ("silica_like", "nve", 1),
        ("triclinic", "nvt", 2),
        ("slab", "npt", 1),
        ("molecule", "nve", 2),
        ("tiny", "npt", 1),
        ("needle", "minimize", 1),
    ],
)
def test_written_input_runs(system, ensemble, ranks, model, tmp_path):
    atoms = SYSTEMS[system]()
    folder = tmp_path / "with spaces"
    path = write_input(atoms, model, folder, ensemble, steps=10, thermo_every=5, dump_every=10)
    thermo = read_thermo(run_lmp(path, ranks=ranks))
    assert thermo["PotEng"][0] == pytest.approx(by_python(model, atoms).energy, rel=1e-9)
    if ensemble == "minimize":
        assert thermo["PotEng"][-1] < thermo["PotEng"][0]
    else:
        assert thermo["Step"].tolist() == [0, 5, 10]
        expected = pytest.approx(300.0, rel=1e-6)
        assert thermo["Temp"][0] == expected


def test_velocities_and_pressure(model, tmp_path):
    """ASE's velocities arrive, and the virial pressure has LAMMPS's sign."""
    atoms = silica_like()
    atoms.set_velocities(np.random.default_rng(0).normal(size=(len(atoms), 3)) * 0.05)
    path = write_input(atoms, model, tmp_path, steps=0, thermo_every=1, dump_every=1)
    thermo = read_thermo(run_lmp(path))
    assert thermo["KinEng"][0] == pytest.approx(atoms.get_kinetic_energy(), rel=1e-6)
    virial = np.trace(by_python(model, atoms).virial) / 3.0
    kinetic = 2.0 / 3.0 * atoms.get_kinetic_energy()
    expected = (virial + kinetic) / atoms.get_volume() / (1e5 * units.Pascal)
    assert thermo["Press"][0] == pytest.approx(expected, rel=1e-6)


def test_example_on_several_ranks(quick_model):
    example = Path(__file__).parents[2] / "examples" / "lammps_ranks.py"
    options = ["--model", str(quick_model), "--ranks", "1", "3", "--repeat", "1", "--steps", "3"]
    command = [sys.executable, str(example), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Same energies and forces as in ASE." in done.stdout


@pytest.mark.parametrize("system", SYSTEMS)
def test_box(system):
    """The box is lower triangular, holds the same crystal, and distances are kept."""
    atoms = SYSTEMS[system]()
    box, origin, rotation = lammps_cell(atoms)
    assert (np.diag(box) > 0).all()
    np.testing.assert_array_equal(box, np.tril(box))
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-14)
    periodic = np.array(atoms.pbc)
    np.testing.assert_allclose((box @ rotation.T)[periodic], atoms.cell.array[periodic], atol=1e-12)
    inside = np.linalg.solve(box.T, (atoms.positions @ rotation - origin).T).T[:, ~periodic]
    assert ((inside > 0) & (inside < 1)).all()


def test_lammps_own_sentence(tmp_path):
    path = tmp_path / "in.wrong"
    path.write_text("units metal\npair_stile lj/cut 3\n")
    with pytest.raises(InputError, match="Unknown command: pair_stile"):
        run_lmp(path)


def test_no_thermo_table():
    with pytest.raises(InputError, match="no thermo table"):
        read_thermo("LAMMPS (22 Jul 2025)")
