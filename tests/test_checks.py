"""The checks find what is wrong, and pass what is right."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.calculator import all_changes

from eqcalc import EquivariantCalculator, InputError
from eqcalc.checks.gradients import check_gradients
from eqcalc.checks.nve import NVEReport, Trace, check_nve, with_velocities
from eqcalc.checks.symmetry import check_symmetry

EXAMPLES = Path(__file__).parent.parent / "examples"


class Wrong(EquivariantCalculator):
    """Forces that are no gradient and depend on the orientation."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results["forces"] = self.results["forces"] + 0.05 * np.sin(3 * self.atoms.positions)


def test_wrong_forces_are_found(potential_path, crystal):
    calc = Wrong(potential_path, dtype="float64")
    symmetry = check_symmetry(crystal, calc)
    assert not symmetry.passed
    assert "FAIL" in str(symmetry)
    assert symmetry.deviations["rotation"]["energies"] < 1e-10
    gradients = check_gradients(crystal, calc, num_components=3, steps=(1e-4, 1e-5))
    assert not gradients.passed
    assert min(gradients.forces) > 1e-3


def test_gradient_report_is_drawn_and_written(potential_path, crystal, tmp_path):
    calc = EquivariantCalculator(potential_path, dtype="float64")
    report = check_gradients(crystal, calc, num_components=3)
    assert report.passed
    # truncation falls with the square of the step
    assert 50 < report.forces[0] / report.forces[1] < 200
    report.plot(tmp_path / "g.png")
    assert (tmp_path / "g.png").stat().st_size > 5_000
    assert json.loads(json.dumps(report.to_dict()))["passed"] is True


def trace(timestep, drift=0.0, noise=1.0):
    """2 ps with oscillations ~ dt^2 around a line with `drift` meV/atom/ps."""
    time = np.arange(0, 2000 + timestep / 2, timestep)
    kinetic = 0.04 + 0.004 * np.sin(time / 13.0)
    ripple = noise * 1e-4 * timestep**2 * np.sin(time / 7.0)
    return Trace("ase", timestep, time, -kinetic + ripple + drift * 1e-6 * time, kinetic)


def test_figures_of_known_traces():
    one = trace(2.0, drift=0.5)
    assert one.drift == pytest.approx(0.5, abs=0.05)
    assert one.fluctuation == pytest.approx(0.4 / np.sqrt(2), rel=0.02)
    assert one.relative_drift == pytest.approx(0.5 / (4 / np.sqrt(2)), rel=0.1)
    good = NVEReport(8, {"ase": (trace(2.0), trace(1.0))})
    assert good.ratio("ase") == pytest.approx(4.0, rel=0.02)
    assert good.passed
    drifting = NVEReport(8, {"ase": (trace(2.0), trace(1.0, drift=0.5))})
    assert "drifts by 0.5" in " ".join(drifting.failures)
    first_order = NVEReport(8, {"ase": (trace(2.0), trace(1.0, noise=2.0))})
    assert "by 2.0" in " ".join(first_order.failures)


def test_nve_in_ase_and_lammps_agree(tmp_path):
    """The bundled model: conserved energy, ratio of 4, and one trajectory in both engines."""
    atoms = bulk("Si", cubic=True, a=5.469)
    report = check_nve(atoms, "si", steps=100, timestep=2.0, temperature=600.0)
    assert report.passed, str(report)
    assert report.energy_difference < 1e-9
    for ase, lammps in zip(report.traces["ase"], report.traces["lammps"], strict=True):
        assert len(ase.time) == len(lammps.time)
        assert np.abs(ase.potential - lammps.potential).max() < 1e-5
        assert np.abs(ase.kinetic - lammps.kinetic).max() < 1e-5
    report.plot(tmp_path / "nve.png")
    assert (tmp_path / "nve.png").stat().st_size > 20_000
    assert json.loads(json.dumps(report.to_dict()))["num_atoms"] == 8


def test_nve_finds_forces_that_are_no_gradient(monkeypatch):
    monkeypatch.setattr("eqcalc.checks.nve.EquivariantCalculator", Wrong)
    atoms = bulk("Si", cubic=True, a=5.469)
    report = check_nve(atoms, "si", steps=60, engines=("ase",))
    assert not report.passed


def test_starting_velocities():
    atoms = with_velocities(bulk("Si", cubic=True), 500.0, seed=3)
    assert atoms.get_temperature() == pytest.approx(500.0)
    assert np.abs(atoms.get_momenta().sum(axis=0)).max() < 1e-10
    again = with_velocities(bulk("Si", cubic=True), 500.0, seed=3)
    assert np.array_equal(atoms.get_velocities(), again.get_velocities())


def test_too_few_steps():
    with pytest.raises(InputError, match="too few to measure a drift"):
        check_nve(bulk("Si"), "si", steps=5)


def test_command_line(tmp_path):
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=1)
    atoms.write(tmp_path / "si.xyz")

    def call(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "eqcalc.cli", "check", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
        )

    common = (tmp_path / "si.xyz", "--model", "si", "--out", tmp_path / "out")
    for name in ("symmetry", "gradients"):
        result = call(name, *common)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "PASS" in result.stdout
        assert json.loads((tmp_path / "out" / f"{name}.json").read_text())["passed"]
    result = call("nve", *common, "--engine", "gromacs")
    assert result.returncode == 2
    assert "Error: --engine gromacs: it must be one of both, ase, lammps." in result.stderr
    result = call("symmetry", tmp_path / "si.xyz", "--model", "sj")
    assert result.returncode == 2
    assert "no model file 'sj'" in result.stderr


def test_main_job(tmp_path):
    """examples/relax_and_nve.py in a short form."""
    picture = tmp_path / "nve.png"
    result = subprocess.run(
        [sys.executable, EXAMPLES / "relax_and_nve.py", "--steps", "25", "--out", picture],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "formation energy" in result.stdout, result.stdout + result.stderr
    assert "lammps" in result.stdout
    assert picture.stat().st_size > 50_000
