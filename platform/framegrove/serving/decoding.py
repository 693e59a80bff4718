"""Threads in which what clients send is decoded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from framegrove.serving.limits import Places

_THREADS = 2  # the largest picture takes up to 1 GB while it is decoded, and so does the largest clip

Decoded = TypeVar("Decoded")


class Decoders:
    """A few threads of their own, so that neither the event loop nor the store waits for a decoder.

    ``waiting`` is how many files they hold at a time, those that are being decoded included.
    """

    def __init__(self, waiting: int) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="decoding")
        self._places = Places(waiting, f"{waiting} files are being checked already: try again in a moment")

    async def run(self, decode: Callable[..., Decoded], *given: object) -> Decoded:
        """What ``decode`` returns or raises. Raises ApiError (503) where too many others wait."""
        with self._places.taken():
            return await asyncio.get_running_loop().run_in_executor(self._threads, decode, *given)

    def close(self) -> None:
        """Let go of what no thread has begun with."""
        self._threads.shutdown(wait=False, cancel_futures=True)
