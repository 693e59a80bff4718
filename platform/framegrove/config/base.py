"""Reading configuration: YAML plus dotted overrides into frozen pydantic models, with one-line errors."""

from __future__ import annotations

import copy
import difflib
import importlib
import reprlib
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


def absolute_place(place: str) -> str:
    """A folder's absolute path, also where it is not there yet; a URL and an empty text as they are."""
    local = place.removeprefix("file://")
    return str(Path(local).expanduser().absolute()) if local and "://" not in local else place


def imported(dotted: str, whose: str, kind: str = "") -> Any:
    """What stands at ``module:attribute``. Raises ConfigError, which begins with ``whose`` it is; ``kind`` names it."""
    module, _, attribute = dotted.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise ConfigError(f"{whose}: the module {module} cannot be imported ({error})") from error
    except AttributeError:
        raise ConfigError(f"{whose}: the module {module} has no {f'{kind} {attribute}'.strip()}") from None


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
    return overridden(model, data, overrides, str(path) if path is not None else "the configuration")


def overridden(
    model: type[ConfigT], data: Mapping[str, Any], overrides: Iterable[str] = (), where: str = "the configuration"
) -> ConfigT:
    """``model`` made of ``data`` and overrides as `load` takes them. Raises ConfigError, as `validated` does."""
    copied = copy.deepcopy(dict(data))
    for override in overrides:
        _apply(copied, override)
    return validated(model, copied, where)


def validated(model: type[ConfigT], data: Mapping[str, Any], where: str = "") -> ConfigT:
    """``model`` made of ``data``. Raises ConfigError, which begins with ``where`` the data came from, if given."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{where}: " * bool(where) + describe(error, model)) from None


def describe(error: ValidationError, model: type[BaseModel] | None = None, noun: str = "key") -> str:
    """The first problem of a failed validation as one plain sentence: which key, what is allowed, what was given.

    ``model`` is the class that was validated; with it, an unknown key is answered by those that exist. ``noun`` is what
    a key is called where the data came from ("field" in a JSON body). Further problems are only counted.

    >>> try:
    ...     VaeConfig.model_validate({"encoder_norm_num_groups": 0})
    ... except ValidationError as error:
    ...     print(describe(error))
    encoder_norm_num_groups must be greater than 0, not 0
    """
    first, *others = problems_of(error)
    near = _nearest(first["loc"], model) if first["type"] == _UNKNOWN else None
    # What was misspelt is not there under its right name either: that is the same mistake.
    others = [each for each in others if (each["type"], each["loc"]) != ("missing", (*first["loc"][:-1], near))]
    return _sentence(first, model, noun) + (f" (and {len(others)} more)" if others else "")


def problems_of(error: ValidationError) -> list[ErrorDetails]:
    """What was wrong, in the order in which it is worth telling: unknown keys come first.

    A misspelt key is the likeliest reason why another one is missing.
    """
    problems = error.errors()
    # A list with a wrong entry is also reported as too short: only the entry is what the user must change.
    parents = {problem["loc"][:depth] for problem in problems for depth in range(len(problem["loc"]))}
    own = [problem for problem in problems if problem["loc"] not in parents]
    return sorted(own, key=lambda problem: problem["type"] != _UNKNOWN)


# What pydantic says in the terms of Python, said in plain English; the braces are filled from the error's context.
# All other messages of the form "Input should be ..." read well once they begin with "must be ...".
_PLAIN = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of fewer digits",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "finite_number": "must be a finite number",
    "list_type": "must be a list, as in [1, 2]",
    "tuple_type": "must be a list, as in [1, 2]",
    "set_type": "must be a list, as in [1, 2]",
    "dict_type": "must be a section of keys and values",
    "model_type": "must be a section of keys and values",
    "model_attributes_type": "must be a section of keys and values",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match the regular expression {pattern}",
    "union_tag_invalid": "must have as {discriminator} one of {expected_tags}",
    "union_tag_not_found": "must have a {discriminator}",
}
_UNKNOWN = "extra_forbidden"  # pydantic's word for a key that the model does not have
_LONGEST = 60  # characters of what was given that are repeated in a sentence

# For what is shorter than that, nearly what repr says. Of what is not, it looks at the beginning alone, which takes no
# time: repr copies the inside of a list again for each list around it.
_BRIEF = reprlib.Repr()
_BRIEF.maxlevel = 8
_BRIEF.maxlist = _BRIEF.maxdict = _BRIEF.maxstring = _BRIEF.maxlong = _BRIEF.maxother = 2 * _LONGEST


def _sentence(problem: ErrorDetails, model: type[BaseModel] | None, noun: str) -> str:
    kind, loc = problem["type"], problem["loc"]
    where = ".".join(str(part) for part in loc)
    if kind == _UNKNOWN:
        return f"unknown {noun} {where[:_LONGEST]!r}{_suggest(loc, model)}"
    if kind == "missing":
        if isinstance(loc[-1], int):  # pydantic numbers the absent entries of a tuple of fixed length
            entries = "1 entry" if loc[-1] == 1 else f"{loc[-1]} entries"
            return f"{'.'.join(map(str, loc[:-1]))} has only {entries}, more are needed"
        return f"the {noun} {where} is missing"
    if kind == "value_error":  # from a check of our own, which is a sentence already
        text = problem["msg"].removeprefix("Value error, ")
        return f"{text if where in text else f'{where}: {text}'}{_unless_said(problem['input'], text)}"
    facts = {key: f"{fact:g}" if isinstance(fact, float) else fact for key, fact in problem.get("ctx", {}).items()}
    said = _PLAIN[kind].format_map(facts) if kind in _PLAIN else _as_demand(problem["msg"])
    said = said.replace(" 1 entries", " 1 entry").replace(" 1 characters", " 1 character")
    return f"{where or 'the whole'} {said}, not {_shown(problem['input'])}"


def _as_demand(message: str) -> str:
    """A message of pydantic's as the end of a sentence that begins with a key."""
    demand = message.removeprefix("Input should ")
    return f"must {demand}" if demand != message else f"cannot be used ({message[0].lower()}{message[1:]})"


def _unless_said(given: Any, text: str) -> str:
    """A short value at the end of a sentence that does not contain it."""
    short = isinstance(given, str | int | float) and 0 < len(str(given)) <= _LONGEST // 3
    return f", not {_shown(given)}" if short and str(given) not in text else ""


def _shown(given: Any) -> str:
    """What was given, as YAML and JSON write it, cut where it is long."""
    if given is None or isinstance(given, bool):
        return {None: "null", True: "true", False: "false"}[given]
    text = _BRIEF.repr(list(given) if isinstance(given, tuple) else given)
    if len(text) <= _LONGEST:
        return text
    if isinstance(given, str):
        return f"{given[:_LONGEST]!r}..."
    kinds: dict[type, str] = {dict: "a section of keys and values", list: "a longer list", tuple: "a longer list"}
    return kinds.get(type(given), f"{text[:_LONGEST]}...")


class _Yaml(yaml.SafeLoader):
    """YAML in which 1:4 is text, as in version 1.2, and not the number 64."""

    def _number(self, node: yaml.ScalarNode) -> Any:
        if ":" in node.value:
            return node.value
        return self.construct_yaml_int(node) if node.tag.endswith("int") else self.construct_yaml_float(node)


for _kind in ("int", "float"):
    _Yaml.add_constructor(f"tag:yaml.org,2002:{_kind}", _Yaml._number)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds, empty for an empty file. Raises ConfigError."""
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Yaml)
    except FileNotFoundError:
        beside = [each.name for each in path.parent.glob("*.yaml")]
        near = sorted(difflib.get_close_matches(path.name, beside, 3, 0.0))
        others = f"that folder has {', '.join(near)}" if near else "the shipped ones are in jobs/configs"
        raise ConfigError(f"no configuration file at {path}: {others}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # an impossible date, say
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
        value = yaml.load(text, _Yaml)
    except (yaml.YAMLError, ValueError):
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


def _suggest(loc: tuple[int | str, ...], model: type[BaseModel] | None) -> str:
    near, fields = _nearest(loc, model), _fields_at(loc[:-1], model) if model else []
    return f", did you mean {near!r}?" if near else f", allowed are {', '.join(fields)}" if fields else ""


def _nearest(loc: tuple[int | str, ...], model: type[BaseModel] | None) -> str | None:
    """The key that an unknown one was probably meant to be."""
    fields = _fields_at(loc[:-1], model) if model else []
    return next(iter(difflib.get_close_matches(str(loc[-1]), fields, n=1)), None)


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
