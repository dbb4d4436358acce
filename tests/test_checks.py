"""Symmetry, gradients and energy conservation: what is wrong is found, what is right passes."""

import json
from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk, diamond100
from ase.calculators.calculator import all_changes
from ase.constraints import FixAtoms

from eqcalc import EquivariantCalculator, InputError
from eqcalc.checks.gradients import check_gradients
from eqcalc.checks.nve import check_nve
from eqcalc.checks.nve_report import NVEReport, extrapolated
from eqcalc.checks.symmetry import check_symmetry
from eqcalc.checks.traces import Trace, drift_of, with_velocities


class Wrong(EquivariantCalculator):
    """Forces that are no gradient and depend on the orientation."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, [*properties, "forces"], system_changes)
        self.results["forces"] = self.results["forces"] + 0.05 * np.sin(3 * self.atoms.positions)


def altered(change):
    """A calculator class whose results a function of (atoms, results) has spoilt."""

    class Altered(EquivariantCalculator):
        def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
            super().calculate(atoms, [*properties, "forces"], system_changes)
            change(self.atoms, self.results)

    return Altered


def add_energies(results, extra):
    results["energies"] = results["energies"] + extra
    results["energy"] = results["energies"].sum()


def oriented(atoms, results):
    nearest = atoms.get_all_distances(mic=True, vector=True)
    add_energies(results, 1e-7 * np.cos(nearest[..., 2]).mean(axis=1))


def placed(atoms, results):
    add_energies(results, 1e-7 * np.sin(atoms.positions[:, 0]))


def numbered(atoms, results):
    add_energies(results, 1e-7 * np.arange(len(atoms)))


def handed(atoms, results):
    turn = np.cross(atoms.cell[0], atoms.cell[1]) @ atoms.cell[2]
    results["stress"] = results["stress"] + 1e-9 * np.sign(turn) * np.array([1, 1, 1, 0, 0, 0])


def intensive(atoms, results):
    add_energies(results, 1e-6 / len(atoms))


@pytest.mark.parametrize(
    ("change", "found", "not_found"),
    [
        (oriented, "rotation 1", "permutation"),
        (placed, "translation", "permutation"),
        (numbered, "permutation", "rotation 1"),
        (handed, "reflection", "rotation 1"),
        (intensive, "supercell", "rotation 1"),
    ],
)
def test_each_broken_symmetry_is_found(change, found, not_found, potential_path, crystal):
    report = check_symmetry(crystal, altered(change)(potential_path, dtype="float64"))
    said = " ".join(report.failures)
    assert f"{found} changes" in said
    assert f"{not_found} changes" not in said


def test_symmetry_in_both_precisions(potential_path, crystal):
    calculators = {
        p: EquivariantCalculator(potential_path, dtype=p) for p in ("float64", "float32")
    }
    report = check_symmetry(crystal, calculators)
    assert report.passed, str(report)
    assert set(report.values) == {"float64", "float32"}
    assert {"rotation 3", "cell vectors", "wrapping", "supercell"} <= set(report.values["float32"])
    assert max(report.values["float32"]["rotation 1"].values()) > 1e-9
    assert "float32" in str(report)


def test_crystal_at_rest_is_not_judged_by_its_zeros(potential_path):
    atoms = bulk("Si", cubic=True)
    for precision in ("float64", "float32"):
        report = check_symmetry(atoms, EquivariantCalculator(potential_path, dtype=precision))
        assert report.passed, str(report)


def test_wrong_forces_are_found(potential_path, crystal):
    calc = Wrong(potential_path, dtype="float64")
    symmetry = check_symmetry(crystal, calc)
    assert not symmetry.passed
    assert "FAIL" in str(symmetry)
    assert symmetry.deviations["rotation 1"]["energies"] < 1e-10
    gradients = check_gradients(crystal, calc, num_components=3, steps=(1e-4, 1e-5))
    assert "forces differ" in " ".join(gradients.failures)
    assert min(gradients.forces) > 1e-3


def test_constraints_hide_nothing(potential_path, crystal):
    """Fixed atoms of the user's file have forces all the same."""
    crystal.set_constraint(FixAtoms([0, 1, 2, 3]))
    calc = EquivariantCalculator(potential_path, dtype="float64")
    assert check_symmetry(crystal, calc).passed
    assert check_gradients(crystal, calc, steps=(1e-4, 1e-5)).passed


def test_wrong_stress_is_found(potential_path, crystal):
    def stretch(_, results):
        results["stress"] = results["stress"] * (1 + 1e-5)

    calc = altered(stretch)(potential_path, dtype="float64")
    report = check_gradients(crystal, calc, num_components=2, steps=(1e-4, 1e-5))
    assert len(report.failures) == 1
    assert "stress differ" in report.failures[0]


def test_gradient_report_is_drawn_and_written(potential_path, crystal, tmp_path):
    calc = EquivariantCalculator(potential_path, dtype="float64")
    report = check_gradients(crystal, calc, num_components=3)
    assert report.passed, str(report)
    # truncation falls with the square of the step
    assert report.orders["forces"] == pytest.approx(2.0, abs=0.1)
    assert report.orders["stress"] == pytest.approx(2.0, abs=0.1)
    # and rounding rises again
    assert report.forces[-1] > 2 * min(report.forces)
    report.write(tmp_path)
    assert (tmp_path / "gradients.png").stat().st_size > 5_000
    assert json.loads((tmp_path / "gradients.json").read_text())["passed"] is True
    assert not list(tmp_path.glob("*.partial"))


def test_discontinuous_energy_has_no_square_law(potential_path, crystal):
    """A step in the energy under every displacement: errors grow as the step shrinks."""

    def jump(atoms, results):
        add_energies(results, 1e-4 * np.floor(40 * atoms.positions[:, 0]))

    calc = altered(jump)(potential_path, dtype="float64")
    assert not check_gradients(crystal, calc, num_components=24).passed


def trace(timestep, drift=0.0, noise=1.0, **about):
    """2 ps with oscillations ~ dt^2 around a line with `drift` meV/atom/ps."""
    time = np.arange(0, 2000 + timestep / 2, timestep)
    kinetic = 0.04 + 0.004 * np.sin(time / 13.0)
    ripple = noise * 1e-4 * timestep**2 * np.sin(time / 7.0)
    about = {"engine": "lammps"} | about
    return Trace(
        timestep=timestep,
        time=time,
        potential=-kinetic + ripple + drift * 1e-6 * time,
        kinetic=kinetic,
        **about,
    )


def test_figures_of_known_traces():
    one = trace(2.0, drift=0.5)
    assert one.drift == pytest.approx(0.5, abs=0.05)
    assert abs(one.drift - 0.5) < 3 * one.drift_error < 0.2
    assert one.fluctuation == pytest.approx(0.4 / np.sqrt(2), rel=0.02)
    # over 2 ps, relative to the standard deviation of the kinetic energy
    assert one.drift_ratio == pytest.approx(2 * 0.5 / (4 / np.sqrt(2)), rel=0.1)


def three(*, drift=0.0, **options):
    """The drift is that of the forces, the same at every time step."""
    finest = trace(0.5, drift=drift, **options)
    return {"lammps": (trace(2.0, drift=drift), trace(1.0, drift=drift), finest)}


def test_traces_that_conserve_pass():
    good = NVEReport(8, three(), single=trace(0.5, precision="float32"), shared=trace(2.0, ranks=2))
    assert good.order("lammps") == pytest.approx(2.0, abs=0.02)
    assert good.passed, str(good)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"traces": three(drift=0.2)}, "drifts by 0.2"),
        ({"traces": three(noise=4.0)}, "power 1.0"),
        ({"single": trace(0.5, noise=1.5, precision="float32")}, "float32 changes the energy"),
        ({"single": trace(0.5, drift=-0.3, precision="float32")}, "float32: the total energy"),
        ({"shared": trace(2.0, noise=1.01, ranks=2)}, "2 ranks leaves the trajectory"),
        ({"traces": three(drift=1.0)}, "of the fluctuation of the kinetic energy"),
    ],
)
def test_traces_that_do_not_conserve_fail(options, reason):
    report = NVEReport(8, **({"traces": three()} | options))
    assert reason in " ".join(report.failures)
    assert "FAIL" in str(report)


def test_drift_of_the_integrator_is_no_failure():
    """What a short run has of it goes with dt^2; the forces' own does not."""
    steps = (2.0, 1.0, 0.5)
    integrator = NVEReport(8, {"ase": tuple(trace(dt, drift=0.2 * dt**2) for dt in steps)})
    assert abs(integrator.traces["ase"][-1].drift) > 4.0 * integrator.max_drift
    value, error = integrator.drift("ase")
    assert abs(value) < 2.0 * error + 1e-3
    assert integrator.passed, str(integrator)
    both = NVEReport(8, {"ase": tuple(trace(dt, drift=0.2 * dt**2 + 0.1) for dt in steps)})
    assert both.drift("ase")[0] == pytest.approx(0.1, abs=0.02)
    assert both.verdict == "FAIL"


def test_short_runs_decide_nothing():
    """Neither PASS nor FAIL, and how much longer; a failure that can be seen stands."""

    def short(timestep, drift):
        """120 fs in which the forces, not the integrator, let the energy wander."""
        whole = trace(timestep, drift=drift)
        wander = 1e-6 * np.sin(whole.time / 7.0)
        whole = replace(whole, potential=whole.potential + wander)
        count = int(120 / timestep) + 1
        parts = {k: getattr(whole, k)[:count] for k in ("time", "potential", "kinetic")}
        return replace(whole, **parts)

    def report(drift):
        return NVEReport(8, {"lammps": tuple(short(dt, drift) for dt in (2.0, 1.0, 0.5))})

    unclear = report(0.0)
    assert unclear.verdict == "UNDECIDED"
    assert not unclear.passed
    assert "run longer, at least" in unclear.undecided[0]
    assert "instead of 60" in unclear.undecided[0]
    assert "UNDECIDED" in str(unclear)
    assert report(0.5).verdict == "FAIL"


def test_extrapolated_energy_has_no_share_of_the_integrator():
    """Any g(t) dt^2 drops out, at every moment; what does not depend on dt stays."""
    time = np.arange(0.0, 101.0, 1.0)
    g = np.random.default_rng(1).normal(size=201)
    exact = 0.3 + 1e-6 * time
    long = Trace("ase", 1.0, time, exact + g[::2], 0.0 * time)
    fine = np.arange(0.0, 100.5, 0.5)
    short = Trace("ase", 0.5, fine, 0.3 + 1e-6 * fine + 0.25 * g, 0.0 * fine)
    found_time, energy = extrapolated(long, short)
    assert np.array_equal(found_time, time)
    assert energy == pytest.approx(exact, abs=1e-14)
    assert drift_of(found_time, energy) == pytest.approx((1.0, 0.0), abs=1e-7)


def test_error_of_a_drift_knows_that_a_short_run_is_smooth():
    """A slope through part of an oscillation is worth less than its residuals suggest."""
    time = np.arange(0.0, 100.0)
    noise = 1e-6 * np.random.default_rng(2).normal(size=100)
    smooth = 1e-6 * np.sin(time / 16.0)
    for energy, inflated in ((noise, False), (smooth, True)):
        slope, error = drift_of(time, energy)
        assert abs(slope) < 3 * error
        centres, means = (x.reshape(20, 5).mean(axis=1) for x in (time, energy))
        plain = 1e6 * np.sqrt(np.polyfit(centres, means, 1, cov=True)[1][0, 0])
        assert (error > 2 * plain) == inflated


class Curl(EquivariantCalculator):
    """A force that is no gradient, and does work."""

    strength = 1e-4

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, [*properties, "forces"], system_changes)
        turned = np.sin(2.0 * np.roll(self.atoms.positions, -1, axis=1))
        self.results["forces"] = self.results["forces"] + self.strength * turned


def slab():
    atoms = diamond100("Si", (2, 2, 6), vacuum=6.0, periodic=False)
    atoms.rattle(0.03, seed=1)
    return atoms


def test_short_run_of_a_slab_passes():
    """Its drift is the integrator's: 16 times as large at four times the step, and none at 0."""
    report = check_nve(slab(), "si", steps=50, timestep=2.2, engines=("ase",))
    first, *_, last = (t.drift for t in report.traces["ase"])
    assert abs(last) > report.max_drift
    assert first / last == pytest.approx(16.0, rel=0.15)
    value, error = report.drift("ase")
    assert abs(value) < 1e-3
    assert error < 1e-3
    assert report.verdict == "PASS", str(report)


def test_weak_force_that_is_no_gradient_fails_in_a_short_run(monkeypatch):
    """Weaker than what the order of the fluctuation shows: the drift is the same at every step."""
    monkeypatch.setattr("eqcalc.checks.nve.EquivariantCalculator", Curl)
    report = check_nve(slab(), "si", steps=50, timestep=2.0, engines=("ase",), single=False)
    assert report.order("ase") == pytest.approx(2.0, abs=0.1)
    assert report.verdict == "FAIL"
    assert "at dt = 0" in report.failures[0]
    value, error = report.drift("ase")
    assert value == pytest.approx(-0.06, abs=0.02)
    assert abs(value) > 2.5 * error  # told from none


def test_nve_in_ase_and_lammps_agree(tmp_path):
    """The bundled model: conserved energy, an order of 2, and one trajectory in both engines."""
    atoms = bulk("Si", cubic=True, a=5.469)
    report = check_nve(atoms, "si", steps=100, timestep=2.0, temperature=600.0)
    assert report.passed, str(report)
    assert report.order("ase") == pytest.approx(2.0, abs=0.1)
    assert report.energy_difference < 1e-9
    assert report.shared.ranks == 2
    assert report.single.precision == "float32"
    assert 0 < abs(report.float32_change) < 0.01
    for ase, lammps in zip(report.traces["ase"], report.traces["lammps"], strict=True):
        assert len(ase.time) == len(lammps.time)
        assert np.abs(ase.potential - lammps.potential).max() < 1e-5
        assert np.abs(ase.kinetic - lammps.kinetic).max() < 1e-5
    report.write(tmp_path)
    assert (tmp_path / "nve.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "nve.json").read_text())["num_atoms"] == 8


def test_nve_finds_forces_that_are_no_gradient(monkeypatch):
    monkeypatch.setattr("eqcalc.checks.nve.EquivariantCalculator", Wrong)
    atoms = bulk("Si", cubic=True, a=5.469)
    report = check_nve(atoms, "si", steps=60, engines=("ase",), single=False)
    assert "instead of 2" in " ".join(report.failures)


def test_starting_velocities():
    atoms = with_velocities(bulk("Si", cubic=True), 500.0, seed=3)
    assert atoms.get_temperature() == pytest.approx(500.0)
    assert np.abs(atoms.get_momenta().sum(axis=0)).max() < 1e-10
    again = with_velocities(bulk("Si", cubic=True), 500.0, seed=3)
    assert np.array_equal(atoms.get_velocities(), again.get_velocities())


def test_too_few_steps():
    with pytest.raises(InputError, match="too few to measure a drift"):
        check_nve(bulk("Si"), "si", steps=5)
