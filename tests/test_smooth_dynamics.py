"""Energies of eSEN and of attention are smooth surfaces: NVE tells, and tells where one is not.

Velocity Verlet with exact forces of a smooth energy lets the total energy fluctuate with dt^2
(`eqcalc.checks.nve`); where neighbours that come and go make it jump, the jumps are left.
"""

import numpy as np
import pytest
import torch
from ase import units
from test_models import outputs, to_graph

from eqcalc.checks.traces import with_velocities
from eqcalc.contract import set_precision
from eqcalc.models.registry import build, model_config
from eqcalc.nn.attention import Attention

pytestmark = pytest.mark.slow

SMALL = {
    "cutoff": 4.0,
    "num_layers": 2,
    "l_max": 2,
    "num_channels": 4,
    "hidden_channels": 4,
    "num_radial": 4,
    "radial_mlp": [8],
    "radial_scale": 0.5,
}
NETWORKS = {
    "esen": {"architecture": "esen"},
    "equiformer_v2": {"architecture": "equiformer_v2", "num_heads": 2},
}
TETHER = 2.0  # eV/Å^2, to where an atom begins: untrained networks hold no crystal
LENGTH = 80.0  # fs


def network(name):
    torch.manual_seed(4)
    config = model_config(SMALL | NETWORKS[name])
    model = build(config, [8, 14], 15.0, [0.5, 0.5], [0.0, 0.0])
    return set_precision(model, torch.float64).eval()


def fluctuation(model, start, timestep):
    """eV per atom around a line, and how many neighbours crossed the cutoff."""
    atoms = start.copy()
    origin, masses = start.positions, atoms.get_masses()[:, None]
    velocities = atoms.get_velocities()
    dt = timestep * units.fs

    def evaluate():
        graph = to_graph(atoms)
        energies, forces, _ = outputs(model, graph)
        away = atoms.positions - origin
        energy = energies.sum() + 0.5 * TETHER * (away**2).sum()
        return energy, forces - TETHER * away, graph.num_edges

    energy, forces, edges = evaluate()
    totals, crossings = [], 0
    for _ in range(round(LENGTH / timestep)):
        velocities = velocities + 0.5 * dt * forces / masses
        atoms.positions += dt * velocities
        energy, forces, now = evaluate()
        crossings += abs(now - edges) // 2
        edges = now
        velocities = velocities + 0.5 * dt * forces / masses
        totals.append(energy + 0.5 * (masses * velocities**2).sum())
    steps = np.arange(len(totals))
    rest = np.array(totals) - np.polyval(np.polyfit(steps, totals, 1), steps)
    return rest.std() / len(atoms), crossings


@pytest.fixture
def hot(crystal):
    """As hot as brings neighbours through the cutoff."""
    return with_velocities(crystal, 2000.0, seed=1)


@pytest.mark.parametrize("name", NETWORKS)
def test_fluctuations_fall_with_the_square_of_the_time_step(name, hot):
    model = network(name)
    coarse, crossings = fluctuation(model, hot, 2.0)
    fine, _ = fluctuation(model, hot, 1.0)
    assert crossings > 5
    assert coarse / fine == pytest.approx(4.0, rel=0.15)


def test_attention_without_an_envelope_is_found_out(hot, monkeypatch):
    """The usual softmax: neighbours enter and leave with a share of the weight."""
    plain = Attention.forward

    def without_envelope(self, scalars, envelope, edge_dst, num_local):
        return plain(self, scalars, (envelope > 0.0).to(envelope.dtype), edge_dst, num_local)

    model = network("equiformer_v2")
    monkeypatch.setattr(Attention, "forward", without_envelope)
    coarse, crossings = fluctuation(model, hot, 2.0)
    fine, _ = fluctuation(model, hot, 1.0)
    assert crossings > 5
    assert coarse / fine < 2.0
