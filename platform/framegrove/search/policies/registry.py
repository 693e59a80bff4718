"""What a policy's file tells about it: the entry that the command line, the endpoint and the evaluation read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from framegrove.config.base import Config
from framegrove.search.budget import Allotment
from framegrove.search.ranks import Weigh, equally
from framegrove.search.rounds import CostTable
from framegrove.search.tree import Policy


@dataclass(frozen=True)
class Task:
    """What a policy plans for.

    A video of ``units`` units, of which the first ``given`` are there already (1 for image-to-video), each sampled over
    ``stages`` stages; ``multiple`` times the FLOPs of one unsearched sample to spend, as ``cost`` counts them;
    ``weigh`` gives the weight in the fused rank of each of the panel's scores, by its name.
    """

    units: int
    stages: int
    cost: CostTable
    multiple: float = 1.0
    given: int = 0
    weigh: Weigh = equally


class NoOptions(Config):
    """For a policy without options."""


@dataclass(frozen=True)
class PolicyEntry:
    """A policy as the rest of the house knows it.

    ``plan(task, options)`` is its budget planner: the policy, as wide as the budget pays for in the worst case, and
    what the budget was turned into; it raises BudgetError for a budget that cannot pay for what is asked. ``judged``
    says whether it asks verifiers at all: without them, none is started, and there is no budget to choose.
    """

    name: str
    summary: str
    options: type[Config]
    plan: Callable[[Task, Any], tuple[Policy, Allotment]]
    judged: bool = True
