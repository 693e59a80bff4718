"""No search: one video, as its seed gives it. What every search is measured against."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from framegrove.search.budget import Allotment, amounts
from framegrove.search.policies.registry import NoOptions, PolicyEntry, Task
from framegrove.search.tree import Bet, Decision, Layout, PanelWork, Scores
from framegrove.types import SampleWork


class Single:
    """Samples branch (0, 0, ..) to the end and asks no verifier."""

    assessments = ()
    grows_once = True

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def start(self) -> Decision:
        """Everything is certain from the start, the winner included."""
        lengths = range(self.layout.given + 1, self.layout.units + 1)
        works = tuple(SampleWork(((0,) * length,), 0, self.layout.last_stage) for length in lengths)
        return Decision(len(works), works, winner=(0,) * self.layout.units)

    def judged(self, work: PanelWork, scores: Scores) -> Decision:
        """Never called: no scores are asked for."""
        raise AssertionError(f"no scores were asked for, and {work} came with {scores}")

    def speculative(self) -> Iterable[Bet]:
        """Nothing is uncertain."""
        return ()


def unsearched(task: Task) -> tuple[Single, Allotment]:
    """One video, unjudged: also what a search comes down to whose budget pays for nothing else."""
    one, allowed = amounts(task.multiple, task.layout, task.prices)
    return Single(task.layout), Allotment(one, allowed, one - task.prices.finishing)


def plan(task: Task, options: NoOptions) -> tuple[Single, Allotment]:
    """One video, whatever the budget."""
    return unsearched(replace(task, multiple=1.0))


ENTRY = PolicyEntry(
    name="single",
    summary="no search: one video, as its seed gives it",
    options=NoOptions,
    plan=plan,
    judged=False,
)
