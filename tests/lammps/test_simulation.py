"""Input scripts that run as they are written."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.io import read, write
from parity import SYSTEMS, by_python, silica_like
from typer.testing import CliRunner

from eqcalc import EquivariantCalculator
from eqcalc.cli import app
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
    path = write_input(
        atoms, model, folder, ensemble, steps=10, thermo_every=5, dump_every=10, digits=15
    )
    thermo = read_thermo(run_lmp(path, ranks=ranks))
    assert thermo["PotEng"][0] == pytest.approx(by_python(model, atoms).energy, rel=1e-9)
    if ensemble == "minimize":
        assert thermo["PotEng"][-1] < thermo["PotEng"][0]
    else:
        assert thermo["Step"].tolist() == [0, 5, 10]
        expected = pytest.approx(300.0, rel=1e-6)
        assert thermo["Temp"][0] == expected


def silicon():
    """The bundled model and its crystal, slightly off."""
    atoms = bulk("Si", cubic=True, a=5.45)
    atoms.rattle(0.02, seed=3)
    return "si", atoms


def pressures(atoms) -> np.ndarray:
    """[6] GPa, xx yy zz yz xz xy, without motion."""
    atoms.calc = EquivariantCalculator("si", dtype="float64")
    return -atoms.get_stress() / units.GPa


@pytest.mark.parametrize("coupling", ["iso", "tri"])
def test_relaxed_cells_have_the_pressure_asked_for(coupling, tmp_path):
    """LAMMPS's final.data, evaluated in ASE: the whole tensor with tri, its trace with iso."""
    model, atoms = silicon()
    sheared = np.eye(3) + 0.01 * np.array([[1, 0, 0], [2, -1, 0], [1, 1, 0]])
    atoms.set_cell(atoms.cell.array @ sheared, scale_atoms=True)
    options = {"coupling": coupling, "relax_cell": True, "pressure_gpa": 2.0}
    options |= {"max_force": 1e-4, "precision": "float64"}
    run_lmp(write_input(atoms, model, tmp_path, "minimize", steps=400, **options))
    end = read(tmp_path / "final.data", format="lammps-data", units="metal", atom_style="atomic")
    assert end.get_chemical_symbols() == ["Si"] * 8
    found = pressures(end)
    if coupling == "tri":
        np.testing.assert_allclose(found, [2, 2, 2, 0, 0, 0], atol=0.02)
        return
    assert found[:3].mean() == pytest.approx(2.0, abs=0.02)
    assert np.abs(found - [2, 2, 2, 0, 0, 0]).max() > 0.2  # one factor cannot undo shear
    box = lammps_cell(atoms)[0]
    shape = end.cell.array / end.cell.array[0, 0]
    np.testing.assert_allclose(shape, box / box[0, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("coupling", "pbc", "alike", "tilts"),
    [
        ("iso", (1, 1, 1), True, 0),
        ("aniso", (1, 1, 1), False, 0),
        ("tri", (1, 1, 1), False, 3),
        ("aniso", (1, 1, 0), False, 0),
        ("iso", (1, 1, 0), True, 0),
    ],
)
def test_npt_changes_what_it_may(coupling, pbc, alike, tilts, tmp_path):
    model, atoms = silicon()
    atoms.pbc = pbc
    options = {"coupling": coupling, "pressure_gpa": 5.0, "thermo_every": 10, "seed": 7}
    path = write_input(atoms, model, tmp_path, "npt", 300.0, 2.0, 60, **options)
    assert "box tilt" not in path.read_text()
    assert " 7 mom yes" in path.read_text()
    thermo = read_thermo(run_lmp(path))
    ratio = np.array([thermo[f"L{axis}"][-1] / thermo[f"L{axis}"][0] for axis in "xyz"])
    ratio = ratio[np.array(pbc, dtype=bool)]
    assert (ratio < 1.0 - 1e-5).all()  # 5 GPa compress it
    assert (np.ptp(ratio) < 1e-6) == alike
    found = [np.abs(thermo[name]).max() for name in ("Xy", "Xz", "Yz") if name in thermo]
    assert len(found) == tilts
    assert all(tilt > 1e-5 for tilt in found)


def test_log_is_in_columns(tmp_path):
    model, atoms = silicon()
    path = write_input(atoms, model, tmp_path, "nvt", steps=20, thermo_every=10)
    lines = run_lmp(path).splitlines()
    first = next(k for k, line in enumerate(lines) if line.split()[:1] == ["Step"])
    rows = lines[first + 1 : first + 4]
    ends = [[m.end() for m in re.finditer(r"\S+", row)] for row in rows]
    assert ends[0] == ends[1] == ends[2]
    assert max(map(len, rows)) <= 100


def test_options_that_do_not_fit(tmp_path):
    model, atoms = silicon()
    slab = atoms.copy()
    slab.pbc = (True, True, False)
    alone = atoms.copy()
    alone.pbc = False
    for wrong, options, sentence in (
        (slab, {"ensemble": "npt", "coupling": "tri"}, "periodic in three directions"),
        (alone, {"ensemble": "npt"}, "periodic somewhere"),
        (atoms, {"ensemble": "npt", "coupling": "isotropic"}, "must be iso, aniso or tri"),
        (atoms, {"relax_cell": True}, "belongs to ensemble 'minimize'"),
        (atoms, {"seed": 0}, "whole numbers from 1 on"),
        (atoms, {"precision": "half"}, "float32 or float64"),
    ):
        with pytest.raises(InputError, match=sentence):
            write_input(wrong, model, tmp_path / "none", **options)
    assert not (tmp_path / "none").exists()


def test_command_writes_an_input(tmp_path):
    """MODEL STRUCTURE, and the order of before; one of several frames is chosen."""
    model, atoms = silicon()
    moved = atoms.copy()
    moved.positions += 0.25
    write(tmp_path / "two.xyz", [atoms, moved])
    write(tmp_path / "one.xyz", moved)

    def call(*arguments):
        return CliRunner().invoke(app, ["lammps", "input", *map(str, arguments)])

    new = call(model, tmp_path / "one.xyz", "--out", tmp_path / "new", "--precision", "float64")
    old = call(tmp_path / "one.xyz", "--model", model, "--out", tmp_path / "old")
    assert (new.exit_code, old.exit_code) == (0, 0), new.output + old.output
    assert "precision double" in (tmp_path / "new" / "in.lammps").read_text()
    several = call(model, tmp_path / "two.xyz", "--out", tmp_path / "no")
    assert isinstance(several.exception, InputError)
    assert "choose one with --frame 0 to 1" in str(several.exception)
    assert not (tmp_path / "no").exists()
    for frame in (1, -1):
        call(model, tmp_path / "two.xyz", "--frame", frame, "--out", tmp_path / f"f{frame}")
        data = (tmp_path / f"f{frame}" / "structure.data").read_text()
        assert data == (tmp_path / "new" / "structure.data").read_text()
    assert "none of number 2" in str(call(model, tmp_path / "two.xyz", "--frame", 2).exception)
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "is not a folder" in str(call(model, tmp_path / "one.xyz", "--out", out).exception)


def test_velocities_and_pressure(model, tmp_path):
    """ASE's velocities arrive, and the virial pressure has LAMMPS's sign."""
    atoms = silica_like()
    atoms.set_velocities(np.random.default_rng(0).normal(size=(len(atoms), 3)) * 0.05)
    path = write_input(atoms, model, tmp_path, steps=0, thermo_every=1, dump_every=1, digits=15)
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
