"""Options from TOML, nested dicts and the command line, checked against `options`."""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, Literal

from eqcalc.errors import InputError, did_you_mean
from eqcalc.files import user_path
from eqcalc.models.nequip import NequIPConfig
from eqcalc.training.options import Config


def _one_kind(kind: Any, value: Any) -> Any:
    """Of a union the kind by which `value` is judged: by the first, unless another one fits."""
    if typing.get_origin(kind) is not types.UnionType:
        return kind
    first, other = typing.get_args(kind)
    return other if isinstance(value, typing.get_origin(other) or other) else first


def _check(value: Any, kind: Any, name: str) -> Any:
    """`value` as `kind` (int for float allowed), or an InputError that names the option."""
    kind = _one_kind(kind, value)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in args:
            raise InputError(f"{name} = {value!r}: it must be one of {', '.join(map(str, args))}.")
        return value
    if origin is list:
        if isinstance(value, str) and args[0] is str:
            value = [value]
        if not isinstance(value, list):
            raise InputError(f"{name} = {value!r}: a list is expected.")
        return [_check(v, args[0], f"{name}[{n}]") for n, v in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise InputError(f"{name} = {value!r}: a table is expected.")
        free = args[1] is Any
        return {k: v if free else _check(v, args[1], f"{name}.{k}") for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"{name} = {value!r}: {kind.__name__} is expected.")
    return value


def _section(document: dict[str, Any], kind: type, prefix: str) -> Any:
    """A config dataclass from nested dicts; an unknown key is an error with the nearest one."""
    hints = typing.get_type_hints(kind)
    known = [name for name in hints if name != "given"]
    values = {}
    for key, value in document.items():
        if key not in known:
            raise InputError(f"Unknown option '{prefix}{key}'{did_you_mean(key, known)}.")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise InputError(f"'{prefix}{key}' is a section: write [{prefix}{key}].")
            values[key] = _section(value, hints[key], f"{prefix}{key}.")
        else:
            values[key] = _check(value, hints[key], f"{prefix}{key}")
    return kind(**values)


def from_dict(document: dict[str, Any]) -> Config:
    """A config from nested dicts; an unknown key is an error with the nearest one."""
    config = _section(document, Config, "")
    given = {f"{section}.{key}" for section, options in document.items() for key in options}
    return dataclasses.replace(config, given=frozenset(given))


def model_config(document: dict[str, Any]) -> NequIPConfig:
    """The [model] section alone."""
    return _section(document, NequIPConfig, "model.")


def read_config(path: str | Path) -> Config:
    """A TOML file; its data paths are made absolute, relative to the file."""
    path = user_path(path)
    if not path.is_file():
        raise InputError(f"There is no file '{path}'.")
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"'{path}' is not valid TOML: {error}.") from None
    config = from_dict(document)
    here = path.resolve().parent
    data = config.data

    def absolute(paths: list[str]) -> list[str]:
        return [str(here / user_path(p)) for p in paths]

    val = data.val
    data = dataclasses.replace(
        data,
        train=absolute(data.train),
        val={k: absolute(v) for k, v in val.items()} if isinstance(val, dict) else absolute(val),
        isolated_atoms=str(here / user_path(data.isolated_atoms)) if data.isolated_atoms else "",
    )

    def existing(name: str) -> str:
        """Made absolute; else it may be the name of a bundled model or of a method."""
        path = here / user_path(name)
        return str(path) if name and path.exists() else name

    fine_tune = dataclasses.replace(config.fine_tune, model=existing(config.fine_tune.model))
    pretrain = dataclasses.replace(config.pretrain, teacher=existing(config.pretrain.teacher))
    return dataclasses.replace(config, data=data, fine_tune=fine_tune, pretrain=pretrain)


def parse_value(text: str) -> Any:
    """A value in TOML; anything else is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def override(config: Config, assignments: list[str]) -> Config:
    """`section.key=value` strings, the value in TOML, on top of a config."""
    document = config.to_dict()
    given = set(config.given)
    for text in assignments:
        name, equals, value = text.partition("=")
        *sections, key = name.strip().split(".")
        if not (equals and sections):
            raise InputError(f"'{text}': write an override as section.option=value.")
        parsed = parse_value(value)
        place = document
        for n, section in enumerate(sections):
            if not isinstance(place.get(section), dict):
                where = ".".join(sections[: n + 1])
                raise InputError(f"Unknown section '{where}'{did_you_mean(section, place)}.")
            place = place[section]
        place[key] = parsed
        given.add(f"{sections[0]}.{key}")
    return dataclasses.replace(from_dict(document), given=frozenset(given))
