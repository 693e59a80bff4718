"""Which workers there are, and which of them can take another work."""

from __future__ import annotations

import enum
from collections.abc import Sequence

from framegrove.search.protocols import SearchFailed
from framegrove.search.tree import Work
from framegrove.types import SampleWork


class Kind(enum.StrEnum):
    """The two kinds of work, and of workers."""

    SAMPLING = "sampling"
    SCORING = "scoring"


def kind_of(work: Work) -> Kind:
    """Who does this work."""
    return Kind.SAMPLING if isinstance(work, SampleWork) else Kind.SCORING


class Pool:
    """Workers by name: up, down (failed, not back yet) or gone for good.

    A generator takes one work at a time, a verifier ``scores_in_flight``. Raises ValueError for an empty side or names
    that are not all different.
    """

    def __init__(self, generators: Sequence[str], verifiers: Sequence[str], scores_in_flight: int) -> None:
        if not generators or not verifiers or len({*generators, *verifiers}) < len(generators) + len(verifiers):
            raise ValueError(
                f"a search needs at least one generator and one verifier, all named differently, "
                f"not {list(generators)} and {list(verifiers)}"
            )
        self._names = {Kind.SAMPLING: list(generators), Kind.SCORING: list(verifiers)}
        self._limit = {Kind.SAMPLING: 1, Kind.SCORING: scores_in_flight}
        self._load = dict.fromkeys((*generators, *verifiers), 0)
        self._down: set[str] = set()
        self._recovering: set[str] = set()

    def free(self, kind: Kind) -> list[str]:
        """Workers of a kind that can take another work, least loaded first."""
        names = [n for n in self._names[kind] if n not in self._down and self._load[n] < self._limit[kind]]
        return sorted(names, key=lambda name: self._load[name])

    def take(self, worker: str) -> None:
        """A work was given to the worker."""
        self._load[worker] += 1

    def release(self, worker: str) -> None:
        """The worker is rid of a work, one way or another."""
        self._load[worker] -= 1

    def down(self, worker: str) -> None:
        """The worker failed: it gets nothing until it is back."""
        self._down.add(worker)

    def to_recover(self) -> list[str]:
        """Workers that are down and that nobody waits for yet; from now on somebody does."""
        names = sorted(self._down - self._recovering)
        self._recovering |= self._down
        return names

    def back(self, worker: str) -> None:
        """The worker can take work again."""
        self._down.discard(worker)
        self._recovering.discard(worker)

    def gone(self, worker: str, reason: str) -> None:
        """The worker will never be back. Raises SearchFailed if it was the last of its kind."""
        for kind, names in self._names.items():
            if worker in names:
                names.remove(worker)
                if not names:
                    who = "generator" if kind is Kind.SAMPLING else "verifier"
                    raise SearchFailed(f"no {who} is left, the last one, {worker}, was lost: {reason}")
