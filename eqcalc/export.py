"""The potential file: TorchScript, metadata and a reference structure in one.

Readers need only `torch.jit.load`; nothing here imports `eqcalc.models` to read a file, so that a
file proves self-sufficient. The C++ pair style reads the same attributes (`format_version`,
`cutoff`, `atomic_numbers`, `exchange_widths`) and the same reference structure.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import io
import json
import os
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata as package_metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from eqcalc import derivatives, origin, precisions
from eqcalc.contract import FORMAT_VERSION, ReferenceStructure, network_tensors, set_precision
from eqcalc.domain import TEXT_FILE, Domain
from eqcalc.errors import InputError
from eqcalc.files import replacing, user_path
from eqcalc.outputs import OutputConfig, described, has_energy
from eqcalc.reuse import Reused
from eqcalc.runtime import choose_device, memory_errors, out_of_memory, own_torch
from eqcalc.structure import as_array

METADATA_FILE = "eqcalc.json"
PROGRAM_FILE = "program.json"

#: allowed deviation from the reference structure: energies (eV per atom), forces (eV/Å), strain
#: derivative (eV per atom). float64 files differ by rounding; float32 ones by 1e7 times as much.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 2e-3}


def _named(number: int) -> str:
    """An element's symbol; what ASE calls X and numbers that no element has, in words."""
    if number == 0:
        return "X (dummy atoms, atomic number 0)"
    if 0 < number < len(chemical_symbols):
        return chemical_symbols[number]
    return f"atomic number {number} (no element)"


@lru_cache(maxsize=64)
def _species_table(atomic_numbers: tuple[int, ...]) -> np.ndarray:
    """Species of -1, 0, 1, ..., number of elements + 1; the ends stand for all that lie beyond."""
    table = np.full(len(chemical_symbols) + 2, -1, dtype=np.int64)
    table[np.add(atomic_numbers, 1)] = np.arange(len(atomic_numbers))
    return table


def _module_bytes(module: torch.jit.ScriptModule) -> int:
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


#: checked modules of files by content, device and precision; users get copies
MODULES = Reused(64 * 2**20, _module_bytes)


@dataclass(frozen=True)
class Evaluation:
    """What a potential says of a graph: energies [N] eV, gradient dE/dr_ij [E, 3] eV/Å."""

    energies: Tensor
    gradient: Tensor


#: what every engine offers: species, edge_vec, edge_src, edge_dst -> energies and gradient
Evaluator = Callable[[Tensor, Tensor, Tensor, Tensor], Evaluation]


def _evaluate(
    module: torch.nn.Module, species: Tensor, edge_vec: Tensor, edge_src: Tensor, edge_dst: Tensor
) -> Evaluation:
    with torch.enable_grad():
        edge_vec = edge_vec.detach().requires_grad_(True)
        energies = module(species, edge_vec, edge_src, edge_dst, species.shape[0])
        gradient = derivatives.edge_gradient(energies, edge_vec)
    return Evaluation(energies.detach(), gradient)


class PotentialFile:
    """A loaded export, ready to evaluate on one device in one precision.

    Attributes:
        metadata: the JSON that the file carries.
        cutoff: Å.
        atomic_numbers: Z of each species, in order.
        outputs: beside the energy, or, where `has_energy` is false, instead of it.
    """

    def __init__(self, path: Path, module: torch.jit.ScriptModule, metadata: dict[str, Any]):
        self.path = path
        self.module = module
        self.metadata = metadata
        self.cutoff: float = module.cutoff
        self.atomic_numbers: list[int] = list(module.atomic_numbers)
        self.outputs: list[OutputConfig] = described(metadata)
        self.has_energy = has_energy(metadata)
        #: parameters that the energy is linear in (`eqcalc.uncertainty`), once they are known
        self.last_weights: list[str] | None = None
        self.device = module.reference_structure.species.device
        self.dtype: torch.dtype = network_tensors(module)[0].dtype

    @property
    def symbols(self) -> list[str]:
        return [chemical_symbols[z] for z in self.atomic_numbers]

    def species_of(self, numbers: np.ndarray) -> np.ndarray:
        """Species [N] of atomic numbers [N]; InputError names an element the model lacks."""
        numbers = as_array(numbers, (None,), "atomic numbers", np.int64)
        species = _species_table(tuple(self.atomic_numbers)).take(numbers + 1, mode="clip")
        if species.min(initial=0) < 0:
            unknown = sorted({_named(int(z)) for z in numbers[species < 0]})
            raise InputError(
                f"{self.path.name} knows {', '.join(self.symbols)}, but the structure contains "
                f"{', '.join(unknown)}: use a model trained on these elements."
            )
        return species

    def evaluate(
        self, species: Tensor, edge_vec: Tensor, edge_src: Tensor, edge_dst: Tensor
    ) -> Evaluation:
        """Species [N], edge_vec [E, 3] Å float64, edge_src and edge_dst [E], on `device`."""
        return _evaluate(self.module, species, edge_vec, edge_src, edge_dst)

    def energies(
        self, species: Tensor, edge_vec: Tensor, edge_src: Tensor, edge_dst: Tensor
    ) -> Tensor:
        """Energies [N] eV alone, cheaper than `evaluate`."""
        with torch.no_grad():
            return self.module(species, edge_vec, edge_src, edge_dst, species.shape[0])

    def rows(
        self, species: Tensor, edge_vec: Tensor, edge_src: Tensor, edge_dst: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Energies [N] eV, and rows [N, columns] of a file's outputs (`eqcalc.outputs`)."""
        with torch.no_grad():
            return self.module.outputs(species, edge_vec, edge_src, edge_dst, species.shape[0])


@contextlib.contextmanager
def quiet_torchscript():
    """TorchScript's deprecation warnings, silenced for one block: the file format lives here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=FutureWarning)
        yield


def outputs(
    module: torch.nn.Module, species: Tensor, edge_vec: Tensor, edge_src: Tensor, edge_dst: Tensor
) -> dict[str, Tensor]:
    """Energies [N] eV, forces [N, 3] eV/Å, strain [3, 3] eV of one structure.

    Of a network with outputs also "outputs", their rows [N, columns].
    """
    graph = species, edge_vec, edge_src, edge_dst
    result = summed(_evaluate(module, *graph), *graph)
    if "reference_outputs" in dict(module.named_children()):
        with torch.no_grad():
            result["outputs"] = module.outputs(*graph, species.shape[0])[1]
    return result


def summed(
    got: Evaluation, species: Tensor, edge_vec: Tensor, edge_src: Tensor, edge_dst: Tensor
) -> dict[str, Tensor]:
    """Energies, forces and strain derivative from what an engine says of the edges."""
    one = torch.zeros_like(edge_dst)
    return {
        "energies": got.energies,
        "forces": derivatives.forces(got.gradient, edge_src, edge_dst, species.shape[0]),
        "strain": derivatives.strain_derivative(got.gradient, edge_vec, one, 1)[0],
    }


def deviation(module: torch.nn.Module, evaluate: Evaluator | None = None) -> dict[str, float]:
    """Largest deviations from the reference structure that the module carries.

    Energies in eV per atom, forces in eV/Å, strain derivative in eV per atom, other outputs in
    their scales. `evaluate` stands in for the module where another engine is to be judged, which
    has energies alone.
    """
    ref = module.reference_structure
    graph = ref.species, ref.edge_vec, ref.edge_src, ref.edge_dst
    got = summed(evaluate(*graph), *graph) if evaluate else outputs(module, *graph)
    apart = {k: (v - getattr(ref, k)).abs() for k, v in got.items()}
    apart["strain"] = apart["strain"] / len(ref.species)
    if "outputs" in apart:
        apart["outputs"] = apart["outputs"] / module.reference_outputs.scale
    return {k: float(v.max()) for k, v in apart.items()}


def reference_structure(
    model: torch.nn.Module, species: Tensor, edge_vec: Tensor, edge_src: Tensor, edge_dst: Tensor
) -> ReferenceStructure:
    """Evaluates `model` in float64 (restoring its precision) on one structure."""
    tensors = network_tensors(model)
    before = [t.data for t in tensors]
    set_precision(model, torch.float64)
    try:
        got = outputs(model, species, edge_vec.to(torch.float64), edge_src, edge_dst)
    finally:
        for tensor, data in zip(tensors, before, strict=True):
            tensor.data = data
    graph = {
        "species": species,
        "edge_vec": edge_vec.to(torch.float64),
        "edge_src": edge_src,
        "edge_dst": edge_dst,
    }
    return ReferenceStructure(graph | got)


def _outputs_of(model: torch.nn.Module) -> dict[str, Any]:
    """What metadata say of outputs beside the energy, where there are any."""
    if "reference_outputs" not in dict(model.named_children()):
        return {}
    outputs = [dataclasses.asdict(output) for output in model.output_configs]
    return {"outputs": outputs, "energy": model.has_energy}


def save(model: torch.nn.Module, path: str | os.PathLike, metadata: dict[str, Any]) -> Path:
    """Scripts `model` and writes it with its metadata; nothing is left behind on failure.

    Args:
        model: an `eqcalc.models.base.Potential` with `reference_structure` set.
        path: where to write.
        metadata: training summary and hyperparameters; what the model itself knows is added.
    """
    path = user_path(path)
    dtype = network_tensors(model)[0].dtype
    document = {
        "format": "eqcalc-potential",
        "format_version": FORMAT_VERSION,
        "cutoff": model.cutoff,
        "species": [chemical_symbols[z] for z in model.atomic_numbers],
        "dtype": str(dtype).removeprefix("torch."),
        "units": {"energy": "eV", "length": "Å", "stress": "eV/Å^3"},
        "exchange_widths": list(model.exchange_widths),
        "feature_irreps": [str(layer.irreps_out) for layer in model.layers],
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "reference_energies": dict(
            zip(
                [chemical_symbols[z] for z in model.atomic_numbers],
                model.reference_energy.shift.tolist(),
                strict=True,
            )
        ),
        **_outputs_of(model),
        "eqcalc_version": package_metadata.version("eqcalc"),
        "torch_version": torch.__version__,
        **metadata,
    }
    with quiet_torchscript():
        scripted = torch.jit.script(model.eval())
        extra = {METADATA_FILE: json.dumps(document, indent=1)}
        if model.program:
            extra[PROGRAM_FILE] = json.dumps(model.program.document(), indent=1)
        if domain := Domain.read(document):
            extra[TEXT_FILE] = domain.text()
        if "origin" in document:
            extra[origin.TEXT_FILE] = origin.line(document["origin"])
        content = io.BytesIO()
        torch.jit.save(scripted, content, _extra_files=extra)
    with (
        replacing(path) as partial,
        zipfile.ZipFile(content) as made,
        zipfile.ZipFile(partial, "w") as kept,
    ):
        for item in made.infolist():
            if not item.filename.endswith(".debug_pkl"):  # names files of this machine
                kept.writestr(item, made.read(item))
    return path


def program_document(path: str | os.PathLike) -> dict[str, Any] | None:
    """The network as data (eqcalc.program), of a file that carries it."""
    with zipfile.ZipFile(user_path(path)) as archive:
        names = [n for n in archive.namelist() if n.endswith(f"extra/{PROGRAM_FILE}")]
        return json.loads(archive.read(names[0])) if names else None


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """The JSON of a file, after checking that it is one of ours and of a version we know."""
    path = user_path(path)
    foreign = InputError(
        f"{path} is not an eqcalc potential file; make one with 'eqcalc export RUN -o model.pth'."
    )
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if n.endswith(f"extra/{METADATA_FILE}")]
            if not names:
                raise foreign
            document = json.loads(archive.read(names[0]))
    except (zipfile.BadZipFile, json.JSONDecodeError, UnicodeDecodeError):
        raise foreign from None
    except FileNotFoundError:
        raise InputError(f"There is no model file '{path}'.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path} has format version {version}; this eqcalc reads version {FORMAT_VERSION}: "
            + (
                "update eqcalc."
                if isinstance(version, int) and version > FORMAT_VERSION
                else "export the model again with this eqcalc."
            )
        )
    return document


def precision(dtype: torch.dtype | type | str | None, metadata: dict[str, Any]) -> torch.dtype:
    """What a user asked for (see `eqcalc.precisions`), or the file's own.

    Raises:
        InputError: it is neither float32 nor float64.
    """
    return getattr(torch, precisions.named_or_file(dtype, "dtype") or metadata["dtype"])


def content(path: Path) -> tuple[bytes, str]:
    """The bytes of a potential file, and their hash."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    return data, hashlib.sha256(data).hexdigest()


def _open_module(data: bytes, path: Path, device: torch.device) -> torch.jit.ScriptModule:
    with quiet_torchscript():
        try:
            return torch.jit.load(io.BytesIO(data), map_location=device)
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            first = str(error).strip().splitlines()[0]
            raise InputError(f"torch cannot open {path}: {first}") from None


def load(
    path: str | os.PathLike,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
) -> PotentialFile:
    """Opens a potential file and checks it against its own reference structure.

    A TorchScript file is a program: open files only from people you trust.

    Args:
        path: of the file; `eqcalc.names.find` has those of models with names.
        device: see `eqcalc.runtime.choose_device`.
        dtype: torch.float32 or torch.float64 (or their names); None takes the file's own.

    Raises:
        InputError: no such file, a foreign file, another format version, no such device, or
            numbers that differ from those stored in the file.
    """
    path = user_path(path)
    metadata = read_metadata(path)
    device = choose_device(device)
    dtype = precision(dtype, metadata)
    data, key = content(path)
    module = MODULES.get((key, device, dtype), lambda: _checked(data, path, device, dtype))
    return PotentialFile(path, copy.deepcopy(module), metadata)


def _checked(
    data: bytes, path: Path, device: torch.device, dtype: torch.dtype
) -> torch.jit.ScriptModule:
    """The module of a file, which reproduces its reference structure."""
    with own_torch(), memory_errors(device, path.name, "free some, or use another device"):
        module = _open_module(data, path, device)
        module.eval()
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        set_precision(module, dtype)
        difference = deviation(module)
    worst = max(difference.values())
    if not worst <= TOLERANCE[dtype]:
        figures = ", ".join(f"{k} {v:.1e}" for k, v in difference.items())
        raise InputError(
            f"{path.name} does not reproduce its own reference structure here "
            f"(deviations {figures} in eV and Å; allowed {TOLERANCE[dtype]:.0e}): the file, torch "
            f"{torch.__version__} or the device is faulty; export again or use another torch."
        )
    return module
