"""Connecting to a Ray cluster: the one the user names, or an own local one for as long as a job lasts."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml

import framegrove
from framegrove.cluster.errors import NoCluster


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
        yield _connected or _described(ray.init(ignore_reinit_error=True), own=False)
        return
    address = address or os.environ.get("RAY_ADDRESS") or None
    try:
        _connected = _join(address) if address else _start(num_cpus)
        yield _connected
    finally:
        _connected = None
        ray.shutdown()


_connected: Cluster | None = None  # what this process's outermost connect() found


def _start(num_cpus: int) -> Cluster:
    # Submitted jobs say "python", DeepSpeed looks for ninja: both mean this environment's.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    try:
        found = ray.init(
            address="local",
            num_cpus=max(num_cpus, os.cpu_count() or 1),
            include_dashboard=True,
            runtime_env=_quoted_python(),
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, RuntimeError) as error:
        raise NoCluster(f"no local Ray cluster could be started: {_one_line(error)}") from error
    return _described(found, own=True)


def _quoted_python() -> dict[str, Any] | None:
    """Ray hands the interpreter's path to a shell as it is: one with a space in it has to be quoted beforehand."""
    quoted = shlex.quote(sys.executable)
    return {"py_executable": quoted} if quoted != sys.executable else None


def _join(address: str) -> Cluster:
    if address.startswith(("http://", "https://")):
        raise NoCluster(
            f"RAY_ADDRESS is {address}, which takes submitted jobs only: give the cluster's own address, host:port, or "
            "run this with ray job submit"
        )
    try:
        _knock(address)
        found = ray.init(address=address, runtime_env=_code(), log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        reason = _one_line(error)
        raise NoCluster(
            f"no Ray cluster answers at {address} ({reason}): check RAY_ADDRESS, or unset it to start a local one"
        ) from error
    return _described(found, own=False)


def _knock(address: str) -> None:
    """Raise OSError at once where nobody listens: Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "://" not in address:
        socket.create_connection((host, int(port)), timeout=5).close()


def _code() -> dict[str, Any] | None:
    """How this checkout travels to somebody else's cluster; a submitted job has brought its code along already."""
    root = Path(framegrove.__file__).resolve().parents[2]
    recipe = root / "jobs" / "runtime_env.yaml"
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ or not recipe.is_file():
        return None
    environment: dict[str, Any] = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    environment["py_modules"] = [str(root / module) for module in environment["py_modules"]]
    return {**environment, "working_dir": str(root)}


def _described(context: Any, own: bool) -> Cluster:
    info = context.address_info
    return Cluster(address=str(info["gcs_address"]), dashboard_url=_url(info.get("webui_url")), own=own)


def _url(address: str | None) -> str | None:
    return f"http://{address}" if address else None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
