"""Configuration of a study: what is varied, what counts as better, and on which prompts that is measured.

A study of kind ``search`` varies how videos are searched for, with one model; one of kind ``pyramid`` trains a new
model in every trial. No torch and no Ray in here.
"""

from __future__ import annotations

import difflib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, get_origin

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticKnownError

from framegrove.config.base import Config, describe, validating
from framegrove.config.search import SearchConfig, Speculate, parse_budget
from framegrove.config.train import TrainConfig
from framegrove.errors import UserError

Kind = Literal["search", "pyramid"]
Number = int | float
Params = Mapping[str, Any]
"""The values of a trial's parameters, by name; those that do not apply to it are missing."""

_LARGEST = 2**53  # of whole numbers, which are exact as floats up to here: Optuna and parquet have them as such
_DEEPEST = 8  # lists in lists
_MOST = 100_000  # values of a parameter, and combinations in a grid: far more than are ever tried


def _no_flag(given: Any) -> Any:
    """Refuse true and false, which Python takes for 1 and 0."""
    if isinstance(given, bool):
        raise PydanticKnownError("float_type")
    return given


def _multiple(given: Any) -> Any:
    """A budget as jobs.generate takes it, such as 4x, as a number."""
    return validating(parse_budget)(given) if isinstance(given, str) else given


def _said_in_words(given: Any) -> Any:
    """YAML has off without quotes as false."""
    return {True: "latency", False: "off"}[given] if isinstance(given, bool) else given


Real = Annotated[float, BeforeValidator(_no_flag), Field(allow_inf_nan=False)]
Whole = Annotated[int, Field(strict=True)]


class SearchValues(Config):
    """The parameters of a search that have a name of their own, in the order in which a trial's values are drawn.

    Any other is a key of `SearchConfig`.
    """

    policy: str = Field(default="", min_length=1, description="name of a policy")
    cap: Annotated[Real, BeforeValidator(_multiple)] = Field(
        default=1, ge=1, le=999_999, description="budget, times the FLOPs of one unsearched sample with its decoding"
    )
    until: Real | None = Field(
        default=None,
        gt=0,
        le=1,
        description="probability of being right at which policies that can stop do so; null: the policy's own",
    )
    speculate: Annotated[Speculate, BeforeValidator(_said_in_words)] = Field(
        default="off", description="what idle workers do ahead: latency, thrift or off"
    )
    panel: list[str] | None = Field(
        default=None,
        min_length=1,
        description="names of the verifiers that judge, a list; null: all. It counts where there are several",
    )
    guidance: Real | None = Field(
        default=None, ge=0, description="classifier-free guidance scale of all units; null: the model's own"
    )
    steps: Whole | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="denoising steps at every stage of every unit; null: the model's own",
    )


class PyramidValues(Config):
    """The parameters of a pyramid that have a name of their own, as in `SearchValues`; any other is a key of
    `TrainConfig`."""

    stages: Whole = Field(default=1, ge=1, le=6, description="stages of the pyramid")
    boundaries: Real = Field(
        default=1,
        gt=0,
        le=10,
        description="where stages meet on the noise axis: stage i begins at (i / stages) to this power; 1: uniform",
    )
    steps: Whole = Field(
        default=1,
        ge=1,
        le=1000,
        description="denoising steps at every stage of every unit; absent: as many in all as the run's recipe has",
    )
    weights: Real = Field(
        default=1,
        ge=0,
        le=1000,
        description="stage weights of training: how many times that of the next coarser stage; 1: all alike",
    )
    history: Whole = Field(
        default=0,
        ge=0,
        le=1000,
        description="units of history that training samples have at most, in phases that train on videos",
    )
    corruption: Real = Field(
        default=0, ge=0, le=1, description="how far the history of training samples is corrupted, from 0 to this"
    )


_VALUES: dict[Kind, type[Config]] = {"search": SearchValues, "pyramid": PyramidValues}
NAMED: dict[Kind, tuple[str, ...]] = {kind: tuple(values.model_fields) for kind, values in _VALUES.items()}


class Parameter(Config):
    """What a parameter may be: one of a ``choice``, or a number from ``low`` to ``high``.

    Numbers are whole where low, high and step are.
    """

    choice: tuple[Any, ...] | None = Field(default=None, min_length=1, description="the values to choose from")
    low: Number | None = Field(default=None, description="lowest value")
    high: Number | None = Field(default=None, description="highest value")
    log: bool = Field(default=False, description="whether ratios count rather than differences")
    step: Number | None = Field(default=None, gt=0, description="distance between values; default: 1 or none")

    @field_validator("choice")
    @classmethod
    def _plain_and_distinct(cls, given: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        for value in given or ():
            check_plain(value)
        check_distinct(given or ())
        return given

    @field_validator("low", "high", "step", mode="before")
    @classmethod
    def _finite(cls, given: Any) -> Any:
        if isinstance(given, str):  # YAML has 1e-4, without a point, as text
            try:
                given = float(given)
            except ValueError:
                raise PydanticKnownError("float_type") from None
        if isinstance(given, int | float):
            check_plain(_no_flag(given))
        elif given is not None:
            raise PydanticKnownError("float_type")
        return given

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Self:
        if (self.choice is None) == (self.low is None or self.high is None):
            raise ValueError("give either a choice, as in {choice: [1, 2]}, or a low and a high")
        if self.choice is not None:
            if self.low is not None or self.high is not None or self.log or self.step is not None:
                raise ValueError("low, high, log and step are for numbers, leave them out beside a choice")
        elif self.low is not None and self.high is not None:
            if self.low > self.high:
                raise ValueError(f"low is {self.low} and high is {self.high}: low must not be above high")
            if self.log and (self.low <= 0 or self.step is not None):
                raise ValueError("with log, low must be above 0, and there is no step")
            if self.step is not None and (self.high - self.low) / self.step >= _MOST:
                raise ValueError(
                    f"a step of {self.step} makes more than {_MOST} values from low to high: give a larger"
                )
        return self

    @property
    def is_whole(self) -> bool:
        """Whether its numbers are whole."""
        return all(each is None or isinstance(each, int) for each in (self.low, self.high, self.step))

    @property
    def count(self) -> int | None:
        """How many values it may have, where those can be counted."""
        if self.choice is not None:
            return len(self.choice)
        assert self.low is not None
        assert self.high is not None
        if self.log or not (self.is_whole or self.step is not None):
            return None
        return math.floor((self.high - self.low) / (self.step or 1) + 1e-9) + 1

    @property
    def values(self) -> tuple[Any, ...] | None:
        """All it may be, where those can be counted."""
        if self.choice is not None or self.count is None:
            return self.choice
        assert self.low is not None
        return tuple(self.low + n * (self.step or 1) for n in range(self.count))

    @property
    def examples(self) -> tuple[Any, ...]:
        """Values that are all right if every one is: the choice, or both ends and what is a step from the lower one."""
        if self.choice is not None:
            return self.choice
        assert self.low is not None
        assert self.high is not None
        between = () if self.step is None or self.low + self.step > self.high else (self.low + self.step,)
        return (self.low, *between, self.high)

    def __str__(self) -> str:
        if self.choice is not None:
            return ", ".join(map(label_of, self.choice))
        step = f", every {self.step:g}" if self.step is not None else ""
        return f"{self.low:g} to {self.high:g}{step}{', logarithmic' if self.log else ''}"


def label_of(value: Any) -> str:
    """A value as a person writes it, the same for equal values only."""
    return value if isinstance(value, str) else json.dumps(value)


def check_plain(value: Any, depth: int = _DEEPEST) -> None:
    """Raise ValueError for what is no JSON value, or no finite number: YAML has dates, and lists that hold themselves.

    ``depth`` is how deep lists and sections may still go.
    """
    if not depth:
        raise ValueError(f"lists and sections must not be more than {_DEEPEST} deep")
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"the key {str(key)[:60]} must be text: put it in quotes")
        value = list(value.values())
    if isinstance(value, list | tuple):
        for each in value:
            check_plain(each, depth - 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"numbers must be finite, not {value}")
    elif isinstance(value, int) and abs(value) > _LARGEST:
        raise ValueError(f"whole numbers must lie between -{_LARGEST} and {_LARGEST}")
    elif value is not None and not isinstance(value, str | int | float):
        raise ValueError(
            f"{str(value)[:60]} is a {type(value).__name__}, and must be text or a number: put it in quotes"
        )


def check_distinct(choice: Sequence[Any]) -> None:
    """Raise ValueError where two values of a choice are equal, as 2 and 2.0 are, or read alike."""
    labels = [label_of(value) for value in choice]
    for at, value in enumerate(choice):
        if value in choice[:at] or labels[at] in labels[:at]:
            raise ValueError(f"the choice has a value twice: {repr(value)[:60]}")


@contextmanager
def blaming(name: str, value: Any) -> Iterator[None]:
    """Say of what goes wrong inside that it is for this value of the parameter ``name``, or for the name itself.

    Raises UserError, also where a value that nothing has foreseen makes something else fail.
    """
    shown = label_of(value)[:60]
    try:
        yield
    except UserError as error:
        has = "" if "unknown key" in str(error) else f" has {shown}"  # no value would do
        why = f"space.{name}{has}: {error}"
    except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError) as error:
        why = f"space.{name} has {shown}, which cannot be used ({str(error)[:200]})"
    else:
        return
    raise UserError(" ".join(why.split()))


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
    seed: int = Field(
        default=95_000,
        ge=0,
        le=4_000_000_000,  # Optuna's are less than 2**32, and after trials there are theirs
        description="of the prompts, of the first one's video, of Optuna's draws",
    )
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

    @field_validator("prompts", mode="before")
    @classmethod
    def _a_number_or_texts(cls, given: Any) -> Any:
        texts = isinstance(given, list | tuple) and all(isinstance(each, str) for each in given)
        if not texts and (isinstance(given, bool) or not isinstance(given, int)):
            raise ValueError("prompts must be a whole number, of how many, or a list of texts")
        return given

    @field_validator("units", "seed", "trials", mode="before")
    @classmethod
    def _true_is_no_number(cls, given: Any) -> Any:
        if isinstance(given, bool):
            raise PydanticKnownError("int_type")
        return given

    @field_validator("space")
    @classmethod
    def _values_of_their_kind(cls, given: dict[str, Parameter], info: ValidationInfo) -> dict[str, Parameter]:
        kind = info.data.get("kind")
        named = NAMED.get(kind, ()) if kind is not None else ()
        return {name: _checked(kind, name, each) if kind and name in named else each for name, each in given.items()}

    @field_validator("settings")
    @classmethod
    def _plain_settings(cls, given: dict[str, Any]) -> dict[str, Any]:
        for name, value in given.items():
            try:
                check_plain(value)
            except ValueError as error:
                raise ValueError(f"settings.{name[:60]}: {error}") from None
        return given

    @field_validator("prompts")
    @classmethod
    def _some_prompts(cls, given: int | tuple[str, ...]) -> int | tuple[str, ...]:
        if not given or (isinstance(given, int) and given < 1):
            raise ValueError("a study without prompts measures nothing: say how many, or list them")
        if isinstance(given, int) and given > _MOST:
            raise ValueError(f"more than {_MOST} prompts are never finished: give fewer")
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
        if self.kind == "search":
            _check_dots("space", self.space)
            _check_dots("settings", self.settings)
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
                if parameter.count is None:
                    raise ValueError(f"a grid needs values that can be counted: give {name} a choice or a step")
            if math.prod(parameter.count or 1 for parameter in self.space.values()) > _MOST:
                raise ValueError(f"a grid of more than {_MOST} combinations is never finished: give fewer values")
        return self

    @property
    def prompt_count(self) -> int:
        """How many prompts every trial makes a video for."""
        return self.prompts if isinstance(self.prompts, int) else len(self.prompts)

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


def _checked(kind: Kind, name: str, parameter: Parameter) -> Parameter:
    """A parameter with a name of its own, all of whose values are of its type, numbers that are text as numbers.

    Raises ValueError.
    """
    examples = [_typed(kind, name, value) for value in parameter.examples]
    if parameter.choice is None:
        return parameter
    try:
        check_distinct(examples)
    except ValueError as error:
        raise ValueError(f"space.{name}: {error}") from None
    return parameter.model_copy(update={"choice": tuple(examples)})


def _typed(kind: Kind, name: str, value: Any) -> Any:
    try:
        typed = getattr(_VALUES[kind].model_validate({name: value}), name)
    except ValidationError as error:
        raise ValueError(f"space.{describe(error)}") from None
    return value if isinstance(value, int) and not isinstance(value, bool) else typed  # 4 remains 4, not 4.0


def _check_dots(where: str, names: Iterable[str]) -> None:
    """Raise ValueError for a key below what holds a single value in the configuration of a search."""
    fields = SearchConfig.model_fields
    sections = [key for key, field in fields.items() if get_origin(field.annotation) is dict]
    for name in names:
        head, dot, _ = name.partition(".")
        if dot and head in fields and head not in sections:
            raise ValueError(
                f"{where}.{name[:60]}: {head} is a single value, those with keys of their own are {', '.join(sections)}"
            )


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
