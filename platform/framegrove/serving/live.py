"""Running searches for those who watch them: what a tree looks like now, and a log of what has changed in it.

A viewer gets *events*, each with a number that grows by one. A branch's event has all that is known of it, so that a
viewer keeps the latest of each branch and needs no other; one that has missed some asks for those after the last number
that it knows. Whatever a viewer does, it costs the search one look a moment, however many there are.
"""

from __future__ import annotations

import asyncio
import functools
import json
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Facts = Mapping[str, Any]
"""JSON values by name."""


@dataclass(frozen=True)
class LiveTree:
    """A search at one moment, as JSON values: its branches by id, a summary, and all works that have ended so far."""

    branches: Mapping[str, Facts]
    summary: Facts
    works: Sequence[Facts] = ()


class Live(Protocol):
    """A running search. On the event loop on which it runs."""

    def look(self) -> LiveTree:
        """What it looks like now."""
        ...

    async def preview(self, branch: str) -> bytes | None:
        """A WebP strip of a branch's newest unit; None while there is none, or where it is lost."""
        ...


OnLive = Callable[[Live], None]


@dataclass(frozen=True)
class Event:
    """Something that has happened to a video: ``kind`` is one of those that `KINDS` explains."""

    id: str
    number: int
    kind: str
    data: Facts

    @functools.cached_property
    def sent(self) -> bytes:
        """As a server-sent event: written once, however many viewers there are."""
        return f"id: {self.id}\nevent: {self.kind}\ndata: {json.dumps(self.data)}\n\n".encode()


KINDS = {
    "status": "the video's status has changed; the data is the video",
    "started": "a search begins, or begins again: forget all branches",
    "branch": "all that is known of a branch; or that it is gone: it was begun ahead of need, and given up",
    "summary": "costs so far and to go, who works, the winner once it is known",
    "works": "works that have ended since the last such event: who did what, from when to when",
    "progress": "the video's progress in per cent",
}
_LONGEST_NUMBER = 18  # digits
_LAST = {"completed", "failed", "cancelled"}


class EventLog:
    """The events of one video. ``name`` tells this log from one of an earlier process, whose numbers mean nothing here.

    Of each branch only the latest event is kept, and so of each other kind except works: the log is as large as the
    tree, however long the search lasts.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._events: dict[tuple[str, str], Event] = {}  # in the order of their numbers
        self._number = 0
        self._more = asyncio.Event()
        self.ended = False
        self.viewers = 0  # who follow it now
        self._closed = False

    def add(self, kind: str, data: Facts, about: str = "") -> None:
        """Something has happened; ``about`` says to which branch. A video ends once: no status follows its last."""
        if self.ended and kind == "status":
            return
        self._number += 1
        self._events.pop((kind, about), None)
        self._events[kind, about] = Event(f"{self.name}-{self._number}", self._number, kind, data)
        self.ended |= kind == "status" and data.get("status") in _LAST
        self._more.set()
        self._more = asyncio.Event()

    def close(self) -> None:
        """Let viewers go, who are to ask again: another process is about to continue the video."""
        self._closed = True
        self._more.set()

    def begin(self) -> None:
        """A search begins: what was known of branches is void."""
        for key in [key for key in self._events if key[0] in ("branch", "summary", "started", "works")]:
            del self._events[key]
        self.add("started", {})

    def number_of(self, event_id: str | None) -> int:
        """The number of an event's id, 0 for one of another log; of one that is yet to come, that of the last."""
        name, _, number = (event_id or "").partition("-")
        known = name == self.name and len(number) <= _LONGEST_NUMBER and number.isdecimal()
        return min(int(number), self._number) if known else 0

    async def after(self, number: int, patience: float = math.inf) -> AsyncIterator[list[Event]]:
        """All events after this one, as they come, to the last; none where nothing has come for so many seconds.

        Ends early once the log is closed.
        """
        self.viewers += 1
        try:
            while True:
                more = self._more
                news = [event for event in reversed(self._events.values()) if event.number > number][::-1]
                if news:
                    number = news[-1].number
                    yield news
                if self._closed or (self.ended and number == self._number):
                    return
                try:
                    async with asyncio.timeout(patience if patience < math.inf else None):
                        await more.wait()
                except TimeoutError:
                    yield []
        finally:
            self.viewers -= 1


@dataclass
class Watch:
    """Turns looks at a search into events: those branches that have changed since the last look."""

    live: Live
    log: EventLog
    _known: dict[str, Facts] = field(default_factory=dict)
    _summary: Facts = field(default_factory=dict)
    _works: int = 0  # that were told

    def look(self) -> None:
        """Log what is new."""
        tree = self.live.look()
        for name, facts in tree.branches.items():
            if self._known.get(name) != facts:
                self._known[name] = facts
                self.log.add("branch", {"id": name, **facts}, about=name)
        for name in [name for name in self._known if name not in tree.branches]:
            del self._known[name]
            self.log.add("branch", {"id": name, "gone": True}, about=name)
        if news := tree.works[self._works :]:
            self.log.add("works", {"works": list(news)}, about=str(self._works))
            self._works = len(tree.works)
        if tree.summary != self._summary:
            self._summary = tree.summary
            self.log.add("summary", tree.summary)
