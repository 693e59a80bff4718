"""Whose video is made next: callers take turns, and nobody's short video waits behind long ones for long."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from framegrove.serving.records import QueuedVideo

HALVED_EVERY = 300.0  # seconds of waiting after which a video counts as half as long


def next_of(
    waiting: Iterable[QueuedVideo], busy: Mapping[str, float], begun: Mapping[str, float], now: float
) -> QueuedVideo | None:
    """The video to begin, None if none waits.

    1. It is the turn of the owner with the least work under way (``busy``, prices by owner), of equals of the one whose
       last video was ``begun`` longest ago.
    2. Of an owner's videos the shortest is made first. One that has waited for five minutes counts as half as long, for
       ten minutes as a quarter, and so on: however many short ones come, a long one is made in the end.

    *Example*: of one owner's videos a long one (64) has waited for 25 minutes and a short one (4) has just come: 64 has
    been halved five times and counts as 2, so that it is made first.
    """

    def order(each: QueuedVideo) -> tuple[float, float, float, int]:
        counts = each.price * 0.5 ** (max(0.0, now - each.created_at) / HALVED_EVERY)
        return busy.get(each.owner, 0.0), begun.get(each.owner, 0.0), counts, each.number

    return min(waiting, key=order, default=None)
