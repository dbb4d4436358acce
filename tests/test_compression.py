"""Holes that open when many atoms are pressed together, or hot, are found and named."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.lj import LennardJones
from ase.io import read

from eqcalc import EquivariantCalculator
from eqcalc.checks import packings
from eqcalc.checks.compression import Compression, compress
from eqcalc.checks.hot import hot_runs
from eqcalc.checks.page import write_report
from eqcalc.checks.smoothness import check_smoothness
from eqcalc.checks.suite import CheckOutcome, Suite
from eqcalc.checks.trained import Trained
from eqcalc.domain import Domain
from eqcalc.neighbors import neighbor_list

SIGMA, EPSILON, CUTOFF = 3.4, 0.0104, 7.0
#: hot argon
ARGON = Trained(["Ar"], np.array([[3.1]]), temperature=40.0)


def lennard_jones():
    return LennardJones(sigma=SIGMA, epsilon=EPSILON, rc=CUTOFF, smooth=True)


class Crowded(Calculator):
    """Lennard-Jones, less strength * sum_i max(rho_i - threshold, 0)^2, rho a sum of Gaussians."""

    implemented_properties = ("energy", "forces")

    def __init__(self, strength, threshold):
        super().__init__()
        self.strength, self.threshold, self.pairs = strength, threshold, lennard_jones()

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        found = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF)
        vectors = found.vectors(atoms.positions, atoms.cell.array)
        r = np.linalg.norm(vectors, axis=1)
        near = np.exp(-((r / 2.5) ** 2))
        rho = np.bincount(found.edge_dst, near, len(atoms))
        over = np.clip(rho - self.threshold, 0.0, None)
        energy = self.pairs.get_potential_energy(atoms) - self.strength * (over**2).sum()
        # dE/d(vector) of an edge pulls its centre along and its neighbour back
        slope = (4.0 * self.strength * over[found.edge_dst] * near / 2.5**2)[:, None] * vectors
        forces = self.pairs.get_forces(atoms).copy()
        np.add.at(forces, found.edge_dst, slope)
        np.add.at(forces, found.edge_src, -slope)
        self.results = {"energy": energy, "forces": forces}


class Well(Calculator):
    """A bond that is a spring, and beyond a barrier a hole of some depth."""

    implemented_properties = ("energy", "forces")

    def __init__(self, depth, width=0.15, spring=4.0):
        super().__init__()
        self.depth, self.width, self.spring = depth, width, spring

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        bond = atoms.positions[1] - atoms.positions[0]
        r = np.linalg.norm(bond)
        hole = -self.depth * np.exp(-(((r - 2.4) / self.width) ** 2))
        slope = 2.0 * self.spring * (r - 2.0) - 2.0 * (r - 2.4) / self.width**2 * hole
        pull, energy = slope * bond / r, self.spring * (r - 2.0) ** 2 + hole
        self.results = {"energy": energy, "forces": np.array([pull, -pull])}


@pytest.fixture
def argon():
    return bulk("Ar", cubic=True, a=5.3)


def test_repulsion_passes(argon):
    report = check_smoothness(argon, lennard_jones(), cutoff=CUTOFF, trained=ARGON)
    kinds = {c.family.kind for c in report.compressions}
    assert kinds == {"molecules", "crystals", "dense packings", "loose packings", "clusters"}
    assert not [c.failure for c in report.compressions if c.failure]
    assert [run.temperature for run in report.runs] == [80.0, 80.0]
    assert not [run.failure for run in report.runs if run.failure]
    assert all(len(run.energy) > 300 and run.quenched > -0.05 for run in report.runs)
    assert report.trained.lowest < -0.5  # of the structure, less the margin
    dimer = next(c for c in report.compressions if c.family.name == "Ar-Ar dimer")
    pair = Atoms("Ar2", [[0, 0, 0], [0, 0, 0.6 * 3.1]], calculator=lennard_jones())
    assert dimer.energy[-1] == pytest.approx(pair.get_potential_energy() / 2, rel=1e-12)


def test_hole_in_crowds_is_found_and_written(argon, tmp_path):
    """No pair is attracted in it: only what has many near neighbours falls."""
    calc = Crowded(strength=200.0, threshold=4.0)
    report = check_smoothness(argon, calc, cutoff=CUTOFF, trained=ARGON)
    failed = {c.family.name: c for c in report.compressions if c.failure}
    assert {"fcc Ar", "dense packing 1 Ar24"} <= set(failed)
    assert not [name for name in failed if "dimer" in name or "linear" in name]
    assert any(f.startswith("fcc Ar") for f in report.failures)
    written = report.write(tmp_path)
    assert {path.name for path in written} == {
        "smoothness.json",
        "smoothness.png",
        "smoothness_holes.extxyz",
    }
    holes = read(tmp_path / "smoothness_holes.extxyz", ":")
    named = next(a for a in holes if a.info["failure"].startswith("fcc Ar"))
    k = failed["fcc Ar"].failure[0]
    distance = named.repeat(3).get_distance(0, 1)
    assert distance == pytest.approx(3.1 * failed["fcc Ar"].x[k], abs=1e-6)
    document = json.loads((tmp_path / "smoothness.json").read_text())
    assert not next(c for c in document["compression"] if c["name"] == "fcc Ar")["passed"]
    # beside the page of all checks, too; one that found none removes those of an earlier run
    suite = Suite({"file": "a.pth"}, "x", [CheckOutcome("smoothness", "Smoothness", report=report)])
    *_, again = write_report(suite, tmp_path / "all" / "report.html")
    assert again == tmp_path / "all" / "smoothness_holes.extxyz"
    assert len(read(again, ":")) == len(holes)
    sound = replace(report, compressions=[], runs=[])
    assert not sound.write_holes(again.parent)
    assert not again.exists()


def test_matter_of_another_composition_may_fall_behind_a_barrier():
    """Not below what it was outside: of the training's composition every fall is a failure."""
    x = np.array([1.2, 1.0, 0.9, 0.85, 0.8, 0.7])
    behind, below = np.array([-2.0, -1.0, 1.0, -1.5, 2.0, 9.0]), np.array([-2, -1, 1, -2.5, 2, 9.0])
    family = packings.Family("crystals", "diamond C", bulk("C"), composed=True)
    other = replace(family, composed=False)
    for energy, fall, least in ((behind, 2.5, 0.0), (below, 3.5, 0.5)):
        mine = Compression(family, x, energy, 0.95, None)
        foreign = Compression(other, x, energy, 0.95, None)
        assert mine.fall.max() == pytest.approx(fall)
        assert foreign.fall.max() == pytest.approx(least)
        assert mine.failure
        assert mine.failure[0] == 3
        assert bool(foreign.failure) == (least > 0.0)


def test_energy_below_the_training_fails():
    """Falls that are no hole, and energies that are lower than any that the training had."""
    deep = Trained(["Ar"], np.array([[3.1]]), lowest=-0.01)
    found = compress(lennard_jones(), deep, {"Ar": 1})
    failed = [c for c in found if c.failure]
    assert failed
    assert all("far below the training" in c.failure[1] for c in failed)
    assert all(c.energy.min() < -0.01 for c in failed)


def test_holes_reached_by_heat_fail():
    """The hole is 0.4 Å beyond the rest: 5000 K get there, a relaxation does not."""
    pair = Atoms("Ar2", [[0, 0, 0], [0, 0, 2.0]])
    hot = Trained(["Ar"], np.array([[1.5]]), temperature=2500.0)
    sound = hot_runs(pair, Well(0.0), hot)
    assert not [run.failure for run in sound if run.failure]
    fallen = hot_runs(pair, Well(3.0), hot)
    assert all(run.failure and run.failure.startswith("Ar2 at 5000 K") for run in fallen)
    assert all("a hole" in run.failure for run in fallen)
    assert all(min(run.quenched, run.energy.min()) < -0.3 for run in fallen)


def test_molecules_run_longer_and_hotter():
    """A barrier of 0.34 eV: 600 K do not cross it in 300 steps, 1000 K do in 3000."""
    pair = Atoms("Ar2", [[0, 0, 0], [0, 0, 2.0]])
    cold = Trained(["Ar"], np.array([[1.5]]), temperature=300.0)
    sound = hot_runs(pair, Well(0.0, spring=5.0), cold)
    assert [run.temperature for run in sound] == [600.0, 600.0, 1000.0]
    assert [len(run.energy) for run in sound] == [301, 301, 3001]
    assert not [run.failure for run in sound if run.failure]
    short, again, longer = hot_runs(pair, Well(3.0, width=0.06, spring=5.0), cold)
    assert short.failure is again.failure is None
    assert longer.failure.startswith("Ar2 at 1000 K (run 2) falls to -")
    crystal = bulk("Ar", a=5.3, cubic=True)
    assert [len(run.energy) for run in hot_runs(crystal, lennard_jones(), ARGON)] == [301, 301]


def test_domain_of_a_file():
    domain = Domain.of(
        symbols=["H", "O"],
        shortest=np.array([[1.4, 0.9], [0.9, np.inf]]),
        neighbors=np.array([[2, 2], [1, 2]]),
        frames=2,
        atoms=6,
        spans={"density": [], "pressure": [], "energy_per_atom": [-3.0, -2.2]},
        force=1.0,
        temperature=700.0,
    )
    metadata = {"domain": domain.document, "reference_energies": {"H": -13.0, "O": -2000.0}}
    water = Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [0, 0.96, 0]])
    trained = Trained.read(metadata, water, ["O", "H"])
    assert trained.symbols == ["H", "O"]
    assert trained.shortest == pytest.approx(np.array([[1.4, 0.9], [0.9, 1.32]]))
    assert trained.bonded == pytest.approx(np.array([[0.62, 0.9], [0.9, 1.32]]))
    assert trained.lowest == pytest.approx(-3.8)
    assert trained.lowest_of(composed=False) == pytest.approx(-12.8)
    assert trained.temperature == 700.0
    assert trained.reference_of(water) == pytest.approx(-2026.0 / 3)
    del metadata["domain"]
    guessed = Trained.read(metadata, water, ["O", "H"])
    assert guessed.shortest[0, 1] == pytest.approx(0.9 * 0.96)
    assert guessed.lowest is guessed.temperature is None
    assert "unknown" in str(guessed)


def test_families_are_at_contact():
    trained = Trained(["H", "O"], np.array([[1.4, 0.9], [0.9, 2.2]]))
    every = packings.families(trained, {"H": 2, "O": 1})
    for family in every:
        x = packings.closest(family.base, trained.symbols, trained.shortest)
        assert x == pytest.approx(1.0, abs=1e-9), family.name
    mixed = [f for f in every if f.composed]
    assert {str(f.base.symbols.formula.reduce()[0]) for f in mixed if "packing" in f.name} == {
        "H2O"
    }
    again = packings.families(trained, {"O": 1, "H": 2})
    assert [f.name for f in again] == [f.name for f in every]
    assert all(
        np.array_equal(a.base.positions, b.base.positions)
        for a, b in zip(every, again, strict=True)
    )


#: of each shipped file what failed in it, or in one before it
PRESSED = {
    "acac": {"C": 5, "H": 8, "O": 2},
    "acac_from_xtb": {"C": 5, "H": 8, "O": 2},
    "aspirin": {"C": 9, "H": 8, "O": 4},
}
WORST = {"sc C", "diamond C", "C-H-C bent", "dense packing 2"}


@pytest.mark.parametrize("name", PRESSED)
def test_shipped_molecules_have_no_dense_holes(name, monkeypatch):
    """Carbon with six neighbours had -1e11 eV, random packings fell by 5 eV/atom."""
    monkeypatch.setattr("eqcalc.checks.compression.NUM_STEPS", 13)
    every = packings.families

    def some(*args, **options):
        return [f for f in every(*args, **options) if f.name.split(" C1")[0] in WORST]

    monkeypatch.setattr("eqcalc.checks.compression.families", some)
    path = Path(__file__).parents[1] / "examples" / f"{name}.pth"
    # the kernels that test_examples.py compiles
    calc = EquivariantCalculator(path, dtype="float64", engine="fused", on_domain_exit="ignore")
    trained = Trained.read(calc.potential.metadata, Atoms("CHO"), ["C", "H", "O"])
    found = compress(calc, trained, PRESSED[name])
    assert {c.family.name.split(" C1")[0] for c in found} == WORST
    assert not [c.failure for c in found if c.failure]
