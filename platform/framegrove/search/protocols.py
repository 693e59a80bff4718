"""What a conductor asks of generators and verifiers, and how they say that something went wrong.

A client is one worker, local or far away. Conductors know nothing else about it: actors, threads and fakes all fit.

How a work can end, besides with its result:

- ``WorkFailed``: the worker died or became unreachable under it. Nothing is wrong with the work; it is tried again,
  elsewhere if there is an elsewhere, and ``recover`` is awaited before this worker gets another.
- ``WorkCancelled``: it stopped because ``cancel`` said so.
- ``UnitsLost``: what it was to build on is gone, with the machine that held it. Nothing is wrong with work or worker;
  those units are made again, which gives the same, and then the work.
- any other exception is a defect or a user's error: the search ends with it.

A work that never ends would stall its search: a client that can lose touch with its worker sets its own time limit and
raises WorkFailed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from framegrove.search.tree import Panel
from framegrove.types import Cost, Path, Sampled, SampleWork, Scored, ScoreWork

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
    """Handles that the work was given lead nowhere any more: those of the newest units of the branches ``paths``."""

    def __init__(self, paths: Iterable[Path], cost: Cost = NOTHING) -> None:
        self.paths = frozenset(paths)
        super().__init__(f"the newest units of branches {sorted(self.paths)} are gone")
        self.cost = cost


class SearchFailed(RuntimeError):
    """The search cannot go on; the message is one sentence for the user. What is finished is in the journal."""


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
        """Score a branch by every verifier of the panel. ``units`` has the handles of its units, as sampled so far."""
        ...

    async def recover(self) -> None:
        """As for a generator."""
        ...


def check_panel(work: ScoreWork, panel: Panel) -> None:
    """Raise SearchFailed unless the panel has scores and all are in [0, 1]: a nan would silently disorder the ranks."""
    if not panel:
        raise SearchFailed(f"no verifier scored branch {work.path}: the panel is empty")
    for name, score in panel:
        if not 0.0 <= score <= 1.0:
            raise SearchFailed(f"verifier {name} scored branch {work.path} with {score}: scores must be in [0, 1]")
