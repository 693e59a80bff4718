"""The metrics that Framegrove reports through Ray: every machine exports them as Prometheus text.

An exported name begins with ``ray_``, and a counter's ends with ``_total``; Ray adds labels for the machine and the
process. Searches, the service and training know nothing of Ray: they take callables and are given these methods.

    ray_framegrove_queue_depth                    gauge      videos that wait at the endpoint
    ray_framegrove_works{pool,state}              gauge      works of a search, by state: running or waiting
    ray_framegrove_works_ended_total{pool,ending} counter    attempts at works; all but ending="done" were wasted
    ray_framegrove_work_seconds{pool,ending}      histogram  time that an attempt took, in seconds
    ray_framegrove_actor_restarts_total{pool}     counter    actors that died and were replaced
    ray_framegrove_tokens_per_second              gauge      training speed of a worker
    ray_framegrove_data_wait_seconds_total        counter    time that a training worker waited for data, in seconds

``pool`` is "generators" or the name of a verifier, at an endpoint of several models with the model's before it, as in
"digits/generators"; ``ending`` is "done", "cancelled" or "failed".
"""

from __future__ import annotations

import threading
import weakref

from ray.util.metrics import Counter, Gauge, Histogram

_REPEAT_S = 5.0  # half of the interval at which Ray exports by default
_WORK_SECONDS = [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000]  # upper bounds of the histogram's buckets


class Metrics:
    """Reports this process's metrics. To be created where Ray is connected: in a driver, a task or an actor.

    It can observe conductors (search.conductor.Observer). A call hands numbers to Ray's exporter in this process and
    takes microseconds. A gauge shows what it was last set to, for as long as this object exists: Ray itself forgets a
    gauge that is not set again between two exports, so a thread does that. Several objects of this class in one process
    report into the same metrics; those whose pools have the same names are told apart by ``of``.
    """

    def __init__(self, of: str = "") -> None:
        self._of = f"{of}/" if of else ""
        self._levels: _Levels = {}
        ended = threading.Event()
        weakref.finalize(self, ended.set)
        threading.Thread(target=_repeat, args=(self._levels, ended), name="metrics", daemon=True).start()
        self._queue = Gauge("framegrove_queue_depth", "Videos that wait at the endpoint.")
        self._works = Gauge("framegrove_works", "Works of a search, by pool and state.", ("pool", "state"))
        self._ended = Counter("framegrove_works_ended", "Attempts at works, by how they ended.", ("pool", "ending"))
        self._seconds = Histogram(
            "framegrove_work_seconds", "Time that an attempt at a work took.", _WORK_SECONDS, ("pool", "ending")
        )
        self._restarts = Counter("framegrove_actor_restarts", "Actors that died and were replaced.", ("pool",))
        self._speed = Gauge("framegrove_tokens_per_second", "Training speed of a worker.")
        self._data_wait = Counter("framegrove_data_wait_seconds", "Time that a training worker waited for data.")

    def queue(self, waiting: int) -> None:
        """How many videos wait at the endpoint now."""
        self._set(self._queue, waiting)

    def load(self, pool: str, running: int, waiting: int) -> None:
        """How many works of a pool run and wait now."""
        self._set(self._works, running, pool=self._of + pool, state="running")
        self._set(self._works, waiting, pool=self._of + pool, state="waiting")

    def ended(self, pool: str, ending: str, seconds: float, reason: str) -> None:
        """An attempt at a work has ended. The ``reason`` of a failure is for logs: as a label it would be unbounded."""
        labels = {"pool": self._of + pool, "ending": str(ending)}
        self._ended.inc(1, labels)
        self._seconds.observe(seconds, labels)

    def replaced(self, pool: str) -> None:
        """An actor of this pool has died and been replaced."""
        self._restarts.inc(1, {"pool": self._of + pool})

    def training(self, tokens_per_second: float, data_wait_seconds: float) -> None:
        """A worker's training speed since its last call, and the time that it spent waiting for data since then."""
        self._set(self._speed, tokens_per_second)
        if data_wait_seconds > 0:  # a counter takes no zero
            self._data_wait.inc(data_wait_seconds)

    def _set(self, gauge: Gauge, value: float, **labels: str) -> None:
        self._levels[gauge, tuple(labels.items())] = value
        gauge.set(value, labels)


# What gauges were last set to, by gauge and labels.
_Levels = dict[tuple[Gauge, tuple[tuple[str, str], ...]], float]


def _repeat(levels: _Levels, ended: threading.Event) -> None:
    while not ended.wait(_REPEAT_S):
        for (gauge, labels), value in list(levels.items()):
            gauge.set(value, dict(labels))
