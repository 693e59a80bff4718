"""Connecting to a Ray cluster: the one the user names, or an own local one for as long as a job lasts."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import signal
import socket
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import ray
import yaml
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

import framegrove
from framegrove.cluster import home
from framegrove.cluster.errors import NoCluster
from framegrove.cluster.local import local_cluster

_AUTH_MODE = "RAY_AUTH_MODE"
_PATIENCE = 5.0  # seconds for the dashboard to answer


@dataclass(frozen=True)
class Cluster:
    """A cluster this process is connected to: ``address`` (host:port) for other drivers, ``dashboard_url`` for jobs."""

    address: str
    dashboard_url: str | None
    own: bool


@contextlib.contextmanager
def connect(address: str | None = None, *, num_cpus: int = 8) -> Iterator[Cluster]:
    """Use the cluster at ``address`` or RAY_ADDRESS; without either, start a local one and stop it at the end.

    ``num_cpus`` are logical CPUs of a local cluster; more than the machine has is fine, and needed: a trainer beside
    Ray Data waits for ever when every logical CPU is taken. A local cluster takes free ports, accepts ``ray job
    submit``, and ends with the block, on errors and Ctrl-C too, and with this process even if that is killed. Inside
    another ``connect`` that one's cluster is used. Raises NoCluster.
    """
    global _connected
    if ray.is_initialized():
        yield _connected or _described(ray.init(ignore_reinit_error=True))
        return
    address = address or (_submitted() and _of_the_raylet_above()) or os.environ.get("RAY_ADDRESS") or None
    logging.getLogger("ray").setLevel(logging.ERROR)
    with contextlib.ExitStack() as stack:
        if address is None:
            own = stack.enter_context(local_cluster(max(num_cpus, os.cpu_count() or 1)))
            found = _join(own, _quoted_python())
        else:
            _knock(address)
            found = _join_as_submitted(address) if _submitted() else _join(address, checkout())
        stack.callback(ray.shutdown)
        _connected = replace(found, own=address is None)
        try:
            yield _connected
        finally:
            _connected = None


_connected: Cluster | None = None  # what this process's outermost connect() found


def _quoted_python() -> dict[str, Any] | None:
    """Ray hands the interpreter's path to a shell as it is: one with a space in it has to be quoted beforehand."""
    quoted = shlex.quote(sys.executable)
    return {"py_executable": quoted} if quoted != sys.executable else None


def _submitted() -> bool:
    """Whether this process is the entry point of a submitted job, which has brought its code along already."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def _of_the_raylet_above() -> str | None:
    """The address of the cluster that started this process; None where the raylet is not among its parents.

    RAY_ADDRESS does not say: where several clusters share a machine, Ray gives a submitted job that of any of them.
    """
    for parent in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):
            command = parent.cmdline()
            if command and Path(command[0]).name == "raylet":
                return next((word.partition("=")[2] for word in command if word.startswith("--gcs-address=")), None)
    return None


def _join_as_submitted(address: str) -> Cluster:
    """Join from a working folder that Ray may replace as soon as it knows of the job: see framegrove.cluster.home."""
    home.stay()
    import torch  # noqa: F401 - now, while the folder is there

    found = _join(address, None)
    home.stay()
    return found


def _join(address: str, runtime_env: dict[str, Any] | None) -> Cluster:
    if _on_this_machine(address):  # Ray does so for clusters that it finds itself; a token does not go to strangers
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        found = ray.init(address=address, runtime_env=runtime_env, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise _no_answer(address, " ".join(str(error).split()) or type(error).__name__) from error
    if handler is not signal.SIG_DFL and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray has put its own in the place of the job's
    cluster = _described(found)
    if os.environ.get(_AUTH_MODE) == "token" and _takes_no_tokens(cluster):
        ray.shutdown()
        raise NoCluster(
            f"the Ray cluster at {address} takes no tokens, and this machine has one, with which no actor would ever "
            f"start: set {_AUTH_MODE}=disabled, or start the cluster again, which then finds the token"
        )
    return cluster


def _takes_no_tokens(cluster: Cluster) -> bool:
    """Whether the cluster says so; one without a dashboard is taken at its word by Ray."""
    if cluster.dashboard_url is None:
        return False
    try:
        with urllib.request.urlopen(f"{cluster.dashboard_url}/api/authentication_mode", timeout=_PATIENCE) as answer:
            return json.load(answer).get("authentication_mode") == "disabled"
    except (OSError, ValueError):
        return False


def _no_answer(address: str, reason: str) -> NoCluster:
    return NoCluster(
        f"no Ray cluster answers at {address} ({reason}): check RAY_ADDRESS, or unset it to start a local one"
    )


def _knock(address: str) -> None:
    """Raise NoCluster at once where nobody listens: Ray itself would try for minutes."""
    if address.startswith(("http://", "https://")):
        raise NoCluster(
            f"RAY_ADDRESS is {address}, which takes submitted jobs only: give the cluster's own address, host:port, or "
            "run this with ray job submit"
        )
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "://" not in address:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError as error:
            raise _no_answer(address, error.strerror or str(error)) from None


def _on_this_machine(address: str) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((address.rpartition(":")[0], 0))
        except OSError:
            return False
        return True


def checkout() -> dict[str, Any] | None:
    """The runtime environment that takes this checkout to a cluster; None where the library is installed alone."""
    root = Path(framegrove.__file__).resolve().parents[2]
    recipe = root / "jobs" / "runtime_env.yaml"
    if not recipe.is_file():
        return None
    environment: dict[str, Any] = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    environment["py_modules"] = [str(root / module) for module in environment["py_modules"]]
    return {**environment, "working_dir": str(root)}


def _described(context: Any) -> Cluster:
    info = context.address_info
    url = info.get("webui_url")
    return Cluster(address=str(info["gcs_address"]), dashboard_url=f"http://{url}" if url else None, own=False)
