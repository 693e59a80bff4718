"""Configuration of a loop in which a generator learns from its own searches (jobs.improve)."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from framegrove.config.base import Config
from framegrove.config.suite import Setting
from framegrove.config.train import TrainConfig

COLLECTED = "collected/"  # begins the paths of data that a round's searches leave


class CollectConfig(Config):
    """What each round searches for, and what is kept of it (jobs.collect)."""

    prompts: str = Field(description="text file, one prompt a line, or digits:N; every round searches with new seeds")
    digits: tuple[Literal[1, 2], ...] = Field((), description="of digits:N, so many in a prompt, in turn; []: either")
    policy: str = Field("beam", description="name of a policy, or module:ENTRY")
    budget: str = Field("6x", description="cap of a search, a multiple of sampling and decoding a video once")
    options: dict[str, Any] = Field(default={}, description="the policy's own options")
    margin: float = Field(1.0, ge=0, description="least difference in log-odds of a pair")
    least: float = Field(0.5, ge=0, le=1, description="least probability that a better unit, or a winner, is right")
    most: float = Field(1.0, ge=0, le=1, description="greatest probability that a worse unit is right")


class GuardConfig(Config):
    """What holds a round's model against the one before, on prompts that nothing was collected for.

    The judge takes no part in any search. ``same`` unsearched videos of each of the first ``varied`` prompts show how
    different a model's videos for one prompt are.
    """

    prompts: str = Field(
        "digits:200", description="text file, one prompt a line, or digits:N; those that are searched for are left out"
    )
    digits: tuple[Literal[1, 2], ...] = Field(
        (2, 1), min_length=1, description="of digits:N, so many prompts of each kind; what counts is the first kind"
    )
    seed: int = Field(80_000, ge=0, description="of the prompts and videos")
    judge: str = Field("oracle", description="oracle (digits:N only), or a YAML file of verifiers as of --verifier")
    settings: tuple[Setting, ...] = Field(
        (Setting(policy="single"),), min_length=1, description="how videos are made; the first one without a search"
    )
    searched: PositiveInt | None = Field(
        None, description="prompts, of the first kind, that the other settings are tried on; null: all of all kinds"
    )
    varied: int = Field(20, ge=0, description="prompts of each kind of which several videos are made")
    same: PositiveInt = Field(4, description="videos of each of them")
    gain: float = Field(0.0, description="the loop ends where the judge's mean gains no more than this in a round")

    @field_validator("settings")
    @classmethod
    def _first_unsearched(cls, given: tuple[Setting, ...]) -> tuple[Setting, ...]:
        if given[0].policy != "single":
            raise ValueError("the first of the settings must be unsearched (policy: single): it is what is improved")
        return given


class ImproveConfig(Config):
    """The whole loop."""

    rounds: PositiveInt = Field(3, description="at most so many")
    units: PositiveInt | None = Field(None, description="length of all videos; null: the model's")
    verifier: str | None = Field(
        None, description="the panel that searches are judged by, as of --verifier; null: shipped"
    )
    collect: CollectConfig
    guard: GuardConfig = Field(default=GuardConfig())
    train: TrainConfig = Field(
        description="a round's training; data paths that begin with collected/ are what the round's searches left, and "
        "model.start is the first round's"
    )

    @model_validator(mode="after")
    def _learns_from_searches(self) -> Self:
        if not any(data.path.startswith(COLLECTED) for data in self.train.data_sets):
            raise ValueError(f"train.data must name {COLLECTED}examples, {COLLECTED}pairs, or both")
        return self
