"""Reads files that torch.save has written without importing, or running, what made them.

Only tensors, containers and numbers are rebuilt. Every other object becomes an inert `Stub` that
keeps its arguments and attributes, so that a file can neither run code nor need its package.
"""

from __future__ import annotations

import pickle
import types
import zipfile
from pathlib import Path
from typing import Any

import torch

from eqcalc.errors import InputError

#: what is really imported, by module
KNOWN = {
    "collections": {"OrderedDict"},
    "builtins": {"set", "slice", "frozenset", "complex", "bytearray"},
    "torch": {
        *("device", "Size", "bool", "int8", "int16", "int32", "int64", "uint8"),
        *("float16", "bfloat16", "float32", "float64"),
        *("FloatStorage", "DoubleStorage", "HalfStorage", "BFloat16Storage", "LongStorage"),
        *("IntStorage", "ShortStorage", "CharStorage", "ByteStorage", "BoolStorage"),
    },
    "torch.storage": {"UntypedStorage", "TypedStorage"},
    "torch._utils": {"_rebuild_tensor_v2", "_rebuild_parameter"},
    "numpy": {"dtype", "ndarray"},
    "_codecs": {"encode"},
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    KNOWN[_module] = {"_reconstruct", "scalar"}

#: what unpickling a broken file raises
BROKEN = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, ValueError),
    *(EOFError, KeyError, AttributeError, TypeError, IndexError),
)


class Stub:
    """An object of a class that is not imported."""

    path = ""

    def __new__(cls, *arguments: Any, **_: Any) -> Stub:
        made = object.__new__(cls)
        made.__dict__["arguments"] = arguments
        return made

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Takes anything."""

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})

    def __call__(self, *_: Any, **__: Any) -> Stub:
        return Stub()

    def append(self, _: Any) -> None:
        """Of a list's subclass: its items are not kept."""

    def extend(self, _: Any) -> None:
        """See `append`."""

    def __setitem__(self, _: Any, __: Any) -> None:
        """Of a dict's subclass: not kept."""


def _stub(path: str) -> type[Stub]:
    return type(path.rpartition(".")[2], (Stub,), {"path": path})


def _attribute(owner: Any, name: str) -> type[Stub]:
    """What stands for an attribute of something that is not imported, such as torch.tanh."""
    return _stub(f"{getattr(owner, 'path', type(owner).__name__)}.{name}")


class Unpickler(pickle.Unpickler):
    """Of whatever is not in KNOWN, it makes stubs."""

    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins"}.get(module, module)  # as Python 2 called it
        if (module, name) == ("builtins", "getattr"):
            return _attribute
        if name in KNOWN.get(module, ()):
            return super().find_class(module, name)
        return _stub(f"{module}.{name}")


_PICKLE = types.SimpleNamespace(
    __name__=__name__,
    Unpickler=Unpickler,
    load=lambda file, **options: Unpickler(file, **options).load(),
)


def load(path: Path) -> Any:
    """The content of a file of torch.save.

    Raises:
        InputError: it is none, or it is broken.
    """
    try:
        return torch.load(path, map_location="cpu", pickle_module=_PICKLE, weights_only=False)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None
    except BROKEN as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{path} is no file that torch.save has written: {first[0]}") from None
