"""Configuration of a study: what is varied, what counts as better, and on which prompts that is measured.

A study of kind ``search`` varies how videos are searched for, with one model; one of kind ``pyramid`` trains a new
model in every trial. No torch and no Ray in here.
"""

from __future__ import annotations

import difflib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from framegrove.config.base import Config
from framegrove.config.search import SearchConfig
from framegrove.config.train import TrainConfig

Kind = Literal["search", "pyramid"]
Number = int | float
Params = Mapping[str, Any]
"""The values of a trial's parameters, by name; those that do not apply to it are missing."""

# Parameters that have a name of their own, in the order in which a trial's values are drawn. Any other is a key of the
# configuration of a search, or of a training run.
NAMED: dict[Kind, dict[str, str]] = {
    "search": {
        "policy": "name of a policy",
        "cap": "budget, times the FLOPs of one unsearched sample with its decoding",
        "until": "probability of being right at which policies that can stop do so; null: the policy's own",
        "speculate": "what idle workers do ahead: latency, thrift or off",
        "panel": "names of the verifiers that judge, a list; null: all. It counts where there are several",
        "guidance": "classifier-free guidance scale of all units; null: the model's own",
        "steps": "denoising steps at every stage of every unit; null: the model's own",
    },
    "pyramid": {
        "stages": "stages of the pyramid",
        "boundaries": "where stages meet on the noise axis: stage i begins at (i / stages) to this power; 1: uniform",
        "steps": "denoising steps at every stage of every unit; absent: as many in all as the run's recipe has",
        "weights": "stage weights of training: how many times that of the next coarser stage; 1: all alike",
        "history": "units of history that training samples have at most, in phases that train on videos",
        "corruption": "how far the history of training samples is corrupted, from 0 to this",
    },
}


class Parameter(Config):
    """What a parameter may be: one of a ``choice``, or a number from ``low`` to ``high``.

    Numbers are whole where low, high and step are.
    """

    choice: tuple[Any, ...] | None = Field(default=None, min_length=1, description="the values to choose from")
    low: Number | None = Field(default=None, description="lowest value")
    high: Number | None = Field(default=None, description="highest value")
    log: bool = Field(default=False, description="whether ratios count rather than differences")
    step: Number | None = Field(default=None, gt=0, description="distance between values; default: 1 or none")

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Self:
        if (self.choice is None) == (self.low is None or self.high is None):
            raise ValueError("give either a choice, as in {choice: [1, 2]}, or a low and a high")
        if self.choice is not None:
            if self.low is not None or self.high is not None or self.log or self.step is not None:
                raise ValueError("low, high, log and step are for numbers, leave them out beside a choice")
            if len({label_of(value) for value in self.choice}) < len(self.choice):
                raise ValueError(f"the choice has a value twice: {list(self.choice)}")
        elif self.low is not None and self.high is not None:
            if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
                raise ValueError(f"low is {self.low} and high is {self.high}: low must not be above high")
            if self.log and (self.low <= 0 or self.step is not None):
                raise ValueError("with log, low must be above 0, and there is no step")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether its numbers are whole."""
        return all(each is None or isinstance(each, int) for each in (self.low, self.high, self.step))

    @property
    def values(self) -> tuple[Any, ...] | None:
        """All it may be, where those can be counted."""
        if self.choice is not None:
            return self.choice
        assert self.low is not None
        assert self.high is not None
        if self.log or not (self.is_whole or self.step is not None):
            return None
        step = self.step or 1
        return tuple(self.low + n * step for n in range(math.floor((self.high - self.low) / step + 1e-9) + 1))

    @property
    def examples(self) -> tuple[Any, ...]:
        """Values that are all right if every one is: the choice, or both ends."""
        return self.choice if self.choice is not None else (self.low, self.high)

    def __str__(self) -> str:
        if self.choice is not None:
            return ", ".join(map(label_of, self.choice))
        step = f", every {self.step:g}" if self.step is not None else ""
        return f"{self.low:g} to {self.high:g}{step}{', logarithmic' if self.log else ''}"


def label_of(value: Any) -> str:
    """A value as a person writes it, the same for equal values only."""
    return value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True)
class Objective:
    """Something measured of each video, as ``what`` says; more of it is better (``up``), or less."""

    name: str
    what: str
    up: bool

    @property
    def mode(self) -> Literal["max", "min"]:
        """In the terms of Ray Tune."""
        return "max" if self.up else "min"


OBJECTIVES = {
    each.name: each
    for each in (
        Objective("score", "share of what was asked for that the video shows, by the oracle", up=True),
        Objective("right", "share of videos that show all of it", up=True),
        Objective("flops", "total FLOPs of a video: sampling, decoding, judging, wasted", up=False),
        Objective("motion", "how far things move, up to as far as in real clips: 1 is all of it, 0 a still", up=True),
        Objective("seconds", "seconds that a video took", up=False),
    )
}


class HalvingConfig(Config):
    """When training trials are stopped early, by asynchronous successive halving (ASHA), on the score of samples."""

    after: float = Field(default=0.25, gt=0, le=1, description="share of the training before which none is stopped")
    keep: float = Field(default=0.5, gt=0, lt=1, description="share of the trials that go on at every rung")


class StudyConfig(Config):
    """A whole study."""

    kind: Kind = Field(description="search: how to search, with one model; pyramid: a new model is trained every time")
    space: dict[str, Parameter] = Field(
        min_length=1, description="what is varied, by name: {choice: [..]} or {low:, high:, log:, step:}"
    )
    objectives: tuple[str, ...] = Field(
        default=("score", "flops", "motion"), min_length=1, description=f"what counts: {', '.join(OBJECTIVES)}"
    )
    prompts: int | tuple[str, ...] = Field(
        description="how many held-out prompts every trial makes a video for, or a list of prompts"
    )
    units: int | None = Field(default=None, ge=1, description="units of a video; default: the model's own length")
    seed: int = Field(default=95_000, ge=0, description="of the prompts, of the first one's video, of Optuna's draws")
    trials: int = Field(default=40, ge=1, description="how many trials, those that fail included")
    grid: bool = Field(default=False, description="try every combination in the space once, in place of Optuna's picks")
    settings: dict[str, Any] = Field(
        default={}, description="what is the same in all trials: keys of a search, or of the training run"
    )
    verifier: str | None = Field(
        default=None,
        description="of kind search: verifiers, as of --verifier; a file beside this one, a shipped one, or a path",
    )
    train: str | None = Field(
        default=None,
        description="of kind pyramid: YAML file of the training run: beside this one, a shipped one, or a path",
    )
    stop: HalvingConfig | None = Field(default=None, description="of kind pyramid: stop the worse trials early")

    @field_validator("prompts")
    @classmethod
    def _some_prompts(cls, given: int | tuple[str, ...]) -> int | tuple[str, ...]:
        if not given or (isinstance(given, int) and given < 1):
            raise ValueError("a study without prompts measures nothing: say how many, or list them")
        if not isinstance(given, int) and len(set(given)) < len(given):
            raise ValueError("a prompt is there twice: list each once")
        return given

    @field_validator("objectives")
    @classmethod
    def _known_objectives(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for name in given:
            if name not in OBJECTIVES:
                raise ValueError(f"there is no objective {name[:60]!r}: choose among {', '.join(OBJECTIVES)}")
        if len(set(given)) < len(given):
            raise ValueError(f"an objective is there twice: {list(given)}")
        return given

    @model_validator(mode="after")
    def _of_its_kind(self) -> Self:
        check_names(self.kind, self.space)
        if self.kind == "search" and "budget" in self.settings:
            raise ValueError("a study's budget is called cap: write cap in place of budget")
        twice = sorted(set(self.space) & set(self.settings))
        if twice:
            raise ValueError(f"{twice[0]} is both varied (space) and fixed (settings): leave one of them out")
        if self.kind == "pyramid" and self.train is None:
            raise ValueError("a study of kind pyramid trains: name a training configuration (train)")
        if self.kind == "pyramid" and self.verifier is not None:
            raise ValueError("verifier is for a study of kind search: leave it out")
        if self.kind == "search" and (self.train is not None or self.stop is not None):
            raise ValueError("train and stop are for a study of kind pyramid: leave them out")
        if self.grid:
            for name, parameter in self.space.items():
                if parameter.values is None:
                    raise ValueError(f"a grid needs values that can be counted: give {name} a choice or a step")
        return self

    @property
    def goals(self) -> tuple[Objective, ...]:
        """The objectives, in order."""
        return tuple(OBJECTIVES[name] for name in self.objectives)

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters in the order in which they are drawn: what others depend on comes first."""
        named = [name for name in NAMED[self.kind] if name in self.space]
        return (*named, *(name for name in self.space if name not in named))

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Every combination of a grid; the last name changes fastest."""
        values = [self.space[name].values or () for name in self.names]
        return (dict(zip(self.names, each, strict=True)) for each in itertools.product(*values))


def check_names(kind: Kind, names: Mapping[str, Any]) -> None:
    """Raise ValueError for a parameter that no study of this kind has."""
    config: type[Config] = SearchConfig if kind == "search" else TrainConfig
    hidden = {"budget", "seconds", "nfe", "samples", "data", "seed"}  # what trials must have in common, or named above
    keys = [name for name in config.model_fields if name not in hidden]
    known = [*NAMED[kind], *(key for key in keys if key not in NAMED[kind])]
    for name in names:
        if name not in NAMED[kind] and name.partition(".")[0] not in keys:
            near = difflib.get_close_matches(name, known, n=1)
            hint = (
                f"did you mean {near[0]!r}?" if near else f"those of a {kind} study are {', '.join(NAMED[kind])}, and "
            )
            more = "" if near else f"the keys of a {'search' if kind == 'search' else 'training run'}"
            raise ValueError(f"the space has an unknown parameter {name[:60]!r}, {hint}{more}")
