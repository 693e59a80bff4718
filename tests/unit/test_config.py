"""Loading configuration: what is accepted, and the one sentence said about what is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import Field

from framegrove.config.base import Config, ConfigError, load


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
        ("optimiser: {rate: -1}", "optimiser.rate: Input should be greater than 0, not -1"),
        ("optimiser: {steps: many}", "optimiser.steps: .*not 'many'"),
        ("phases: [{units: 1}]", "phases.0.name: Field required"),
        ("optimiser: {rate: -1, steps: many}", r"\(and 1 more\)"),
        ("- 1", "must hold keys and values, not a list"),
        ("a: [", "is not valid YAML"),
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
        ("optimiser.steps.more=1", "unknown key|single value|nothing below|valid integer"),
        ("phases.0.name=x", "index|nothing below|valid"),
    ],
)
def test_a_bad_override_is_told_in_one_sentence(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        load(Recipe, None, [override])
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no configuration file at .*absent\.yaml"):
        load(Recipe, tmp_path / "absent.yaml")


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
