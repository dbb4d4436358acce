"""Energies of eSEN and of attention are smooth surfaces: NVE tells, and tells where one is not.

Velocity Verlet with exact forces of a smooth energy lets the total energy fluctuate with dt^2
(`eqcalc.checks.nve`); where neighbours that come and go make it jump, or frames of edges that turn
over, the jumps are left. A coarse grid that stands still in space has a smooth energy, but one that
is not invariant: dynamics conserve it, and turn a free molecule by themselves.
"""

import numpy as np
import pytest
import torch
from ase import units
from e3nn import o3
from test_models import outputs, to_graph

from eqcalc.checks.traces import with_velocities
from eqcalc.contract import set_precision
from eqcalc.models.registry import build, model_config
from eqcalc.nn.activations import silu
from eqcalc.nn.attention import Attention
from eqcalc.nn.frames import orders_of_rows
from eqcalc.nn.so2 import by_order
from eqcalc.nn.sphere import FrameSphereActivation

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


def network(name, **options):
    torch.manual_seed(4)
    config = model_config(SMALL | NETWORKS[name] | options)
    model = build(config, [8, 14], 15.0, [0.5, 0.5], [0.0, 0.0])
    return set_precision(model, torch.float64).eval()


def fluctuation(model, start, timestep, length=LENGTH):
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
    for _ in range(round(length / timestep)):
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


def test_fluctuations_fall_with_the_square_of_the_time_step(hot):
    """Of eSEN; of attention see the test of grids."""
    model = network("esen")
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


def coarse_grid(degrees, polar, around):
    """To values on a grid that holds functions of these degrees, no product of two; and back."""
    height, weight = np.polynomial.legendre.leggauss(polar)
    p, angle = np.meshgrid(height, np.arange(around) * (2 * np.pi / around), indexing="ij")
    q = np.sqrt(1.0 - p * p)
    points = torch.from_numpy(np.stack([q * np.sin(angle), p, q * np.cos(angle)], axis=2))
    y = o3.spherical_harmonics(degrees, points.view(-1, 3), True, "component")
    weights = torch.from_numpy(np.repeat(weight / (2 * around), around))
    return y / len(degrees), (y * weights[:, None]).T * len(degrees)


class OnGridOfEdge(torch.nn.Module):
    """SiLU on a grid that turns with the edge, l_max + 1 points along it, 2 m_max + 1 around it."""

    def __init__(self, exact):
        super().__init__()
        self.orders = exact.back.m_max
        self.channels = exact.back.channels
        l_max = len(self.channels) - 1
        to_grid, back = coarse_grid(list(range(l_max + 1)), l_max + 1, 2 * self.orders + 1)
        kept = [d * d + d + m for d in range(l_max + 1) for m in orders_of_rows(d, self.orders)]
        self.to_grid, self.back = to_grid[:, kept], back[kept]

    def forward(self, x, _frames):
        blocks, first = [], [0] * (self.orders + 1)
        for degree, mul in enumerate(self.channels):
            for m in range(min(degree, self.orders) + 1):
                blocks.append(x[m][:, :, first[m] : first[m] + mul])
                first[m] += mul
        y = self.back @ silu(self.to_grid @ torch.cat(blocks, dim=1))
        rows = [len(orders_of_rows(degree, self.orders)) for degree in range(len(self.channels))]
        return by_order(list(y.split(rows, dim=1)), self.orders)


def test_a_coarse_grid_that_turns_with_the_edge_is_found_out(hot):
    """No choice of frames is continuous: a map that feels the choice jumps where it turns over.

    That is where an edge has p = 0 (`eqcalc.nn.frames`): the crystal is turned so that some bonds
    do. First and last layers have m = 0 alone, for scalars come in and go out.
    """
    hot.rotate(-45.0, "z", rotate_cell=True)
    model = network("equiformer_v2", num_layers=3)
    graph = to_graph(hot)
    model.calibrate(graph.species, graph.edge_vec, graph.edge_src, graph.edge_dst)

    def ratio():
        coarse, crossings = fluctuation(model, hot, 1.0, 40.0)
        assert crossings > 5
        return coarse / fluctuation(model, hot, 0.5, 40.0)[0]

    assert ratio() == pytest.approx(4.0, rel=0.15)
    for name, module in list(model.named_modules()):
        if isinstance(module, FrameSphereActivation):
            model.set_submodule(name, OnGridOfEdge(module))
    assert ratio() < 2.0


def spin(model, start, timestep=1.0, length=40.0):
    """Largest angular momentum (eV fs) of a free molecule that starts without, and the energies."""
    atoms = start.copy()
    masses = atoms.get_masses()[:, None]
    velocities = atoms.get_velocities()
    dt = timestep * units.fs
    largest, totals = 0.0, []
    _, forces, _ = outputs(model, to_graph(atoms))
    for _ in range(round(length / timestep)):
        velocities = velocities + 0.5 * dt * forces / masses
        atoms.positions += dt * velocities
        energies, forces, _ = outputs(model, to_graph(atoms))
        velocities = velocities + 0.5 * dt * forces / masses
        centred = atoms.positions - atoms.get_center_of_mass()
        momentum = np.cross(centred, masses * velocities).sum(axis=0)
        largest = max(largest, np.linalg.norm(momentum) / units.fs)
        totals.append(energies.sum() + 0.5 * (masses * velocities**2).sum())
    return largest, np.array(totals)


def test_a_coarse_grid_turns_a_free_molecule_by_itself(molecule):
    """Its energy is conserved, of order dt^2, but is not that of the turned molecule."""
    start = with_velocities(molecule, 300.0, seed=1)
    grid = network("equiformer_v2", sphere_points=3)
    exact, _ = spin(network("equiformer_v2"), start)
    coarse, totals = spin(grid, start)
    assert exact < 1e-10
    assert coarse > 1e-2  # hbar is 0.66
    finer = spin(grid, start, timestep=0.5)[1]
    assert np.ptp(totals) / np.ptp(finer) == pytest.approx(4.0, rel=0.2)
