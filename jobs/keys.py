"""The keys of a configuration file, for a command's --help."""

from __future__ import annotations

import textwrap
from enum import StrEnum
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel


def keys_help(*sections: tuple[str, type[BaseModel], str]) -> str:
    """What --help says about the keys of a configuration file, one line a key.

    Each section is a title, the class that holds the keys, and what stands before their names.
    """
    as_it_is = "\b"  # before a paragraph: click leaves its lines alone
    return "\n\n".join("\n".join([as_it_is, title, *_keys(section, prefix)]) for title, section, prefix in sections)


def _keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Every key of a section: its name, its default, what it means and may be, in lines that fit a terminal."""
    lines = []
    for name, field in section.model_fields.items():
        if field.is_required():
            default = "required"
        elif field.default_factory is not None or isinstance(field.default, BaseModel):
            default = "a section"
        else:
            default = f"default {_shown(field.default)}"
        line = f"{prefix}{name} ({default}): {field.description or 'listed below'}"
        values = _values(field.annotation)
        if any(value not in (field.description or "") for value in values):
            line += f". One of {', '.join(values)}"
        lines += textwrap.wrap(line, 96, initial_indent="  ", subsequent_indent="      ")
    return lines


def _shown(value: Any) -> str:
    """A default as it would stand in a YAML file, without what a section leaves out."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, BaseModel):
        return str(value.model_dump(mode="json", exclude_defaults=True)).replace("'", "")
    return "null" if value is None else "empty" if value == "" else str(value).lower()


def _values(kind: Any) -> list[str]:
    """The names among which a key of this type chooses."""
    if get_origin(kind) is Literal:
        return [value for value in get_args(kind) if isinstance(value, str)]
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return [value.value for value in kind]
    return [value for part in get_args(kind) if part is not type(None) for value in _values(part)]
