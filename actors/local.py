"""Workers of a search in this process, over a cache of branches: the clients a conductor knows, and what they host.

What is in the cache is not computed again, and what is missing is computed by the very classes that are actors
elsewhere, and kept. They are loaded when something is missing for the first time; a search whose branches are all there
needs no model.

Two clocks. A conductor sees the one of its event loop, which is meant to be virtual (evaluation.virtual_time): a work
takes as long as its counted FLOPs take at a constant rate, whether it came from the cache or not. So makespan, overlap
and speculation of any number of workers come out of one process, the same each time. Real work is done at once while
the loop stands still; a work that is cancelled before its time is up is not computed at all.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeVar

from torch import Tensor

from actors.clients import spent
from actors.generator import Context, Generator, Made, State, TextRead
from framegrove.config.verifier import VerifierConfig
from framegrove.evaluation.branch_cache import Frames, Ground
from framegrove.flow.cost import SamplingCosts
from framegrove.flow.sampler import StageLatent
from framegrove.search.protocols import WorkCancelled
from framegrove.search.tree import Latent
from framegrove.types import Assessment, Cost, Path, Sampled, SampleWork, Scored, ScoreWork, prefixes

Answer = TypeVar("Answer")

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


@dataclass(eq=False)
class LocalUnit:
    """A branch's newest unit: where it stands in the cache, and the decoder's state after it while it may be needed."""

    ground: Ground
    branch: Latent
    state: State | None = None
    given: bool = False

    @property
    def latent(self) -> StageLatent:
        """As it was sampled."""
        return StageLatent(self.branch.stage, self.ground.latent(self.branch))

    @property
    def frames(self) -> Frames:
        """uint8 (T, H, W, 3); of a draft its preview."""
        return self.ground.frames(self.branch)

    def let_go(self) -> None:
        """Release the decoder's state, unless many works start from it."""
        if not self.given:
            self.state = None


class HostedGenerator:
    """A generator in this process, which ``make`` loads when something is missing for the first time."""

    def __init__(self, make: Callable[[], Generator]) -> None:
        self._make = make
        self._loaded: Generator | None = None

    def read(self, ground: Ground, context: Context, asked: str) -> TextRead:
        """How the model reads the prompt (Generator.read)."""
        if ground.note is None:
            ground.note = asdict(self._generator.read(context, asked))
        return TextRead(**ground.note)

    def given(self, ground: Ground, context: Context, image: bytes, last_stage: int) -> LocalUnit:
        """A given first frame as unit 0 (Generator.given)."""
        branch, state = Latent((0,), last_stage), None
        if not ground.has(branch):
            latent, frames, state = self._generator.given(context, image)
            ground.keep({branch: (latent.x, frames)})
        return LocalUnit(ground, branch, state, given=True)

    def sample(
        self, ground: Ground, context: Context, work: SampleWork, parents: Mapping[Path, LocalUnit]
    ) -> tuple[LocalUnit, ...]:
        """The units that a work makes; those of its paths that are missing are sampled in step."""
        branches = {path: Latent(path, work.last_stage) for path in work.paths}
        missing = tuple(path for path, branch in branches.items() if not ground.has(branch))
        states: dict[Path, State | None] = {}
        if missing:
            states = self._sampled(ground, context, replace(work, paths=missing), parents)
        return tuple(LocalUnit(ground, branch, states.get(path)) for path, branch in branches.items())

    def _sampled(
        self, ground: Ground, context: Context, work: SampleWork, parents: Mapping[Path, LocalUnit]
    ) -> dict[Path, State | None]:
        history = [parents[prefix] for prefix in prefixes(work.paths[0][:-1])]
        starts = [parents[path] for path in work.paths] if work.first_stage > 0 else []
        state = history[-1].state if history else None
        latents = [unit.latent for unit in (*history, *starts)]
        _, *parts = self._generator.sample(0, work, context, len(history), state, *latents)
        made: dict[Latent, tuple[Tensor, Frames]] = {}
        for path, latent, frames in zip(work.paths, parts[::3], parts[1::3], strict=True):
            made[Latent(path, work.last_stage)] = (latent.x, frames)
        ground.keep(made)
        return dict(zip(work.paths, parts[2::3], strict=True))

    @property
    def _generator(self) -> Generator:
        if self._loaded is None:
            self._loaded = self._make()
        return self._loaded


class HostedVerifier:
    """A verifier in this process, of class ``worker``, started when a verdict is missing for the first time.

    ``judge`` is its number in the cache. It lives on an event loop of its own, in a thread of its own: an engine needs
    a clock that runs.
    """

    def __init__(self, config: VerifierConfig, worker: Callable[[VerifierConfig], Any], judge: int) -> None:
        self._config, self._worker, self._judge = config, worker, judge
        self._thread: _LoopThread | None = None
        self._started: Any = None

    def score(self, work: ScoreWork, prompt: str, units: Sequence[LocalUnit]) -> Scored:
        """What the verifier says of a branch, given its units, oldest first. Raises as the verifier does."""
        newest = units[-1]
        said = newest.ground.verdict(newest.branch, self._judge, work.assessment)
        if said is not None:
            return _scored(work, said)
        scored = self._asked(work, prompt, [unit.frames for unit in units])
        newest.ground.keep_verdict(newest.branch, self._judge, work.assessment, _said(scored))
        return scored

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

    def _asked(self, work: ScoreWork, prompt: str, frames: Sequence[Frames]) -> Scored:
        answer: Scored = self._call(lambda verifier: verifier.score(work, prompt, *frames))
        return answer

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
        """Take the time of a work, then do what of it is missing. Raises as the protocol says."""
        running = self._running[work] = _Pass(work, self._costs, self._speeds)
        try:
            made = await running.made
        finally:
            running.timer.cancel()
            del self._running[work]
        cost = spent(self._costs, work, made)
        if not made.whole:
            raise WorkCancelled(cost)
        units = self._host.sample(self._ground, self._context, work, parents)
        if work.depth:
            parents[work.paths[0][:-1]].let_go()
        return Sampled(work, cost, units)

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
        scored = self._host.score(work, self._prompt, [units[prefix] for prefix in prefixes(work.path)])
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
