"""Storage that is gone for a while is waited for, where a run would otherwise end."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

_log = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk, a quota, or a limit on files: waiting makes no room
_PATIENCE_S, _PAUSE_S = 300.0, 2.0

Returned = TypeVar("Returned")


def patiently(doing: str, act: Callable[[], Returned]) -> Returned:
    """What ``act`` returns; where it raises OSError it is called again, for five minutes.

    ``doing`` is for the log: "writing the checkpoint". A full disk is not waited for. Raises the last OSError.
    """
    began = time.monotonic()
    while True:
        try:
            return act()
        except OSError as error:
            waited = time.monotonic() - began
            if error.errno in FULL or waited >= _PATIENCE_S:
                raise
            _log.warning("%s failed (%s): trying again for %.0f s more", doing, error, _PATIENCE_S - waited)
        time.sleep(_PAUSE_S)
