"""Logging, set up once per process: text for people or JSON for machines, with the ids of what a record is about.

Modules log through ``logging.getLogger(__name__)`` as usual. Prompts are logged at DEBUG only, if at all.

    FRAMEGROVE_LOG_LEVEL=info   debug, info, warning (the default) or error
    FRAMEGROVE_LOG=json         one JSON object per line; text (the default) is for people
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

from framegrove.errors import UserError

LEVEL_VARIABLE = "FRAMEGROVE_LOG_LEVEL"
FORMAT_VARIABLE = "FRAMEGROVE_LOG"
LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")

OWN = ("framegrove", "actors", "jobs")  # the loggers whose level is set; other packages log warnings and errors


def set_up(level: str | None = None, as_json: bool | None = None) -> None:
    """Log to standard error, from ``level`` upwards. Calling it again replaces the earlier set-up.

    What is not given is taken from the environment. The choice is then kept in the environment, so that processes
    started from here, such as the workers of a local cluster, log the same way once they call this function.
    Raises UserError for an unknown level or format.
    """
    level = _choice("log level", level or os.environ.get(LEVEL_VARIABLE) or "warning", LEVELS)
    if as_json is None:
        as_json = _choice(FORMAT_VARIABLE, os.environ.get(FORMAT_VARIABLE) or "text", FORMATS) == "json"
    os.environ[LEVEL_VARIABLE] = level
    os.environ[FORMAT_VARIABLE] = "json" if as_json else "text"

    root = logging.getLogger()
    for handler in [each for each in root.handlers if isinstance(each, _StandardError)]:
        root.removeHandler(handler)
    handler = _StandardError()
    handler.addFilter(_add_ids)
    handler.setFormatter(_Json() if as_json else _Text())
    root.addHandler(handler)
    for name in OWN:
        logging.getLogger(name).setLevel(level.upper())


@contextlib.contextmanager
def about(*, request: str | None = None, search: str | None = None) -> Iterator[None]:
    """Put these ids into every record that is logged inside the block, also by the tasks that it creates.

    Ids do not cross over to another process by themselves. A call to an actor carries them along, and the actor's
    method enters them again:

    >>> await actor.sample.remote(work, logs.context())  # the caller
    >>> with logs.about(**ids): ...                      # the actor
    """
    given = {"request": request, "search": search}
    token = _ids.set({**_ids.get(), **{name: value for name, value in given.items() if value is not None}})
    try:
        yield
    finally:
        _ids.reset(token)


def context() -> dict[str, str]:
    """The ids that are in force here, as ``about`` takes them."""
    return dict(_ids.get())


_NONE: dict[str, str] = {}
_ids: ContextVar[dict[str, str]] = ContextVar("framegrove_log_ids", default=_NONE)


def _choice(what: str, given: str, allowed: tuple[str, ...]) -> str:
    if given.lower() not in allowed:
        raise UserError(f"{what} {given!r} is unknown: choose one of {', '.join(allowed)}")
    return given.lower()


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to what ``sys.stderr`` is at the time of writing: a progress bar puts itself in its place."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)  # StreamHandler's own would keep the stream of today

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def _add_ids(record: logging.LogRecord) -> bool:
    record.ids = context()
    return True


class _Text(logging.Formatter):
    """``12:03:04 WARNING  actor 1 has been replaced [request video_7, search 3f]``"""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-8s %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        ids = ", ".join(f"{name} {value}" for name, value in getattr(record, "ids", {}).items())
        return super().formatMessage(record) + (f" [{ids}]" if ids else "")


class _Json(logging.Formatter):
    """One object per line: time (UTC), level, logger, message, the ids, ``extra`` as fields, and the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "ids", {}),
        }
        given = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        fields = {name: _plain(value) for name, value in given.items() if not name.startswith("_")}  # "_": Ray's own
        if fields:
            line["fields"] = fields
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


# What every record has; anything else was given as ``extra``.
_STANDARD = {*vars(logging.makeLogRecord({})), "ids", "message", "asctime", "taskName"}


def _plain(value: object) -> str | int | float | bool | None:
    """A value that JSON has, or its text: writing a log line must not fail."""
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)
