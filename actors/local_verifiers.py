"""Verifiers of a search in this process, over a cache of verdicts: the clients a conductor knows, and their host.

As with generators (local_generators.py), what was said before is not asked again, a verifier is started when a verdict
is missing, and virtual time passes as if it had been asked.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeVar

from actors.local_generators import LocalUnit, Speeds
from framegrove.config.verifier import VerifierConfig
from framegrove.evaluation.branch_cache import Ground
from framegrove.search.tree import Latent
from framegrove.types import Assessment, Cost, Path, Scored, ScoreWork

Answer = TypeVar("Answer")

_WHOLE = Latent((), 0)  # stands for no branch in particular
_PRICES = "prices"


@dataclass(frozen=True, eq=False)
class _Asked:
    """What a verifier is asked, and where the answer will be."""

    answer: asyncio.Future[Scored]
    work: ScoreWork
    prompt: str
    units: Sequence[LocalUnit]


class HostedVerifier:
    """A verifier in this process, of class ``worker``, started when a verdict is missing for the first time.

    ``judge`` is its number in the cache. It lives on an event loop of its own, in a thread of its own: an engine needs
    a clock that runs.
    """

    def __init__(self, config: VerifierConfig, worker: Callable[[VerifierConfig], Any], judge: int) -> None:
        self._config, self._worker, self._judge = config, worker, judge
        self._asked: dict[tuple[int, Latent, str], _Asked] = {}
        self._thread: _LoopThread | None = None
        self._started: Any = None

    async def score(self, work: ScoreWork, prompt: str, units: Sequence[LocalUnit]) -> Scored:
        """What the verifier says of a branch, given the units that it is shown (``work.shown``). Raises as it does.

        What is asked by several at the same moment is answered together.
        """
        newest, question = units[len(work.path) - 1], _question(work)
        said = newest.ground.verdict(newest.branch, self._judge, question)
        if said is not None:
            return _scored(work, said)
        asked = newest.ground.number, newest.branch, question
        if asked not in self._asked:
            loop = asyncio.get_running_loop()
            if not self._asked:
                loop.call_soon(loop.call_soon, self._answer)  # once all that is ready now has been done
            self._asked[asked] = _Asked(loop.create_future(), work, prompt, units)
        scored = await asyncio.shield(self._asked[asked].answer)  # others may wait for it too
        return replace(scored, work=work)

    def prices(
        self, ground: Ground, prompt: str, lengths: Sequence[int], height: int, width: int
    ) -> Mapping[Assessment, Sequence[int]]:
        """FLOPs of judging a branch, by assessment and depth; ``ground`` is where the answer is kept."""
        said = ground.verdict(_WHOLE, self._judge, _PRICES)
        if said is None:
            said = self._call(lambda verifier: verifier.price(prompt, lengths, height, width))
            ground.keep_verdict(_WHOLE, self._judge, _PRICES, said)
        return {Assessment(name): tuple(by_depth) for name, by_depth in said.items()}

    def close(self) -> None:
        """Stop what was started."""
        if self._thread is not None:
            self._thread.call(_wound_up())  # an engine complains if somebody still listens when it ends
        if self._started is not None:
            self._started.close()
            self._started = None
        if self._thread is not None:
            self._thread.close()
            self._thread = None
            gc.collect()  # an engine that is left to the end of the process finds half of Python gone

    def _answer(self) -> None:
        """Have all that has been asked answered, and keep what was said; nobody is left waiting, whatever fails."""
        asked, self._asked = list(self._asked.values()), {}
        try:
            for each, answer in zip(asked, self._answers(asked), strict=True):
                if isinstance(answer, BaseException):
                    each.answer.set_exception(answer)
                else:
                    newest = each.units[len(each.work.path) - 1]
                    newest.ground.keep_verdict(newest.branch, self._judge, _question(each.work), _said(answer))
                    each.answer.set_result(answer)
        except Exception as error:  # noqa: BLE001  # it could not be started, frames not read, or an answer not kept
            for each in asked:
                if not each.answer.done():
                    each.answer.set_exception(error)

    def _answers(self, asked: Sequence[_Asked]) -> list[Scored | BaseException]:
        reads = self._config.reads
        clips = [[getattr(unit, reads) for unit in each.units] for each in asked]  # here: a cache has one thread

        async def together(verifier: Any) -> list[Scored | BaseException]:
            questions = (verifier.score(a.work, a.prompt, *clip) for a, clip in zip(asked, clips, strict=True))
            return await asyncio.gather(*questions, return_exceptions=True)

        answers: list[Scored | BaseException] = self._call(together)
        return answers

    def _call(self, method: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
        """Ask the verifier, which is started for it if need be."""
        if self._thread is None:
            self._thread = _LoopThread()
        if self._started is None:
            self._started = self._worker(self._config)
            self._thread.call(self._started.ready())
        return self._thread.call(method(self._started))


@dataclass
class Desk:
    """Where one virtual verifier works, for whichever search: until when it is busy, on the event loop's clock."""

    busy_until: float = 0.0


class LocalVerifier:
    """A virtual verifier that judges for one prompt, one branch after the other (search.protocols.VerifierClient)."""

    def __init__(self, host: HostedVerifier, prompt: str, speeds: Speeds, desk: Desk) -> None:
        self._host, self._prompt, self._speeds, self._desk = host, prompt, speeds, desk

    async def score(self, work: ScoreWork, units: Mapping[Path, LocalUnit]) -> Scored:
        """Score a branch, after those that it was asked about before."""
        scored = await self._host.score(work, self._prompt, [units[path] for path in work.shown])
        seconds = self._speeds.judging(scored.cost)
        now = asyncio.get_running_loop().time()
        self._desk.busy_until = max(now, self._desk.busy_until) + seconds
        await asyncio.sleep(self._desk.busy_until - now)
        return replace(scored, cost=replace(scored.cost, seconds=seconds))

    async def recover(self) -> None:
        """Never needed: nothing here dies alone."""


class _LoopThread:
    """An event loop in a thread of its own, for those who cannot await."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="verifier", daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, Answer]) -> Answer:
        """Run a coroutine to its end there. Raises what it raises."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def close(self) -> None:
        """Stop the loop; what still runs on it is cancelled."""
        self.call(_wound_up())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _wound_up() -> None:
    """Cancel everything else on this event loop, and wait until it has ended."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _question(work: ScoreWork) -> str:
    """What a verifier is asked about a branch, as a cache keeps it."""
    others = ",".join("-".join(map(str, path)) for path in work.against)
    return f"{work.assessment} against {others}" if others else str(work.assessment)


def _said(scored: Scored) -> dict[str, Any]:
    """Everything of a verdict but what it was asked of, as JSON values."""
    said = asdict(scored)
    del said["work"]
    return said


def _scored(work: ScoreWork, said: Mapping[str, Any]) -> Scored:
    """The inverse of ``_said``. What a verdict did not tell when it was kept is left at its default."""
    known = {field.name for field in fields(Scored)} & said.keys()
    return Scored(work, **{name: _frozen(said[name]) for name in known - {"cost"}}, cost=Cost(**said["cost"]))


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
