"""The order in which waiting videos are made."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from framegrove.serving.queueing import HALVED_EVERY, next_of
from framegrove.serving.records import QueuedVideo


def waiting(id: str, owner: str = "", price: float = 1.0, created_at: float = 0.0, number: int = 0) -> QueuedVideo:
    return QueuedVideo(id, owner, price, created_at, number, "digits")


def chosen(*each: QueuedVideo, busy: dict[str, float] | None = None, now: float = 0.0) -> str | None:
    found = next_of(each, busy or {}, {}, now)
    return found.id if found else None


def test_equals_are_made_in_order_of_arrival() -> None:
    assert chosen() is None
    assert chosen(waiting("second", number=2), waiting("first", number=1)) == "first"


def test_who_has_least_under_way_is_next() -> None:
    mine, yours = waiting("mine", "me", price=1), waiting("yours", "you", price=50)
    assert chosen(mine, yours, busy={"me": 4.0}) == "yours"
    assert next_of([mine, yours], {}, {"me": 8.0, "you": 3.0}, 10.0) == yours


def test_short_ones_come_first_until_long_ones_have_waited() -> None:
    long = waiting("long", price=64, number=1)
    assert chosen(long, waiting("short", price=4, created_at=10.0, number=2), now=10.0) == "short"
    late = 5 * HALVED_EVERY
    assert chosen(long, waiting("short", price=4, created_at=late, number=2), now=late) == "long"


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0.1, 64)), min_size=1, max_size=20), st.floats(1, 64))
def test_every_video_is_made_in_the_end(arrivals: list[tuple[str, float]], price: float) -> None:
    """A long video and an endless stream of shorter ones, one of which comes with each that is made."""
    queue = [waiting("long", "a", 64.0 * price)]
    begun: dict[str, float] = {}
    for number in range(1, 10_000):
        owner, length = arrivals[number % len(arrivals)]
        queue.append(waiting(str(number), owner, length, 60.0 * number, number))
        found = next_of(queue, {}, begun, 60.0 * number)
        assert found is not None
        queue.remove(found)
        begun[found.owner] = 60.0 * number
        if found.id == "long":
            return
    raise AssertionError("it waits for ever")
