"""Metrics, as a Prometheus server would read them from the machines of a cluster."""

from __future__ import annotations

import re
import threading
import time
import urllib.request

import pytest
import ray

from framegrove.cluster.metrics import Metrics


def exported(workers: set[str]) -> str:
    """What all machines export at this moment of these processes of Ray's."""
    endpoints = [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in ray.nodes()]
    lines = "\n".join(urllib.request.urlopen(url, timeout=10).read().decode() for url in endpoints).splitlines()
    return "\n".join(line for line in lines if any(f'WorkerId="{worker}"' in line for worker in workers))


def value(text: str, name: str, **labels: str) -> float | None:
    """The sum of a metric's samples with these labels; None if there is none."""
    found = [
        float(match[2])
        for match in re.finditer(rf"^{name}\{{(.*)\}} (\S+)$", text, re.MULTILINE)
        if all(f'{key}="{wanted}"' in match[1].split(",") for key, wanted in labels.items())
    ]
    return sum(found) if found else None


class Worker:
    """An actor that reports what a search would."""

    def __init__(self) -> None:
        self._metrics = Metrics()

    def report(self) -> str:
        """Report, and say which of Ray's processes did: a cluster that tests share has others that report."""
        metrics = self._metrics
        metrics.load("generators", running=2, waiting=5)
        metrics.ended("generators", "done", 2.0, "")
        metrics.ended("generators", "cancelled", 20.0, "")
        metrics.replaced("generators")
        metrics.training(1000.0, data_wait_seconds=1.5)
        metrics.training(1200.0, data_wait_seconds=0.0)
        return str(ray.get_runtime_context().get_worker_id())


@pytest.mark.usefixtures("cluster")
def test_what_a_driver_and_an_actor_report_is_exported() -> None:
    metrics = Metrics()
    metrics.queue(3)
    worker = ray.remote(Worker).options(num_cpus=0).remote()
    reported = {ray.get(worker.report.remote()), str(ray.get_runtime_context().get_worker_id())}
    expected = {
        ("ray_framegrove_queue_depth", ()): 3,
        ("ray_framegrove_works", (("state", "running"),)): 2,
        ("ray_framegrove_works", (("state", "waiting"),)): 5,
        ("ray_framegrove_works_ended_total", (("pool", "generators"), ("ending", "cancelled"))): 1,
        ("ray_framegrove_work_seconds_count", (("pool", "generators"),)): 2,
        ("ray_framegrove_work_seconds_sum", (("pool", "generators"),)): 22,
        ("ray_framegrove_work_seconds_bucket", (("pool", "generators"), ("le", "10.0"))): 1,
        ("ray_framegrove_actor_restarts_total", (("pool", "generators"),)): 1,
        ("ray_framegrove_tokens_per_second", ()): 1200,
        ("ray_framegrove_data_wait_seconds_total", ()): 1.5,
    }
    deadline = time.monotonic() + 120
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float | None] = {}
    while found != expected and time.monotonic() < deadline:
        time.sleep(1)
        text = exported(reported)
        found = {(name, labels): value(text, name, **dict(labels)) for name, labels in expected}
    assert found == expected, text

    time.sleep(3 * ray._config.metrics_report_interval_ms() / 1000)  # by then Ray has forgotten what was set only once
    text = exported(reported)
    assert value(text, "ray_framegrove_queue_depth") == 3
    assert value(text, "ray_framegrove_works", state="running") == 2
    del metrics


def test_the_repeating_thread_ends_with_its_object() -> None:
    threads = set(threading.enumerate())
    metrics = Metrics()
    (thread,) = set(threading.enumerate()) - threads
    del metrics
    thread.join(timeout=10)
    assert not thread.is_alive()
