"""Processes that a test has started, and all that these have started, wherever they hang."""

from __future__ import annotations

import contextlib

import psutil

TAKING_INTERRUPTS = ("env", "--default-signal=INT")
"""Put before a command: what runs in the background of a script ignores SIGINT, and so would what it starts.

Popen's preexec_fn would do, but it forks a process in which Ray's threads run, and what those hold is not known.
"""


def marked(mark: str, name: str, program: str = "") -> list[int]:
    """Living processes that have ``name`` as their environment's ``mark``: all, or those of one program."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, IndexError):
            if process.environ().get(mark) == name and program in process.cmdline()[0]:
                found.append(process.pid)
    return found
