"""The engines behind the calculator: neighbours and positions in; energies, forces, virials out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import numpy as np
import torch

from eqcalc import derivatives, export
from eqcalc.engine.build import EngineUnavailable
from eqcalc.engine.fused import EdgeArrays, FusedPotential, fuse
from eqcalc.errors import InputError
from eqcalc.neighbors import NeighborList

#: atoms nearer than this (Å) are taken for one atom given twice
OVERLAP = 0.01

#: what a user may ask for, and what it means
ENGINES = {
    "fused": "generated C++ with radial tables",
    "exact": "generated C++ with the radial network itself",
    "torch": "the TorchScript of the file",
}


class Outcome(NamedTuple):
    """energies [N] eV, forces [N, 3] eV/Å, atomic virials [N, 3, 3] eV (eqcalc.derivatives)."""

    energies: np.ndarray
    forces: np.ndarray
    virials: np.ndarray


class Backend(Protocol):
    """One engine. `potential` has the file's metadata, cutoff and elements."""

    name: str
    potential: export.PotentialFile | FusedPotential

    def compute(
        self, species: np.ndarray, positions: np.ndarray, cell: np.ndarray, pairs: NeighborList
    ) -> Outcome:
        """species [N]; positions [N, 3] Å; cell [3, 3] Å; pairs: all within the cutoff, or more."""

    def compute_edges(self, species: np.ndarray, edges: EdgeArrays) -> Outcome:
        """species [N]; edges within the cutoff, of one structure or of several side by side."""

    def twin(self) -> Backend:
        """Another one on the same loaded network."""


def refuse_overlap(dst: np.ndarray, src: np.ndarray, vectors: np.ndarray) -> None:
    if not len(vectors):
        return
    squares = np.einsum("ij,ij->i", vectors, vectors)
    nearest = int(squares.argmin())
    if squares[nearest] < OVERLAP**2:
        raise InputError(
            f"Atoms {dst[nearest]} and {src[nearest]} are {squares[nearest] ** 0.5:.2g} Å apart: "
            "they overlap; check the structure for atoms given twice."
        )


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    """torch's thread count for one block; None leaves it alone."""
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        yield
    finally:
        if threads is not None:
            torch.set_num_threads(before)


class TorchBackend:
    """The TorchScript itself, on any device."""

    name = "torch"

    def __init__(self, potential: export.PotentialFile, threads: int | None) -> None:
        self.potential = potential
        self._threads = threads

    def compute(
        self, species: np.ndarray, positions: np.ndarray, cell: np.ndarray, pairs: NeighborList
    ) -> Outcome:
        pairs, vectors = pairs.within(self.potential.cutoff, positions, cell)
        return self.compute_edges(species, EdgeArrays(pairs.edge_src, pairs.edge_dst, vectors))

    def twin(self) -> TorchBackend:
        return TorchBackend(self.potential, self._threads)

    def compute_edges(self, species: np.ndarray, edges: EdgeArrays) -> Outcome:
        refuse_overlap(edges.dst, edges.src, edges.vec)
        device = self.potential.device
        arrays = (species, edges.vec, edges.src, edges.dst)
        species_, edge_vec, edge_src, edge_dst = (torch.from_numpy(a).to(device) for a in arrays)
        with _torch_threads(self._threads):
            got = self.potential.evaluate(species_, edge_vec, edge_src, edge_dst)
            n = len(species)
            forces = derivatives.forces(got.gradient, edge_src, edge_dst, n)
            virials = derivatives.atomic_virials(got.gradient, edge_vec, edge_src, n)
        return Outcome(got.energies.cpu().numpy(), forces.cpu().numpy(), virials.cpu().numpy())


class FusedBackend:
    """Generated kernels, on the CPU."""

    def __init__(self, name: str, potential: FusedPotential, threads: int | None) -> None:
        self.name = name
        self.potential = potential
        self._threads = threads
        self._shifts: tuple[NeighborList | None, np.ndarray, np.ndarray] = (
            None,
            np.empty(0),
            np.empty(0),
        )

    def compute(
        self, species: np.ndarray, positions: np.ndarray, cell: np.ndarray, pairs: NeighborList
    ) -> Outcome:
        known, of_cell, shifts = self._shifts
        if known is not pairs or not np.array_equal(of_cell, cell):
            shifts = pairs.cell_shift @ cell
            self._shifts = pairs, cell.copy(), shifts
        edges = self.potential.select(
            (pairs.edge_dst, pairs.edge_src), shifts, np.ascontiguousarray(positions)
        )
        return self.compute_edges(species, edges)

    def twin(self) -> FusedBackend:
        return FusedBackend(self.name, self.potential, self._threads)

    def compute_edges(self, species: np.ndarray, edges: EdgeArrays) -> Outcome:
        refuse_overlap(edges.dst, edges.src, edges.vec)
        threads = self._threads or torch.get_num_threads()
        energies, gradient = self.potential.run(species, edges, threads)
        return Outcome(energies, *self.potential.forces(len(species), edges, gradient))


def open_backend(
    model: str | os.PathLike,
    *,
    engine: str = "auto",
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
) -> Backend:
    """Opens a potential file on an engine (see ENGINES); "auto" takes the fastest there is.

    Raises:
        InputError: an unknown engine; a bad file; an engine that was named but cannot be had.
    """
    if engine != "auto" and engine not in ENGINES:
        known = "; ".join(f"'{name}' ({what})" for name, what in ENGINES.items())
        raise InputError(f"There is no engine '{engine}'; there are 'auto' and {known}.")
    on_cpu = torch.device(device or "cpu").type == "cpu"
    if engine in ("fused", "exact") and not on_cpu:
        raise InputError(f"engine='{engine}' runs on the CPU: leave it out for device='{device}'.")
    if engine != "torch" and on_cpu:
        name = "fused" if engine == "auto" else engine
        try:
            potential = fuse(model, dtype=dtype, radial="table" if name == "fused" else "network")
            return FusedBackend(name, potential, threads)
        except EngineUnavailable as reason:
            if engine != "auto":
                raise
            warnings.warn(f"Running on torch, which is many times slower: {reason}", stacklevel=3)
    return TorchBackend(export.load(model, device=device, dtype=dtype), threads)
