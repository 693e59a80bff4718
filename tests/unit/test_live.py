"""Events of a running search: the latest of each branch, in order, for viewers that come late or come back."""

from __future__ import annotations

import asyncio
from typing import Any

from framegrove.serving.live import Event, EventLog, Facts, LiveTree, Watch


class Growing:
    """A search that looks as it is told to."""

    def __init__(self, *looks: LiveTree) -> None:
        self._looks = iter(looks)

    def look(self) -> LiveTree:
        return next(self._looks)

    async def preview(self, branch: str) -> bytes | None:
        return None


def told(events: list[Event]) -> list[tuple[str, Any]]:
    return [(event.kind, event.data.get("id") or event.data.get("status")) for event in events]


async def seen(log: EventLog, after: int = 0) -> list[Event]:
    return [event async for news in log.after(after) for event in news]


def tree(summary: Facts = {}, **branches: str) -> LiveTree:  # noqa: B006 - nobody changes it
    return LiveTree({name: {"standing": standing} for name, standing in branches.items()}, summary)


def test_only_what_has_changed_is_told() -> None:
    log = EventLog("a")
    watch = Watch(Growing(tree(b0="running"), tree(b0="running", b1="waiting"), tree(b0="cut", b1="waiting")), log)
    for _ in range(3):
        watch.look()
    log.add("status", {"status": "completed"})
    assert told(asyncio.run(seen(log))) == [("branch", "b1"), ("branch", "b0"), ("status", "completed")]
    assert [event.number for event in asyncio.run(seen(log))] == [2, 3, 4]


def test_a_branch_that_was_given_up_is_told_to_be_gone() -> None:
    log = EventLog("a")
    watch = Watch(Growing(tree(b0="running", b1="running"), tree(b0="judged")), log)
    watch.look()
    watch.look()
    log.add("status", {"status": "completed"})
    events = asyncio.run(seen(log))
    assert told(events) == [("branch", "b0"), ("branch", "b1"), ("status", "completed")]
    assert events[1].data == {"id": "b1", "gone": True}


def test_who_comes_back_gets_what_was_missed_and_who_stays_all_of_it() -> None:
    async def viewers() -> tuple[list[Event], list[Event]]:
        log = EventLog("a")
        watch = Watch(Growing(tree(b0="running"), tree(b0="judged"), tree({"spent": 1}, b0="cut")), log)
        staying = asyncio.create_task(seen(log))
        for _ in range(3):
            watch.look()
            await asyncio.sleep(0)
        coming_back = asyncio.create_task(seen(log, after=1))
        await asyncio.sleep(0)
        log.add("status", {"status": "failed"})
        return await staying, await coming_back

    stayed, came_back = asyncio.run(viewers())
    assert [event.data.get("standing") for event in stayed] == ["running", "judged", "cut", None, None]
    assert told(came_back) == [("branch", "b0"), ("summary", None), ("status", "failed")]
    numbers = [event.number for event in stayed]
    assert numbers == sorted(numbers)


def test_silence_is_broken_now_and_then_and_ids_of_other_logs_mean_nothing() -> None:
    async def first(log: EventLog) -> list[Event]:
        return await anext(log.after(log.number_of("b-7"), patience=0.01))

    log = EventLog("a")
    assert asyncio.run(first(log)) == []
    log.add("progress", {"progress": 3})
    (event,) = asyncio.run(first(log))
    assert event.sent == b'id: a-1\nevent: progress\ndata: {"progress": 3}\n\n'
    assert log.number_of(event.id) == 1


def test_a_search_that_begins_again_starts_with_an_empty_tree() -> None:
    log = EventLog("a")
    log.begin()
    Watch(Growing(tree(b0="cut")), log).look()
    log.begin()
    log.add("status", {"status": "cancelled"})
    assert told(asyncio.run(seen(log))) == [("started", None), ("status", "cancelled")]


def test_a_video_ends_once() -> None:
    """A cancel and the task that it ends both see the end."""
    log = EventLog("a")
    for _ in range(2):
        log.add("status", {"status": "cancelled"})
    assert [event.number for event in asyncio.run(seen(log))] == [1]
