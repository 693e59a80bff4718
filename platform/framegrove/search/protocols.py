"""What a conductor asks of generators and verifiers, and how they say that something went wrong.

A client is one worker, local or remote. A conductor knows nothing else about it: actors, threads and fakes all fit.

How a work can end, besides with its result:

- ``WorkFailed``: the worker died or became unreachable. Nothing is wrong with the work: it is tried again, on another
  worker if there is one, and ``recover`` is awaited before this worker gets another work.
- ``WorkCancelled``: it stopped because of ``cancel``.
- ``UnitsLost``: units that it builds on are gone with the machine that held them. Nothing is wrong with the work or the
  worker: the units are computed again, with the same result, and then the work.
- any other exception is a defect or a user's error, and ends the search.

A work that never ends would stall its search: a client that can lose touch with its worker has a time limit of its own
and raises WorkFailed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from framegrove.errors import UserError
from framegrove.types import Assessment, Cost, Path, Sampled, SampleWork, Scored, ScoreWork

NOTHING = Cost()


class WorkFailed(Exception):
    """The worker failed under the work, which can be tried again. ``cost`` is what is known to have been spent."""

    def __init__(self, reason: str, cost: Cost = NOTHING) -> None:
        super().__init__(reason)
        self.cost = cost


class WorkCancelled(Exception):
    """The work stopped at a denoising step because it was cancelled. ``cost`` is what it had spent by then."""

    def __init__(self, cost: Cost = NOTHING) -> None:
        super().__init__(cost)
        self.cost = cost


class UnitsLost(Exception):
    """What some handles stand for is gone: those of the newest units of the branches ``paths``."""

    def __init__(self, paths: Iterable[Path], cost: Cost = NOTHING) -> None:
        self.paths = frozenset(paths)
        super().__init__(f"the newest units of branches {sorted(self.paths)} are gone")
        self.cost = cost


class SearchFailed(RuntimeError):
    """The search cannot go on, because workers keep failing. What is finished is in the journal."""


class VerifierUnusable(UserError):
    """A verifier of the panel answers what is no score; the message is one sentence that names it."""

    def __init__(self, verifier: str, reason: str) -> None:
        super().__init__(reason)
        self.verifier = verifier


class GeneratorClient(Protocol):
    """Samples one work at a time."""

    async def sample(self, work: SampleWork, parents: Mapping[Path, Any]) -> Sampled:
        """Sample the work; the result holds one handle per path, in order.

        ``parents`` has the handles of everything the work builds on: all earlier units of the branches, and, where
        ``first_stage`` is not 0, the branches themselves as far as they were sampled before.
        """
        ...

    def cancel(self, work: SampleWork) -> None:
        """Ask the running work to stop at its next denoising step. Does not wait; too late is no error."""
        ...

    async def recover(self) -> None:
        """Return once the worker can take work again after a failure; raise WorkFailed if it never will."""
        ...


class VerifierClient(Protocol):
    """Scores several works at a time."""

    async def score(self, work: ScoreWork, units: Mapping[Path, Any]) -> Scored:
        """Score a branch. ``units`` has the handles of its units, oldest first, as far as they were sampled.

        Where the work names branches that it is compared with (``against``), theirs follow.
        """
        ...

    async def recover(self) -> None:
        """As for a generator."""
        ...


@dataclass(frozen=True)
class PanelMember:
    """One verifier of a panel: its workers by name, which share its load, and the assessments that it takes part in.

    Each worker is asked about ``at_a_time`` branches at a time. A verifier that compares does so with up to ``anchors``
    branches of a cohort; 0: it scores each branch by itself.
    """

    clients: Mapping[str, VerifierClient]
    judges: Collection[Assessment] = frozenset(Assessment)
    at_a_time: int = 8
    anchors: int = 0


def check_scores(result: Scored) -> None:
    """Raise UserError unless there are scores and all are in [0, 1]: a nan would silently disorder the ranks."""
    work = result.work
    if not result.scores:
        raise UserError(f"the verifier {work.verifier} returned no score for branch {work.path}")
    for aspect, score in result.scores:
        if not 0.0 <= score <= 1.0:
            raise UserError(
                f"the verifier {work.verifier} scored the {aspect} of branch {work.path} with {score}: scores must be "
                "between 0 and 1"
            )
