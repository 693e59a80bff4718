"""The metrics that Framegrove reports through Ray: every machine exports them as Prometheus text.

An exported name begins with ``ray_``, and a counter's ends with ``_total``; Ray adds labels for the machine and the
process. Searches, the service and training know nothing of Ray: they take callables and are given these methods.

    ray_framegrove_queue_depth                  gauge      videos that wait at the endpoint
    ray_framegrove_works{state,kind}            gauge      works of this process, by state (running or waiting)
    ray_framegrove_works_wasted_total{kind}     counter    works that were cancelled, failed, or made for nothing
    ray_framegrove_work_seconds{kind}           histogram  time that a work took, in seconds
    ray_framegrove_actor_restarts_total{role}   counter    actors that died and were replaced
    ray_framegrove_tokens_per_second            gauge      training speed of this process
    ray_framegrove_data_wait_seconds_total      counter    time that training waited for its data, in seconds

``kind`` is what is done, "sample" or "score"; ``role`` is what the actors are for, such as "generate".
"""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge, Histogram

_WORK_SECONDS = [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000]  # upper bounds of the histogram's buckets


class Metrics:
    """Reports this process's metrics. To be created where Ray is connected: in a driver, a task or an actor.

    A call hands a number to Ray's exporter in this process and takes microseconds. Gauges keep what they were last set
    to, per process; several objects of this class in one process report into the same metrics.
    """

    def __init__(self) -> None:
        self._queue = Gauge("framegrove_queue_depth", "Videos that wait at the endpoint.")
        self._works = Gauge("framegrove_works", "Works of a process, by state.", ("state", "kind"))
        self._wasted = Counter("framegrove_works_wasted", "Works that led to nothing.", ("kind",))
        self._seconds = Histogram("framegrove_work_seconds", "Time that a work took.", _WORK_SECONDS, ("kind",))
        self._restarts = Counter("framegrove_actor_restarts", "Actors that were replaced.", ("role",))
        self._speed = Gauge("framegrove_tokens_per_second", "Training speed of a process.")
        self._data_wait = Counter("framegrove_data_wait_seconds", "Time that training waited for data.")

    def queue_depth(self, videos: int) -> None:
        """How many videos wait at the endpoint now."""
        self._queue.set(videos)

    def works(self, kind: str, *, running: int, waiting: int) -> None:
        """How many works of a kind this process has running and waiting now, summed over its searches."""
        self._works.set(running, {"state": "running", "kind": kind})
        self._works.set(waiting, {"state": "waiting", "kind": kind})

    def work_ended(self, kind: str, seconds: float, *, wasted: bool = False) -> None:
        """A work has ended after so many seconds; ``wasted`` if nothing is built on its result."""
        self._seconds.observe(seconds, {"kind": kind})
        if wasted:
            self._wasted.inc(1, {"kind": kind})

    def actor_restarted(self, role: str) -> None:
        """An actor has died and been replaced."""
        self._restarts.inc(1, {"role": role})

    def training(self, tokens_per_second: float, data_wait_seconds: float) -> None:
        """The training speed since the last call, and the time spent waiting for data since then."""
        self._speed.set(tokens_per_second)
        if data_wait_seconds > 0:  # a counter takes no zero
            self._data_wait.inc(data_wait_seconds)
