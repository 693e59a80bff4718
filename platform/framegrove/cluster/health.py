"""Whether what an endpoint runs on is still there: the cluster, Ray Serve, and the address it listens on.

Ray itself tells its driver nothing when a raylet is killed, and takes a minute over a control service (GCS) that is.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import ray
from ray import serve

LOOK_EVERY_S = 2.0
# What is killed stays gone. Ray Serve brings a lost proxy or replica back, which takes a while on a busy machine.
CLUSTER_PATIENCE_S, SERVE_PATIENCE_S = 3.0, 60.0
_CONNECT_LIMIT_S, _ANSWER_LIMIT_S = 2.0, 10.0
_WELL = ("RUNNING", "DEPLOYING")

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Check:
    """Something that must be there. ``gone`` says that it is not, in a sentence without a full stop.

    It is taken to be gone once ``is_there`` has been false for ``patience`` seconds; ``cluster`` tells whether the
    whole cluster has gone with it, so that nothing on it can be ended in an orderly way.
    """

    gone: str
    patience: float
    cluster: bool
    is_there: Callable[[], bool]


def checks_of(address: str, host: str, port: int, application: str) -> list[Check]:
    """What must be there for an application of Ray Serve at ``host``:``port``, on the cluster at ``address``."""
    control_host, _, control_port = address.rpartition(":")
    me = ray.get_runtime_context().get_node_id()
    raylet = next(node["RayletSocketName"] for node in ray.nodes() if node["NodeID"] == me)
    near = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return [
        Check(
            f"the control service (GCS) of the Ray cluster at {address} is gone",
            CLUSTER_PATIENCE_S,
            cluster=True,
            is_there=lambda: connects(control_host, int(control_port)),
        ),
        Check(
            f"the raylet of the Ray cluster at {address} is gone from this machine",
            CLUSTER_PATIENCE_S,
            cluster=True,
            is_there=lambda: connects_to_file(raylet),
        ),
        Check(
            f"nothing has answered on {host}:{port} for {SERVE_PATIENCE_S:.0f} s: Ray Serve's proxy is gone",
            SERVE_PATIENCE_S,
            cluster=False,
            is_there=lambda: answers(near, port),
        ),
        Check(
            f"Ray Serve has not run the application {application} for {SERVE_PATIENCE_S:.0f} s",
            SERVE_PATIENCE_S,
            cluster=False,
            is_there=lambda: runs(application),
        ),
    ]


def first_gone(
    checks: Sequence[Check],
    *,
    pause: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Check:
    """Look at everything every few seconds; return what is gone, as soon as something is."""
    failing: dict[Check, float] = {}  # since when
    while True:
        for check in checks:
            if check.is_there():
                failing.pop(check, None)
            elif clock() - failing.setdefault(check, clock()) >= check.patience:
                return check
        pause(LOOK_EVERY_S)


def connects(host: str, port: int) -> bool:
    """Whether somebody listens at this address."""
    try:
        socket.create_connection((host, port), timeout=_CONNECT_LIMIT_S).close()
    except OSError:
        return False
    return True


def connects_to_file(path: str) -> bool:
    """Whether somebody listens on this Unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_CONNECT_LIMIT_S)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def answers(host: str, port: int) -> bool:
    """Whether Ray Serve's proxy says that it is well. Not urllib, which would ask a proxy from the environment."""
    connection = http.client.HTTPConnection(host, port, timeout=_ANSWER_LIMIT_S)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/-/healthz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False


def runs(application: str) -> bool:
    """Whether Ray Serve runs this application, or is bringing it up."""
    found = within(_ANSWER_LIMIT_S, serve.status)
    return found is not None and application in found.applications and found.applications[application].status in _WELL


def within(seconds: float, call: Callable[[], Answer]) -> Answer | None:
    """What ``call`` returns; None if it raises, or is not done in time and goes on in a thread of its own."""
    answer: list[Answer] = []

    def run() -> None:
        try:
            answer.append(call())
        except Exception as error:  # noqa: BLE001 - whatever it is, there is no answer
            log.debug("no answer: %s", error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return answer[0] if answer else None
