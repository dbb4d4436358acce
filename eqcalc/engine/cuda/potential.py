"""The fused engine on a GPU in Python: a potential file on kernels that NVRTC has compiled."""

from __future__ import annotations

import ctypes
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eqcalc import export, uncertainty
from eqcalc.engine.arrays import address, converted
from eqcalc.engine.cuda import platform
from eqcalc.engine.cuda.host import host_library, network_bytes
from eqcalc.engine.cuda.source import DeviceCode
from eqcalc.engine.cuda.variants import Variant
from eqcalc.engine.fused import (
    NETWORKS,
    SCALARS,
    TABLES,
    EdgeArrays,
    FusedPotential,
    GraphArguments,
    Library,
    NetworkPool,
    checked_networks,
)
from eqcalc.engine.plan import NotCovered
from eqcalc.engine.readers import read
from eqcalc.engine.tables import tabulate, too_many
from eqcalc.errors import InputError
from eqcalc.files import user_path
from eqcalc.neighbors import Pairs
from eqcalc.uncertainty import MISSING, Atomic

#: channels are filled up to whole warps
PADDING = 32


class PairList(ctypes.Structure):
    """`eqcalc_list` of csrc/gpu_interface.h."""

    _fields_ = (
        ("shifts", ctypes.c_void_p),
        ("num_places", ctypes.c_int64),
        ("edge_place", ctypes.c_void_p),
        ("num_sent", ctypes.c_int64),
        ("sent", ctypes.c_void_p),
    )


class StepResults(ctypes.Structure):
    """`eqcalc_step_results` of csrc/gpu_interface.h."""

    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in (
            *("energies", "forces", "virials", "virial", "nearest"),
            *("limits", "numbers", "near_edges"),
        )
    )


class GpuNetworkPool(NetworkPool):
    """Opened networks, each with the list of pairs that is on the GPU.

    Attributes:
        placed: species and pairs, by handle.
    """

    def __init__(self, number: int, memory_limit: int, *arguments: Any) -> None:
        """number: of the GPU; memory_limit: bytes of it for each network, 0 for all."""
        self._number, self._limit = number, memory_limit
        self.placed: dict[int | None, tuple[np.ndarray, Pairs]] = {}
        super().__init__(*arguments)

    def _open(self, network: bytes) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        length, number, in_turn = ctypes.c_int64(len(network)), ctypes.c_int(self._number), 0
        self.library.checked(
            "eqcalc_open_on", network, length, number, ctypes.c_int(in_turn), ctypes.byref(handle)
        )
        self.library.eqcalc_limit_memory(handle, ctypes.c_int64(self._limit))
        return handle


class GpuPotential(FusedPotential):
    """A potential file on a GPU; used like `FusedPotential`.

    Attributes:
        device: as torch names it.
    """

    def __init__(
        self,
        path: Path,
        metadata: dict[str, Any],
        networks: GpuNetworkPool,
        dtype: torch.dtype,
        number: int,
    ) -> None:
        super().__init__(path, metadata, networks, dtype)
        self.device = torch.device("cuda", number)
        self._uncertainty = uncertainty.read(path)

    def run(self, *arguments: Any, **options: Any) -> tuple[np.ndarray, np.ndarray | None]:
        self._networks.placed.clear()
        return super().run(*arguments, **options)

    @property
    def has_uncertainty(self) -> bool:
        """Whether the file has one."""
        return self._uncertainty is not None

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
        """As of `FusedPotential`; uncertainties come from the features, on the CPU."""
        energies, slopes, atomic = super().run_with(
            species, edges, threads, gradient=gradient, features=True
        )
        if uncertainty:
            if self._uncertainty is None:
                raise InputError(f"{self.path.name} {MISSING}.")
            of_atoms = self._uncertainty.of_atoms(species, atomic.features)
            atomic = of_atoms._replace(features=atomic.features)
        return energies, slopes, atomic if features else atomic._replace(features=None)

    def step(
        self, species: np.ndarray, positions: np.ndarray, pairs: Pairs, *, gradient: bool = True
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None, float]:
        """Energies [N] eV, forces [N, 3] eV/Å, atomic virials [N, 3, 3] eV, shortest distance (Å).

        The list goes to the GPU when it is another object than in the call before; positions go
        there, and results come back, each time.

        Args:
            species: [N].
            positions: [N, 3] Å.
            pairs: all within the cutoff, or more.
            gradient: whether forces and virials are wanted; else they are None.
        """
        species = converted(species, np.int64, None)
        positions = converted(positions, np.float64, len(species), 3)
        energies, nearest = np.empty(len(species)), ctypes.c_double()
        forces = np.empty((len(species), 3)) if gradient else None
        virials = np.empty((len(species), 3, 3)) if gradient else None
        results = StepResults(energies=energies.ctypes.data, nearest=ctypes.addressof(nearest))
        if gradient:
            results.forces, results.virials = forces.ctypes.data, virials.ctypes.data
        with self._one_at_a_time, self._networks.one() as handle:
            self._place(handle, species, pairs)
            self.library.checked(
                "eqcalc_step", handle, address(positions), None, ctypes.byref(results)
            )
        return energies, forces, virials, nearest.value

    def _place(self, handle: ctypes.c_void_p, species: np.ndarray, pairs: Pairs) -> None:
        """Takes the list to the GPU, unless it is there."""
        known = self._networks.placed.get(handle.value)
        if known is not None and known[1] is pairs and np.array_equal(known[0], species):
            return
        self._networks.placed.pop(handle.value, None)
        src = converted(pairs.edge_src, np.int64, None)
        dst = converted(pairs.edge_dst, np.int64, len(src))
        shift = converted(pairs.shift, np.float64, len(src), 3)
        graph = GraphArguments(len(species), len(species), len(species), len(src))
        graph.species, graph.edge_src, graph.edge_dst = (
            array.ctypes.data for array in (species, src, dst)
        )
        self.library.checked(
            "eqcalc_place",
            handle,
            ctypes.byref(graph),
            ctypes.byref(PairList(shifts=shift.ctypes.data)),
        )
        self._networks.placed[handle.value] = species.copy(), pairs


def prepare(
    potential: export.PotentialFile, dtype: torch.dtype, number: int
) -> tuple[Library, bytes]:
    """The host's library and the network's description, of a file opened in float64.

    Raises:
        EngineUnavailable: a network that the engine does not know; no driver, GPU or compiler.
    """
    scalar = SCALARS[dtype]
    found = platform.PLATFORM
    architecture = found.architecture(number)
    plan = read(potential, scalar, PADDING)
    degree, tolerance = TABLES[scalar]
    variant = Variant.chosen()
    if scalar == "float":
        degree = variant.degree
    if too_many(plan):
        raise NotCovered(
            "The GPU engine does not know networks with functions of distance of their own for so "
            "many kinds of bonds."
        )
    tabulate(potential.module, plan, degree=degree, tolerance=tolerance, densities=False)
    code = DeviceCode(plan, degree, found.multiprocessors(number), variant.slices)
    library = Library(host_library(scalar))
    image = found.image(code.source, architecture)
    return library, network_bytes(plan, code, image.read_bytes(), found.driver, variant)


def fuse_on_gpu(
    path: str | os.PathLike,
    *,
    dtype: str | torch.dtype | None = None,
    number: int = 0,
    memory_limit: float | None = None,
) -> GpuPotential:
    """Opens a potential file on a GPU and checks it against its reference structure.

    Args:
        path: of the file.
        dtype: float32 or float64; None takes the file's own.
        number: of the GPU.
        memory_limit: GB (10^9 bytes) of the GPU to take at most, where atoms are worked on in
            several parts if need be; None takes what there is.

    Raises:
        EngineUnavailable: a network that the engine does not know; no driver, GPU or compiler.
        InputError: a bad file; no GPU of that number; numbers that differ from those in the file.
    """
    path = user_path(path)
    metadata = export.read_metadata(path)
    chosen = export.precision(dtype, metadata)
    count = platform.PLATFORM.count()
    if number >= count:
        numbers = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise InputError(f"Device 'cuda:{number}' was asked for, but there is only {numbers} here.")
    content = export.content(path)[1]
    limit = round(1e9 * memory_limit) if memory_limit else 0
    networks = NETWORKS.get(
        (content, chosen, platform.PLATFORM.driver, number, limit, Variant.chosen()),
        lambda: checked_networks(
            path,
            content,
            chosen,
            1,
            lambda file: prepare(file, chosen, number),
            partial(GpuNetworkPool, number, limit),
        ),
    )
    return GpuPotential(path, metadata, networks, chosen, number)
