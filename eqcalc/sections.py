"""Dataclasses of options from nested dicts, every value checked against its annotation."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, Literal

from eqcalc.errors import InputError, did_you_mean


def _one_kind(kind: Any, value: Any) -> Any:
    """Of a union the kind by which `value` is judged: by the first, unless another one fits."""
    if typing.get_origin(kind) is not types.UnionType:
        return kind
    first, other = typing.get_args(kind)
    return other if isinstance(value, typing.get_origin(other) or other) else first


def _table(value: Any, kind: Any, name: str) -> Any:
    """A dataclass; a text stands for its first field."""
    if isinstance(value, str):
        value = {dataclasses.fields(kind)[0].name: value}
    if not isinstance(value, dict):
        raise InputError(f"{name} = {value!r}: a table is expected.")
    return section(value, kind, f"{name}.")


def _list(value: Any, kind: Any, name: str) -> list[Any]:
    """A list; a text stands for one of itself."""
    if isinstance(value, str) and (kind is str or dataclasses.is_dataclass(kind)):
        value = [value]
    if not isinstance(value, list):
        raise InputError(f"{name} = {value!r}: a list is expected.")
    return [_check(v, kind, f"{name}[{n}]") for n, v in enumerate(value)]


def _check(value: Any, kind: Any, name: str) -> Any:
    """`value` as `kind` (int for float allowed), or an InputError that names the option."""
    kind = _one_kind(kind, value)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in args:
            raise InputError(f"{name} = {value!r}: it must be one of {', '.join(map(str, args))}.")
        return value
    if origin is list:
        return _list(value, args[0], name)
    if origin is dict:
        if not isinstance(value, dict):
            raise InputError(f"{name} = {value!r}: a table is expected.")
        free = args[1] is Any
        return {k: v if free else _check(v, args[1], f"{name}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(kind):
        return _table(value, kind, name)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"{name} = {value!r}: {kind.__name__} is expected.")
    return value


def section(document: dict[str, Any], kind: type, prefix: str) -> Any:
    """A config dataclass from nested dicts; an unknown key is an error with the nearest one."""
    hints = typing.get_type_hints(kind)
    known = [name for name in hints if name != "given"]
    values = {}
    for key, value in document.items():
        if key not in known:
            raise InputError(f"Unknown option '{prefix}{key}'{did_you_mean(key, known)}.")
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, hints[key]):
            values[key] = value  # made by whoever knows its kind
        elif dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise InputError(f"'{prefix}{key}' is a section: write [{prefix}{key}].")
            values[key] = section(value, hints[key], f"{prefix}{key}.")
        else:
            values[key] = _check(value, hints[key], f"{prefix}{key}")
    return kind(**values)
