"""What the owners of API keys may use: FLOPs in any 24 hours, and bytes of stored videos."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from framegrove.serving.api import ApiError
from framegrove.serving.keys import UNREADABLE, KeyRing, KeysUnreadable

_DAY_S = 86_400.0
_LOCK_TIMEOUT_S = 30.0


class Quotas:
    """The FLOPs that each owner has used, in an SQLite file that outlives the process, against the limits of its key.

    For the service, which knows what a request may cost and how many bytes its store holds. A video is noted when it is
    accepted, and may be noted again with what it took in truth:

    >>> if not quotas.allowed(owner, flops=budgeted, stored=bytes_of(owner)):
    ...     raise quotas.refusal(owner, flops=budgeted, stored=bytes_of(owner))
    >>> quotas.used(owner, {video_id: budgeted})
    >>> quotas.used(owner, {video_id: 0})  # it was cancelled before it was begun

    Two requests that are checked before either is noted may both pass: hold a lock from the check to the note where
    that matters. An owner whose key is gone may use nothing. Methods block for as long as a disk
    does, and may be called from any thread. They raise sqlite3.OperationalError while the disk fails.
    """

    def __init__(self, path: Path, keys: KeyRing, now: Callable[[], float] = time.time) -> None:
        path.touch(mode=0o600)  # whose videos took how much is nobody else's business
        self._path = path
        self._keys = keys
        self._now = now
        with self._database() as database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS usage (video TEXT PRIMARY KEY, owner TEXT NOT NULL, at REAL NOT NULL, "
                "flops REAL NOT NULL)"
            )
            database.execute("CREATE INDEX IF NOT EXISTS usage_of ON usage (owner, at)")

    def allowed(self, owner: str, flops: float, stored: int = 0) -> bool:
        """Whether the owner, who has ``stored`` bytes of videos already, may use so many more FLOPs now."""
        return self._exceeded(owner, flops, stored) is None

    def refusal(self, owner: str, flops: float, stored: int = 0) -> ApiError:
        """Why that is not allowed, for the caller: a 429 in one sentence."""
        sentence = self._exceeded(owner, flops, stored) or f"the key {owner} may not use more now: try again"
        return ApiError(429, sentence, code="quota_exceeded")

    def used(self, owner: str, flops: Mapping[str, float]) -> None:
        """Note how many of its owner's FLOPs each video takes, in place of what was noted for it before."""
        with self._database() as database:
            database.execute("DELETE FROM usage WHERE at <= ?", (self._now() - _DAY_S,))
            database.executemany(
                "INSERT INTO usage VALUES (?, ?, ?, ?) ON CONFLICT (video) DO UPDATE SET flops = excluded.flops",
                [(video, owner, self._now(), each) for video, each in flops.items()],
            )

    def flops_of(self, owner: str) -> float:
        """What the owner has used in the last 24 hours."""
        with self._database() as database:
            (total,) = database.execute(
                "SELECT COALESCE(SUM(flops), 0) FROM usage WHERE owner = ? AND at > ?", (owner, self._now() - _DAY_S)
            ).fetchone()
        return float(total)

    def _exceeded(self, owner: str, flops: float, stored: int) -> str | None:
        """The limit that would be exceeded, in a sentence."""
        try:
            key = self._keys.find(owner)
        except KeysUnreadable as error:
            raise ApiError(503, UNREADABLE) from error
        if key is None:  # it was removed while the request arrived
            raise ApiError(401, f"the API key {owner} is no longer valid: use another one", code="invalid_api_key")
        limits = key.limits
        if limits.bytes is not None and stored >= limits.bytes:
            return (
                f"the videos of the key {owner} take {stored:,} bytes of the {limits.bytes:,} allowed: delete some, or "
                "ask whoever runs this endpoint for more"
            )
        if limits.flops_per_day is None:
            return None
        before = self.flops_of(owner)
        if before + flops <= limits.flops_per_day:
            return None
        return (
            f"this request may take {flops:.3g} FLOPs, and the key {owner} has used {before:.3g} of its "
            f"{limits.flops_per_day:.3g} in 24 hours: ask for a smaller budget, or later"
        )

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """One transaction. A connection of its own, since one of sqlite3's belongs to the thread that opened it."""
        with contextlib.closing(sqlite3.connect(self._path, timeout=_LOCK_TIMEOUT_S)) as database, database:
            yield database
