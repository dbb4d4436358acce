"""Trees of modules that were pickled whole: TorchScript files and archives of torch.package.

Both are zip files of one pickle and its storages. Like everything that `eqcalc.importers.unpickle`
reads, no code of theirs runs, nor is their package needed.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from e3nn import o3
from torch import Tensor

from eqcalc.errors import InputError
from eqcalc.importers.unpickle import BROKEN, Stub, Unpickler

#: where a pickle lies in its archive, and where a storage lies beside it
TORCHSCRIPT = "data.pkl", "data/{}"
PACKAGE = "model/eager_model.pkl", ".data/{}.storage"

DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}


@dataclass
class Modules:
    """What a tree of modules holds, by dotted path.

    Attributes:
        kinds: names of the modules' classes.
        tensors: parameters and buffers, also those that state dicts leave out.
        values: other attributes.
    """

    kinds: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    def below(self, prefix: str) -> Modules:
        """Those below a path, "" for all, with paths from there on."""
        start = f"{prefix}." if prefix else ""

        def cut(items: dict[str, Any]) -> dict[str, Any]:
            return {k[len(start) :]: v for k, v in items.items() if k.startswith(start)}

        return Modules(cut(self.kinds), cut(self.tensors), cut(self.values))


class Archive:
    """A zip file with one folder, in which everything lies.

    Args:
        path: of the file.

    Raises:
        InputError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.file = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{path} cannot be read: {error}.") from None
        self.root = next(iter(self.file.namelist()), "").partition("/")[0]

    def __contains__(self, name: str) -> bool:
        return f"{self.root}/{name}" in self.file.NameToInfo

    def names(self) -> list[str]:
        return self.file.namelist()

    def text(self, name: str) -> str:
        """Of a file inside; empty if there is none."""
        return self.file.read(f"{self.root}/{name}").decode() if name in self else ""

    def modules(self, where: tuple[str, str]) -> Modules:
        """The tree that `where`, TORCHSCRIPT or PACKAGE, says.

        Raises:
            InputError: the file is broken.
        """
        pickled, storage = where
        try:
            with self.file.open(f"{self.root}/{pickled}") as file:
                unpickler = Unpickler(file)
                unpickler.persistent_load = lambda key: self._storage(key, storage)
                found = Modules()
                _collect(unpickler.load(), "", found)
                return found
        except (OSError, *BROKEN) as error:
            first = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(f"{self.path} is broken: {first[0]}.") from None

    def _storage(self, key: Any, pattern: str) -> Any:
        if not isinstance(key, tuple) or key[0] != "storage":
            return Stub()  # code
        _, kind, name, _, size = key
        dtype = DTYPES[kind.__name__]
        content = bytearray(self.file.read(f"{self.root}/{pattern.format(name)}"))
        flat = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        if len(flat) != size:
            raise ValueError(f"storage {name} has {len(flat)} numbers instead of {size}")
        return torch.storage.TypedStorage(
            wrap_storage=flat.untyped_storage(), dtype=dtype, _internal=True
        )


def collected(root: Any) -> Modules:
    """The tree below a module that `eqcalc.importers.unpickle.load` has read.

    Raises:
        InputError: it is no module.
    """
    found = Modules()
    try:
        _collect(root, "", found)
    except TypeError as error:
        raise InputError(f"The file holds no network: {error}.") from None
    return found


def _collect(module: Any, path: str, found: Modules) -> None:
    """Puts a module and those below into `found`."""
    if not isinstance(module, Stub):
        raise TypeError(f"a {type(module).__name__} where a module should be")
    found.kinds[path] = type(module).__name__
    state = dict(module.__dict__)
    children = state.pop("_modules", None)
    tensors = {**(state.pop("_parameters", None) or {}), **(state.pop("_buffers", None) or {})}
    if children is None:  # TorchScript has all in one
        scripted = {k: v for k, v in state.items() if isinstance(v, Stub)}
        children = {k: v for k, v in scripted.items() if v.path.startswith("__torch__.")}
    for name, value in {**state, **tensors}.items():
        full = f"{path}.{name}" if path else name
        if torch.is_tensor(value):
            found.tensors[full] = value.detach()
        elif name not in children:
            found.values[full] = value
    for name, child in children.items():
        if child is not None:
            _collect(child, f"{path}.{name}" if path else name, found)


def irreps_of(value: Any) -> o3.Irreps:
    """Irreps of e3nn, as text or pickled."""
    if not isinstance(value, Stub):
        return o3.Irreps(value)
    pairs = [item.arguments[0] for item in value.arguments[0]]
    return o3.Irreps([(int(mul), tuple(map(int, ir.arguments[0]))) for mul, ir in pairs])
