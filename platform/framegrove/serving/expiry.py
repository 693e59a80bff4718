"""Which finished videos expire."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Finished:
    """A finished video: ``size`` in bytes of all its files, times in Unix seconds."""

    id: str
    size: int
    completed_at: float
    expires_at: float | None = None


def choose_expired(
    finished: Iterable[Finished], now: float, most_age: float | None = None, most_bytes: int | None = None
) -> list[str]:
    """The ids of the videos to delete. ``finished`` are all of them, the one that finished first comes first.

    To be deleted are those that finished more than ``most_age`` seconds before ``now`` or whose own ``expires_at`` has
    come, and of the others, those that finished first, until all files together are no larger than ``most_bytes``.
    """
    expired: list[str] = []
    others: list[Finished] = []
    for video in finished:
        aged = most_age is not None and video.completed_at < now - most_age
        due = video.expires_at is not None and video.expires_at <= now
        if aged or due:
            expired.append(video.id)
        elif video.size:  # to delete a video without files makes no room
            others.append(video)
    excess = 0 if most_bytes is None else sum(video.size for video in others) - most_bytes
    for video in others:
        if excess <= 0:
            break
        expired.append(video.id)
        excess -= video.size
    return expired
