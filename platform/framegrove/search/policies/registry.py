"""What a policy's file tells about it: the entry that the command line, the endpoint and the evaluation read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from framegrove.config.base import Config
from framegrove.search.budget import Allotment
from framegrove.search.fusion import Scoring
from framegrove.search.prices import Prices
from framegrove.search.tree import Layout, Policy


@dataclass(frozen=True)
class Task:
    """What a policy plans for.

    A video of ``units`` units, of which the first ``given`` are there already (1 for image-to-video), each sampled over
    ``stages`` stages; at most ``multiple`` times the FLOPs of one unsearched sample to spend, as ``prices`` counts
    them. ``scoring`` says how the panel's scores are read. A policy that can stop does so at a video that is right with
    probability ``until``, None: as it likes best. ``seed`` is the request's, for policies that draw lots.
    """

    units: int
    stages: int
    prices: Prices
    multiple: float = 1.0
    given: int = 0
    scoring: Scoring = Scoring()  # noqa: RUF009 - it is frozen
    until: float | None = None
    seed: int = 0

    @property
    def layout(self) -> Layout:
        """The grid without drafts."""
        return Layout(self.units, self.stages, given=self.given)


class NoOptions(Config):
    """For a policy without options."""


@dataclass(frozen=True)
class PolicyEntry:
    """A policy as the rest of the house knows it.

    ``plan(task, options)`` is its budget planner: the policy, as wide as the budget pays for in the worst case, and
    what the budget was turned into; it raises BudgetError for a budget that cannot pay for what is asked. ``judged``
    says whether it asks verifiers at all: without them, none is started, and there is no budget to choose. ``stops``
    says whether it ends at a video that is right with a given probability. ``compares(options)`` says whether the
    scores of a branch are only ever compared with those of its cohort, which it names (Decision.cohorts): then
    verifiers that compare can judge for it.
    """

    name: str
    summary: str
    options: type[Config]
    plan: Callable[[Task, Any], tuple[Policy, Allotment]]
    judged: bool = True
    stops: bool = False
    compares: Callable[[Any], bool] = lambda options: False
