"""An event loop whose clock jumps to the next timer: hours of waiting in no time, in the same order every time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Collection, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in virtual time. Raises RuntimeError when every task waits and no timer is set.

    As with asyncio.run, whatever is still going on when it ends, or is interrupted, is cancelled and may clean up.
    """
    loop = _VirtualLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        loop.run_until_complete(_ended(asyncio.all_tasks(loop)))
        loop.close()


async def _ended(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel these tasks and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class _JumpingSelector(selectors.SelectSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("deadlock: every task waits and no timer is set")
        self.now += timeout
        return super().select(0) if timeout else []


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, function: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """At once: a thread would need time, and here nothing takes any."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(function(*args))
        except Exception as error:  # noqa: BLE001  # whatever it is, it is the caller's
            future.set_exception(error)
        return future
