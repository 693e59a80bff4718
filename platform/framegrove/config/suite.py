"""Configuration of a suite of searches that are measured beside each other, and of what is to be shown by it."""

from __future__ import annotations

from collections import Counter
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from framegrove.config.base import Config, validating
from framegrove.config.search import Fusion, PathScore, parse_budget


class Setting(Config):
    """One way to make a video: without a search (policy single, 1x), or by a policy on a budget.

    What is None is as the search's own configuration has it, or as the policy likes best. Two settings of a suite may
    have the same policy with other options.
    """

    label: str = Field(default="", description="its name in tables; default: policy and budget, as in tof 4x")
    policy: str = Field(description="name of a policy, or module:ENTRY")
    budget: float = Field(default=1.0, description="cap, times the FLOPs of one unsearched sample with its decoding")
    until: float | None = Field(default=None, gt=0, le=1, description="probability of being right at which it stops")
    options: dict[str, Any] = Field(default={}, description="the policy's own options")
    fusion: Fusion | None = Field(default=None, description="how a panel's scores are fused")
    path_score: PathScore | None = Field(default=None, description="what branches are compared by")
    panel: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="names of the verifiers that judge, of those there are; default: all"
    )

    @field_validator("budget", mode="before")
    @classmethod
    def _budget_is_a_multiple(cls, given: Any) -> float:
        return validating(parse_budget)(f"{given:.6f}" if isinstance(given, float) else str(given))

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("label") or "policy" not in given:
            return given
        budget = str(given.get("budget", 1.0)).strip().removesuffix("x").removesuffix(".0")
        label = "single" if given["policy"] == "single" else f"{given['policy']} {budget}x"
        return {**given, "label": label}

    def __hash__(self) -> int:  # options are a dict
        return hash(self.label)

    def __str__(self) -> str:
        return self.label

    @property
    def family(self) -> str:
        """Settings of one family differ in what they may spend: by policy, how that goes about it, and by panel."""
        family = self.policy
        if self.policy == "linear" and self.until is not None:
            family = "linear with stop"
        elif self.policy == "dfs" and self.options.get("whole"):
            family = "dfs by stretches"
        return family if self.panel is None else f"{family} by {' and '.join(self.panel)}"


class Length(Config):
    """How long videos are, and for how many prompts they are made."""

    units: int = Field(ge=1)
    prompts: int = Field(ge=1)


class Aims(Config):
    """What the best tree policy may cost at most, for videos of ``units`` units, to be called worth its compute."""

    units: int = Field(ge=1, description="length of the videos that the aims are for")
    of_plateau: float = Field(gt=0, description="share of the total FLOPs of linear search at its plateau")
    of_stop: float = Field(gt=0, description="share of the total FLOPs of linear search that stops")


class SuiteConfig(Config):
    """A suite: prompts, settings, and the rules by which its results are read, fixed before it is run.

    The same prompts and seeds are used in every setting. ``optional`` are policies whose settings are left out where
    there is no such policy; any other that is unknown is a mistake.
    """

    lengths: tuple[Length, ...] = Field(min_length=1)
    digits: int = Field(ge=1, le=2, description="digits of each prompt")
    seed: int = Field(ge=0, description="of the prompts, and of the first one's video")
    tuning_seed: int = Field(ge=0, description="the same, of the prompts on which constants are fixed beforehand")
    margin: float = Field(ge=0, lt=1, description="shares of right videos that differ by less count as equal")
    trees: tuple[str, ...] = Field(min_length=1, description="the policies that the aims are about")
    aims: Aims
    optional: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = Field(min_length=1)
    ceiling: tuple[str, ...] | None = Field(
        default=None, description="labels of the settings that are run with the oracle as judge as well; default: all"
    )

    @model_validator(mode="after")
    def _the_ceiling_is_of_settings(self) -> Self:
        unknown = sorted(set(self.ceiling or ()) - {setting.label for setting in self.settings})
        if unknown:
            raise ValueError(f"the ceiling names {unknown[0]!r}, and no setting has that label")
        return self

    @model_validator(mode="after")
    def _nothing_is_there_twice(self) -> Self:
        for noun, names in (
            ("label", [setting.label for setting in self.settings]),
            ("length", [length.units for length in self.lengths]),
        ):
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise ValueError(f"the {noun} {twice[0]} is there twice: give each its own")
        apart = max(length.prompts for length in self.lengths)
        if abs(self.seed - self.tuning_seed) < apart:
            raise ValueError(
                f"seed and tuning_seed are {self.seed} and {self.tuning_seed}, the videos of {apart} prompts would "
                "share seeds: set them further apart"
            )
        return self
