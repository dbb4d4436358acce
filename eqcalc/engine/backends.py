"""The engines behind the calculator: neighbours and positions in; energies, forces, virials out."""

from __future__ import annotations

import os
import re
import warnings
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch

from eqcalc import derivatives, export
from eqcalc.engine.build import EngineUnavailable
from eqcalc.engine.fused import FusedPotential, fuse
from eqcalc.errors import InputError
from eqcalc.neighbors import Pairs
from eqcalc.runtime import choose_device, memory_errors, own_torch, threads_here
from eqcalc.uncertainty import MISSING, Atomic, evaluate_with_features, read

if TYPE_CHECKING:
    from eqcalc.engine.cuda.potential import GpuPotential

#: atoms nearer than this (Å) are taken for one atom given twice
OVERLAP = 0.01

#: what a user may ask for, and what it means
ENGINES = {
    "fused": "generated C++ with radial tables, or generated CUDA",
    "exact": "generated C++ with the radial network itself",
    "torch": "the TorchScript of the file",
}


class Outcome(NamedTuple):
    """energies [N] eV; forces [N, 3] eV/Å and atomic virials [N, 3, 3] eV (eqcalc.derivatives).

    Forces and virials are None where only energies were asked for. rows [N, columns] of outputs
    beside the energy (`eqcalc.outputs`), and no energies, come from whoever asks for these.
    features [N, H] eV, energies_std [N] eV and grades [N] (`eqcalc.uncertainty`) are there where
    they were asked for.
    """

    energies: np.ndarray | None
    forces: np.ndarray | None = None
    virials: np.ndarray | None = None
    rows: np.ndarray | None = None
    features: np.ndarray | None = None
    energies_std: np.ndarray | None = None
    grades: np.ndarray | None = None


class Wanted(NamedTuple):
    """What is to be computed beside energies, in the same pass.

    gradient: forces and virials; without them an evaluation costs less than half. features: of
    atoms; uncertainty: standard deviations and grades, which the file must have.
    """

    gradient: bool = True
    features: bool = False
    uncertainty: bool = False


ALL = Wanted()


class Backend(Protocol):
    """One engine. `potential` has the file's metadata, cutoff and elements."""

    name: str
    potential: export.PotentialFile | FusedPotential

    def compute(
        self, species: np.ndarray, positions: np.ndarray, pairs: Pairs, wanted: Wanted = ALL
    ) -> Outcome:
        """species [N]; positions [N, 3] Å; pairs: all within the cutoff, or more.

        Raises:
            InputError: overlapping atoms, too little memory, an uncertainty that the file lacks.
        """


def refuse_overlap(
    dst: np.ndarray, src: np.ndarray, vectors: np.ndarray, nearest: int | None = None
) -> None:
    """Raises InputError if the nearest pair (looked for if it is not given) is too near."""
    if not len(vectors):
        return
    if nearest is None:
        nearest = int(np.einsum("ij,ij->i", vectors, vectors).argmin())
    distance = float(np.linalg.norm(vectors[nearest]))
    if distance < OVERLAP:
        raise InputError(
            f"Atoms {dst[nearest]} and {src[nearest]} are {distance:.2g} Å apart: "
            "they overlap; check the structure for atoms given twice."
        )


def _refuse_if_nearer(distance: float, positions: np.ndarray, pairs: Pairs) -> None:
    """The same of a list at these positions [N, 3] Å, whose shortest distance (Å) is known."""
    if not distance >= OVERLAP:
        refuse_overlap(pairs.edge_dst, pairs.edge_src, pairs.vectors(positions))


def _enough_memory(
    device: torch.device, num_atoms: int, num_pairs: int
) -> AbstractContextManager[None]:
    return memory_errors(
        device,
        f"{num_atoms} atoms with {num_pairs} pairs at once",
        "take fewer atoms at once (evaluate: a smaller batch_atoms), dtype='float32', or "
        + ("another machine" if device.type == "cpu" else "device='cpu', whose engine needs less"),
    )


class TorchBackend:
    """The TorchScript itself, on any device."""

    name = "torch"

    def __init__(self, potential: export.PotentialFile, threads: int | None) -> None:
        self.potential = potential
        self._threads = threads
        self._uncertainty = read(potential.path)

    def compute(
        self, species: np.ndarray, positions: np.ndarray, pairs: Pairs, wanted: Wanted = ALL
    ) -> Outcome:
        vectors = pairs.vectors(positions)
        near = np.einsum("ij,ij->i", vectors, vectors) < self.potential.cutoff**2
        dst, src, vectors = pairs.edge_dst[near], pairs.edge_src[near], vectors[near]
        refuse_overlap(dst, src, vectors)
        device = self.potential.device
        with own_torch(self._threads), _enough_memory(device, len(species), len(dst)):
            graph = [torch.from_numpy(a).to(device) for a in (species, vectors, src, dst)]
            atomic = Atomic()
            if wanted.features or wanted.uncertainty:
                got, rows = evaluate_with_features(self.potential, *graph, gradient=wanted.gradient)
                atomic = self._atomic(species, rows.cpu().numpy(), wanted)
            elif wanted.gradient:
                got = self.potential.evaluate(*graph)
            else:
                return Outcome(self.potential.energies(*graph).cpu().numpy())
            outcome = Outcome(got.energies.cpu().numpy(), **atomic._asdict())
            if not wanted.gradient:
                return outcome
            species_, edge_vec, edge_src, edge_dst = graph
            n = len(species_)
            forces = derivatives.forces(got.gradient, edge_src, edge_dst, n)
            virials = derivatives.atomic_virials(got.gradient, edge_vec, edge_src, n)
            return outcome._replace(forces=forces.cpu().numpy(), virials=virials.cpu().numpy())

    def _atomic(self, species: np.ndarray, features: np.ndarray, wanted: Wanted) -> Atomic:
        atomic = Atomic()
        if wanted.uncertainty:
            if self._uncertainty is None:
                raise InputError(f"{self.potential.path.name} {MISSING}.")
            atomic = self._uncertainty.of_atoms(species, features)
        return atomic._replace(features=features if wanted.features else None)


class FusedBackend:
    """Generated kernels, on the CPU."""

    def __init__(self, name: str, potential: FusedPotential, threads: int | None) -> None:
        self.name = name
        self.potential = potential
        self._threads = threads

    def compute(
        self, species: np.ndarray, positions: np.ndarray, pairs: Pairs, wanted: Wanted = ALL
    ) -> Outcome:
        threads = threads_here(self._threads) or torch.get_num_threads()
        with _enough_memory(self.potential.device, len(species), len(pairs.edge_dst)):
            if not (wanted.features or wanted.uncertainty):
                found = self.potential.evaluate_pairs(
                    species, positions, pairs, threads, gradient=wanted.gradient
                )
                _refuse_if_nearer(found[3], positions, pairs)
                return Outcome(*found[:3])
            edges, nearest = self.potential.select(
                (pairs.edge_dst, pairs.edge_src), pairs.shift, np.ascontiguousarray(positions)
            )
            refuse_overlap(edges.dst, edges.src, edges.vec, nearest)
            energies, slopes, atomic = self.potential.run_with(
                species, edges, threads, **wanted._asdict()
            )
            outcome = Outcome(energies, **atomic._asdict())
            if slopes is None:
                return outcome
            forces, virials = self.potential.forces(len(species), edges, slopes)
            return outcome._replace(forces=forces, virials=virials)


class GpuBackend(FusedBackend):
    """Generated kernels, on a GPU, to which lists of pairs go when they change."""

    def __init__(self, potential: GpuPotential) -> None:
        super().__init__("fused", potential, None)
        self._gpu = potential

    def compute(
        self, species: np.ndarray, positions: np.ndarray, pairs: Pairs, wanted: Wanted = ALL
    ) -> Outcome:
        if wanted.features or wanted.uncertainty:
            return super().compute(species, positions, pairs, wanted)
        with _enough_memory(self.potential.device, len(species), len(pairs.edge_dst)):
            energies, forces, virials, nearest = self._gpu.step(
                species, positions, pairs, gradient=wanted.gradient
            )
        _refuse_if_nearer(nearest, positions, pairs)
        return Outcome(energies, forces, virials)


def _gpu_backend(
    model: str | os.PathLike,
    engine: str,
    device: str,
    dtype: str | None,
    memory_limit: float | None,
) -> GpuBackend:
    from eqcalc.engine.cuda.potential import fuse_on_gpu

    named = re.fullmatch(r"cuda(?::(\d+))?", device)
    if engine != "fused" or not named:
        raise InputError(
            f"engine='{engine}' runs on the CPU: take engine='fused' or leave it out for "
            f"device='{device}'."
        )
    with own_torch():
        number = int(named[1] or 0)
        return GpuBackend(fuse_on_gpu(model, dtype=dtype, number=number, memory_limit=memory_limit))


def open_backend(
    model: str | os.PathLike,
    *,
    engine: str = "auto",
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    memory_limit: float | None = None,
) -> Backend:
    """Opens a potential file on an engine (see ENGINES).

    "auto" is the fused engine on the CPU, and torch on a GPU or where the former cannot be had.

    Raises:
        InputError: an unknown engine or device; a bad file; an engine that was named but cannot
            be had.
    """
    if engine != "auto" and engine not in ENGINES:
        known = "; ".join(f"'{name}' ({what})" for name, what in ENGINES.items())
        raise InputError(f"There is no engine '{engine}'; there are 'auto' and {known}.")
    generated = engine in ("fused", "exact")
    if generated and str(device).startswith("cuda"):
        return _gpu_backend(model, engine, str(device), dtype, memory_limit)
    if memory_limit is not None:
        raise InputError(
            "memory_limit is of the fused engine on a GPU: take engine='fused' and device='cuda', "
            "or leave it out."
        )
    chosen = choose_device("cpu" if generated and device == "auto" else device)
    on_cpu = chosen.type == "cpu"
    with own_torch():
        if engine != "torch" and on_cpu:
            name = "fused" if engine == "auto" else engine
            try:
                potential = fuse(
                    model,
                    dtype=dtype,
                    radial="table" if name == "fused" else "network",
                    threads=threads_here(threads),
                )
                return FusedBackend(name, potential, threads)
            except EngineUnavailable as reason:
                if engine != "auto":
                    raise
                warnings.warn(
                    f"Running on torch, which is many times slower: {reason}", stacklevel=3
                )
        return TorchBackend(export.load(model, device=chosen, dtype=dtype), threads)
