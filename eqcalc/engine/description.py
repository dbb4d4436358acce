"""Data with names for the C++ engine, as csrc/description.h reads them.

A value is an 8-byte tag and what follows it, all in words of 8 bytes:

    1 integer   int64
    2 number    float64
    3 text      bytes, UTF-8 or a file's, filled up with zeros
    4 array     axes, length of each, float64 in C order
    5 list      values, each of them
    6 record    kind (as of a text), fields, of each its name (likewise) and value

A dataclass is a record of the kind of its class, a dictionary one without a kind. Fields that are
None are left out.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

#: changes with what the names mean
DESCRIPTION_VERSION = 10

INTEGER, NUMBER, TEXT, ARRAY, LIST, RECORD = range(1, 7)


def _words(*integers: int) -> bytes:
    return struct.pack(f"={len(integers)}q", *integers)


def _text(text: str) -> bytes:
    content = text.encode()
    return _words(len(content)) + content + bytes(-len(content) % 8)


def encode(value: Any) -> bytes:  # noqa: PLR0911 - one for each tag
    """The bytes of a value.

    Raises:
        TypeError: of a type that has no tag.
    """
    if isinstance(value, int | np.integer):  # bool too
        return _words(INTEGER, int(value))
    if isinstance(value, float | np.floating):
        return _words(NUMBER) + struct.pack("=d", value)
    if isinstance(value, str):
        return _words(TEXT) + _text(value)
    if isinstance(value, bytes):
        return _words(TEXT, len(value)) + value + bytes(-len(value) % 8)
    if isinstance(value, np.ndarray):
        numbers = np.ascontiguousarray(value, dtype=np.float64)
        return _words(ARRAY, value.ndim, *value.shape) + numbers.tobytes()
    if is_dataclass(value):
        named = {f.name: getattr(value, f.name) for f in fields(value)}
        return _record(type(value).__name__, named)
    if isinstance(value, Mapping):
        return _record("", value)
    if isinstance(value, Sequence):
        return b"".join([_words(LIST, len(value)), *map(encode, value)])
    raise TypeError(f"The description of a network cannot hold a {type(value).__name__}.")


def _record(kind: str, named: Mapping[str, Any]) -> bytes:
    given = [_text(name) + encode(value) for name, value in named.items() if value is not None]
    return b"".join([_words(RECORD), _text(kind), _words(len(given)), *given])
