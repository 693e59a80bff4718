"""What a search leaves behind: the winner, the whole tree, the timeline and the costs."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from framegrove.search.fusion import LogP, chances
from framegrove.search.tree import Judgement, PanelWork, Plan, Scores, Work
from framegrove.types import Assessment, Cost, Path, SampleWork, Scored, paths_of, prefixes


class Ending(enum.StrEnum):
    """How an attempt at a work ended."""

    DONE = "done"
    CANCELLED = "cancelled"  # speculative work that was of no use or made room for certain work; or time was up
    FAILED = "failed"  # the worker died, or an input was lost


@dataclass(frozen=True)
class Span:
    """One attempt on the timeline, in seconds since the search began; ``speculative`` if it began uncertain."""

    work: Work
    worker: str
    start: float
    end: float
    ending: Ending
    cost: Cost
    speculative: bool = False


@dataclass(frozen=True)
class CostBreakdown:
    """The costs of one pool's work.

    ``certain`` had to be spent; ``at_stake`` went into finished speculative work that may yet be needed (nothing, once
    the search has ended); ``wasted`` went into failures and speculative work that was not needed.
    """

    certain: Cost
    at_stake: Cost
    wasted: Cost

    @property
    def spent(self) -> Cost:
        """All of it."""
        return self.certain + self.at_stake + self.wasted

    def __add__(self, other: CostBreakdown) -> CostBreakdown:
        return CostBreakdown(self.certain + other.certain, self.at_stake + other.at_stake, self.wasted + other.wasted)


class Fate(enum.StrEnum):
    """What became of a branch."""

    WON = "won"  # the winner or a prefix of it
    KEPT = "kept"  # survived its own cut, its descendants did not
    DROPPED = "cut"
    SPECULATIVE = "unused"  # sampled in advance, and not needed


@dataclass(frozen=True)
class Node:
    """A branch of the finished tree, for its picture. Times are seconds since the search began, None if restored.

    ``chances`` has the panel's probability that it is right for each of ``scores`` (fusion.py), ``scored`` what each
    verifier said of it, with the answers to its questions.
    """

    path: Path
    fate: Fate
    dropped_by: Assessment | None
    scores: tuple[tuple[Assessment, Scores], ...]
    chances: tuple[float, ...]
    judgements: tuple[Judgement, ...]
    start: float | None
    end: float | None
    scored: tuple[Scored, ...] = ()


@dataclass(frozen=True)
class SearchResult:
    """A finished search.

    ``certain`` are the works that had to be done; spans of other works are speculative. ``sampling`` and ``verifiers``
    (by name) are the costs of generators and of each verifier, with one that was left out. ``handles`` maps branches to
    their newest handles; those of branches that were cut may be missing if they were lost. ``restored`` counts the
    works that a journal had finished already. ``mass`` has each verifier's least probability of yes and no together,
    for those that report one. ``given_up`` are branches that failed too often, ``left_out`` verifiers that could not be
    used, and why. ``hurried`` says that the time limit ended the search.
    """

    winner: Path
    nodes: tuple[Node, ...]
    certain: frozenset[Work]
    sampling: CostBreakdown
    verifiers: Mapping[str, CostBreakdown]
    spans: tuple[Span, ...]
    handles: Mapping[Path, Any]
    seconds: float
    restored: int
    mass: Mapping[str, float] = field(default_factory=dict)
    given_up: Mapping[Path, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    hurried: bool = False

    @property
    def scoring(self) -> CostBreakdown:
        """The costs of all verifiers together."""
        return sum(self.verifiers.values(), CostBreakdown(Cost(), Cost(), Cost()))

    @property
    def units(self) -> tuple[Any, ...]:
        """Handles of the winner's units, oldest first."""
        return tuple(self.handles[prefix] for prefix in prefixes(self.winner))

    @property
    def overlap(self) -> float:
        """Seconds in which sampling and scoring went on at the same time."""
        return overlap_seconds(
            [(s.start, s.end) for s in self.spans if isinstance(s.work, SampleWork)],
            [(s.start, s.end) for s in self.spans if not isinstance(s.work, SampleWork)],
        )


def overlap_seconds(ones: Iterable[tuple[float, float]], others: Iterable[tuple[float, float]]) -> float:
    """How long at least one interval of each side was open."""
    edges = [edge for start, end in ones for edge in ((start, 1, 0), (end, -1, 0))]
    edges += [edge for start, end in others for edge in ((start, 0, 1), (end, 0, -1))]
    total, before, open_ones, open_others = 0.0, 0.0, 0, 0
    for time, one, other in sorted(edges):
        if open_ones and open_others:
            total += time - before
        before, open_ones, open_others = time, open_ones + one, open_others + other
    return total


def nodes_of(
    plan: Plan,
    sampled: Iterable[SampleWork],
    panels: Mapping[PanelWork, Scores],
    scored: Iterable[Scored],
    spans: Iterable[Span],
    log_p: LogP,
) -> tuple[Node, ...]:
    """The finished tree: every branch that was sampled, by path. ``plan`` must have a winner."""
    assert plan.winner is not None
    wanted = {path for work in plan.certain if isinstance(work, SampleWork) for path in work.paths}
    times: dict[Path, list[float]] = {}
    for span in spans:
        if span.ending is Ending.DONE:
            for path in paths_of(span.work):
                times.setdefault(path, []).extend((span.start, span.end))
    order = list(Assessment)
    said: dict[Path, list[Scored]] = {}
    for each in scored:
        said.setdefault(each.work.path, []).append(each)
    judgements: dict[Path, list[Judgement]] = {}
    for judgement in plan.judgements:
        judgements.setdefault(judgement.path, []).append(judgement)
    paths = sorted({path for work in sampled for path in work.paths})
    scores = {
        path: tuple((asked, panels[PanelWork(path, asked)]) for asked in order if PanelWork(path, asked) in panels)
        for path in paths
    }
    return tuple(
        Node(
            path=path,
            fate=_fate(path, plan, wanted),
            dropped_by=plan.dropped.get(path),
            scores=scores[path],
            chances=chances(scores[path], log_p),
            judgements=tuple(sorted(judgements.get(path, ()), key=lambda each: order.index(each.assessment))),
            start=min(times[path]) if path in times else None,
            end=max(times[path]) if path in times else None,
            scored=tuple(
                sorted(said.get(path, ()), key=lambda one: (order.index(one.work.assessment), one.work.verifier))
            ),
        )
        for path in paths
    )


def _fate(path: Path, plan: Plan, wanted: set[Path]) -> Fate:
    assert plan.winner is not None
    if plan.winner[: len(path)] == path:
        return Fate.WON
    if path in plan.dropped:
        return Fate.DROPPED
    return Fate.KEPT if path in wanted else Fate.SPECULATIVE
