"""The process that a local cluster's own processes hang on. ``local.py`` runs this file; nothing imports it.

It stands in a session of its own, so that Ctrl-C at the terminal reaches the job alone and not Ray's processes, which
the job still needs to stop what it has started. It ends the cluster when its standard input closes: when the job says
so, and when the job is killed. It also ends when the raylet or the GCS has died, since nothing can go on without them.

    python -P head.py CPUS      # answers with one line of JSON: {"address": "host:port"} or {"error": "..."}
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import select
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from ray._private.authentication import authentication_token_setup as tokens
from ray._private.node import Node
from ray._private.parameter import RayParams
from ray._private.ray_constants import PROCESS_TYPE_GCS_SERVER, PROCESS_TYPE_RAYLET

_PR_SET_CHILD_SUBREAPER = 36  # from <linux/prctl.h>
_WORKERS_AT_ONCE = 8  # workers that may start side by side; from three times as many on Ray warns on every driver
_LOOK_EVERY = 2.0  # seconds
_VITAL = (PROCESS_TYPE_RAYLET, PROCESS_TYPE_GCS_SERVER)
_ORPHANS_LIMIT = 5.0  # seconds for what is left to vanish once it has been killed


def main(cpus: int) -> None:
    """Start a cluster, say where it is, and end it once standard input closes or a vital process has died."""
    # What loses its parent becomes a child of this process, which can then end it: a dead worker's engine, for example.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    requests, answers = os.dup(0), os.dup(1)  # for this process alone: its children inherit 0 and 1
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    logging.getLogger("ray").setLevel(logging.ERROR)
    started = threading.Event()
    watcher = threading.Thread(target=_watch, args=(requests, started), daemon=True)
    watcher.start()
    try:
        head = _started(cpus)
    except Exception as error:  # Ray raises that very class when a process does not come up in time
        _answer(answers, {"error": " ".join(str(error).split()) or type(error).__name__})
        _end_children()
        raise SystemExit(1) from error
    try:
        started.set()
        _answer(answers, {"address": head.gcs_address})
        while watcher.is_alive() and not any(kind in _VITAL for kind, _ in head.dead_processes()):
            watcher.join(_LOOK_EVERY)
    finally:
        # The raylet first, and gently, so that it ends its workers; then the others, all at once.
        head.kill_raylet(check_alive=False)
        head.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        _end_children()


def _started(cpus: int) -> Node:
    """Do what ``ray.init()`` does for a cluster of its own, with these differences.

    The agent that takes submitted jobs gets a free port: ``ray.init()`` gives it a fixed one, so that of two clusters
    on a machine only the first takes jobs. No workers are started in advance: they rarely have the environment that a
    job asks for. And neither the autoscaler nor the log monitor runs: a local cluster does not grow, and drivers do
    not print what its workers log. (``ray start`` can be told the port, but its clusters take half a minute to stop
    and outlive this process.)
    """
    tokens.enable_token_auth_by_default()
    tokens.ensure_token_if_auth_enabled(create_token_if_missing=True)
    settings: dict[str, Any] = {  # Ray annotates these as text
        "include_log_monitor": False,
        "_system_config": {
            "prestart_worker_first_driver": False,
            "worker_maximum_startup_concurrency": max(cpus, _WORKERS_AT_ONCE),
        },
    }
    wanted = RayParams(
        num_cpus=cpus,
        include_dashboard=True,
        dashboard_port=None,
        dashboard_agent_listen_port=None,
        no_monitor=True,
        **settings,
    )
    return Node(wanted, head=True, shutdown_at_exit=False, spawn_reaper=True)


def _answer(descriptor: int, said: dict[str, str]) -> None:
    with contextlib.suppress(BrokenPipeError), os.fdopen(descriptor, "w") as answers:  # the job may have been killed
        answers.write(json.dumps(said) + "\n")


def _watch(requests: int, started: threading.Event) -> None:
    """Return once the other end of ``requests`` is closed, or whoever started this process is gone.

    While the cluster is still starting, nobody waits for that: the process ends here and now, with its children.
    """
    job, own = os.getppid(), set[int]()
    while os.getppid() == job:
        readable, _, _ = select.select([requests], [], [], _LOOK_EVERY)
        if readable and not os.read(requests, 1024):
            break
        if started.is_set():
            own = own or set(_children())  # those that main waits for itself
            for orphan in set(_children()) - own:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(orphan, os.WNOHANG)
    if not started.is_set():
        _end_children()
        os._exit(1)


def _end_children() -> None:
    """Kill what is still a child of this process, and what becomes one by that, until none is left."""
    deadline = time.monotonic() + _ORPHANS_LIMIT
    while (left := _children()) and time.monotonic() < deadline:
        for child in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, os.WNOHANG)
        time.sleep(0.05)


def _children() -> list[int]:
    """Process ids of this process's children, dead ones that nobody has waited for included."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                # "pid (name) state parent ...", where the name may hold anything
                parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
                if int(parent) == os.getpid():
                    found.append(int(entry.name))
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]))
