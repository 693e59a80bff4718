"""How requests become records of videos: counted in their owner's quotas, and kept, all of a request's or none."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from framegrove.serving.api import ApiError
from framegrove.serving.quotas import Quotas
from framegrove.serving.records import VideoRecord
from framegrove.serving.store import KeyReused, QueueFull, VideoStore


class Intake:
    """Takes new videos in while fewer than ``waiting`` wait. ``flops`` says what a video's budget allows."""

    def __init__(
        self, store: VideoStore, quotas: Quotas | None, waiting: int, flops: Callable[[VideoRecord], float]
    ) -> None:
        self._store = store
        self._quotas = quotas
        self._waiting = waiting
        self._flops = flops
        self._charging = asyncio.Lock()  # so that no two requests pass on the same room in a quota

    async def take(self, records: Sequence[VideoRecord], key: str | None, asks: Mapping[str, Any]) -> VideoRecord:
        """Keep the videos of a request and return the first; or that of an earlier request with the same ``key``.

        ``asks`` tells this request from any other that comes with the key. Raises ApiError.
        """
        first = replace(records[0], idempotency=(key, _digest(asks)) if key is not None else None)
        records = [first, *records[1:]]
        try:
            return await self._charged(records) if self._quotas is not None else await self._stored(records)
        except QueueFull:
            sentence = f"{self._waiting} videos are waiting already: try again later"
            if len(records) > 1:
                sentence = (
                    f"there is no room for {len(records)} more videos: try again later, or ask for fewer at a time"
                )
            raise ApiError(429, sentence, code="queue_full") from None
        except KeyReused:
            raise ApiError(
                409,
                "this Idempotency-Key came with another request before: use a new key for a new request",
                code="idempotency_key_reused",
            ) from None

    async def give_back(self, video_id: str, owner: str) -> None:
        """A video that was given up costs its owner nothing if it was never begun."""
        if self._quotas is not None:
            record = await asyncio.to_thread(self._store.get, video_id)
            if record is not None and record.started_at is None:
                await asyncio.to_thread(self._quotas.used, owner, {video_id: 0.0})

    async def _stored(self, records: Sequence[VideoRecord]) -> VideoRecord:
        return await asyncio.to_thread(functools.partial(self._store.add, *records, most=self._waiting))

    async def _charged(self, records: Sequence[VideoRecord]) -> VideoRecord:
        """Count new videos in their owner's quotas, and then keep them; or return the one for the same key.

        A disk that fails in between, or a process that ends, leaves videos that are counted and not made, which a day
        forgets, but none that are made and not counted. Raises ApiError (429) where there is no room in the quotas, and
        what ``VideoStore.add`` raises; then what was counted is taken back, if it is certain that nothing was kept.
        """
        quotas, owner = self._quotas, records[0].owner
        assert quotas is not None
        flops = {record.id: self._flops(record) for record in records}
        total = sum(flops.values())
        async with self._charging:
            # A request that comes again is not counted again.
            earlier = await asyncio.to_thread(self._store.earlier, records[0])
            if earlier is not None:
                return earlier
            stored = (await asyncio.to_thread(self._store.usage, owner)).stored
            if not await asyncio.to_thread(quotas.allowed, owner, total, stored):
                raise await asyncio.to_thread(quotas.refusal, owner, total, stored)
            await asyncio.to_thread(quotas.used, owner, flops)
            try:
                return await self._stored(records)
            except Exception:
                if await asyncio.to_thread(self._store.get, records[0].id) is None:
                    await asyncio.to_thread(quotas.used, owner, dict.fromkeys(flops, 0.0))
                raise


def _digest(asks: Mapping[str, Any]) -> str:
    """What tells one request from another, by its fields."""
    return hashlib.sha256(json.dumps(asks, sort_keys=True).encode()).hexdigest()
