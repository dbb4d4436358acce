"""Networks with outputs beside the energy: LAMMPS has the energy, or says why it has none."""

from __future__ import annotations

import pytest
from parity import SYSTEMS, assert_equal, by_lammps, by_python, pair, script, silica_like

from eqcalc.errors import InputError
from eqcalc.lammps import run_lmp

SMALL = {"cutoff": 4.0, "num_layers": 2, "l_max": 1, "num_channels": [4, 3], "radial_mlp": [6]}


@pytest.mark.parametrize("engine", ["fused", "torch"])
def test_the_energy_of_a_network_with_a_dipole(engine, untrained_file, tmp_path):
    path = untrained_file(**SMALL, outputs=["dipole", "charges"])
    atoms = SYSTEMS["slab"]()
    got, _, _ = by_lammps(script(atoms, tmp_path, pair(path, f"engine {engine}")), 2)
    assert_equal(got, by_python(path, atoms))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"outputs": ["dipole"], "energy": False}, "has no energy, which LAMMPS needs"),
        ({"outputs": ["direct_forces"]}, "has direct forces, which are no derivatives"),
    ],
)
def test_networks_that_lammps_cannot_run_say_why(options, sentence, untrained_file, tmp_path):
    path = script(silica_like(1), tmp_path, pair(untrained_file(**SMALL, **options)))
    with pytest.raises(InputError, match=sentence):
        run_lmp(path, timeout=120)
