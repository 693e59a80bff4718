"""Who goes first where processes share a machine's processors: those who answer, before those who compute.

An endpoint's proxy and replica have to answer within moments, and need little; generators and verifiers take whatever
there is. Ray starts all of a job's processes alike, with low priority. So a cluster that an endpoint starts for itself
gives them the usual one, and those that compute lower their own.
"""

from __future__ import annotations

import os
from pathlib import Path

_LOWEST = 19  # on Linux, of 0 to 19
_RAYS_OWN = "RAY_worker_niceness"
_THREADS = Path("/proc/self/task")  # priority is a thread's on Linux, and what a thread starts has its own


def give_way() -> None:
    """Let everybody else go first: this process, and all that it starts from now on."""
    for thread in _THREADS.iterdir() if _THREADS.is_dir() else ():
        os.setpriority(os.PRIO_PROCESS, int(thread.name), _LOWEST)


def let_others_give_way() -> None:
    """Before a cluster is started: its workers are to have the usual priority unless they give way."""
    os.environ.setdefault(_RAYS_OWN, "0")
