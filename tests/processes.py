"""Processes that a test has started, and all that these have started, wherever they hang."""

from __future__ import annotations

import contextlib

import psutil


def marked(mark: str, name: str, program: str = "") -> list[int]:
    """Living processes that have ``name`` as their environment's ``mark``: all, or those of one program."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, IndexError):
            if process.environ().get(mark) == name and program in process.cmdline()[0]:
                found.append(process.pid)
    return found
