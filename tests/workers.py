"""Several workers of one process group, for tests.

They are forked from one process that has imported what they need (see preloaded.py), which would otherwise take each of
them seconds; it serves all tests of a pytest process.
"""

from __future__ import annotations

import datetime
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.multiprocessing

_PATIENCE = datetime.timedelta(minutes=2)  # for a worker that makes another number of passes than the other one

multiprocessing.set_forkserver_preload(["tests.preloaded"])


def together(work: Callable[..., None], given: tuple[Any, ...], workers: int) -> Callable[[], None]:
    """Start ``work(rank, *given)`` in so many workers; call what is returned to wait for them.

    Waiting raises what a worker raises.
    """
    folder = tempfile.TemporaryDirectory()
    started = torch.multiprocessing.start_processes(
        _work, (work, workers, folder.name, given), workers, join=False, daemon=True, start_method="forkserver"
    )

    def wait() -> None:
        with folder:
            while not started.join(timeout=60):
                pass

    return wait


def _work(rank: int, work: Callable[..., None], workers: int, folder: str, given: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(workers)}
    store = f"file://{Path(folder) / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=workers, timeout=_PATIENCE)
    work(rank, *given)
    dist.destroy_process_group()
