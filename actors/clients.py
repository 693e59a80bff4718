"""Ray's side of a search: generator and verifier actors as the clients that a conductor knows.

What generators return stays in Ray's object store, owned by the process that runs the search; a handle names it. So
nothing that is finished dies with the actor that computed it. It can be lost with a machine, and is computed again.
"""

from __future__ import annotations

import asyncio
import itertools
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import ObjectLostError, RayTaskError

from actors.generator import Made
from actors.model_files import Costs
from framegrove.cluster.errors import ActorLost, CrashLoop
from framegrove.cluster.supervise import ActorGroup, Limit
from framegrove.config.search import SearchConfig
from framegrove.evaluation.report import SearchRecord, Shown
from framegrove.flow.sampler import StageLatent
from framegrove.search.protocols import UnitsLost, WorkCancelled, WorkFailed
from framegrove.types import Cost, Path, Sampled, SampleWork, Scored, ScoreWork, prefixes

Answer = TypeVar("Answer")
Decode = Callable[[Mapping[Path, Any]], Awaitable[None]]
"""Gives frames to those units of a branch, oldest first, that have none."""

_DEFAULTS = SearchConfig()
_numbers = itertools.count(1)  # names works to actors, which serve many searches


async def nothing_to_decode(units: Mapping[Path, Any]) -> None:
    """All units of a branch have frames already."""


@dataclass(eq=False)
class UnitRef:
    """A branch's newest unit in the object store: references to its latent, frames and decoder state (Unit).

    ``frames`` is None of a unit that was left as a latent, until it is decoded.

    ``small`` are the frames that are kept of a branch that is dropped, None where its frames are no larger. ``state``
    is None where it is not kept; a generator can compute it again. States are by far the largest of these
    (2 GB at 384p), so each is released as soon as the branch's children have been sampled, except for that of a
    ``given`` unit, from which many works start. Of a branch that is dropped, only what pictures of the tree need is
    kept: a search of thousands of branches must fit in memory.
    """

    stage: int
    latent: Any
    frames: Any
    state: Any
    small: Any = None
    given: bool = False
    reduced: bool = False

    def decoded(self, frames: Any, small: Any) -> None:
        """There are frames of what was left as a latent: the same ones, whoever has decoded it."""
        if self.frames is None:
            self.frames, self.small = frames, small

    def let_go(self) -> None:
        """Release the decoder's state."""
        if not self.given:
            self.state = None

    def drop(self) -> None:
        """Release all but the frames, and of those all but the small ones."""
        if self.given:
            return
        self.state = self.latent = None
        if self.small is not None:
            self.frames, self.small, self.reduced = self.small, None, True


class KeptStates:
    """The decoder states that all searches of a pool keep, at most ``most`` bytes in all.

    One that is gone is made again by the generator that needs it, which takes as long as decoding the video up to
    there, and changes nothing; so the state after the shortest video goes first, of equals the newest: breadth first,
    the older ones are needed sooner. Without a limit a wide search would fill the store and then the disks.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: dict[tuple[int, int], tuple[weakref.ref[UnitRef], int]] = {}  # by units, and minus their number
        self._numbers = itertools.count()
        self._bytes = 0

    def add(self, unit: UnitRef, units: int, size: int) -> None:
        """The last of so many units has come with a state of so many bytes."""
        self._kept[units, -next(self._numbers)] = weakref.ref(unit), size
        self._bytes += size
        if self._bytes > self._most:
            self._forget_released()
        while self._bytes > self._most and self._kept:
            cheapest, freed = self._kept.pop(min(self._kept))
            self._bytes -= freed
            if (released := cheapest()) is not None:
                released.let_go()

    def _forget_released(self) -> None:
        """Those that were released for other reasons take no room."""
        for key, (unit, size) in list(self._kept.items()):
            if (kept := unit()) is None or kept.state is None:
                del self._kept[key]
                self._bytes -= size


class Told(Protocol):
    """What an actor is told of a request, as its clients see it: actors.generator.Context, for one."""

    @property
    def are_frames_large(self) -> bool:
        """Whether frames come in a small size, too."""
        ...


class RemoteGenerator:
    """One generator actor of a group, sampling for one request (search.protocols.GeneratorClient)."""

    def __init__(
        self,
        group: ActorGroup,
        index: int,
        context: Told,
        costs: Costs,
        states: KeptStates,
        config: SearchConfig = _DEFAULTS,
    ) -> None:
        self._group = group
        self._index = index
        self._config = config
        self._context = context
        self._costs = costs
        self._states = states
        self._running: dict[SampleWork, int] = {}

    async def sample(self, work: SampleWork, parents: Mapping[Path, UnitRef]) -> Sampled:
        """Sample a work on the actor; handles are UnitRefs. Raises as the protocol says."""
        history = [parents[prefix] for prefix in prefixes(work.paths[0][:-1])]
        starts = [parents[path] for path in work.paths] if work.first_stage > 0 else []
        left = self._costs.left
        decoded, late = not left.has_work(work), left.before_work(work)
        before = history[late.start - 1] if decoded and late.start > 0 else None
        number = self._running[work] = next(_numbers)
        refs: list[Any] = []

        def submit(actor: Any) -> Any:
            refs[:] = actor.sample.options(num_returns=1 + 4 * len(work.paths) + 2 * len(late)).remote(
                number,
                work,
                self._context,
                len(history),
                before.state if before else None,
                *(ref.latent for ref in (*history, *starts)),
            )
            return refs[0]

        try:
            made: Made = await ask(self._group, self._index, submit, Limit(self._config.sample_limit, "sampling"))
        except ObjectLostError as error:
            raise _gone(error, parents) from error
        except asyncio.CancelledError:
            self.cancel(work)
            raise
        finally:
            del self._running[work]
        cost = spent(self._costs, work, made)
        if not made.whole:
            raise WorkCancelled(cost)
        large = self._context.are_frames_large
        own, others = refs[1 : 1 + 4 * len(work.paths)], refs[1 + 4 * len(work.paths) :]
        units = tuple(
            UnitRef(work.last_stage, latent, frames, state, small if large else None)
            if decoded
            else UnitRef(work.last_stage, latent, None, None)
            for latent, frames, state, small in zip(own[::4], own[1::4], own[2::4], own[3::4], strict=True)
        )
        for number, frames, small in zip(late, others[::2], others[1::2], strict=True):
            history[number].decoded(frames, small if large else None)
        if before and not late:
            before.let_go()
        if made.state_bytes:
            for unit in units:
                self._states.add(unit, work.depth + 1, made.state_bytes)
        return Sampled(work, cost, units)

    def cancel(self, work: SampleWork) -> None:
        """Ask the actor to give the work up at its next step."""
        actor = self._group.actor(self._index)
        if work in self._running and actor is not None:
            actor.cancel.remote(self._running[work])

    async def recover(self) -> None:
        """Return once the actor's replacement has loaded its model."""
        await recovered(self._group, self._index, self._config)


def spent(costs: Costs, work: SampleWork, made: Made) -> Cost:
    """What a work has cost, whole or given up on the way."""
    cost = costs.unit(work.depth, range(work.first_stage, work.last_stage + 1), len(work.paths), made.steps)
    return replace(cost, seconds=made.ended - made.started)


class RemoteVerifier:
    """One actor of a verifier, judging videos made for one prompt (search.protocols.VerifierClient).

    ``reads`` says what of each unit it is shown (VerifierConfig.reads). Should there be no frames where it is shown
    frames, since those that there were went with a machine, its units are ``decode``d again.
    """

    def __init__(
        self,
        group: ActorGroup,
        index: int,
        prompt: str,
        config: SearchConfig = _DEFAULTS,
        reads: Literal["frames", "latent"] = "frames",
        decode: Decode = nothing_to_decode,
    ) -> None:
        self._group = group
        self._index = index
        self._prompt = prompt
        self._config = config
        self._reads = reads
        self._decode = decode

    async def score(self, work: ScoreWork, units: Mapping[Path, UnitRef]) -> Scored:
        """Score a branch. Raises as the protocol says."""
        limit = Limit(self._config.score_limit, "scoring")
        try:
            if self._reads == "frames":
                for branch in (work.path, *work.against):
                    await self._decode({path: units[path] for path in prefixes(branch)})
            clip = [getattr(units[path], self._reads) for path in work.shown]
            answer: Scored = await ask(
                self._group, self._index, lambda actor: actor.score.remote(work, self._prompt, *clip), limit
            )
        except ObjectLostError as error:
            raise _gone(error, units) from error
        return answer

    async def recover(self) -> None:
        """Return once the actor's replacement can score."""
        await recovered(self._group, self._index, self._config)


async def ask(
    group: ActorGroup, index: int, method: Callable[[ActorHandle[Any]], Awaitable[Answer]], limit: Limit
) -> Answer:
    """Call an actor of a group.

    Raises WorkFailed when it dies or does not answer in time, ObjectLostError when an argument is gone, and what the
    method raised as itself.
    """
    try:
        answer: Answer = await group.call(index, method, limit=limit)
    except (ActorLost, CrashLoop) as error:
        raise WorkFailed(str(error)) from error
    except RayTaskError as error:
        raise error.cause from None
    return answer


async def recovered(group: ActorGroup, index: int, config: SearchConfig = _DEFAULTS) -> None:
    """Return once an actor answers again; raise WorkFailed when its group has given it up."""
    limit = Limit(config.start_limit, "starting")
    while True:
        try:
            await group.call(index, lambda actor: actor.ready.remote(), counts=False, limit=limit)
        except ActorLost:
            continue
        except CrashLoop as error:
            raise WorkFailed(str(error)) from error
        except RayTaskError as error:  # the actor is well, and says why it cannot be used
            raise error.cause from None
        return


async def by_one_of(
    calls: Iterable[tuple[Callable[[], Awaitable[Answer]], Callable[[], Awaitable[None]]]],
) -> Answer:
    """The answer of the first worker that is not given up. Raises WorkFailed if all are."""
    failed: WorkFailed | None = None
    for attempt, recover in calls:
        try:
            return await _until_it_works(attempt, recover)
        except WorkFailed as failure:
            failed = failed or failure  # the others may merely not be there
    raise failed or AssertionError("there are no workers")


async def _until_it_works(attempt: Callable[[], Awaitable[Answer]], recover: Callable[[], Awaitable[None]]) -> Answer:
    while True:
        try:
            return await attempt()
        except WorkFailed:
            await recover()


class ObjectStore:
    """Units in Ray's object store (pools.Units)."""

    async def shown(self, units: Mapping[Path, UnitRef], last_stage: int) -> dict[Path, Shown]:
        """What the branches look like, except for those that are lost; white of what was left as a latent."""
        frames = await frames_of({path: unit for path, unit in units.items() if unit.frames is not None})
        shapes = {len(path): pixels.shape for path, pixels in frames.items() if not units[path].reduced}
        blank = {
            path: Shown(np.broadcast_to(np.uint8(255), shapes[len(path)]), blank=True)
            for path, unit in units.items()
            if unit.frames is None and len(path) in shapes
        }
        return blank | {
            path: Shown(pixels, draft=units[path].stage < last_stage, small=units[path].reduced)
            for path, pixels in frames.items()
        }

    async def lost(self, units: Mapping[Path, UnitRef]) -> list[Path]:
        """The branches whose newest frames are gone, or latents where there are no frames yet."""
        return await lost_of(units)

    async def latent(self, unit: UnitRef) -> StageLatent:
        """A unit's latent."""
        latent: StageLatent = await unit.latent
        return latent

    def drop(self, unit: UnitRef) -> None:
        """Release what only those would need who sample on top of it, and large frames."""
        unit.drop()

    def again(self, record: SearchRecord, path: Path) -> UnitRef:
        """A handle for what a record shows of a branch, whatever has become of the search's own."""
        return UnitRef(0, record.outcome.handles[path].latent, ray.put(record.shown[path].frames), None)


async def lost_of(units: Mapping[Path, UnitRef]) -> list[Path]:
    """The branches whose newest frames are gone with the machine that held them. Fetches the others.

    Of a unit that was left as a latent it is the latent that counts.
    """
    held = [unit.latent if unit.frames is None else unit.frames for unit in units.values()]
    there = await asyncio.gather(*map(_value, held))
    return [path for path, found in zip(units, there, strict=True) if found is None]


async def frames_of(units: Mapping[Path, UnitRef]) -> dict[Path, Any]:
    """The frames of the branches' newest units, uint8 (T, H, W, 3), except for those that are lost."""
    frames = await asyncio.gather(*(_value(unit.frames) for unit in units.values()))
    return {path: found for path, found in zip(units, frames, strict=True) if found is not None}


async def _value(ref: Any) -> Any:
    """What a reference stands for, None if it is lost."""
    try:
        return await ref
    except ObjectLostError:
        return None


def _gone(error: ObjectLostError, units: Mapping[Path, UnitRef]) -> Exception:
    """Which of the units it is that Ray has lost."""
    parts = [(path, part) for path, unit in units.items() for part in vars(unit).values()]
    lost = {path for path, part in parts if isinstance(part, ObjectRef) and part.hex() == error.object_ref_hex}
    return UnitsLost(lost) if lost else WorkFailed(f"Ray lost {error.object_ref_hex}, which is none of the units")
