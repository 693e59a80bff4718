"""Loading configuration: what is accepted, and the one sentence said about what is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field, ValidationError, field_validator

from framegrove.config.base import Config, ConfigError, describe, load
from framegrove.config.vae import VaeConfig


class Optimiser(Config):
    rate: float = Field(default=0.1, gt=0)
    steps: int = 10


class Phase(Config):
    name: str
    units: int = 1


class Recipe(Config):
    optimiser: Optimiser = Optimiser()
    phases: tuple[Phase, ...] = ()


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_and_overrides_make_a_frozen_model(tmp_path: Path) -> None:
    path = written(tmp_path, "optimiser: {rate: 0.5}\nphases: [{name: image}, {name: video, units: 4}]\n")
    recipe = load(Recipe, path, ["optimiser.steps=20", "phases.1.units=3"])
    assert recipe.optimiser == Optimiser(rate=0.5, steps=20)
    assert [phase.units for phase in recipe.phases] == [1, 3]
    with pytest.raises(ValueError, match="frozen"):
        recipe.optimiser.steps = 1  # type: ignore[misc]


def test_defaults_need_no_file() -> None:
    assert load(Recipe) == Recipe()


def test_an_empty_file_means_defaults(tmp_path: Path) -> None:
    assert load(Recipe, written(tmp_path, "# nothing\n")) == Recipe()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("optimizer: {}", "unknown key 'optimizer', did you mean 'optimiser'?"),
        ("optimiser: {momentum: 1}", "unknown key 'optimiser.momentum', allowed are rate, steps"),
        ("phases: [{name: a, unit: 2}]", "unknown key 'phases.0.unit', did you mean 'units'?"),
        ("optimiser: {rate: -1}", "optimiser.rate must be greater than 0, not -1"),
        ("optimiser: {steps: many}", "optimiser.steps must be a whole number, not 'many'"),
        ("phases: [{units: 1}]", "the key phases.0.name is missing"),
        ("optimiser: {rate: -1, steps: many}", r"optimiser.rate must .*\(and 1 more\)"),
        ("- 1", "must hold keys and values, not a list"),
        ("a: [", "is not valid YAML"),
        ("a: 2024-13-45", "is not valid YAML: month must be"),
    ],
)
def test_a_bad_file_is_told_in_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        load(Recipe, written(tmp_path, text))
    assert "recipe.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("optimiser.rate", "not of the form key.sub=value"),
        ("=3", "not of the form key.sub=value"),
        ("optimiser.rate=[", "not valid YAML"),
        ("optimiser.rate=2024-13-45", "not valid YAML"),
        ("optimiser.steps.more=1", r"optimiser.steps must be a whole number, not \{'more': 1\}"),
        ("phases.0.name=x", r"phases must be a list, as in \[1, 2\], not \{"),
    ],
)
def test_a_bad_override_is_told_in_one_sentence(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        load(Recipe, None, [override])
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no configuration file at .*absent\.yaml: the shipped ones are in jobs"):
        load(Recipe, tmp_path / "absent.yaml")
    for number in (2, 15, 31, 36):
        (tmp_path / f"trial-{number:04d}.yaml").touch()
    with pytest.raises(ConfigError, match=r"that folder has trial-00\d+\.yaml, trial-0031\.yaml, trial-0036\.yaml$"):
        load(Recipe, tmp_path / "trial-0037.yaml")


def test_configuration_needs_neither_torch_nor_ray() -> None:
    """In a fresh interpreter: importing all of config/ loads nothing heavy."""
    probe = (
        "import importlib, pkgutil, sys, framegrove.config as room\n"
        "for module in pkgutil.iter_modules(room.__path__):\n"
        "    importlib.import_module(f'{room.__name__}.{module.name}')\n"
        "sys.exit(', '.join({'torch', 'ray', 'transformers'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Every(Config):
    """A key of every kind that configurations have."""

    count: int = Field(default=1, ge=1, le=8)
    even: int = Field(default=2, multiple_of=2)
    rate: float = Field(default=0.5, gt=0, lt=1)
    seed: int = Field(default=0, le=2**63 - 1)
    share: float = Field(default=0.0, ge=0, le=1)
    on: bool = True
    name: str = Field(default="a", min_length=1, max_length=3, pattern="^[a-z]*$")
    kind: Literal["one", "two"] = "one"
    sizes: tuple[tuple[int, int], ...] = Field(default=((1, 2),), min_length=1)
    betas: tuple[float, float] = (0.9, 0.95)
    names: list[str] = Field(default=["a"], max_length=1)
    weights: dict[str, float] | None = None
    phase: Phase | None = None

    @field_validator("on")
    @classmethod
    def _on(cls, on: bool) -> bool:
        if not on:
            raise ValueError("it cannot be switched off")
        return on


@pytest.mark.parametrize(
    ("key", "given", "sentence"),
    [
        ("count", "few", "count must be a whole number, not 'few'"),
        ("count", 1.5, "count must be a whole number, not 1.5"),
        ("count", [1], "count must be a whole number, not [1]"),
        ("count", None, "count must be a whole number, not null"),
        ("count", 0, "count must be at least 1, not 0"),
        ("count", 9, "count must be at most 8, not 9"),
        ("even", 3, "even must be a multiple of 2, not 3"),
        ("rate", "much", "rate must be a number, not 'much'"),
        ("rate", 0, "rate must be greater than 0, not 0"),
        ("rate", 1, "rate must be less than 1, not 1"),
        ("seed", 2**63, "seed must be at most 9223372036854775807, not 9223372036854775808"),
        ("share", -0.5, "share must be at least 0, not -0.5"),
        ("share", 2, "share must be at most 1, not 2"),
        ("on", "perhaps", "on must be true or false, not 'perhaps'"),
        ("on", {"a": 1}, "on must be true or false, not {'a': 1}"),
        ("on", False, "on: it cannot be switched off, not false"),
        ("name", True, "name must be text, not true"),
        ("name", "", "name must have at least 1 character, not ''"),
        ("name", "abcd", "name must have at most 3 characters, not 'abcd'"),
        ("name", "A", "name must match the regular expression ^[a-z]*$, not 'A'"),
        ("name", list(range(99)), "name must be text, not a longer list"),
        ("kind", "three", "kind must be 'one' or 'two', not 'three'"),
        ("sizes", 64, "sizes must be a list, as in [1, 2], not 64"),
        ("sizes", [64, 64], "sizes.0 must be a list, as in [1, 2], not 64 (and 1 more)"),
        ("sizes", [[64, 64], 64], "sizes.1 must be a list, as in [1, 2], not 64"),
        ("sizes", [[64]], "sizes.0 has only 1 entry, more are needed"),
        ("sizes", [[1, 2, 3]], "sizes.0 must have at most 2 entries, not [1, 2, 3]"),
        ("sizes", [], "sizes must have at least 1 entry, not []"),
        ("betas", 0.9, "betas must be a list, as in [1, 2], not 0.9"),
        ("names", ["a", "b"], "names must have at most 1 entry, not ['a', 'b']"),
        ("weights", [1], "weights must be a section of keys and values, not [1]"),
        ("phase", "a", "phase must be a section of keys and values, not 'a'"),
        ("phase", {"units": 1}, "the key phase.name is missing"),
        ("phase", {"name": "a", "nmae": 1}, "unknown key 'phase.nmae', did you mean 'name'?"),
        ("x" * 99, 1, f"unknown key '{'x' * 60}', allowed are {', '.join(Every.model_fields)}"),
        ("count", "9" * 5000, f"count must be a whole number of fewer digits, not '{'9' * 60}'..."),
    ],
)
def test_what_a_key_may_be_is_said_in_plain_english(key: str, given: Any, sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Every.model_validate({key: given})
    assert describe(caught.value, Every) == sentence


def test_where_a_key_has_another_name_it_is_called_so() -> None:
    with pytest.raises(ValidationError) as caught:
        Phase.model_validate({})
    assert describe(caught.value, noun="field") == "the field name is missing"


def test_a_misspelt_key_is_named_before_the_one_that_is_missing_for_it() -> None:
    with pytest.raises(ValidationError) as caught:
        Phase.model_validate({"nmae": "image"})
    assert describe(caught.value, Phase) == "unknown key 'nmae', did you mean 'name'?"
    with pytest.raises(ValidationError) as caught:
        Phase.model_validate({"title": "image"})
    assert describe(caught.value, Phase).startswith("unknown key 'title', allowed are name")
    assert describe(caught.value, Phase).endswith(" (and 1 more)")


def test_the_whole_may_be_of_the_wrong_kind() -> None:
    with pytest.raises(ValidationError) as caught:
        VaeConfig.model_validate([1])
    assert describe(caught.value) == "the whole must be a section of keys and values, not [1]"
