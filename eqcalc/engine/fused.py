"""The fused engine: a potential file on generated C++ instead of TorchScript, on the CPU.

`fuse` reads a plan out of the file, samples its radial functions, generates and compiles the
kernels (once per model kind and machine) and hands over the numbers. The same library and the same
bytes serve `pair_style equivariant`.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ase.data import atomic_numbers
from torch import Tensor

from eqcalc import export, uncertainty
from eqcalc.engine.arrays import address, converted
from eqcalc.engine.build import compile_library, load_library
from eqcalc.engine.description import DESCRIPTION_VERSION, encode
from eqcalc.engine.kernels import compiler_flags, library_source
from eqcalc.engine.plan import NotCovered, Plan, RadialTable
from eqcalc.engine.readers import read
from eqcalc.engine.rows import Lives
from eqcalc.engine.tables import tabulate, too_many
from eqcalc.errors import InputError
from eqcalc.files import user_path
from eqcalc.neighbors import Pairs
from eqcalc.reuse import Reused
from eqcalc.runtime import TurnLock, own_torch
from eqcalc.uncertainty import MISSING, Atomic, Uncertainty

SCALARS = {torch.float32: "float", torch.float64: "double"}

#: degree of the radial tables and their relative error, by scalar
TABLES = {"float": (5, 2e-7), "double": (7, 1e-11)}


def _radial(matrices: list[np.ndarray], table: RadialTable | None, radial: str) -> dict[str, Any]:
    """Radial functions, by the matrices of a network or a table."""
    if radial == "network":
        return {"matrices": [{"matrix": matrix} for matrix in matrices]}
    segments = [{"start": start, "intervals": n} for start, n in table.segments]
    return {"segments": segments, "coefficients": table.coefficients}


def _counts(plan: Plan, radial: str) -> dict[str, Any] | None:
    """Numbers of neighbours that messages are divided by."""
    if plan.counts is None:
        return None
    rows, columns = plan.counts.matrix.shape
    padded = np.zeros([-(-n // plan.padding) * plan.padding for n in (rows, columns)])
    padded[:rows, :columns] = plan.counts.matrix
    width = padded.shape[1]
    return {"width": width, "radial": _radial([padded], plan.counts.table, radial)}


def _uncertainty(known: Uncertainty | None) -> dict[str, Any] | None:
    """As csrc/uncertainty.h reads it."""
    if known is None:
        return None
    return {
        "species": known.species.astype(np.float64),
        "width": known.width,
        "energy": known.energy,
        "grade": known.grade,
    }


def network_bytes(
    plan: Plan, kernels: list[int | None], radial: str, uncertainty: Uncertainty | None = None
) -> bytes:
    """The network's description for `eqcalc_open`; kernels: of each layer, in the library."""
    lives = Lives(plan)
    layers = [
        {
            "kernels": kernels[k],
            "features": layer.features,
            "messages": layer.messages,
            "steps": layer.steps,
            "starts": lives.starts(k),
            "gradient_starts": lives.gradient_starts(k),
            "num_weights": layer.num_weights,
            "functions": layer.density and layer.density.width,
            "count": layer.count,
            "message": layer.message,
            "radial": _radial(layer.radial_network, layer.table, radial),
        }
        for k, layer in enumerate(plan.layers)
    ]
    return encode(
        {
            "version": DESCRIPTION_VERSION,
            "num_species": plan.num_species,
            "cutoff": plan.cutoff,
            "basis": plan.basis,
            "rows": [lives.row(row) for row in plan.rows],
            "layers": layers,
            "shift": plan.shift,
            "core": plan.core,
            "pair": plan.pair,
            "inner_limits": plan.inner_limits,
            "stretch": plan.stretch,
            "crowding": plan.crowding,
            "agnesi": plan.agnesi,
            "counts": _counts(plan, radial),
            "frames": plan.frames,
            "num_features": plan.num_features,
            "uncertainty": _uncertainty(uncertainty),
        }
    )


class GraphArguments(ctypes.Structure):
    """`eqcalc_graph` of csrc/interface.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("num_local", "num_nodes", "num_rows", "num_edges")),
        *((name, ctypes.c_void_p) for name in ("species", "edge_src", "edge_dst", "edge_vec")),
    )


class _Wanted(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("features", "variances", "grades"))


class EdgeArrays(NamedTuple):
    """Contiguous: src, dst [E] int64, vec [E, 3] Å float64; see eqcalc.graph."""

    src: np.ndarray
    dst: np.ndarray
    vec: np.ndarray

    def converted(self) -> EdgeArrays:
        """As C reads them."""
        dst = converted(self.dst, np.int64, None)
        src = converted(self.src, np.int64, len(dst))
        return EdgeArrays(src, dst, converted(self.vec, np.float64, len(dst), 3))


def _place(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data


class Library:
    """The compiled engine of one kind of network."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = load_library(path)
        self._library.eqcalc_close.restype = None
        self._library.eqcalc_select.restype = ctypes.c_int64
        self._library.eqcalc_memory.restype = ctypes.c_int64

    def checked(self, name: str, *arguments: Any) -> None:
        """Calls a function that ends with a place for an error message."""
        error = ctypes.create_string_buffer(400)
        if getattr(self._library, name)(*arguments, error, ctypes.c_int64(len(error))):
            raise InputError(f"The fused engine stopped: {error.value.decode()}.")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)


class NetworkPool:
    """Opened networks of one file, as many as were in use at the same time.

    Args:
        network: the description, opened now.
        again: gives it once more, for the next one.
    """

    def __init__(self, library: Library, network: bytes, again: Callable[[], bytes]) -> None:
        self.library, self._again = library, again
        self._idle: list[tuple[ctypes.c_void_p, int]] = []  # and the bytes that each holds
        self._give_back(self._open(network))

    def _open(self, network: bytes) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        length = ctypes.c_int64(len(network))
        self.library.checked("eqcalc_open", network, length, ctypes.byref(handle))
        return handle

    def _give_back(self, handle: ctypes.c_void_p) -> None:
        self._idle.append((handle, self.library.eqcalc_memory(handle)))

    def __del__(self) -> None:
        for handle, _ in self._idle:
            self.library.eqcalc_close(handle)

    @contextmanager
    def one(self) -> Iterator[ctypes.c_void_p]:
        """A network for one evaluation, which has its buffers for itself."""
        try:
            handle, _ = self._idle.pop()
        except IndexError:  # all are in use
            handle = self._open(self._again())
        try:
            yield handle
        finally:
            self._give_back(handle)

    @property
    def memory(self) -> int:
        """Bytes that those hold which are not in use."""
        return sum(size for _, size in list(self._idle))


#: checked networks by a file's content, precision, kind of radial functions and threads
NETWORKS = Reused(256 * 2**20, lambda networks: networks.memory)


class FusedPotential:
    """A potential file on the fused engine; used like `export.PotentialFile`.

    Attributes:
        metadata, cutoff, atomic_numbers, symbols, dtype: of the file, and the precision chosen.
    """

    device = torch.device("cpu")

    def __init__(
        self, path: Path, metadata: dict[str, Any], networks: NetworkPool, dtype: torch.dtype
    ) -> None:
        self.path = path
        self.metadata = metadata
        self.cutoff: float = metadata["cutoff"]
        self.symbols: list[str] = list(metadata["species"])
        self.atomic_numbers = [atomic_numbers[symbol] for symbol in self.symbols]
        self.dtype = dtype
        self.library = networks.library
        self._networks = networks
        self._one_at_a_time = TurnLock()  # else every thread would open a network of its own

    def __del__(self) -> None:
        NETWORKS.trim()  # buffers for many atoms are not kept

    species_of = export.PotentialFile.species_of

    @property
    def memory(self) -> int:
        """Bytes that the engine holds now."""
        return self._networks.memory

    def run(
        self,
        species: np.ndarray,
        edges: EdgeArrays,
        threads: int,
        *,
        gradient: bool = True,
        atomic: Atomic | None = None,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Energies [N] eV, and the gradient [E, 3] eV/Å if it is wanted. Threads take turns.

        atomic: what else is wanted, to be filled, with variances for standard deviations.
        """
        species, edges = converted(species, np.int64, None), edges.converted()
        graph = GraphArguments(len(species), len(species), len(species), len(edges.src))
        graph.species, graph.edge_src = species.ctypes.data, edges.src.ctypes.data
        graph.edge_dst, graph.edge_vec = edges.dst.ctypes.data, edges.vec.ctypes.data
        energies = np.empty(len(species))
        slopes = np.empty((len(edges.src), 3)) if gradient else None
        with self._one_at_a_time, self._networks.one() as handle:
            self.library.checked(
                "eqcalc_evaluate_uncertainty",
                handle,
                ctypes.byref(graph),
                None,
                ctypes.c_int(threads),
                address(energies),
                address(slopes) if gradient else None,
                None if atomic is None else ctypes.byref(_Wanted(*map(_place, atomic))),
            )
        return energies, slopes

    @cached_property
    def num_features(self) -> int:
        """Of an atom (eqcalc.uncertainty)."""
        with self._one_at_a_time, self._networks.one() as handle:
            return int(self.library.eqcalc_num_features(handle))

    @cached_property
    def has_uncertainty(self) -> bool:
        """Whether the file has one."""
        with self._one_at_a_time, self._networks.one() as handle:
            return bool(self.library.eqcalc_has_uncertainty(handle))

    def run_with(
        self,
        species: np.ndarray,
        edges: EdgeArrays,
        threads: int,
        *,
        gradient: bool = True,
        features: bool = False,
        uncertainty: bool = False,
    ) -> tuple[np.ndarray, np.ndarray | None, Atomic]:
        """As `run`, and what `eqcalc.uncertainty` has of atoms, in the same pass.

        Args:
            species, edges, threads, gradient: as of `run`.
            features: whether they are wanted.
            uncertainty: whether standard deviations and grades are.

        Raises:
            InputError: the file has no uncertainty.
        """
        if uncertainty and not self.has_uncertainty:
            raise InputError(f"{self.path.name} {MISSING}.")
        count = len(species)
        atomic = Atomic(
            np.empty((count, self.num_features)) if features else None,
            *(np.empty(count) if uncertainty else None for _ in range(2)),
        )
        energies, slopes = self.run(species, edges, threads, gradient=gradient, atomic=atomic)
        if atomic.energies_std is not None:
            np.sqrt(atomic.energies_std, out=atomic.energies_std)
        return energies, slopes, atomic

    def select(
        self, pairs: Sequence[np.ndarray], shifts: np.ndarray, positions: np.ndarray
    ) -> tuple[EdgeArrays, int]:
        """The pairs (dst, src) of a list that are within the cutoff at these positions [N, 3] Å.

        shifts: [P, 3] Å, what periodicity adds to r_src - r_dst. The second result is the place of
        the shortest of them, -1 if there is none.
        """
        all_pairs = EdgeArrays(pairs[1], pairs[0], shifts).converted()
        positions = converted(positions, np.float64, None, 3)
        arrays = EdgeArrays(*map(np.empty_like, all_pairs))
        nearest = ctypes.c_int64()
        count = self.library.eqcalc_select(
            ctypes.c_int64(len(positions)),
            ctypes.c_int64(len(all_pairs.src)),
            *map(address, (*all_pairs, positions)),
            ctypes.c_double(self.cutoff),
            *map(address, arrays),
            ctypes.byref(nearest),
        )
        if count < 0:
            raise ValueError(f"Pairs refer to atoms that are not among the {len(positions)}.")
        return EdgeArrays(*(array[:count] for array in arrays)), nearest.value

    def evaluate_pairs(
        self,
        species: np.ndarray,
        positions: np.ndarray,
        pairs: Pairs,
        threads: int,
        *,
        gradient: bool = True,
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None, float]:
        """`select`, `run` and `forces` in one call: energies, forces, virials, shortest distance.

        Args:
            species: [N].
            positions: [N, 3] Å.
            pairs: all within the cutoff, or more.
            threads: see `run`.
            gradient: whether forces and virials are wanted; else they are None.
        """
        count = len(species)
        species, positions = (
            converted(species, np.int64, None),
            converted(positions, np.float64, count, 3),
        )
        dst = converted(pairs.edge_dst, np.int64, None)
        src = converted(pairs.edge_src, np.int64, len(dst))
        shift = converted(pairs.shift, np.float64, len(dst), 3)
        graph = GraphArguments(count, count, count, len(dst), *map(_place, (species, src, dst)))
        energies, nearest = np.empty(count), ctypes.c_double()
        forces = np.empty((count, 3)) if gradient else None
        virials = np.empty((count, 3, 3)) if gradient else None
        with self._one_at_a_time, self._networks.one() as handle:
            self.library.checked(
                "eqcalc_evaluate_pairs",
                handle,
                ctypes.byref(graph),
                address(shift),
                address(positions),
                ctypes.c_double(self.cutoff),
                ctypes.c_int(threads),
                address(energies),
                *(None if array is None else address(array) for array in (forces, virials)),
                ctypes.byref(nearest),
            )
        return energies, forces, virials, nearest.value

    def forces(
        self, num_atoms: int, edges: EdgeArrays, gradient: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Forces [N, 3] eV/Å and atomic virials [N, 3, 3] eV, as in eqcalc.derivatives."""
        forces, virials = np.empty((num_atoms, 3)), np.empty((num_atoms, 3, 3))
        edges = edges.converted()
        gradient = converted(gradient, np.float64, len(edges.src), 3)
        if self.library.eqcalc_forces(
            ctypes.c_int64(num_atoms),
            ctypes.c_int64(len(edges.src)),
            *map(address, (*edges, gradient, forces, virials)),
        ):
            raise ValueError(f"Edges refer to atoms that are not among the {num_atoms}.")
        return forces, virials

    def evaluate(
        self,
        species: Tensor,
        edge_vec: Tensor,
        edge_src: Tensor,
        edge_dst: Tensor,
        *,
        threads: int | None = None,
    ) -> export.Evaluation:
        """As `export.PotentialFile.evaluate`, by default on as many threads as torch has."""
        edges = EdgeArrays(edge_src.numpy(), edge_dst.numpy(), edge_vec.detach().numpy())
        energies, gradient = self.run(species.numpy(), edges, threads or torch.get_num_threads())
        return export.Evaluation(torch.from_numpy(energies), torch.from_numpy(gradient))


def fuse(
    path: str | os.PathLike,
    *,
    dtype: str | torch.dtype | None = None,
    radial: str = "table",
    threads: int | None = None,
) -> FusedPotential:
    """Opens a potential file on the fused engine and checks it against its reference structure.

    Args:
        path: of the file.
        dtype: float32 or float64; None takes the file's own.
        radial: "table" (splines through the radial functions) or "network" (exact).
        threads: that it will run on, and on which the reference structure is evaluated; None
            takes as many as torch has.

    Raises:
        EngineUnavailable: an architecture that the engine does not know; no compiler.
        InputError: a bad file; numbers that differ from those in the file.
    """
    path = user_path(path)
    metadata = export.read_metadata(path)
    chosen = export.precision(dtype, metadata)
    content = export.content(path)[1]
    threads = threads or torch.get_num_threads()
    networks = NETWORKS.get(
        (content, chosen, radial, threads),
        lambda: _checked(path, content, chosen, radial, threads),
    )
    return FusedPotential(path, metadata, networks, chosen)


def _checked(
    path: Path, content: str, dtype: torch.dtype, radial: str, threads: int
) -> NetworkPool:
    """The network of a file of that hash, which reproduces its reference structure."""
    return checked_networks(
        path, content, dtype, threads, lambda potential: prepare(potential, dtype, radial)
    )


def checked_networks(
    path: Path,
    content: str,
    dtype: torch.dtype,
    threads: int,
    make: Callable[[export.PotentialFile], tuple[Library, bytes]],
    kind: Callable[..., NetworkPool] | None = None,
) -> NetworkPool:
    """The network of a file of that hash, which reproduces its reference structure.

    Args:
        make: its library and description, of the file opened in float64.
        kind: of the networks.

    Raises:
        EngineUnavailable: an architecture that the engine does not know; no compiler.
        InputError: numbers that differ from those in the file.
    """
    potential = export.load(path, dtype=torch.float64)
    if export.content(path)[1] != content:
        raise InputError(f"{path} was changed while it was read: open it again.")

    def again() -> bytes:
        with own_torch():
            return make(potential)[1]

    with own_torch():
        networks = (kind or NetworkPool)(*make(potential), again)
        fused = FusedPotential(path, potential.metadata, networks, dtype)
        difference = export.deviation(potential.module, partial(fused.evaluate, threads=threads))
    if not max(difference.values()) <= export.TOLERANCE[dtype]:
        figures = ", ".join(f"{k} {v:.1e}" for k, v in difference.items())
        raise InputError(
            f"The fused engine does not reproduce the reference structure of {fused.path.name} "
            f"(deviations {figures} in eV and Å): use engine='torch', and please report it."
        )
    return networks


def prepare(
    potential: export.PotentialFile, dtype: torch.dtype, radial: str
) -> tuple[Library, bytes]:
    """The compiled library and the network's description, of a file opened in float64."""
    scalar = SCALARS[dtype]
    plan = read(potential, scalar)
    degree, tolerance = TABLES[scalar]
    if too_many(plan):
        radial = "network"
    if plan.solid and radial == "network":
        raise NotCovered("of a network with solid harmonics, radial functions are tables alone")
    if radial == "table":
        tabulate(potential.module, plan, degree=degree, tolerance=tolerance)
    source, kernels = library_source(plan, radial, degree)
    library = Library(compile_library(source, *compiler_flags(plan)))
    return library, network_bytes(plan, kernels, radial, uncertainty.read(potential.path))
