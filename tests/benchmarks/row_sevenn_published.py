"""Published weights in SevenNet, as its calculator for ASE runs them: the whole call.

In float64, which its calculator does not know, the network alone runs, with one-hot vectors that
are not rounded to float32.
"""

from __future__ import annotations

from itertools import count

import numpy as np
import torch
from worker import Evaluate, Prepare, serve

#: Å, of an atom along an axis between calls
STEP = 0.002

#: columns of a symmetric tensor in ASE's order
VOIGT = [[0, 0], [1, 1], [2, 2], [1, 2], [0, 2], [0, 1]]


def full(stress: np.ndarray) -> torch.Tensor:
    """[6] in ASE's order -> [3, 3]."""
    tensor = np.zeros((3, 3))
    for value, (a, b) in zip(stress, VOIGT, strict=True):
        tensor[a, b] = tensor[b, a] = value
    return torch.from_numpy(tensor)


def structure(graph: dict[str, np.ndarray]):
    from ase import Atoms

    return Atoms(graph["numbers"], graph["positions"], cell=graph["cell"], pbc=graph["pbc"])


def whole_call(calculator) -> Prepare:
    """Neighbours, network and derivatives of ASE's calculators.

    Atoms move a little between calls, as in dynamics; at the first they are where they were.
    """

    def prepare(graph: dict[str, np.ndarray]) -> Evaluate:
        atoms = structure(graph)
        names = ["energy", "forces", *(["stress"] if atoms.pbc.all() else [])]
        start, steps = atoms.positions.copy(), count()
        along = np.random.default_rng(0).normal(scale=STEP, size=start.shape)

        def evaluate() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            atoms.positions = start + np.sin(next(steps)) * along
            calculator.calculate(atoms, names)
            found = calculator.results
            stress = full(found["stress"]) if "stress" in names else torch.zeros(3, 3)
            energy = torch.tensor(float(found["energy"]), dtype=torch.float64)
            return energy, torch.from_numpy(np.array(found["forces"])), stress

        return evaluate

    return prepare


class Record(dict):
    """A dict whose items are attributes, too."""

    __getattr__ = dict.__getitem__


def in_float64(calculator, task: str | None) -> Prepare:
    from ase.neighborlist import neighbor_list
    from sevenn.nn.node_embedding import OnehotEmbedding

    def exact(self, data):
        species = data[self.key_x]
        vectors = torch.nn.functional.one_hot(species, self.num_classes).double()
        for key, value in (
            (self.key_output, vectors),
            (self.key_additional_output, vectors),
            (self.key_save, species),
        ):
            if key is not None:
                data[key] = value
        return data

    OnehotEmbedding.forward = exact
    torch.set_default_dtype(torch.float64)
    model = calculator.model.double()
    model.set_is_batch_data(False)

    def prepare(graph: dict[str, np.ndarray]) -> Evaluate:
        atoms = structure(graph)
        i, j, vectors = neighbor_list("ijD", atoms, calculator.cutoff)
        numbers = torch.from_numpy(atoms.numbers)
        volume = atoms.get_volume() if atoms.pbc.all() else 1.0
        fixed = {
            "x": numbers,
            "atomic_numbers": numbers,
            "edge_index": torch.from_numpy(np.stack([i, j])),
            "num_atoms": torch.tensor(len(atoms)),
            "cell_volume": torch.tensor(volume),
            **({"data_modality": task} if task else {}),
        }

        def evaluate() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            got = model(Record(fixed, edge_vec=torch.from_numpy(vectors)))
            stress = -got["inferred_stress"].detach().numpy()[[0, 1, 2, 4, 5, 3]]
            stress = full(stress) if atoms.pbc.all() else torch.zeros(3, 3)
            return got["inferred_total_energy"].detach().sum(), got["inferred_force"], stress

        return evaluate

    return prepare


def build(network: dict, options: dict) -> Prepare:
    from sevenn.calculator import SevenNetCalculator

    task = network["task"]
    calculator = SevenNetCalculator(
        options["original"], modal=task, device="cpu", file_type="checkpoint"
    )
    if network["dtype"] == "float64":
        return in_float64(calculator, task)
    return whole_call(calculator)


if __name__ == "__main__":
    serve(build)
