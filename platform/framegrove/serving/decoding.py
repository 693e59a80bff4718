"""Where what clients send is decoded: pictures in a few threads, clips in a few processes that can be ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from framegrove.serving.limits import Places

_THREADS = 2  # the largest picture takes up to 1 GB while it is decoded
_PROCESSES = 2  # a clip takes up to what its process is limited to

Decoded = TypeVar("Decoded")


class Turns:
    """Work of which so much is done ``at_a_time``, while the rest waits, ``most`` altogether; ``what`` it is done to.

    When a caller goes away its work is cancelled, and holds its turn and its place until it has really ended.
    """

    def __init__(self, at_a_time: int, most: int, what: str) -> None:
        self._places = Places(most, f"{most} {what} are being checked already: try again in a moment")
        self._turns = asyncio.Semaphore(at_a_time)
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, work: Callable[..., Awaitable[Decoded]], *given: object) -> Decoded:
        """What ``work`` returns or raises; it is cancelled, once, with its caller. Raises ApiError (503)."""
        task = asyncio.create_task(self._in_turn(work, *given))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)  # a second cancellation must not cut short what the first one leads to
        except asyncio.CancelledError:
            _cancel_once(task)
            raise

    async def _in_turn(self, work: Callable[..., Awaitable[Decoded]], *given: object) -> Decoded:
        with self._places.taken():
            async with self._turns:
                return await work(*given)

    async def close(self) -> None:
        """Cancel all work, and return when it has ended."""
        for task in self._tasks:
            _cancel_once(task)
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _cancel_once(task: asyncio.Task[Any]) -> None:
    if not task.cancelling():
        task.cancel()


class Decoders:
    """Neither the event loop nor the store waits for a decoder, and no picture for a clip.

    ``waiting`` is how many pictures they hold at a time, and how many clips, those that are being decoded included.
    """

    def __init__(self, waiting: int) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="decoding")
        self._pictures = Turns(_THREADS, waiting, "pictures")
        self._clips = Turns(_PROCESSES, waiting, "clips")

    async def in_thread(self, decode: Callable[..., Decoded], *given: object) -> Decoded:
        """What ``decode`` returns or raises. Raises ApiError (503) where too many other pictures wait."""
        return await self._pictures.run(self._finished, decode, *given)

    async def in_process(self, decode: Callable[..., Awaitable[Decoded]], *given: object) -> Decoded:
        """The same for clips, of ``decode`` that starts a process, and ends it when it is cancelled."""
        return await self._clips.run(decode, *given)

    async def _finished(self, decode: Callable[..., Decoded], *given: object) -> Decoded:
        """The result of a thread, which cannot be stopped: who is cancelled waits for it all the same."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, decode, *given)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise

    async def close(self) -> None:
        """End the processes, and wait for what threads have begun with."""
        await asyncio.gather(self._pictures.close(), self._clips.close())
        self._threads.shutdown(wait=False)
