"""An endpoint whose place another process is about to take."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.endpoint import PROMPT, Endpoint, serving


def test_it_begins_nothing_keeps_nobody_waiting_and_still_answers(tmp_path: Path) -> None:
    ids: list[str] = []

    async def left(running: Endpoint) -> None:
        running.runner.gate.clear()
        ids.append((await running.post(prompt=PROMPT, seed=1)).json()["id"])
        await running.until(ids[0], "in_progress")
        waits = asyncio.create_task(running.client.post("/v1/videos/sync", json={"prompt": PROMPT, "seed": 2}))
        watches = asyncio.create_task(running.client.get(f"/v1/videos/{ids[0]}/events"))
        while not running.service.waiting:  # noqa: ASYNC110 - it is counted, not signalled
            await asyncio.sleep(0.01)
        running.service.leave()
        answer = await asyncio.wait_for(waits, 10)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "restarting")
        assert "Retry-After" in answer.headers
        assert '"status": "in_progress"' in (await asyncio.wait_for(watches, 10)).text
        ids.append(answer.json()["error"]["message"].partition("will continue ")[2].partition(":")[0])
        ids.append((await running.post(prompt=PROMPT, seed=3)).json()["id"])
        assert (await asyncio.wait_for(running.client.get(f"/v1/videos/{ids[2]}/events"), 10)).status_code == 200
        running.runner.gate.set()
        await running.until(ids[0], "completed")
        assert [(await running.video(each))["status"] for each in ids[1:]] == ["queued", "queued"]

    async def taken_over(running: Endpoint) -> None:
        for each in ids:
            await running.until(each, "completed")
        assert [asked.seed for asked in running.runner.asked] == [2, 3]

    serving(tmp_path, left, searches=1)
    serving(tmp_path, taken_over, searches=1)
