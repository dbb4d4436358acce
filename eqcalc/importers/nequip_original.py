"""A file of NequIP as a calculator, run by what wrote it: TorchScript alone, or the package."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from eqcalc.errors import InputError
from eqcalc.importers import nequip_files
from eqcalc.neighbors import neighbor_list


def _packaged(path: Path) -> Any:
    from nequip.model import ModelFromPackage

    with tempfile.TemporaryDirectory() as folder:  # it insists on the name's end
        copied = Path(folder) / "model.nequip.zip"
        shutil.copy(path, copied)
        return ModelFromPackage(str(copied), compile_mode="eager")["sole_model"]


def _module(path: Path) -> torch.nn.Module:
    """What the file holds, ready to be called.

    Raises:
        InputError: the package is not installed, or another version.
    """
    kind = nequip_files.kind(path)
    try:
        if kind == "TorchScript":
            return torch.jit.load(path, map_location="cpu").eval()
        if kind == "package":
            return _packaged(path).eval()
        if kind == "checkpoint":
            from nequip.model import ModelFromCheckpoint

            return ModelFromCheckpoint(str(path), compile_mode="eager")["sole_model"].eval()
        from nequip.train import Trainer

        found = Trainer.load_model_from_training_session(str(path.parent), path.name)
        return found[0].eval()
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"--verify runs the original package, which is not installed here in the version that "
            f"reads {path.name} ({error}): 'pip install nequip', or leave --verify out."
        ) from None


class NequIPOriginal(Calculator):
    """Energies and forces of a file, in the precision that it has.

    Args:
        path: of the file.
    """

    implemented_properties = ("energy", "forces")

    def __init__(self, path: Path) -> None:
        super().__init__()
        network, _ = nequip_files.network(path)
        self.types, self.cutoff = network.types, network.cutoff
        self.module = _module(path)
        self.scripted = nequip_files.kind(path) in ("TorchScript", "folder")
        self.dtype = next(self.module.parameters()).dtype if self.scripted else torch.float64

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Any = ("energy",),
        system_changes: Any = all_changes,
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        a = self.atoms
        pairs = neighbor_list(a.positions, a.cell.array, a.pbc, self.cutoff)
        types = torch.tensor([self.types.index(s) for s in a.get_chemical_symbols()])
        edges = [pairs.edge_dst, pairs.edge_src]  # centre, neighbour
        data = {
            "pos": torch.tensor(a.positions, dtype=self.dtype),
            "cell": torch.tensor(a.cell.array, dtype=self.dtype),
            "pbc": torch.tensor(a.pbc),
            "edge_index": torch.stack([torch.as_tensor(e) for e in edges]),
            "edge_cell_shift": torch.as_tensor(pairs.cell_shift).to(self.dtype),
            "atom_types": types.view(-1, 1) if self.scripted else types,
        }
        if not self.scripted:
            data["cell"] = data["cell"].view(1, 3, 3)
            data["num_atoms"] = torch.tensor([len(a)])
            data["batch"] = torch.zeros(len(a), dtype=torch.int64)
        out = self.module(data)
        self.results = {
            "energy": float(out["total_energy"].detach()),
            "forces": out["forces"].detach().double().numpy(),
        }
