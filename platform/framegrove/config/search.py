"""Configuration of a test-time search: which policy, how much compute, how the panel is weighed."""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from framegrove.config.base import Config, validating
from framegrove.errors import UserError


def parse_budget(text: str) -> float:
    """``"4x"`` -> 4.0: a budget in multiples of the FLOPs of one unsearched sample. Raises UserError below 1x."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)x?", text.strip())
    if match is None:
        raise UserError("a budget is a number of unsearched samples, such as 4x or 2.5x")
    multiple = float(match[1])
    if multiple < 1:
        raise UserError("a budget below 1x cannot pay for a single video, the smallest is 1x")
    return multiple


Branching = Literal["units", "prompts", "never"]


class SearchConfig(Config):
    """How a video is searched for.

    Without ``roots`` and ``widths`` the search tree is the one that uses the budget best. Given, they are taken as they
    are, as long as the budget pays for the worst case.
    """

    policy: Literal["linear", "tof"] = Field(default="tof", description="linear: best of N videos; tof: Tree-of-Frames")
    budget: str = Field(default="4x", description="times the FLOPs of one unsearched sample")
    roots: int | None = Field(
        default=None, ge=1, description="first units (tof) or whole videos (linear) to start with"
    )
    widths: tuple[int, ...] | None = Field(
        default=None, description="tof: most branches kept after each cut: drafts, then every depth but the last"
    )
    branching: Branching = Field(
        default="prompts",
        description="tof: two children of a branch at all units, where prompt stages switch (VT1), or never",
    )
    path_score: Literal["last", "sum"] = Field(
        default="last", description="tof: branches are cut by their newest rank, or by the sum along their path (VT1)"
    )
    draft_stages: int | None = Field(
        default=None, ge=0, description="tof: coarse stages a draft of unit 0 runs through; default all but the finest"
    )
    roots_per_work: int = Field(default=4, ge=1, description="tof: drafts denoised in step by one generator")
    weights: dict[str, float] = Field(default={}, description="weight of each verifier's ranks; empty: all alike")
    speculate: bool = Field(
        default=True, description="idle generators bet on likely survivors; never changes the video"
    )
    attempts: int = Field(default=3, ge=1, description="times a work is tried when workers die under it")
    scores_in_flight: int = Field(default=8, ge=1, description="branches a verifier is asked about at a time")
    start_limit: float = Field(default=1200, gt=0, description="seconds for an actor to come up; then it is given up")
    sample_limit: float = Field(default=1800, gt=0, description="seconds for a sample work; then its actor is replaced")
    score_limit: float = Field(default=600, gt=0, description="seconds for a score work; then its actor is replaced")

    @property
    def multiple(self) -> float:
        """The budget as a number."""
        return parse_budget(self.budget)

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

    @model_validator(mode="after")
    def _widths_go_with_tof(self) -> Self:
        if self.widths is not None and self.policy == "linear":
            raise ValueError("widths are for tof, linear search cuts nothing: leave them out")
        if self.widths is not None and min(self.widths, default=1) < 1:
            raise ValueError(f"every width must be at least 1, not {list(self.widths)}")
        return self
