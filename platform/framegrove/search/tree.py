"""The types of a search tree, and the Policy protocol.

A search grows a tree of branches. A policy is told the scores as they come in and answers with decisions: what must be
done, which branches are dropped, which one wins. Everything else (who samples what, when, how often) is the
dispatcher's business.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from framegrove.types import Assessment, Path, Sampled, SampleWork, Scored, ScoreWork, prefixes

Work = SampleWork | ScoreWork
"""What one worker does at a time."""
Result = Sampled | Scored

TOGETHER = 4  # branches that one generator denoises in step, where a policy has no option for it
_LONGEST_NAME = 160  # characters of a path: file systems take 255 bytes, and there are suffixes


@dataclass(frozen=True)
class PanelWork:
    """Have the panel judge a branch: each verifier that takes part in the assessment scores it in a work of its own."""

    path: Path
    assessment: Assessment


PlannedWork = SampleWork | PanelWork
"""What a policy asks for. A policy does not know which verifiers there are."""
Scores = tuple[tuple[str, float], ...]
"""What the panel says about one branch: scores in [0, 1] by column, one column for each score of each verifier."""


def columns(scored: Scored, *, alone: bool) -> Scores:
    """A verifier's scores as columns: "verifier/aspect", or just the aspect for one that is ``alone`` in its panel."""
    prefix = "" if alone else f"{scored.work.verifier}/"
    return tuple((prefix + aspect, score) for aspect, score in scored.scores)


class Latent(NamedTuple):
    """The newest unit of a branch, sampled up to and including ``stage``. What a generator makes and a search keeps."""

    path: Path
    stage: int

    @property
    def name(self) -> str:
        """A file name for it: ``2-0-1.stage2``; with a digest of the path where that would be too long for a name."""
        path = "-".join(map(str, self.path))
        if len(path) > _LONGEST_NAME:
            path = f"depth{len(self.path) - 1}-{hashlib.blake2b(path.encode(), digest_size=16).hexdigest()}"
        return f"{path}.stage{self.stage}"


@dataclass(frozen=True)
class Layout:
    """The grid a search moves on: ``units`` of a video, each sampled over ``stages`` of the pyramid.

    The first ``given`` units are not searched for (image-to-video gives one): every branch starts with them, under
    the path ``(0,) * given``. ``draft_stage`` is the last stage of a draft, None where there are no drafts.
    """

    units: int
    stages: int
    draft_stage: int | None = None
    given: int = 0

    @property
    def prefix(self) -> Path:
        """The branch of the given units, () when nothing is given."""
        return (0,) * self.given

    @property
    def last_stage(self) -> int:
        """The stage at full resolution."""
        return self.stages - 1

    def assessment(self, depth: int) -> Assessment:
        """How a finished unit at this depth is judged (VT1 section 3.3)."""
        if depth == self.units - 1:
            return Assessment.FINAL
        return Assessment.IMAGE if depth == 0 else Assessment.MOTION

    def inputs(self, work: Work | PanelWork) -> tuple[Latent, ...]:
        """What must be there before the work can start: the history, oldest first, then what it continues or judges."""
        if isinstance(work, SampleWork):
            history = self._history(work.paths[0])
            if work.first_stage == 0:
                return history
            return history + tuple(Latent(path, work.first_stage - 1) for path in work.paths)
        drafted = work.assessment is Assessment.POTENTIAL and self.draft_stage is not None
        stage = self.draft_stage if drafted and self.draft_stage is not None else self.last_stage
        branches = (work.path, *work.against) if isinstance(work, ScoreWork) else (work.path,)
        built_on = (latent for path in branches for latent in (*self._history(path), Latent(path, stage)))
        return tuple(dict.fromkeys(built_on))

    def _history(self, path: Path) -> tuple[Latent, ...]:
        """The units before the branch's newest one."""
        return tuple(Latent(unit, self.last_stage) for unit in prefixes(path[:-1]))

    def finished(self, path: Path) -> Latent:
        """A branch's newest unit at full resolution."""
        return Latent(path, self.last_stage)

    def outputs(self, work: SampleWork) -> tuple[Latent, ...]:
        """What the work makes, in the order of its handles."""
        return tuple(Latent(path, work.last_stage) for path in work.paths)


@dataclass(frozen=True)
class Judgement:
    """What a policy makes of a branch's scores: its own fused score, and its path's (fusion.py)."""

    path: Path
    assessment: Assessment
    own: float
    total: float


class Members(NamedTuple):
    """A whole cohort: branches of one length that are compared with each other, by one assessment."""

    paths: tuple[Path, ...]
    assessment: Assessment


@dataclass(frozen=True)
class Decision:
    """What a policy adds to its earlier decisions. Nothing that was decided is ever taken back.

    ``works`` are those that are now certain: known to be needed, however the missing scores turn out; most urgent
    first. ``dropped`` names branches that lead no further, and the assessment that decided it. ``at_most`` bounds how
    many certain works the search can have in the end; it never grows. ``winner`` may be named before the works of the
    winner are done.

    ``cohorts`` are those whose members are known by now. A verifier that compares judges a branch once its cohort is,
    and its scores are worth nothing outside of it.
    """

    at_most: int
    works: tuple[PlannedWork, ...] = ()
    dropped: tuple[tuple[Path, Assessment], ...] = ()
    judgements: tuple[Judgement, ...] = ()
    winner: Path | None = None
    cohorts: tuple[Members, ...] = ()


@dataclass
class NextDecision:
    """What a policy's next decision will say, as it comes up; and the winner, once there is one."""

    works: list[PlannedWork] = field(default_factory=list)
    dropped: list[tuple[Path, Assessment]] = field(default_factory=list)
    judgements: list[Judgement] = field(default_factory=list)
    winner: Path | None = None
    cohorts: list[Members] = field(default_factory=list)
    _told: int = 0

    @property
    def planned(self) -> int:
        """The works of all decisions, this one included."""
        return self._told + len(self.works)

    def take(self, at_most: int) -> Decision:
        """The decision, after which the next one is begun."""
        decision = Decision(
            at_most,
            tuple(self.works),
            tuple(self.dropped),
            tuple(self.judgements),
            self.winner,
            tuple(self.cohorts),
        )
        self._told = self.planned
        self.works, self.dropped, self.judgements, self.cohorts = [], [], [], []
        return decision


class Bet(NamedTuple):
    """A work that may become certain, and how likely the policy takes that to be, in (0, 1]."""

    work: PlannedWork
    likely: float


class Policy(Protocol):
    """Decides which branches to keep, expand and drop. It executes nothing, and runs one search.

    Decisions depend on the scores alone and not on the order in which they come in: two searches in which every branch
    has the same scores end with the same certain works, dropped branches, judgements and winner.

    Where all children that a branch ever has become certain together, a policy may say so by an attribute
    ``grows_once = True``: a branch then ends, and is let go, when the last of them is dropped. The branch that the
    search starts from is excepted.
    """

    @property
    def layout(self) -> Layout: ...

    @property
    def assessments(self) -> Collection[Assessment]:
        """Everything that it may ask the panel for."""
        ...

    def start(self) -> Decision:
        """What is certain before anything is scored. Called once, first."""
        ...

    def judged(self, work: PanelWork, scores: Scores) -> Decision:
        """What follows from the scores of a branch. Called once for each PanelWork that the policy has asked for."""
        ...

    def speculative(self) -> Iterable[Bet]:
        """Works that may become certain, likeliest first; asked for when a worker would otherwise idle."""
        ...


def grows_once(policy: Policy) -> bool:
    """Whether the policy says that its branches get all of their children together."""
    return bool(getattr(policy, "grows_once", False))


@dataclass
class Plan:
    """All decisions of a policy so far, added up.

    ``root`` is the branch that the search starts from, which always leads on. ``ended`` are branches that were not
    dropped themselves, and of which all children were, or have ended, where the policy ``grows_once``.
    """

    root: Path = ()
    grows_once: bool = False
    at_most: int = 0
    certain: dict[PlannedWork, None] = field(default_factory=dict)  # a set that keeps its order
    dropped: dict[Path, Assessment] = field(default_factory=dict)
    judgements: list[Judgement] = field(default_factory=list)
    winner: Path | None = None
    ended: set[Path] = field(default_factory=set)
    _living: dict[Path, set[Path]] = field(
        default_factory=lambda: defaultdict(set)
    )  # children neither dropped nor ended

    def add(self, decision: Decision) -> list[Path]:
        """Add one more decision. Returns the branches that have ended by it."""
        self.at_most = decision.at_most
        self.certain |= dict.fromkeys(decision.works)
        self.dropped |= dict(decision.dropped)
        self.judgements += decision.judgements
        self.winner = decision.winner or self.winner
        for work in decision.works:
            if isinstance(work, SampleWork):
                self._living[work.paths[0][:-1]].update(work.paths)
        return [path for dropped, _ in decision.dropped for path in self._ended_with(dropped)]

    def _ended_with(self, path: Path) -> Iterator[Path]:
        """The branches that led to this one alone, which has been dropped."""
        while self.grows_once and len(path) > len(self.root):
            parent = path[:-1]
            self._living[parent].discard(path)
            if self._living[parent] or len(parent) <= len(self.root):
                return
            self.ended.add(parent)
            yield parent
            path = parent

    def is_dropped(self, path: Path) -> bool:
        """Whether the branch or one that it grew from was dropped."""
        return any(prefix in self.dropped for prefix in prefixes(path))

    def is_dead(self, path: Path) -> bool:
        """Whether nothing more will come of the branch: it or one that it grew from was dropped, or it has ended."""
        return path in self.ended or self.is_dropped(path)
