"""Options from TOML, nested dicts and the command line, checked against `options`."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

from eqcalc import sections
from eqcalc.errors import InputError, did_you_mean
from eqcalc.files import user_path
from eqcalc.models.registry import model_config
from eqcalc.training.options import Config


def from_dict(document: dict[str, Any]) -> Config:
    """A config from nested dicts; an unknown key is an error with the nearest one."""
    made = {"model": model_config(document["model"])} if "model" in document else {}
    config = sections.section(document | made, Config, "")
    given = {f"{section}.{key}" for section, options in document.items() for key in options}
    return dataclasses.replace(config, given=frozenset(given))


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
    if any(text.partition("=")[0].strip() == "model.architecture" for text in assignments):
        # options of another architecture do not count, but for those that were asked for
        document["model"] = {k: v for k, v in document["model"].items() if f"model.{k}" in given}
    for text in assignments:
        name, equals, value = text.partition("=")
        *path, key = name.strip().split(".")
        if not (equals and path):
            raise InputError(f"'{text}': write an override as section.option=value.")
        parsed = parse_value(value)
        place = document
        for n, word in enumerate(path):
            if not isinstance(place.get(word), dict):
                where = ".".join(path[: n + 1])
                raise InputError(f"Unknown section '{where}'{did_you_mean(word, place)}.")
            place = place[word]
        place[key] = parsed
        given.add(f"{path[0]}.{key}")
    return dataclasses.replace(from_dict(document), given=frozenset(given))
