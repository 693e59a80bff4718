"""Configuration of a test-time search: which policy, how much compute, how the panel is weighed."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator

from framegrove.config.base import Config, validating
from framegrove.errors import UserError
from framegrove.types import DEFAULT_POLICY

Fusion = Literal["log-p", "ranks", "z-scores"]
PathScore = Literal["sum", "last", "min"]
Speculate = Literal["latency", "thrift", "off"]


def parse_budget(text: str) -> float:
    """``"4x"`` -> 4.0: a budget in multiples of the FLOPs of one unsearched sample with its decoding.

    Raises UserError below 1x.
    """
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]+)?)x?", text.strip())
    if match is None:
        raise UserError("a budget is a number of unsearched samples, such as 4x or 2.5x")
    multiple = float(match[1])
    if multiple < 1:
        raise UserError("a budget below 1x cannot pay for a single video, the smallest is 1x")
    return multiple


class SearchConfig(Config):
    """How a video is searched for. ``options`` are the policies' own, by policy: see their files in search/policies."""

    policy: str = Field(default=DEFAULT_POLICY, description="name of a policy, or module:ENTRY")
    budget: str = Field(
        default="4x",
        description="times the FLOPs of one unsearched sample with its decoding, for all that a search does: sampling, "
        "decoding, judging",
    )
    nfe: int | None = Field(
        default=None, ge=1, description="most transformer evaluations that a search may need, as well as the budget"
    )
    seconds: float | None = Field(
        default=None,
        gt=0,
        description="time limit of a run, once its actors are up: shortly before, the most promising branch is "
        "finished and wins; the one setting that makes a video depend on how fast it is made",
    )
    options: dict[str, dict[str, Any]] = Field(
        default={}, description="options of each policy by its name, as in options.tof.roots=8"
    )
    weights: dict[str, float] = Field(
        default={}, description="weights of the panel's scores, by name; empty: the verifiers' own"
    )
    fusion: Fusion | None = Field(
        default=None,
        description="how a panel's scores are fused: log-p, calibrated log-probabilities; ranks, weighted ranks in a "
        "cohort; z-scores; default: as the policy likes best",
    )
    path_score: PathScore | None = Field(
        default=None,
        description="what branches are compared by: the sum of their path's scores, the last one, or the min; default: "
        "as the policy likes best",
    )
    until: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="policies that can stop (linear, dfs, evo) do so at a video that is right with this probability, "
        "by the panel; default: the policy's own",
    )
    speculate: Speculate = Field(
        default="thrift",
        description="what idle workers do ahead, the video being the same: latency, whatever may be needed; thrift, "
        "what is needed more likely than not; off, nothing",
    )
    leave_out: bool = Field(
        default=False,
        description="go on without a verifier that answers what is no score, if the others of its panel can; otherwise "
        "the search ends",
    )
    attempts: int = Field(
        default=3, ge=1, description="times a work is tried when workers die under it; then its branch is given up"
    )
    scores_in_flight: int = Field(default=8, ge=1, description="branches a verifier is asked about at a time")
    start_limit: float = Field(default=1200, gt=0, description="seconds for an actor to come up; then it is given up")
    sample_limit: float = Field(default=1800, gt=0, description="seconds for a sample work; then its actor is replaced")
    score_limit: float = Field(default=600, gt=0, description="seconds for a score work; then its actor is replaced")

    @property
    def multiple(self) -> float:
        """The budget as a number."""
        return parse_budget(self.budget)

    @field_validator("speculate", mode="before")
    @classmethod
    def _yes_or_no_will_do(cls, given: Any) -> Any:
        return {True: "latency", False: "off"}[given] if isinstance(given, bool) else given

    @field_validator("budget", mode="before")
    @classmethod
    def _budget_is_a_multiple(cls, given: Any) -> str:
        text = f"{given}x" if isinstance(given, int | float) and not isinstance(given, bool) else str(given)
        validating(parse_budget)(text)
        return text

    @field_validator("weights")
    @classmethod
    def _weights_are_usable(cls, given: dict[str, float]) -> dict[str, float]:
        if given and (min(given.values()) < 0 or not 0 < sum(given.values()) < float("inf")):
            raise ValueError("weights must be finite, not negative, and not all 0")
        return given
