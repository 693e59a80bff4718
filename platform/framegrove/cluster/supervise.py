"""Actors that are replaced when they die."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

from framegrove.cluster.errors import ActorLost, CrashLoop

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limit:
    """How long a call may take, and what it does in that time, as in "sampling"."""

    seconds: float
    doing: str


@dataclass
class _Slot:
    actor: ActorHandle[Any] | None
    failures: int = 0  # deaths since the last call that came back
    calls: int = 0  # under way


class ActorGroup:
    """``size`` actors made by ``create(index)``; one that dies is replaced, and the caller is told to try again.

    Of these, the first ``up`` (None: all) are made at once, others by ``start``; ``stop`` lets one go.
    Whatever the actors hold must be computable again: a replacement starts empty. An actor that dies
    ``failures_in_a_row`` times without finishing a call is given up. Ray's own restarts should be off (its default),
    so that there is one policy. ``name`` is for the log, ``on_replaced`` for metrics.
    """

    def __init__(
        self,
        create: Callable[[int], ActorHandle[Any]],
        size: int,
        *,
        up: int | None = None,
        name: str = "actors",
        failures_in_a_row: int = 3,
        on_replaced: Callable[[], None] = lambda: None,
    ) -> None:
        if size < 1:
            raise ValueError(f"a group needs at least 1 actor, not {size}")
        self._create = create
        self._name = name
        self._on_replaced = on_replaced
        self._closed = False
        self._limit = failures_in_a_row
        self._slots = [_Slot(create(index) if up is None or index < up else None) for index in range(size)]

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def actors(self) -> list[ActorHandle[Any]]:
        """The actors that are up now, in the order of their indices."""
        return [slot.actor for slot in self._slots if slot.actor is not None]

    @property
    def up(self) -> list[int]:
        """The indices of actors that are up; one that has just died counts, too."""
        return [index for index, slot in enumerate(self._slots) if slot.actor is not None]

    def actor(self, index: int) -> ActorHandle[Any] | None:
        """The actor with this index, None where it is not up."""
        return self._slots[index].actor

    def is_called(self, index: int) -> bool:
        """Whether a call of this actor is under way."""
        return self._slots[index].calls > 0

    def start(self, index: int) -> None:
        """Make an actor that is not up."""
        assert self._slots[index].actor is None, "it is up already"
        if not self._closed:
            self._slots[index] = _Slot(self._create(index))

    def stop(self, index: int) -> None:
        """Kill an actor, which can be started again."""
        slot = self._slots[index]
        actor, slot.actor = slot.actor, None
        if actor is not None:
            ray.kill(actor)

    async def call(
        self, index: int, method: Callable[[ActorHandle[Any]], Any], *, counts: bool = True, limit: Limit | None = None
    ) -> Any:
        """Await ``method(actor)``, for example ``lambda actor: actor.sample.remote(work)``, on actor ``index``.

        A call that ``counts`` and succeeds shows that the actor is of use. Being alive does not: an actor that dies of
        its work every time would be replaced for ever. One that does not answer within its ``limit``, because it is
        stuck, out of reach or waiting for room, is killed and replaced.

        Exceptions of the method come through as Ray wraps them. Raises ActorLost when the actor died meanwhile (its
        replacement is starting), CrashLoop when it keeps dying, or is not up.
        """
        slot = self._slots[index]
        if slot.failures >= self._limit:
            raise CrashLoop(self._given_up(index, "it is not started again"))
        actor = slot.actor
        if actor is None:
            raise CrashLoop(f"actor {index} of {self._name} is not there now")
        slot.calls += 1
        try:
            async with asyncio.timeout(limit.seconds if limit else None) as clock:
                result = await method(actor)
        except (RayActorError, OutOfMemoryError, TimeoutError) as error:  # Ray kills actors when memory is short
            if isinstance(error, RayTaskError):  # the method itself met a dead actor, or a time limit: not this one
                raise
            reason = (
                f"it was still {limit.doing} after {limit.seconds:g} s" if limit and clock.expired() else _reason(error)
            )
            self._replace(index, actor, reason, error)
            raise ActorLost(f"actor {index} died and has been replaced ({reason})") from error
        finally:
            slot.calls -= 1
        if counts:
            slot.failures = 0
        return result

    def _replace(self, index: int, dead: ActorHandle[Any], reason: str, error: Exception) -> None:
        slot = self._slots[index]
        if self._closed:  # it has been killed on purpose
            raise CrashLoop(f"actor {index} of {self._name} was closed") from error
        if slot.actor is not dead:  # several calls were under way: the first to notice has replaced it
            return
        slot.failures += 1
        ray.kill(dead)  # if it was merely out of reach, it must not come back beside its replacement
        if slot.failures >= self._limit:
            log.error("actor %d of %s is given up: %s", index, self._name, reason)
            raise CrashLoop(self._given_up(index, reason)) from error
        log.warning("actor %d of %s is replaced: %s", index, self._name, reason)
        self._on_replaced()
        slot.actor = self._create(index)

    def _given_up(self, index: int, reason: str) -> str:
        times = "once" if self._limit == 1 else f"{self._limit} times in a row"
        return f"actor {index} died {times} without finishing anything: {reason}"

    def close(self) -> None:
        """Kill all actors. The group is of no use afterwards."""
        self._closed = True
        for actor in self.actors:
            ray.kill(actor)


def _reason(error: Exception) -> str:
    """The last line of Ray's message, where the cause stands."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
