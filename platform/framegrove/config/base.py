"""Reading configuration: YAML plus dotted overrides into frozen pydantic models, with one-line errors."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from framegrove.errors import UserError


class ConfigError(UserError):
    """A configuration that cannot be used; the message is one sentence for the user."""


class Config(BaseModel):
    """Base of every configuration section: immutable, and an unknown key is an error rather than a silent no-op."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def absolute(name: str | None) -> str | None:
    """The absolute path of a folder or file, for processes that stand elsewhere; any other name as it is."""
    return str(Path(name).absolute()) if name is not None and Path(name).exists() else name


ConfigT = TypeVar("ConfigT", bound=Config)
Given = TypeVar("Given")
Checked = TypeVar("Checked")


def validating(check: Callable[[Given], Checked]) -> Callable[[Given], Checked]:
    """``check``, which raises UserError, as a pydantic validator, which must raise ValueError."""

    def validator(given: Given) -> Checked:
        try:
            return check(given)
        except UserError as error:
            raise ValueError(str(error)) from None

    return validator


def load(model: type[ConfigT], path: str | Path | None = None, overrides: Iterable[str] = ()) -> ConfigT:
    """Build ``model`` from a YAML file (or defaults) and ``key.sub=value`` overrides, values in YAML syntax.

    Raises ConfigError naming the file, the key, what was given and what is allowed.
    """
    data = read_yaml(Path(path)) if path is not None else {}
    for override in overrides:
        _apply(data, override)
    return validated(model, data, str(path) if path is not None else "the configuration")


def validated(model: type[ConfigT], data: Mapping[str, Any], where: str) -> ConfigT:
    """``model`` made of ``data``. Raises ConfigError, which begins with ``where`` the data came from."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = error.errors()
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ConfigError(f"{where}: {_describe(problems[0], model)}{more}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds, empty for an empty file. Raises ConfigError."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no configuration file at {path}: the shipped ones are in jobs/configs") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold keys and values, not a {type(data).__name__}")
    return data


def _apply(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"override {override!r} is not of the form key.sub=value, for example steps=100")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from None
    target: Any = data
    *parents, last = key.strip().split(".")
    for name in parents:
        target = _descend(target, name, override)
    if isinstance(target, list):
        target[_index(target, last, override)] = value
    elif isinstance(target, dict):
        target[last] = value
    else:
        raise ConfigError(f"override {override!r}: {'.'.join(parents)} holds a single value, it has no {last}")


def _descend(target: Any, name: str, override: str) -> Any:
    if isinstance(target, list):
        return target[_index(target, name, override)]
    if isinstance(target, dict):
        return target.setdefault(name, {})
    raise ConfigError(f"override {override!r}: there is nothing below {name}")


def _index(target: list[Any], name: str, override: str) -> int:
    if not name.isdigit() or int(name) >= len(target):
        raise ConfigError(f"override {override!r}: {name} must be an index from 0 to {len(target) - 1}")
    return int(name)


def _describe(problem: ErrorDetails, model: type[BaseModel]) -> str:
    where = ".".join(str(part) for part in problem["loc"]) or "the whole"
    if problem["type"] == "extra_forbidden":
        return f"unknown key {where!r}{_suggest(problem['loc'], model)}"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem["input"]
    shown = "" if isinstance(given, Mapping | list) or problem["type"] == "missing" else f", not {given!r}"
    return f"{where}: {message}{shown}"


def _suggest(loc: tuple[int | str, ...], model: type[BaseModel]) -> str:
    fields: Iterable[str] = _fields_at(loc[:-1], model)
    near = difflib.get_close_matches(str(loc[-1]), list(fields), n=1)
    return f", did you mean {near[0]!r}?" if near else f", allowed are {', '.join(fields)}" if fields else ""


def _fields_at(loc: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    """Field names of the section at ``loc``; empty when the path leads through something that is no section."""
    current: Any = model
    for part in loc:
        if isinstance(part, int):
            continue
        if not (isinstance(current, type) and issubclass(current, BaseModel)) or part not in current.model_fields:
            return []
        current = _section_in(current.model_fields[part].annotation)
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []


def _section_in(annotation: Any) -> Any:
    """The configuration class inside an annotation such as ``tuple[PhaseConfig, ...]`` or ``PhaseConfig | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _section_in(inner)
        if found is not None:
            return found
    return None
