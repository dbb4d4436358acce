"""Our model in torch-sim: its own validation, our calculator, and NVE of a batch.

    python torch_sim_model.py POTENTIAL

with torch-sim-atomistic installed; the potential knows Si and Fe. Prints figures as JSON.
"""

import json
import sys

import numpy as np
import torch
import torch_sim as ts
from ase import Atoms, units
from ase.build import bulk
from torch_sim.integrators.nve import nve
from torch_sim.models.interface import validate_model_outputs

from eqcalc import EquivariantCalculator
from eqcalc.adapters.torch_sim import TorchSimModel


def structures():
    """Two crystals of different size, sheared and displaced."""
    made = [bulk("Si", cubic=True), bulk("Fe", cubic=True).repeat((2, 2, 1))]
    for n, atoms in enumerate(made):
        shear = np.eye(3) + 0.02 * np.arange(9).reshape(3, 3) / 9
        atoms.set_cell(atoms.cell.array @ shear, scale_atoms=True)
        atoms.rattle(0.1, seed=n)
    return made


def deviations(model, path, atoms, dtype):
    """Largest ones from the calculator, structure by structure: eV, eV/Å, eV/Å^3."""
    out = model(ts.io.atoms_to_state(atoms, torch.device("cpu"), dtype))
    found = {"energy": 0.0, "forces": 0.0, "stress": 0.0}
    start = 0
    for k, one in enumerate(atoms):
        one.calc = EquivariantCalculator(path, dtype="float64", engine="torch")
        end = start + len(one)
        pairs = {
            "energy": (out["energy"][k], one.get_potential_energy()),
            "forces": (out["forces"][start:end], one.get_forces()),
        }
        if one.pbc.any():
            pairs["stress"] = (out["stress"][k], one.get_stress(voigt=False))
        start = end
        for name, (a, b) in pairs.items():
            found[name] = max(found[name], float(np.abs(a.numpy() - b).max()))
    return found


def main(path):
    model = TorchSimModel(path, dtype=torch.float64)
    validate_model_outputs(model, model.device, model.dtype)
    figures = {"engine": model.calculator.engine}
    figures["float64"] = deviations(model, path, structures(), torch.float64)
    single = TorchSimModel(path, dtype=torch.float32)
    figures["float32"] = deviations(single, path, structures(), torch.float32)
    clusters = [Atoms("Si2", [[0, 0, 0], [2.2, 0.3, 0]]), Atoms("SiFe", [[0, 0, 0], [0, 2.3, 0]])]
    figures["clusters"] = deviations(model, path, clusters, torch.float64)
    figures["spread"] = [spread(model, timestep) for timestep in (2.0, 1.0)]
    print(json.dumps(figures))


def spread(model, timestep):
    """[systems] eV, of the total energies over 60 fs of NVE; timestep in fs."""
    dt, temperature = torch.tensor(timestep * units.fs), torch.tensor(0.01)
    start, step = nve(model, dt=dt, kT=temperature, seed=1)
    state = start(ts.io.atoms_to_state(structures(), model.device, model.dtype))
    energies = []
    for _ in range(round(60 / timestep)):
        state = step(state)
        energies.append(total(state))
    return np.std(energies, axis=0).tolist()


def total(state):
    """[systems] eV."""
    kinetic = (0.5 * state.momenta**2 / state.masses[:, None]).sum(1)
    zero = torch.zeros_like(state.energy)
    return (state.energy + zero.index_add(0, state.system_idx, kinetic)).tolist()


if __name__ == "__main__":
    main(sys.argv[1])
