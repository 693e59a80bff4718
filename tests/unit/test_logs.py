"""Logging: text and JSON lines, levels, and ids that follow tasks and can be carried to another process."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from framegrove import logs
from framegrove.errors import UserError

logger = logging.getLogger("framegrove.somewhere")


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (logs.LEVEL_VARIABLE, logs.FORMAT_VARIABLE):
        monkeypatch.setenv(name, "")
    root = logging.getLogger()
    handlers = list(root.handlers)
    levels = {name: logging.getLogger(name).level for name in logs.OWN}
    yield
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_text_has_time_level_message_and_ids(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("info")
    with logs.about(request="video_7", search="3f"):
        logger.info("actor %d has been replaced", 1)
    logger.warning("nothing in particular")
    first, second = capsys.readouterr().err.splitlines()
    time, rest = first.split(" ", 1)
    assert len(time.split(":")) == 3
    assert rest == "INFO     actor 1 has been replaced [request video_7, search 3f]"
    assert second.endswith("WARNING  nothing in particular")


def test_json_is_one_object_per_line_with_fields_and_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(logs.FORMAT_VARIABLE, "json")
    logs.set_up()
    with logs.about(request="video_7"):
        logger.warning("a work\nfailed", extra={"seconds": float("nan"), "worker": 3, "where": {1}})
    try:
        raise KeyError("lost")
    except KeyError:
        logger.exception("this went wrong")
    first, second = lines(capsys)
    assert str(first.pop("time")).endswith("+00:00")
    assert first == {
        "level": "warning",
        "logger": "framegrove.somewhere",
        "message": "a work\nfailed",
        "request": "video_7",
        "fields": {"seconds": "nan", "worker": 3, "where": "{1}"},
    }
    assert second["level"] == "error"
    assert "KeyError: 'lost'" in str(second["traceback"])
    assert "request" not in second
    assert "fields" not in second


def test_the_level_is_for_our_own_loggers_and_warnings_are_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up(as_json=True)
    logger.info("no")
    logger.warning("first")
    logs.set_up("debug", as_json=True)
    logger.debug("second")
    logging.getLogger("elsewhere").info("no")
    logging.getLogger("elsewhere").warning("third")
    assert [line["message"] for line in lines(capsys)] == ["first", "second", "third"]


def test_unknown_choices_are_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="log level 'loud' is unknown: choose one of debug, info, warning, error"):
        logs.set_up("loud")
    monkeypatch.setenv(logs.FORMAT_VARIABLE, "xml")
    with pytest.raises(UserError, match="FRAMEGROVE_LOG 'xml' is unknown: choose one of text, json"):
        logs.set_up()


def test_ids_follow_tasks_and_keep_apart(capsys: pytest.CaptureFixture[str]) -> None:
    async def work(request: str) -> None:
        with logs.about(request=request):
            await asyncio.sleep(0)
            await asyncio.create_task(inner())

    async def inner() -> None:
        with logs.about(search="s"):
            await asyncio.sleep(0)
            logger.warning("x")

    async def both() -> None:
        await asyncio.gather(work("a"), work("b"))

    logs.set_up(as_json=True)
    asyncio.run(both())
    assert sorted((line["request"], line["search"]) for line in lines(capsys)) == [("a", "s"), ("b", "s")]
    assert logs.context() == {}


def test_ids_are_carried_as_a_plain_dict() -> None:
    with logs.about(request="a", search="b"):
        carried = logs.context()
    assert carried == {"request": "a", "search": "b"}
    with logs.about(**carried):
        assert logs.context() == carried


def test_a_child_process_logs_as_its_parent_was_told() -> None:
    logs.set_up("info", as_json=True)
    code = "import logging; from framegrove import logs; logs.set_up(); logging.getLogger('jobs.child').info('here')"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(child.stderr)["message"] == "here"


def test_it_is_light_to_import() -> None:
    code = "import sys; import framegrove.logs; print(sorted({'torch', 'ray', 'pydantic'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert child.stdout.strip() == "[]"
