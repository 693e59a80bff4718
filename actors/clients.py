"""Ray's side of a search: generator and verifier actors as the clients that a conductor knows.

What generators return stays in Ray's object store, owned by the process that runs the search; a handle names it. So
nothing that is finished dies with the actor that made it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ray.actor import ActorHandle
from ray.exceptions import ObjectLostError, RayTaskError

from actors.generator import Made, Scene
from framegrove.cluster.errors import ActorLost, CrashLoop
from framegrove.cluster.supervise import ActorGroup
from framegrove.flow.cost import SamplingCosts
from framegrove.search.protocols import WorkCancelled, WorkFailed
from framegrove.types import Cost, Path, Sampled, SampleWork, Scored, ScoreWork
from framegrove.verification.rewriting import StagedPrompt

Answer = TypeVar("Answer")
_numbers = itertools.count(1)  # names works to actors, which serve many searches


@dataclass(eq=False)
class UnitRef:
    """A branch's newest unit in the object store: references to its latent, frames and decoder state (Unit).

    ``before`` is the branch's parent. ``state`` is None where nobody has it; a generator can make it again. States are
    by far the largest of these (2 GB at 384p), so each is let go as soon as the branch's children have been made; not
    that of a ``given`` unit, from which many works start.
    """

    stage: int
    latent: Any
    frames: Any
    state: Any
    before: UnitRef | None = None
    given: bool = False

    @property
    def clip(self) -> tuple[UnitRef, ...]:
        """The branch unit by unit, oldest first."""
        return (*(self.before.clip if self.before else ()), self)


class RemoteGenerator:
    """One generator actor of a group, sampling one scene (search.protocols.GeneratorClient)."""

    def __init__(self, group: ActorGroup, index: int, scene: Scene, costs: SamplingCosts) -> None:
        self._group, self._index = group, index
        self._scene, self._costs = scene, costs
        self._running: dict[SampleWork, int] = {}

    async def sample(self, work: SampleWork, parents: Mapping[Path, UnitRef]) -> Sampled:
        """Sample a work on the actor; handles are UnitRefs. Raises as the protocol says."""
        parent = work.paths[0][:-1]
        history = [parents[parent[: n + 1]] for n in range(len(parent))]
        starts = [parents[path] for path in work.paths] if work.first_stage > 0 else []
        before = history[-1] if history else None
        number = self._running[work] = next(_numbers)
        refs: list[Any] = []

        def submit(actor: Any) -> Any:
            refs[:] = actor.sample.options(num_returns=1 + 3 * len(work.paths)).remote(
                number,
                work,
                self._scene,
                len(history),
                before.state if before else None,
                *(ref.latent for ref in (*history, *starts)),
            )
            return refs[0]

        try:
            made: Made = await ask(self._group, self._index, submit)
        except asyncio.CancelledError:
            self.cancel(work)
            raise
        finally:
            del self._running[work]
        cost = spent(self._costs, work, made)
        if not made.whole:
            raise WorkCancelled(cost)
        parts = zip(refs[1::3], refs[2::3], refs[3::3], strict=True)
        units = tuple(UnitRef(work.last_stage, latent, frames, state, before) for latent, frames, state in parts)
        if before and not before.given:
            before.state = None
        return Sampled(work, cost, units)

    def cancel(self, work: SampleWork) -> None:
        """Ask the actor to give the work up at its next step."""
        if work in self._running:
            self._group.actors[self._index].cancel.remote(self._running[work])

    async def recover(self) -> None:
        """Return once the actor's replacement has loaded its model."""
        await recovered(self._group, self._index)


def spent(costs: SamplingCosts, work: SampleWork, made: Made) -> Cost:
    """What a work has cost, whole or given up on the way."""
    cost = costs.unit(work.depth, range(work.first_stage, work.last_stage + 1), len(work.paths), made.steps)
    return replace(cost, seconds=made.ended - made.started)


class RemoteVerifier:
    """One verifier actor of a group, judging videos made for one prompt (search.protocols.VerifierClient)."""

    def __init__(self, group: ActorGroup, index: int, prompt: StagedPrompt) -> None:
        self._group, self._index, self._prompt = group, index, prompt

    async def score(self, work: ScoreWork, handle: UnitRef) -> Scored:
        """Score a branch by the whole panel. Raises as the protocol says."""
        clip = [unit.frames for unit in handle.clip]
        answer: Scored = await ask(
            self._group, self._index, lambda actor: actor.score_units.remote(work, self._prompt, *clip)
        )
        return answer

    async def recover(self) -> None:
        """Return once the actor's replacement has started its engine."""
        await recovered(self._group, self._index)


async def ask(group: ActorGroup, index: int, method: Callable[[ActorHandle[Any]], Awaitable[Answer]]) -> Answer:
    """Call an actor of a group. Raises WorkFailed when it dies, and what the method raised as itself."""
    try:
        answer: Answer = await group.call(index, method)
    except (ActorLost, CrashLoop) as error:
        raise WorkFailed(str(error)) from error
    except RayTaskError as error:
        raise error.cause from None
    except ObjectLostError as error:
        raise WorkFailed("a machine that held finished units was lost") from error
    return answer


async def recovered(group: ActorGroup, index: int) -> None:
    """Return once an actor answers again; raise WorkFailed when its group has given it up."""
    while True:
        try:
            await group.call(index, lambda actor: actor.ready.remote(), counts=False)
        except ActorLost:
            continue
        except CrashLoop as error:
            raise WorkFailed(str(error)) from error
        return
