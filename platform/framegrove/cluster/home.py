"""The working folder of a process on a cluster, which Ray may replace while the process stands in it.

Ray unpacks a job's checkout into a folder of its session, and unpacks it again, over the old one, whenever a raylet
that has not seen it comes to the same machine, or when two environments that share it are set up at the same time.
A process that stood in the old folder then stands in one that is gone.

PyTorch cannot be loaded there: its oneMKL asks where it is, and where there is no answer it ends the process with
"Cannot load libtorch_cpu.so". So whoever is about to load PyTorch enters the folder again.
"""

from __future__ import annotations

import os
import time

_UNPACKING_S = 30.0  # for Ray to unpack the folder that it has just removed


def stay(patience: float = _UNPACKING_S) -> None:
    """Enter the working folder again, at the same path, where it has been replaced.

    Waits ``patience`` seconds for it to be there. Raises FileNotFoundError. Every worker calls this before anything
    else (jobs/runtime_env.yaml), every submitted job when it connects.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            os.getcwd()
            return
        except FileNotFoundError:
            if time.monotonic() > deadline:
                raise
        # What Linux says of a folder that has been removed: its path, and that it is gone.
        path = os.readlink("/proc/self/cwd").removesuffix(" (deleted)")
        if os.path.isdir(path):
            os.chdir(path)
        else:
            time.sleep(0.05)
