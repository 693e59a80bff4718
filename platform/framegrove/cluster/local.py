"""A local Ray cluster of one's own: on free ports, beside any other, and gone with the process that started it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from ray._private.authentication import authentication_token_setup as tokens
from ray._private.node import Node
from ray._private.parameter import RayParams

from framegrove.cluster.errors import NoCluster


@contextlib.contextmanager
def local_cluster(num_cpus: int) -> Iterator[str]:
    """Run a cluster of ``num_cpus`` logical CPUs for as long as the block lasts; gives its address, host:port.

    Does what ``ray.init()`` does for a cluster of its own, except for one port: there the agent that takes submitted
    jobs has a fixed one, so that of two clusters on a machine only the first takes jobs. (``ray start`` can be told
    the port, but its clusters take half a minute to stop and outlive this process.) Raises NoCluster.
    """
    tokens.enable_token_auth_by_default()
    tokens.ensure_token_if_auth_enabled(create_token_if_missing=True)
    # Submitted jobs say "python", DeepSpeed looks for ninja: both mean this environment's.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    wanted = RayParams(num_cpus=num_cpus, include_dashboard=True, dashboard_port=None, dashboard_agent_listen_port=None)
    try:
        head = Node(wanted, head=True, shutdown_at_exit=False, spawn_reaper=True)
    except Exception as error:  # Ray raises that very class when a process does not come up in time
        raise NoCluster(f"no local Ray cluster could be started: {' '.join(str(error).split())}") from error
    try:
        yield head.gcs_address
    finally:
        head.kill_all_processes(check_alive=False, allow_graceful=True, wait=True)
