from __future__ import annotations

import asyncio

import pytest

from framegrove.evaluation.virtual_time import run_virtual


def test_hours_pass_at_once_and_in_order() -> None:
    ended: list[float] = []

    async def wait(seconds: float) -> None:
        await asyncio.sleep(seconds)
        ended.append(asyncio.get_running_loop().time())

    async def main() -> None:
        await asyncio.gather(wait(7200.0), wait(3600.0))

    run_virtual(main())
    assert ended == [3600.0, 7200.0]


def test_an_interruption_lets_everybody_clean_up() -> None:
    """Ctrl-C arrives in whatever task is running, and not in the one that has something to close."""
    closed: list[str] = []

    async def work() -> None:
        await asyncio.sleep(1.0)
        raise KeyboardInterrupt

    async def main() -> None:
        try:
            await asyncio.gather(work(), asyncio.sleep(5.0))
        finally:
            await asyncio.sleep(0.0)
            closed.append("main")

    with pytest.raises(KeyboardInterrupt):
        run_virtual(main())
    assert closed == ["main"]


def test_waiting_for_nothing_is_said() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="deadlock"):
        run_virtual(main())
