"""Cutoffs with too few derivatives and holes at short distance are found."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.lj import LennardJones

from eqcalc import EquivariantCalculator
from eqcalc.checks import hot, packings, scans
from eqcalc.checks.scans import extrema, find_crossings
from eqcalc.checks.smoothness import TOLERANCE, check_smoothness
from eqcalc.neighbors import neighbor_list

CUTOFF = 6.0


class Pairs(Calculator):
    """Any pair energy e(r) times (1 - (r / cutoff)^2)^power, by numerical derivative."""

    implemented_properties = ("energy", "forces")

    def __init__(self, energy, power=4):
        super().__init__()
        self.of_pair = lambda r: energy(r) * np.clip(1 - (r / CUTOFF) ** 2, 0, None) ** power

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, [*properties, "forces"], system_changes)
        found = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF)
        vectors = found.vectors(atoms.positions, atoms.cell.array)
        r = np.linalg.norm(vectors, axis=1)
        h = 1e-5
        slope = (self.of_pair(r + h) - self.of_pair(r - h)) / (2 * h)
        forces = np.zeros((len(atoms), 3))
        np.add.at(forces, found.edge_dst, slope[:, None] * vectors / r[:, None])
        self.results = {"energy": 0.5 * self.of_pair(r).sum(), "forces": forces}


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    """Packings and hot runs have tests of their own: one of each density, and a few steps."""
    monkeypatch.setattr(packings, "NUM_PACKINGS", 1)
    monkeypatch.setattr(hot, "STEPS", 10)
    monkeypatch.setattr(hot, "STEPS_MOLECULE", 10)


@pytest.fixture
def argon():
    atoms = bulk("Ar", cubic=True, a=5.3).repeat(2)
    atoms.rattle(0.1, seed=1)
    return atoms


def morse(r):
    return np.exp(-3.0 * (r - 3.5)) - 2 * np.exp(-1.5 * (r - 3.5))


def test_smooth_potentials_pass(potential_path, crystal, argon):
    report = check_smoothness(argon, Pairs(morse), cutoff=CUTOFF)
    assert report.passed, str(report)
    calc = EquivariantCalculator(potential_path, dtype="float64")
    report = check_smoothness(crystal, calc)
    assert not [f for f in report.failures if "jumps" in f], str(report)
    names = {scan.name for scan in report.scans}
    assert {"O-O alone", "O-Si alone", "Si-Si alone", "O towards O in the structure"} <= names


@pytest.mark.parametrize(
    ("calc", "quantity"),
    [
        (Pairs(morse, power=0), "energy jumps"),
        (Pairs(morse, power=1), "force jumps"),
        (Pairs(morse, power=2), "slope of the force jumps"),
        (LennardJones(sigma=3.4, epsilon=0.0104, rc=CUTOFF, smooth=False), "force jumps"),
        (LennardJones(sigma=3.4, epsilon=0.0104, rc=CUTOFF, smooth=True), "slope of the force"),
    ],
    ids=["cut", "shifted", "one derivative", "LJ", "smooth LJ"],
)
def test_cutoffs_with_too_few_derivatives_fail(calc, quantity, argon):
    report = check_smoothness(argon, calc, cutoff=CUTOFF)
    assert any("Ar-Ar alone" in f and quantity in f for f in report.failures)
    assert any("in the structure" in f and quantity in f for f in report.failures)


@pytest.mark.parametrize(("k", "strength"), [(70.0, 2.0), (150.0, 2.0)])
def test_steep_paths_are_told_from_jumps(k, strength):
    """A smooth function that the points, even the closest, cannot follow, and with a kink."""

    def path(kink):
        behind = lambda t: max(t, 0.0)  # noqa: E731
        return lambda t: (
            strength * np.cos(k * t + 1.0) / k - 0.5 * kink * behind(t) ** 2,
            strength * np.sin(k * t + 1.0) + kink * behind(t),
        )

    allowed = TOLERANCE["slope"]
    assert abs(scans._jumps(path(0.0), 0.0, scans.SPACINGS[0])[2]) > allowed
    assert scans._crossing(path(0.0), 0.0, "smooth").slope < allowed
    for kink in (-1e-2, 5e-4, 1e-2):
        slope = scans._crossing(path(kink), 0.0, "kink").slope
        assert slope == pytest.approx(abs(kink), abs=allowed)


def test_hole_at_short_distance_is_found(argon):
    """Buckingham's potential: exp(-r) is finite at 0, -1/r^6 is not."""
    calc = Pairs(lambda r: 3.0e4 * np.exp(-3.6 * r) - 2000.0 / r**6)
    report = check_smoothness(argon, calc, cutoff=CUTOFF)
    assert any("a hole" in f and "alone" in f for f in report.failures)
    assert any("a hole" in f and "in the structure" in f for f in report.failures)


def test_spurious_minimum_is_found(argon):
    """A well in the repulsive wall."""
    calc = Pairs(lambda r: morse(r) - 60.0 * np.exp(-50 * (r - 2.3) ** 2))
    report = check_smoothness(argon, calc, cutoff=CUTOFF)
    alone = next(s for s in report.scans if "alone" in s.name)
    assert min(abs(r - 2.3) for r in alone.minima) < 0.1
    assert len(alone.minima) == 2
    assert any("a spurious minimum at 2.3" in f for f in report.failures)


def test_extrema():
    x = np.linspace(0, 4 * np.pi, 400)
    minima, maxima = extrema(np.cos(x))
    assert x[minima] == pytest.approx([np.pi, 3 * np.pi], abs=0.05)
    assert x[maxima] == pytest.approx([2 * np.pi], abs=0.05)
    assert extrema(1e-3 * np.cos(x)) == ([], [])
    assert extrema(-x) == ([], [])


def test_crossings_are_where_distances_equal_the_cutoff():
    atoms = bulk("Si", cubic=True).repeat(2)
    atoms.rattle(0.1, seed=3)
    direction = np.array([0.6, 0.0, 0.8])
    crossings = find_crossings(atoms, 5, direction, 5.0, 0.7)
    assert crossings
    for t, _ in crossings:
        moved = atoms.copy()
        moved.positions[5] += t * direction
        found = neighbor_list(moved.positions, moved.cell.array, moved.pbc, 5.1)
        lengths = np.linalg.norm(found.vectors(moved.positions, moved.cell.array), axis=1)
        assert np.abs(lengths[found.edge_dst == 5] - 5.0).min() < 1e-9


def test_structure_without_crossings_says_so():
    pair = Atoms("Ar2", [[0, 0, 0], [20.0, 0, 0]])
    report = check_smoothness(pair, Pairs(morse), cutoff=CUTOFF)
    assert "No path through the structure" in " ".join(report.failures)
