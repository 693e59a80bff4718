"""A local Ray cluster for one job: on free ports, beside any other cluster, and gone when the job is."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from framegrove.cluster.errors import NoCluster

_HEAD = Path(__file__).with_name("head.py")
_END_LIMIT = 15.0  # seconds for the cluster to end by itself

log = logging.getLogger(__name__)


@contextlib.contextmanager
def local_cluster(num_cpus: int) -> Iterator[str]:
    """Run a cluster of ``num_cpus`` logical CPUs for as long as the block lasts; gives its address, host:port.

    Its processes are children of one that runs head.py, in a session of its own: Ctrl-C at the terminal does not reach
    them. They end with the block and, should this process be killed, with it. Raises NoCluster.
    """
    # Submitted jobs say "python", DeepSpeed looks for ninja: both mean this environment's.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    # -P: beside head.py lie modules whose names others may use too.
    with subprocess.Popen(
        [sys.executable, "-P", str(_HEAD), str(num_cpus)],
        env={**os.environ, "PATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as head:
        assert head.stdin is not None
        assert head.stdout is not None
        try:
            line = head.stdout.readline()
            answer = json.loads(line) if line else {"error": "the process that starts it ended without an answer"}
            if "error" in answer:
                raise NoCluster(f"no local Ray cluster could be started: {answer['error']}")
            yield answer["address"]
        finally:
            head.stdin.close()
            try:
                head.wait(_END_LIMIT)
            except subprocess.TimeoutExpired:
                log.warning("the local Ray cluster did not end within %.0f s and was killed", _END_LIMIT)
                head.kill()
