"""A model for torch-sim (torch-sim-atomistic): many systems at once, on any of our engines.

from eqcalc.adapters.torch_sim import TorchSimModel
model = TorchSimModel("si")
state = torch_sim.integrate(system=atoms, model=model, integrator=..., ...)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from ase import Atoms

from eqcalc.calculator import EquivariantCalculator
from eqcalc.errors import InputError

try:
    from torch_sim.models.interface import ModelInterface
except ImportError:
    raise InputError(
        "This adapter needs the package torch-sim: pip install torch-sim-atomistic."
    ) from None

#: by the precision that a calculator names
DTYPES = {"float32": torch.float32, "float64": torch.float64}


class TorchSimModel(ModelInterface):
    """An `EquivariantCalculator` as torch-sim's `ModelInterface`.

    Args:
        model: as `EquivariantCalculator` takes it: a file, a name, or a list for the mean of a
            committee.
        device: where torch-sim keeps its tensors, and where the torch engine runs.
        dtype: of torch-sim's tensors and of the network; None takes the file's own. Positions in
            float32 are rounded to about 1e-6 Å: take float64 for relaxations and long NVE runs.
        engine: "fused", "exact", "torch" or "auto".
        batch_atoms: how many atoms go through the network together.
        compute_stress, compute_forces: whether `forward` returns them.

    Raises:
        InputError: as `EquivariantCalculator`.
    """

    def __init__(
        self,
        model: str | os.PathLike | Sequence[str | os.PathLike],
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        engine: str = "auto",
        batch_atoms: int = 1000,
        compute_stress: bool = True,
        compute_forces: bool = True,
    ) -> None:
        super().__init__()
        precision = None if dtype is None else str(dtype).removeprefix("torch.")
        self.calculator = EquivariantCalculator(
            model,
            device=None if device is None else str(device),
            dtype=precision,
            engine=engine,
        )
        self.batch_atoms = batch_atoms
        self._device = torch.device(self.calculator.potential.device)
        self._dtype = DTYPES[self.calculator.dtype]
        self._compute_stress, self._compute_forces = compute_stress, compute_forces
        self._memory_scales_with = "n_atoms_x_density"

    @property
    def compute_stress(self) -> bool:
        return self._compute_stress

    @compute_stress.setter
    def compute_stress(self, compute_stress: bool) -> None:
        self._compute_stress = compute_stress

    @property
    def compute_forces(self) -> bool:
        return self._compute_forces

    @compute_forces.setter
    def compute_forces(self, compute_forces: bool) -> None:
        self._compute_forces = compute_forces

    def forward(self, state: Any, **_: Any) -> dict[str, torch.Tensor]:
        """Energies [systems] eV; forces [atoms, 3] eV/Å; stress [systems, 3, 3] eV/Å^3.

        state: a SimState of torch-sim, or a dictionary of its fields. Its cells have their vectors
        in columns. Stress has ASE's sign, and is zero for systems without a periodic direction.
        """
        structures = structures_of(state)
        results = self.calculator.evaluate(structures, batch_atoms=self.batch_atoms)
        found = {"energy": [r["energy"] for r in results]}
        tensors = {"energy": torch.tensor(found["energy"], dtype=torch.float64)}
        if self._compute_forces:
            tensors["forces"] = torch.cat([torch.from_numpy(r["forces"]) for r in results])
        if self._compute_stress:
            tensors["stress"] = torch.stack([_matrix(r.get("stress")) for r in results])
        return {name: t.to(self._device, self._dtype) for name, t in tensors.items()}


def structures_of(state: Any) -> list[Atoms]:
    """ASE's structures of a SimState or of a dictionary of its fields, one for each system."""

    def read(name: str) -> Any:
        return state.get(name) if isinstance(state, dict) else getattr(state, name, None)

    if read("atomic_numbers") is None:
        raise InputError("The state has no atomic_numbers: give them with the positions.")
    positions, cell, numbers = (_array(read(n)) for n in ("positions", "cell", "atomic_numbers"))
    system = read("system_idx")
    system = torch.zeros(len(positions), dtype=torch.int64) if system is None else _array(system)
    pbc = read("pbc")
    pbc = pbc.tolist() if isinstance(pbc, torch.Tensor) else pbc
    cell = cell.reshape(-1, 3, 3)
    return [
        Atoms(
            numbers[system == k].numpy(),
            positions=positions[system == k].double().numpy(),
            cell=cell[k].double().T.numpy(),
            pbc=pbc,
        )
        for k in range(len(cell))
    ]


def _array(value: torch.Tensor) -> torch.Tensor:
    return value.detach().cpu()


def _matrix(stress: Any) -> torch.Tensor:
    """[3, 3] of ASE's xx yy zz yz xz xy; zeros where there is no stress."""
    if stress is None:
        return torch.zeros(3, 3, dtype=torch.float64)
    return torch.tensor(stress, dtype=torch.float64)[[0, 5, 4, 5, 1, 3, 4, 3, 2]].reshape(3, 3)
