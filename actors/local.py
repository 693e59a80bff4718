"""Workers of a search in this process, over a cache of branches: the clients a conductor knows, and what they host.

What is in the cache is not computed again, and what is missing is computed by the very classes that are actors
elsewhere, and kept. They are loaded when something is missing for the first time; a search whose branches are all there
needs no model.

Two clocks. A conductor sees the one of its event loop, which is meant to be virtual (evaluation.virtual_time): a work
takes as long as its counted FLOPs take at a constant rate, whether it came from the cache or not. So makespan, overlap
and speculation of any number of workers come out of one process, the same each time. Real work is done at once while
the loop stands still: when a work is due, together with others that are under way, if that is wanted; otherwise one
that is cancelled before its time is up is not computed at all.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeVar

from actors.clients import spent
from actors.generator import Context, Generator, Job, Made, State, TextRead, Unit
from framegrove.config.verifier import VerifierConfig
from framegrove.evaluation.branch_cache import Frames, Ground
from framegrove.flow.cost import SamplingCosts
from framegrove.flow.sampler import StageLatent
from framegrove.search.protocols import WorkCancelled
from framegrove.search.tree import Latent
from framegrove.types import Assessment, Cost, Path, Sampled, SampleWork, Scored, ScoreWork, prefixes

Answer = TypeVar("Answer")
Place = tuple[int, Latent]
"""A branch's newest unit: the number of its ground, and which it is there."""

_MOST_STATES = 2**30  # bytes of decoder states that are remembered
_WHOLE = Latent((), 0)  # stands for no branch in particular
_PRICES = "prices"


@dataclass(frozen=True)
class Speeds:
    """How fast virtual workers are: a generator's FLOPs a second, and how many times as many a verifier does."""

    generator: float = 2e10  # about what one CPU core does with the shipped model
    verifier: float = 1.0

    def sampling(self, cost: Cost) -> float:
        """Seconds that a generator takes for a work, decoding included."""
        return (cost.flops + cost.decoding) / self.generator

    def judging(self, cost: Cost) -> float:
        """Seconds that a verifier takes for a work: none where no model is asked."""
        return cost.flops / (self.generator * self.verifier)


USUAL_SPEEDS = Speeds()


@dataclass(frozen=True, eq=False)
class LocalUnit:
    """A branch's newest unit: where it stands in the cache."""

    ground: Ground
    branch: Latent

    @property
    def latent(self) -> StageLatent:
        """As it was sampled."""
        return StageLatent(self.branch.stage, self.ground.latent(self.branch))

    @property
    def frames(self) -> Frames:
        """uint8 (T, H, W, 3); of a draft its preview."""
        return self.ground.frames(self.branch)


@dataclass(frozen=True, eq=False)
class Order:
    """A work of one search, and what it builds on."""

    ground: Ground
    context: Context
    work: SampleWork
    parents: Mapping[Path, LocalUnit]

    def branches(self) -> list[Latent]:
        """What it makes, path by path."""
        return [Latent(path, self.work.last_stage) for path in self.work.paths]

    def without(self, known: Collection[Place]) -> Order | None:
        """What of it is neither in the cache nor ``known``, None if nothing is left."""
        missing = tuple(
            branch.path
            for branch in self.branches()
            if (self.ground.number, branch) not in known and not self.ground.has(branch)
        )
        return replace(self, work=replace(self.work, paths=missing)) if missing else None


class HostedGenerator:
    """A generator in this process, which ``make`` loads when something is missing for the first time.

    The works of all searches that go on, on the same virtual clock, are told it when they begin (``begin``). Once one
    of them is due, up to ``pack`` of those that are under way are sampled together, as they will be asked for soon.
    """

    def __init__(self, make: Callable[[], Generator], pack: int = 1) -> None:
        self._make, self._pack = make, pack
        self._loaded: Generator | None = None
        self._under_way: dict[Order, None] = {}
        self._states = _States()

    def read(self, ground: Ground, context: Context, asked: str) -> TextRead:
        """How the model reads the prompt (Generator.read)."""
        if ground.note is None:
            ground.note = asdict(self._generator.read(context, asked))
        return TextRead(**ground.note)

    def given(self, ground: Ground, context: Context, image: bytes, last_stage: int) -> LocalUnit:
        """A given first frame as unit 0 (Generator.given)."""
        branch = Latent((0,), last_stage)
        if not ground.has(branch):
            self._keep(ground, {branch: self._generator.given(context, image)})
        return LocalUnit(ground, branch)

    def begin(self, order: Order) -> None:
        """A work is under way, and will be due."""
        self._under_way[order] = None

    def stop(self, order: Order) -> None:
        """A work is not under way any more."""
        self._under_way.pop(order, None)

    def sample(self, order: Order) -> tuple[LocalUnit, ...]:
        """The units that a work makes, which is due; those of its paths that are missing are sampled in step."""
        if order.without(()) is not None:
            self._sample([order, *(other for other in self._under_way if other is not order)])
        return tuple(LocalUnit(order.ground, branch) for branch in order.branches())

    def _sample(self, orders: Sequence[Order]) -> None:
        """Sample what is missing of the first few works of which something is."""
        needed: list[Order] = []
        known: set[Place] = set()
        for order in orders:
            if len(needed) < self._pack and (rest := order.without(known)) is not None:
                needed.append(rest)
                known.update((rest.ground.number, branch) for branch in rest.branches())
        done = self._generator.sample_together([self._job(order) for order in needed])
        for order, each in zip(needed, done, strict=True):
            self._keep(order.ground, dict(zip(order.branches(), each.units, strict=True)))

    def _job(self, order: Order) -> Job:
        work = order.work
        history = [order.parents[prefix] for prefix in prefixes(work.paths[0][:-1])]
        starts = [order.parents[path] for path in work.paths] if work.first_stage > 0 else []
        state = self._states.get((history[-1].ground.number, history[-1].branch)) if history else None
        before, begun = (tuple(unit.latent for unit in units) for units in (history, starts))
        return Job(0, work, order.context, before, begun, state)

    def _keep(self, ground: Ground, units: Mapping[Latent, Unit]) -> None:
        ground.keep({branch: (unit.latent.x, unit.frames) for branch, unit in units.items()})
        for branch, unit in units.items():
            if unit.state is not None:
                self._states.keep((ground.number, branch), unit.state)

    @property
    def _generator(self) -> Generator:
        if self._loaded is None:
            self._loaded = self._make()
        return self._loaded


class _States:
    """The decoder's states after the units that were needed last, as far as they fit into a gibibyte.

    One that is gone is made again from the latents, which takes as long as decoding the video up to there.
    """

    def __init__(self) -> None:
        self._states: OrderedDict[Place, State] = OrderedDict()
        self._bytes = 0

    def get(self, place: Place) -> State | None:
        if place in self._states:
            self._states.move_to_end(place)
        return self._states.get(place)

    def keep(self, place: Place, state: State) -> None:
        self._bytes += _size(state) - _size(self._states.get(place, []))
        self._states[place] = state
        self._states.move_to_end(place)
        while self._bytes > _MOST_STATES and len(self._states) > 1:
            self._bytes -= _size(self._states.popitem(last=False)[1])


def _size(state: State) -> int:
    return sum(part.nbytes for part in state)


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
        self._asked: dict[tuple[int, Latent, Assessment], _Asked] = {}
        self._thread: _LoopThread | None = None
        self._started: Any = None

    async def score(self, work: ScoreWork, prompt: str, units: Sequence[LocalUnit]) -> Scored:
        """What the verifier says of a branch, given its units, oldest first. Raises as the verifier does.

        What is asked by several at the same moment is answered together.
        """
        newest = units[-1]
        said = newest.ground.verdict(newest.branch, self._judge, work.assessment)
        if said is not None:
            return _scored(work, said)
        asked = newest.ground.number, newest.branch, work.assessment
        if asked not in self._asked:
            loop = asyncio.get_running_loop()
            if not self._asked:
                loop.call_soon(loop.call_soon, self._answer)  # once all that is ready now has been done
            self._asked[asked] = _Asked(loop.create_future(), work, prompt, units)
        scored = await asyncio.shield(self._asked[asked].answer)  # others may wait for it too
        return replace(scored, work=work)

    def prices(
        self, ground: Ground, prompt: str, units: int, height: int, width: int
    ) -> Mapping[Assessment, Sequence[int]]:
        """FLOPs of judging a branch, by assessment and depth; ``ground`` is where the answer is kept."""
        said = ground.verdict(_WHOLE, self._judge, _PRICES)
        if said is None:
            said = self._call(lambda verifier: verifier.price(prompt, units, height, width))
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
        """Have everything answered that has been asked, and keep what was said."""
        asked, self._asked = list(self._asked.values()), {}
        clips = [[unit.frames for unit in each.units] for each in asked]  # read here: a cache has one thread

        async def together(verifier: Any) -> list[Scored | BaseException]:
            questions = (verifier.score(a.work, a.prompt, *clip) for a, clip in zip(asked, clips, strict=True))
            return await asyncio.gather(*questions, return_exceptions=True)

        try:
            answers = self._call(together)
        except Exception as error:  # noqa: BLE001  # it could not be started: everybody is told
            answers = [error] * len(asked)
        for each, answer in zip(asked, answers, strict=True):
            if isinstance(answer, BaseException):
                each.answer.set_exception(answer)
            else:
                newest = each.units[-1]
                newest.ground.keep_verdict(newest.branch, self._judge, each.work.assessment, _said(answer))
                each.answer.set_result(answer)

    def _call(self, method: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
        """Ask the verifier, which is started for it if need be."""
        if self._thread is None:
            self._thread = _LoopThread()
        if self._started is None:
            self._started = self._worker(self._config)
            self._thread.call(self._started.ready())
        return self._thread.call(method(self._started))


class LocalGenerator:
    """A virtual generator that samples for one request (search.protocols.GeneratorClient). Handles are LocalUnits."""

    def __init__(
        self, host: HostedGenerator, ground: Ground, context: Context, costs: SamplingCosts, speeds: Speeds
    ) -> None:
        self._host, self._ground, self._context = host, ground, context
        self._costs, self._speeds = costs, speeds
        self._running: dict[SampleWork, _Pass] = {}

    async def sample(self, work: SampleWork, parents: Mapping[Path, LocalUnit]) -> Sampled:
        """Take the time of a work, and do what of it is missing. Raises as the protocol says."""
        running = self._running[work] = _Pass(work, self._costs, self._speeds)
        order = Order(self._ground, self._context, work, parents)
        self._host.begin(order)
        try:
            made = await running.made
            cost = spent(self._costs, work, made)
            if not made.whole:
                raise WorkCancelled(cost)
            return Sampled(work, cost, self._host.sample(order))
        finally:
            self._host.stop(order)
            running.timer.cancel()
            del self._running[work]

    def cancel(self, work: SampleWork) -> None:
        """Stop the work at its next denoising step."""
        if work in self._running:
            self._running[work].stop()

    async def recover(self) -> None:
        """Never needed: nothing here dies alone."""


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
        scored = await self._host.score(work, self._prompt, [units[prefix] for prefix in prefixes(work.path)])
        seconds = self._speeds.judging(scored.cost)
        now = asyncio.get_running_loop().time()
        self._desk.busy_until = max(now, self._desk.busy_until) + seconds
        await asyncio.sleep(self._desk.busy_until - now)
        return replace(scored, cost=replace(scored.cost, seconds=seconds))

    async def recover(self) -> None:
        """Never needed: nothing here dies alone."""


class _Pass:
    """A sample work while its time passes: ``made`` is there when it is up, or at the step at which it was stopped."""

    def __init__(self, work: SampleWork, costs: SamplingCosts, speeds: Speeds) -> None:
        self._work, self._costs, self._speeds = work, costs, speeds
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._whole = self._cost(None)
        self._steps = self._whole.nfe // len(work.paths)
        self.made: asyncio.Future[Made] = self._loop.create_future()
        self.timer = self._after(self._steps, self._whole)

    def stop(self) -> None:
        """End with the step under way, unless it was the last."""
        passed = self._loop.time() - self._began
        for steps in range(self._steps):
            cost = self._cost(steps)
            if self._speeds.sampling(cost) >= passed:
                self.timer.cancel()
                self.timer = self._after(steps, cost)
                return

    def _after(self, steps: int, cost: Cost) -> asyncio.TimerHandle:
        ends = self._began + self._speeds.sampling(cost)
        made = Made(steps, self._began, ends, whole=cost == self._whole)
        return self._loop.call_at(ends, self._end, made)

    def _end(self, made: Made) -> None:
        if not self.made.done():
            self.made.set_result(made)

    def _cost(self, steps: int | None) -> Cost:
        work = self._work
        return self._costs.unit(work.depth, range(work.first_stage, work.last_stage + 1), len(work.paths), steps)


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
