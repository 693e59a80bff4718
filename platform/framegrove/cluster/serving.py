"""Ray Serve as the endpoint uses it: one driver at a time, HAProxy in front if it is asked for, and how it ends."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from ray.serve.schema import APIType, ApplicationDetails, ServeInstanceDetails

from framegrove.errors import UserError

log = logging.getLogger(__name__)

_SHUTDOWN_LIMIT_S = 30.0
_STOPPING = "STOPPING"
_DRIVER, _NAMESPACE = "framegrove_driver", "framegrove"
_GONE_AFTER_S, _PAUSE_S = 15.0, 0.5  # Ray takes a moment to notice that a driver was killed
HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"  # in the environment of a cluster whose Ray Serve is to answer through HAProxy
_DRAINING = "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"
_BELIEVED = "FORWARDED_ALLOW_IPS"  # whose X-Forwarded-For uvicorn believes
_HAPROXYS_FOLDER = Path("/tmp/haproxy-serve")


def prepare_haproxy(folder: Path = _HAPROXYS_FOLDER) -> None:
    """Before a cluster of this machine is started: if its Ray Serve uses HAProxy, that is to be safe, and to end soon.

    Ray opens the socket that administers HAProxy, by which requests can be sent elsewhere, to every account of the
    machine, and lets a replica stay for half a minute until HAProxies of other machines have heard that it ends. To the
    replica every request comes from HAProxy, that is from this machine, whose word about a client's address it would
    take: but HAProxy passes on what the client itself claims. Raises UserError where the folder of that socket is
    somebody else's.
    """
    if os.environ.get(HAPROXY) != "1":
        return
    os.environ.setdefault(_DRAINING, "0")
    os.environ.setdefault(_BELIEVED, "")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
    except OSError:
        raise UserError(
            f"{folder} is not this account's, and Ray keeps the socket that administers HAProxy there: remove it, or "
            f"unset {HAPROXY}"
        ) from None


@ray.remote(num_cpus=0)
class _Driver:
    """Stands for a driver on its cluster, and ends with it, however that ends."""

    def __init__(self, place: str) -> None:
        self._place = place

    def place(self) -> str:
        """Which process it is."""
        return self._place


@contextlib.contextmanager
def only_driver() -> Iterator[None]:
    """Be the only process that serves on the cluster as long as the block lasts, or until this process is killed.

    Raises UserError while another one is.
    """
    place = f"process {os.getpid()} on {socket.gethostname()}"
    deadline = time.monotonic() + _GONE_AFTER_S
    while True:
        try:
            mark = _Driver.options(name=_DRIVER, namespace=_NAMESPACE).remote(place)  # type: ignore[attr-defined]
            break
        except ValueError:  # the name is taken
            if time.monotonic() >= deadline:
                raise UserError(
                    f"{_other()} serves Framegrove on this cluster already: stop it (Ctrl-C or SIGTERM) first"
                ) from None
            time.sleep(_PAUSE_S)
    try:
        yield
    finally:
        with contextlib.suppress(RayError):
            ray.kill(mark)


def _other() -> str:
    with contextlib.suppress(RayError, ValueError):
        return str(ray.get(ray.get_actor(_DRIVER, _NAMESPACE).place.remote(), timeout=_PAUSE_S))
    return "another process"


def applications() -> dict[str, ApplicationDetails] | None:
    """What Ray Serve runs on this cluster, by name; None where it is not started."""
    client = _get_global_client(raise_if_no_controller_running=False)
    return dict(ServeInstanceDetails(**client.get_serve_details()).applications) if client is not None else None


def is_from_a_file(application: ApplicationDetails) -> bool:
    """Whether it was deployed by ``serve deploy`` or KubeRay rather than by a driver."""
    return application.source is APIType.DECLARATIVE


def is_stopping(application: str, replica: str) -> bool:
    """Whether Ray Serve has told this replica to stop."""
    running = (applications() or {}).get(application)
    if running is None:
        return False
    replicas = (each for deployment in running.deployments.values() for each in deployment.replicas)
    return any(each.replica_id == replica and each.state == _STOPPING for each in replicas)


def shut_down() -> None:
    """End Ray Serve as ``serve.shutdown`` does, but without retries: a retry is announced on the console.

    The controller never answers the call by which it ends, so that the call always fails.
    """
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is not None:
        client.shutdown_cached_handles()
        ending = client._controller.graceful_shutdown.options(max_task_retries=0).remote()
        try:
            ray.get(ending, timeout=_SHUTDOWN_LIMIT_S)
        except RayError as error:  # that it has died is its answer
            log.debug("Ray Serve has ended: %s", error)
    logger = logging.getLogger("ray.serve")
    before = logger.level
    logger.setLevel(logging.ERROR)  # it would tell at length that the controller is gone
    try:
        serve.shutdown()
    finally:
        logger.setLevel(before)
