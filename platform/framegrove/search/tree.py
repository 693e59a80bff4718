"""What a search knows and what a policy answers: the nouns of this room.

A search grows a tree of branches. What is *known* of it is nothing but the scores that are in; a policy is a pure
function from there to a plan. Everything else (who samples what, when, how often) is the dispatcher's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from framegrove.types import Assessment, Path, Sampled, SampleWork, Scored, ScoreWork

Work = SampleWork | ScoreWork
Result = Sampled | Scored
Panel = tuple[tuple[str, float], ...]
"""What the verifiers say about one branch: a score in [0, 1] for each, by name."""
Scores = Mapping[ScoreWork, Panel]


class Latent(NamedTuple):
    """The newest unit of a branch, sampled up to and including ``stage``. What a generator makes and a search keeps."""

    path: Path
    stage: int

    @property
    def name(self) -> str:
        """A file name for it: ``2-0-1.stage2``."""
        return f"{'-'.join(map(str, self.path))}.stage{self.stage}"


@dataclass(frozen=True)
class Layout:
    """The grid a search moves on: ``units`` of a video, each sampled over ``stages`` of the pyramid.

    The first ``given`` units are not searched for (image-to-video gives one): every branch starts with them, under
    the path ``(0,) * given``. ``draft_stage`` is the last stage of a draft of unit 0, None where there are no drafts.
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

    def inputs(self, work: Work) -> tuple[Latent, ...]:
        """What must be there before the work can start: the history, oldest first, then what it continues or judges."""
        parent = work.path[:-1] if isinstance(work, ScoreWork) else work.paths[0][:-1]
        history = tuple(Latent(parent[: n + 1], self.last_stage) for n in range(len(parent)))
        if isinstance(work, ScoreWork):
            draft = work.assessment is Assessment.POTENTIAL and self.draft_stage is not None
            stage = self.draft_stage if draft and self.draft_stage is not None else self.last_stage
            return (*history, Latent(work.path, stage))
        started = work.first_stage > 0
        return history + tuple(Latent(path, work.first_stage - 1) for path in work.paths if started)

    def outputs(self, work: SampleWork) -> tuple[Latent, ...]:
        """What the work makes, in the order of its handles."""
        return tuple(Latent(path, work.last_stage) for path in work.paths)


@dataclass(frozen=True)
class Judgement:
    """Where a branch stands once its whole cohort is scored: its fused rank in (0, 1) and its path's sum of them."""

    path: Path
    assessment: Assessment
    rank: float
    total: float


@dataclass(frozen=True)
class Plan:
    """What follows from the scores that are in, whatever the missing ones will be.

    ``certain`` lists every work of which it is known that it must be done, most urgent first, finished ones included;
    ``speculative`` bets on likely survivors, best bet first; ``dropped`` says which branches were cut and by which
    assessment. ``at_most`` bounds how many certain works the search can end up with. More scores add to ``certain``,
    ``dropped`` and ``judgements``, and take nothing away from them; ``at_most`` never grows. ``winner`` is named once
    every score in ``certain`` is in.
    """

    certain: tuple[Work, ...]
    at_most: int
    speculative: tuple[Work, ...] = ()
    dropped: Mapping[Path, Assessment] = field(default_factory=dict)
    judgements: tuple[Judgement, ...] = ()
    winner: Path | None = None


class Policy(Protocol):
    """Decides which branches to keep, expand and stop. Pure: equal scores, equal plan; it executes nothing."""

    @property
    def layout(self) -> Layout: ...

    def plan(self, scores: Scores) -> Plan:
        """The plan for what is known. Scores of branches it did not ask for change nothing that is certain."""
        ...
