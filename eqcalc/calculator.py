"""The ASE calculator."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import (
    Calculator,
    CalculatorSetupError,
    PropertyNotImplementedError,
    all_changes,
)

from eqcalc import export
from eqcalc.committee import combine
from eqcalc.descriptors import feature_irreps, invariant_columns, node_features
from eqcalc.engine.backends import Backend, Outcome, open_backend
from eqcalc.engine.fused import EdgeArrays
from eqcalc.errors import InputError
from eqcalc.hessian import hessian
from eqcalc.neighbors import VerletList, check_structure, neighbor_list

if TYPE_CHECKING:
    from e3nn import o3

VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
BATCH = 512  # atoms that are evaluated side by side


def properties_of(outcome: Outcome, volume: float | None) -> dict[str, Any]:
    """ASE's results; with stress if there is a volume (Å^3)."""
    energy = float(outcome.energies.sum())
    results = {
        "energy": energy,
        "free_energy": energy,
        "energies": outcome.energies,
        "forces": outcome.forces,
        "atomic_virials": outcome.virials,
    }
    if volume is not None:
        symmetric = [outcome.virials[:, i, j] + outcome.virials[:, j, i] for i, j in VOIGT]
        results["stresses"] = np.stack(symmetric, axis=1) * (-0.5 / volume)
        results["stress"] = results["stresses"].sum(axis=0)
    return results


def _batches(structures: list[Atoms]) -> Iterator[list[int]]:
    """Indices of structures that are evaluated together: about BATCH atoms, one at least."""
    batch: list[int] = []
    size = 0
    for k, atoms in enumerate(structures):
        if batch and size + len(atoms) > BATCH:
            yield batch
            batch, size = [], 0
        batch.append(k)
        size += len(atoms)
    if batch:
        yield batch


class EquivariantCalculator(Calculator):
    """A potential file behind ASE.

    Args:
        model: a potential file, or the name of a bundled model ("si"); a list of them makes a
            committee.
        device: "cpu" (default), "cuda", "cuda:1", ...
        dtype: "float32" or "float64"; None takes the file's own. Edge vectors are formed, and
            energies summed, in float64 either way; take "float64" for tight relaxations, phonons
            and long NVE runs.
        engine: "fused" (generated C++, radial functions from tables that are exact to about 1e-10
            eV in float64), "exact" (the same without tables), "torch" (the file's own TorchScript,
            any device); "auto" takes "fused" on the CPU, or "torch" where that cannot be had.
        skin: Å, by which the neighbour list reaches beyond the cutoff so that it can be reused.
        threads: of the engine during a calculation; None takes as many as torch has.

    A committee's results are the means over its members; beside them, in `results`, stand
    energy_std, energies_std, forces_std and stress_std, the standard deviations (see
    eqcalc.committee). Members share a neighbour list; each must know the elements.

    Properties: energy and free_energy (eV), energies [N] (eV), forces [N, 3] (eV/Å), and for
    structures periodic in three directions stress [6] (eV/Å^3, ASE's sign and order) and stresses
    [N, 6], each atom's share: minus its virial (eqcalc.derivatives) over the cell volume, made
    symmetric, so that they sum to the stress. One pass of the network gives all of them. What costs
    more has methods of its own: `get_descriptors`, `get_hessian`; see also `get_atomic_virials` and
    `evaluate`.

    Raises:
        InputError: at construction, when the file, device or precision does not fit; at
            calculation, for elements that the model lacks, positions that are not finite and
            overlapping atoms.
    """

    implemented_properties: ClassVar[list[str]] = [
        "energy",
        "free_energy",
        "energies",
        "forces",
        "stress",
        "stresses",
    ]

    def __init__(
        self,
        model: str | os.PathLike | Sequence[str | os.PathLike],
        *,
        device: str | None = None,
        dtype: str | None = None,
        engine: str = "auto",
        skin: float = 0.5,
        threads: int | None = None,
    ) -> None:
        super().__init__()
        if skin < 0.0:
            raise InputError(f"skin = {skin} Å: it must not be negative.")
        if threads is not None and threads < 1:
            raise InputError(f"threads = {threads}: it must be at least 1.")
        models = [model] if isinstance(model, (str, os.PathLike)) else list(model)
        if not models:
            raise InputError("A committee needs at least one model: the list is empty.")
        self._made_with = {
            "models": [str(export.resolve(m)) for m in models],
            "device": device,
            "dtype": dtype,
            "engine": engine,
            "skin": skin,
            "threads": threads,
        }
        self._load()

    def _load(self, backends: list[Backend] | None = None) -> None:
        options = {k: v for k, v in self._made_with.items() if k not in ("models", "skin")}
        self.backends = backends or [open_backend(m, **options) for m in self._made_with["models"]]
        self.backend = self.backends[0]
        self.potential = self.backend.potential
        self.cutoff = max(b.potential.cutoff for b in self.backends)
        self.neighbors = VerletList(self.cutoff, self._made_with["skin"])
        self._files: list[export.PotentialFile] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Pickles and deep copies carry the options and results, and open the file again."""
        state = self.__dict__.copy()
        for name in ("backends", "backend", "potential", "neighbors", "_files"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load()

    def copy(self) -> EquivariantCalculator:
        """A calculator with a neighbour list and results of its own on the same loaded networks:
        one for each image of a band costs next to nothing.
        """
        twin = type(self).__new__(type(self))
        Calculator.__init__(twin)
        twin._made_with = dict(self._made_with)
        twin._load([b.twin() for b in self.backends])
        return twin

    def set(self, **kwargs: Any) -> dict[str, Any]:
        """Options are fixed at construction; ASE's own `set` would take any name in silence."""
        if kwargs:
            raise CalculatorSetupError(
                f"EquivariantCalculator has no parameter to set ({', '.join(kwargs)}): "
                "make a new calculator instead."
            )
        return {}

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:  # noqa: ARG002
        """What the potential depends on and has changed since the last calculation, to the last
        bit; ASE's own compares more, and ten times slower.
        """
        if self.atoms is None:
            return list(all_changes)
        pairs = {
            "positions": (self.atoms.positions, atoms.positions),
            "numbers": (self.atoms.numbers, atoms.numbers),
            "cell": (self.atoms.cell.array, atoms.cell.array),
            "pbc": (self.atoms.pbc, atoms.pbc),
        }
        return [name for name, (a, b) in pairs.items() if not np.array_equal(a, b)]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        atoms = self.atoms
        periodic = bool(atoms.pbc.all())
        if not periodic and {"stress", "stresses"} & set(properties):
            raise PropertyNotImplementedError(
                "Stress needs a volume: the structure is not periodic in all three directions "
                f"(pbc = {atoms.pbc.tolist()})."
            )
        pairs = self.neighbors.candidates(atoms)
        volume = atoms.get_volume() if periodic else None
        results = []
        for backend in self.backends:
            species = backend.potential.species_of(atoms.numbers)
            outcome = backend.compute(species, atoms.positions, atoms.cell.array, pairs)
            results.append(properties_of(outcome, volume))
        self.results = results[0] if len(results) == 1 else combine(results)

    def evaluate(self, structures: Iterable[Atoms]) -> list[dict[str, Any]]:
        """Many structures at once, side by side in one graph: faster than one by one where small.

        Args:
            structures: of any sizes and periodicities. Their calculators are not touched.

        Returns:
            For each, what `results` would be.
        """
        structures = list(structures)
        volumes = [a.get_volume() if a.pbc.all() else None for a in structures]
        members = [self._evaluate(backend, structures, volumes) for backend in self.backends]
        if len(members) == 1:
            return members[0]
        return [combine(results) for results in zip(*members, strict=True)]

    def _evaluate(
        self, backend: Backend, structures: list[Atoms], volumes: list[float | None]
    ) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = []
        for batch in _batches(structures):
            ends = np.cumsum([0] + [len(structures[k]) for k in batch])
            parts = []
            for k, start in zip(batch, ends, strict=False):
                try:
                    parts.append(_arrays(backend, structures[k], int(start)))
                except InputError as error:
                    raise InputError(f"Structure {k}: {error}") from None
            species, src, dst, vec = (np.concatenate(p) for p in zip(*parts, strict=True))
            whole = backend.compute_edges(species, EdgeArrays(src, dst, vec))
            for k, start, end in zip(batch, ends, ends[1:], strict=False):
                outcome = Outcome(*(values[start:end].copy() for values in whole))
                results.append(properties_of(outcome, volumes[k]))
        return results

    def get_atomic_virials(self, atoms: Atoms | None = None) -> np.ndarray:
        """W_j = -sum_i r_ij (x) dE/dr_ij [N, 3, 3] eV, not symmetric per atom (of a committee, the
        mean); they sum to minus the stress times the volume. See eqcalc.derivatives.
        """
        self.get_property("energy", atoms)
        return self.results["atomic_virials"].copy()

    def _member_files(self, dtype: torch.dtype | None = None) -> list[export.PotentialFile]:
        """The members' TorchScript, kept in the calculator's precision; opened anew in another."""
        made = self._made_with
        if dtype is None or dtype == self.potential.dtype:
            if self._files is None:
                self._files = [
                    b.potential
                    if isinstance(b.potential, export.PotentialFile)
                    else export.load(b.potential.path, dtype=b.potential.dtype)
                    for b in self.backends
                ]
            return self._files
        return [export.load(m, device=made["device"], dtype=dtype) for m in made["models"]]

    def _single(self) -> export.PotentialFile:
        if len(self.backends) > 1:
            raise InputError("Descriptors belong to one model: ask a calculator of one member.")
        return self._member_files()[0]

    def descriptor_irreps(self, layer: int = -1) -> o3.Irreps:
        """Irreps of the columns of `get_descriptors`."""
        return feature_irreps(self._single(), layer)

    def get_descriptors(
        self, atoms: Atoms | None = None, *, layer: int = -1, invariants_only: bool = False
    ) -> np.ndarray:
        """Features of the atoms after a layer of the network.

        Args:
            atoms: None takes those of the last calculation.
            layer: from 0; counted from the end if negative. The last one has scalars only.
            invariants_only: the columns of 0e alone.

        Returns:
            [N, descriptor_irreps(layer).dim] in e3nn's layout: a structure rotated by R has
            `features @ descriptor_irreps(layer).D_from_matrix(R).T`.
        """
        potential = self._single()
        atoms = self._given(atoms)
        species, src, dst, vec = _arrays(self.backend, atoms, 0)
        tensors = (torch.from_numpy(a).to(potential.device) for a in (species, vec, src, dst))
        features = node_features(potential, *tensors, layer).cpu().numpy()
        if not invariants_only:
            return features
        return features[:, invariant_columns(potential, layer)]

    def get_hessian(
        self,
        atoms: Atoms | None = None,
        *,
        indices: Sequence[int] | None = None,
        dtype: str = "float64",
    ) -> np.ndarray:
        """Exact second derivatives of the energy (eqcalc.hessian), on torch.

        Args:
            atoms: None takes those of the last calculation.
            indices: atoms whose rows are wanted; None for all.
            dtype: of the calculation, whatever that of the calculator.

        Returns:
            [3 n, 3 N] eV/Å^2; of a committee, the mean.
        """
        atoms = self._given(atoms)
        files = self._member_files(export.precision(dtype, {}))
        return np.mean([hessian(f, atoms, indices) for f in files], axis=0)

    def _given(self, atoms: Atoms | None) -> Atoms:
        atoms = self.atoms if atoms is None else atoms
        if atoms is None:
            raise InputError("There is no structure yet: give atoms.")
        return atoms


def _arrays(backend: Backend, atoms: Atoms, offset: int) -> tuple[np.ndarray, ...]:
    """Species, src, dst, edge vectors of a structure whose first atom has number `offset`."""
    positions, cell = atoms.get_positions(), np.array(atoms.cell.array, dtype=np.float64)
    check_structure(positions, cell, atoms.pbc)
    species = backend.potential.species_of(atoms.numbers)
    pairs = neighbor_list(positions, cell, atoms.pbc, backend.potential.cutoff)
    vectors = np.ascontiguousarray(pairs.vectors(positions, cell))
    return species, pairs.edge_src + offset, pairs.edge_dst + offset, vectors
