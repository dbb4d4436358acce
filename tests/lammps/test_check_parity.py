"""The parity check: right for every kind of structure, and able to fail in every property."""

from __future__ import annotations

import numpy as np
import pytest
from ase.calculators.calculator import all_changes
from parity import SYSTEMS

from eqcalc import EquivariantCalculator, InputError
from eqcalc.checks import parity
from eqcalc.checks.nve import check_nve


@pytest.mark.parametrize("system", ["triclinic", "slab", "molecule", "needle"])
def test_parity_of(system, model):
    report = parity.check_parity(SYSTEMS[system](), model, ranks=(1, 3))
    assert report.passed, str(report)
    assert ("pressure" in report.scales) == (system in ("triclinic", "needle"))


class Wrong(EquivariantCalculator):
    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, [*properties, "forces"], system_changes)
        self.results["energies"] = self.results["energies"] + 1e-6 * np.eye(len(self.atoms))[0]
        self.results["forces"] = self.results["forces"][::-1]
        self.results["stress"] = self.results["stress"][[0, 1, 2, 5, 4, 3]]


def test_every_difference_is_found(model, monkeypatch):
    monkeypatch.setattr(parity, "EquivariantCalculator", Wrong)
    report = parity.check_parity(SYSTEMS["triclinic"](), model, ranks=(1,), precisions=("float64",))
    found = {f.split(": ")[1].split(" differ")[0] for f in report.failures}
    assert found == {"atomic energies", "forces", "pressure"}


def test_a_wrong_virial_is_found(model, monkeypatch):
    right = parity.by_lammps

    def transposed(*arguments):
        got = right(*arguments)
        return got | {"atomic virials": got["atomic virials"].transpose(0, 2, 1)}

    monkeypatch.setattr(parity, "by_lammps", transposed)
    report = parity.check_parity(SYSTEMS["triclinic"](), model, ranks=(1,), precisions=("float64",))
    assert ["atomic virials differ" in f for f in report.failures] == [True]


def test_velocities_do_not_matter(model):
    atoms = SYSTEMS["tiny"]()
    atoms.set_momenta(np.ones((len(atoms), 3)))
    assert parity.check_parity(atoms, model, ranks=(1,), precisions=("float64",)).passed
    assert atoms.get_momenta().all()


def test_no_ranks(model):
    with pytest.raises(InputError, match="must be positive"):
        parity.check_parity(SYSTEMS["tiny"](), model, ranks=(0,))


def test_random_weights_conserve_energy(quick_model):
    """Any weights do: conservation is the network's, not the training's."""
    atoms = SYSTEMS["silica_like"]()
    options = {"engines": ("lammps",), "steps": 100, "timestep": 1.0, "temperature": 50.0}
    report = check_nve(atoms, quick_model, **options)
    assert report.shared.ranks == 2
    assert not [f for f in report.failures if "ranks" in f or "power" in f], str(report)
