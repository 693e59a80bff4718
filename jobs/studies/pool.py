"""The warm pool of a study of searches: one crew of generators and verifiers that all trials share.

It is an actor that belongs to no process: trials come and go, and when the command is killed on a cluster that stays,
the next one takes it up as it is. It ends with the study, or by itself when nobody has asked for anything for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framegrove.config.pool import PoolSize
from framegrove.config.search import SearchConfig
from framegrove.errors import UserError

if TYPE_CHECKING:
    from framegrove.cluster.session import Cluster
    from framegrove.config.model import ModelSource
    from framegrove.config.verifier import PanelConfig
    from framegrove.digits.world import DigitObject
    from framegrove.evaluation.report import SearchRecord
    from framegrove.evaluation.study_results import Video
    from framegrove.types import GenerationRequest

_NAMESPACE = "framegrove"  # actors that belong to no job are found by name in one
_IDLE_S = 600.0  # then the pool ends


@dataclass(frozen=True)
class Wanted:
    """A video that a trial wants: for which of the study's prompts, and how it is searched for."""

    prompt: int
    request: GenerationRequest
    search: SearchConfig

    @property
    def key(self) -> str:
        """Tells it from other ones."""
        return json.dumps([self.prompt, asdict(self.request), self.search.model_dump(mode="json")], default=str)


class StudyPool:
    """Makes videos and measures them, as many at a time as it is asked for."""

    def __init__(self, source: ModelSource, panel: PanelConfig, generators: PoolSize, idle: float = _IDLE_S) -> None:
        from actors.searches import search_runner
        from framegrove.digits.oracle import DigitsOracle

        self._runner = search_runner(source, panel, generators=generators)
        self._oracle = DigitsOracle()
        self._made: dict[str, asyncio.Task[Video]] = {}
        self._real: dict[tuple[str, int], float] = {}  # travel in real clips, by prompt and units
        self._idle, self._asked = idle, time.monotonic()
        self._watch: asyncio.Task[None] | None = None

    async def ready(self, *, judging: bool) -> None:
        """Once the actors are up. Raises NoRoom where there is none for them."""
        await self._runner.start(judging=judging)
        self._asked = time.monotonic()  # starting may take longer than it may be idle
        self._watch = self._watch or asyncio.create_task(self._end_when_idle())

    async def video(self, wanted: Wanted) -> Video:
        """Make and measure a video. One that was asked for before, even by a trial that is gone, is not made again."""
        task = self._made.get(wanted.key)
        if task is None:
            task = self._made[wanted.key] = asyncio.create_task(self._make(wanted))
        try:
            return await asyncio.shield(task)
        except Exception:
            self._made.pop(wanted.key, None)  # for the next one to try
            raise
        finally:
            self._asked = time.monotonic()

    def _left(self) -> float:
        """Seconds until it has been idle for long enough."""
        busy = any(not task.done() for task in self._made.values())
        return self._idle if busy else self._asked + self._idle - time.monotonic()

    async def close(self) -> None:
        """End generators and verifiers."""
        await self._runner.close()

    async def _make(self, wanted: Wanted) -> Video:
        record = await self._runner.searching(wanted.search).search(wanted.request)
        return await asyncio.to_thread(self._measure, wanted, record)

    def _measure(self, wanted: Wanted, record: SearchRecord) -> Video:
        from framegrove.digits import travel, world
        from framegrove.evaluation.report import lost

        request, outcome = wanted.request, record.outcome
        objects = world.parse(request.prompt)
        assert objects is not None, "checked when the study began"
        key = request.prompt, request.units
        if key not in self._real:
            self._real[key] = travel.real_travel(objects, request.units)
        return video_of(
            wanted.prompt,
            request.prompt,
            (self._oracle.judge(record.frames, objects), record.frames, objects, self._real[key]),
            sampling=outcome.sampling.certain.flops,
            decoding=outcome.sampling.certain.decoding,
            judging=outcome.scoring.certain.all_flops,
            wasted=(lost(outcome.sampling) + lost(outcome.scoring)).all_flops,
            seconds=outcome.seconds,
        )

    async def _end_when_idle(self) -> None:
        while (left := self._left()) > 0:  # noqa: ASYNC110 - what is waited for is that nothing happens
            await asyncio.sleep(left)
        await self._runner.close()
        os._exit(0)  # an actor that belongs to no process has nobody else to end it


def video_of(prompt: int, text: str, read: tuple[Any, Any, tuple[DigitObject, ...], float], **costs: float) -> Video:
    """A video's row, from what was ``read``: the oracle's verdict, the frames, what was asked for, travel when real."""
    from framegrove.digits import travel
    from framegrove.evaluation.study_results import Video

    verdict, frames, objects, real = read
    moved = travel.travel_of(frames, objects, verdict).pixels_per_frame
    figures = {name: float(value) for name, value in costs.items()}
    return Video(
        prompt=prompt,
        text=text,
        score=float(verdict.score),
        right=bool(verdict.fully_right),
        motion=travel.motion_kept(moved, real),
        travel=float(moved),
        **figures,
    )


def prompts_of(given: int | tuple[str, ...], seed: int) -> tuple[str, ...]:
    """The prompts of a study. Raises UserError for one that the oracle cannot read."""
    from framegrove.digits import world

    if isinstance(given, int):
        return tuple(world.caption(objects) for objects in world.prompts(given, seed))
    for text in given:
        if world.parse(text) is None:
            raise UserError(
                f'the oracle cannot judge the prompt {text[:60]!r}: it reads those like "a red 3 moves left and '
                'right", perhaps two joined by "and"'
            )
    return given


@contextlib.contextmanager
def pool_of(
    out: Path,
    facts: Mapping[str, Any],
    source: ModelSource,
    panel: PanelConfig,
    generators: PoolSize,
    cluster: Cluster,
    *,
    judging: bool,
) -> Iterator[Any]:
    """The pool of the study in ``out``, one that an earlier command has left if it is there; it ends with the block.

    Raises NoRoom, at once where the cluster could never hold it.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    from framegrove.cluster.placement import Role, bundle, require

    told = json.dumps([str(out), facts, str(generators), judging], sort_keys=True)
    name = f"study-{hashlib.blake2b(told.encode(), digest_size=8).hexdigest()}"
    if not _is_up(name):
        verifiers = sum(each.actors.least for each in panel.verifiers) if judging else 0
        wanted = [bundle(Role.GENERATE)] * generators.least + [bundle(Role.VERIFY)] * verifiers
        require(cluster, wanted, purpose=f"a study with {generators.least} generators and {verifiers} verifiers")
    options = {"name": name, "namespace": _NAMESPACE, "lifetime": "detached", "get_if_exists": True}
    actor: Any = ray.remote(StudyPool).options(num_cpus=0, max_concurrency=1000, **options)
    pool = actor.remote(source, panel, generators)
    try:
        try:
            ray.get(pool.ready.remote(judging=judging))
        except RayTaskError as error:
            cause: object = error.cause
            if isinstance(cause, UserError):
                raise cause from None
            raise
        yield pool
    finally:
        with contextlib.suppress(RayError):
            ray.get(pool.close.remote())
        ray.kill(pool)


def _is_up(name: str) -> bool:
    import ray

    try:
        ray.get_actor(name, namespace=_NAMESPACE)
    except ValueError:
        return False
    return True
