"""A config as TOML, with the documentation of every option if wanted."""

from __future__ import annotations

import dataclasses
import json
import re
import textwrap
from typing import Any

from eqcalc.training.options import Config


def documentation(kind: type) -> tuple[str, dict[str, str]]:
    """Summary and meaning of the attributes, from a dataclass's docstring.

    Attributes that are explained together, "a, b: ...", share a text under the first one's name.
    """
    summary, _, listed = textwrap.dedent("    " + (kind.__doc__ or "")).partition("Attributes:\n")
    meanings: dict[str, str] = {}
    name = ""
    for line in listed.splitlines():
        entry = re.match(r" {4}(\w+(?:, \w+)*): (.*)", line)
        if entry:
            name = entry[1].split(", ")[0]
            meanings[name] = entry[2]
        elif line.strip():
            meanings[name] += " " + line.strip()
    return summary.strip(), meanings


def _value(value: Any) -> str:
    if dataclasses.is_dataclass(value):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        inside = ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items())
        return f"{{{inside}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, (str, bool)):
        return json.dumps(value, ensure_ascii=False)
    return repr(value)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[\w-]+", name, re.ASCII) else json.dumps(name)


def _comment(text: str) -> list[str]:
    return [f"# {line}".rstrip() for p in text.split("\n\n") for line in textwrap.wrap(p, 94)]


def _section(options: Any, name: str, *, comments: bool) -> list[str]:
    summary, meanings = documentation(type(options))
    for base in type(options).__mro__[1:-1]:
        meanings = documentation(base)[1] | meanings
    lines = [*(_comment(summary) if comments else []), f"[{name}]"]
    sections: list[str] = []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            sections += ["", *_section(value, f"{name}.{field.name}", comments=comments)]
            continue
        if comments and field.name in meanings:
            lines += ["", *_comment(meanings[field.name])]
        if value is not None:
            lines.append(f"{field.name} = {_value(value)}")
        elif comments:
            lines.append(f"# {field.name} =")
    return lines + sections


def to_toml(config: Config, *, comments: bool = False) -> str:
    """TOML that reads back as `config`; options that are unset stand there as comments."""
    sections = [f for f in dataclasses.fields(config) if f.name != "given"]
    parts = [_section(getattr(config, f.name), f.name, comments=comments) for f in sections]
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"
