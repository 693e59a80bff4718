"""Ray Serve as the endpoint uses it: how it ends."""

from __future__ import annotations

import logging

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client

log = logging.getLogger(__name__)

_SHUTDOWN_LIMIT_S = 30.0


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
    serve.shutdown()
