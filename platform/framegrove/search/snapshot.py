"""What a running search looks like at one moment, for whoever watches it.

Reading it changes nothing. It takes time in proportion to the size of the search, which is spent only when somebody
asks, so a viewer decides how often it looks.
"""

from __future__ import annotations

import enum
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from framegrove.search.commands import Attempt
from framegrove.search.dispatcher import Dispatcher
from framegrove.search.fusion import chances
from framegrove.search.result import CostBreakdown, Span
from framegrove.search.tree import PanelWork, Scores, Work
from framegrove.search.workers import pool_of
from framegrove.types import Assessment, Path, SampleWork, paths_of


class Standing(enum.StrEnum):
    """Where a branch stands in a search that goes on."""

    WON = "won"  # the winner or a prefix of it, and sampled: a winner may be named before
    CUT = "cut"  # it, or a branch that it grew from
    RUNNING = "running"  # it is being sampled or judged
    KEPT = "kept"  # it is being extended or refined, or will be
    JUDGED = "judged"  # its scores are in, its fate is open
    SAMPLED = "sampled"  # it waits for its scores
    WAITING = "waiting"  # it is known to be needed, and not begun


@dataclass(frozen=True)
class BranchNow:
    """A branch of a running search. ``speculative``: so far nothing says that it will be needed.

    ``chances`` has the panel's probability that it is right for each of ``scores`` (fusion.py).
    """

    path: Path
    standing: Standing
    speculative: bool
    scores: tuple[tuple[Assessment, Scores], ...]
    chances: tuple[float, ...]
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True)
class PoolNow:
    """A pool of workers: their names, and of its works how many are done, and what those cost.

    ``waiting`` counts certain works that have not begun, most of them because others must be done first.
    """

    workers: tuple[str, ...]
    waiting: int
    done: int
    costs: CostBreakdown


@dataclass(frozen=True)
class Snapshot:
    """A running search, ``seconds`` after it began.

    ``branches`` are in the order of their paths. ``undone`` are the certain works that are not done, running ones among
    them; ``certain`` counts all that are certain so far, ``at_most`` how many it can become.
    """

    seconds: float
    branches: tuple[BranchNow, ...]
    pools: Mapping[str, PoolNow]
    running: tuple[Attempt, ...]
    spans: tuple[Span, ...]
    undone: tuple[Work, ...]
    certain: int
    at_most: int
    winner: Path | None


def snapshot_of(state: Dispatcher, workers: Mapping[str, Sequence[str]], now: float) -> Snapshot:
    """The state of a search with these ``workers``, by pool, ``now`` seconds after its beginning."""
    running = tuple(state.attempts.running.values())
    undone = tuple(work for work in state.certain_works if work not in state.done)
    done = Counter(map(pool_of, state.done))
    return Snapshot(
        seconds=now,
        branches=_branches(state, running, undone),
        pools={
            pool: PoolNow(tuple(names), state.load(pool)[1], done[pool], state.costs(pool))
            for pool, names in workers.items()
        },
        running=running,
        spans=tuple(state.attempts.spans),
        undone=undone,
        certain=len(state.certain_works),
        at_most=state.at_most,
        winner=state.plan.winner,
    )


def _branches(state: Dispatcher, running: Iterable[Attempt], undone: Iterable[Work]) -> tuple[BranchNow, ...]:
    attempts: dict[Path, list[Attempt]] = defaultdict(list)
    for attempt in running:
        for path in paths_of(attempt.work):
            attempts[path].append(attempt)
    needed = {path for work in state.certain_works if isinstance(work, SampleWork) for path in work.paths}
    sampled = {path for work in state.done if isinstance(work, SampleWork) for path in work.paths}
    going_on = {path[:-1] for path in needed}  # a child of theirs is needed
    going_on |= {path for work in undone if isinstance(work, SampleWork) for path in work.paths if path in sampled}
    scores: dict[Path, dict[Assessment, Scores]] = defaultdict(dict)
    for panel, said in state.panels.items():
        scores[panel.path][panel.assessment] = said
    judged = {
        path: tuple((asked, told[asked]) for asked in Assessment if asked in told) for path, told in scores.items()
    }
    unscored = {work.path for work in state.plan.certain if isinstance(work, PanelWork) and work not in state.panels}

    def standing(path: Path) -> Standing:
        if state.plan.is_dropped(path):
            return Standing.CUT
        if path in attempts:
            return Standing.RUNNING
        if path not in sampled:
            return Standing.WAITING
        if state.plan.winner is not None and state.plan.winner[: len(path)] == path:
            return Standing.WON
        if path in going_on:
            return Standing.KEPT
        return Standing.JUDGED if path in judged and path not in unscored else Standing.SAMPLED

    return tuple(
        BranchNow(
            path=path,
            standing=standing(path),
            speculative=path not in needed,
            scores=judged.get(path, ()),
            chances=chances(judged.get(path, ()), state.log_p),
            attempts=tuple(attempts.get(path, ())),
        )
        for path in sorted({*needed, *sampled, *attempts})
    )
