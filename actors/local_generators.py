"""Generators of a search in this process, over a cache of branches: the clients a conductor knows, and their host.

What is in the cache is not computed again, and what is missing is computed by the very classes that are actors
elsewhere, and kept. They are loaded when something is missing for the first time; a search whose branches are all there
needs no model. The same goes for verifiers (local_verifiers.py).

Two clocks. A conductor sees the one of its event loop, which is meant to be virtual (evaluation.virtual_time): a work
takes as long as its counted FLOPs take at a constant rate, whether it came from the cache or not. So makespan, overlap
and speculation of any number of workers come out of one process, the same each time. Real work is done at once while
the loop stands still: when a work is due, together with others that are under way, if that is wanted; otherwise one
that is cancelled before its time is up is not computed at all.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from actors.clients import spent
from actors.generator import Context, Generator, Job, Made, State, TextRead, Unit
from framegrove.evaluation.branch_cache import Frames, Ground
from framegrove.flow.cost import SamplingCosts
from framegrove.flow.sampler import StageLatent
from framegrove.search.protocols import WorkCancelled
from framegrove.search.tree import Latent
from framegrove.types import Cost, Path, Sampled, SampleWork, prefixes

Place = tuple[int, Latent]
"""A branch's newest unit: the number of its ground, and which it is there."""

_MOST_STATES = 2**30  # bytes of decoder states that are remembered


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
    """A branch's newest unit: where it stands in the cache, whose ``host`` decodes it when somebody looks at it."""

    ground: Ground
    branch: Latent
    host: HostedGenerator

    @property
    def latent(self) -> StageLatent:
        """As it was sampled."""
        return StageLatent(self.branch.stage, self.ground.latent(self.branch))

    @property
    def frames(self) -> Frames:
        """uint8 (T, H, W, 3); of a draft its preview."""
        self.decoded()
        return self.ground.frames(self.branch)

    def decoded(self) -> None:
        """There are frames of it, if there were none."""
        if not self.ground.has_frames(self.branch):
            self.host.decode(self.ground, self.branch)


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
        return LocalUnit(ground, branch, self)

    def decode(self, ground: Ground, branch: Latent) -> None:
        """Decode a finished unit, and those before it that have no frames: from the last state that is there on."""
        line = [Latent(path, branch.stage) for path in prefixes(branch.path)]
        known = (n for n in range(len(line) - 1, 0, -1) if (ground.number, line[n - 1]) in self._states)
        first = next((n for n in known if all(map(ground.has_frames, line[:n]))), 0)
        latents = [StageLatent(each.stage, ground.latent(each)) for each in line]
        state = self._states.get((ground.number, line[first - 1])) if first else None
        units = dict(zip(line[first:], self._generator.decoded(latents[first:], first, state), strict=True))
        missing = {each: unit.frames for each, unit in units.items() if not ground.has_frames(each)}
        ground.decoded({each: frames for each, frames in missing.items() if frames is not None})
        self._remember(ground, units)

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
        return tuple(LocalUnit(order.ground, branch, self) for branch in order.branches())

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
            late = order.context.left.before_work(order.work)
            before = [Latent(order.work.paths[0][: unit + 1], order.context.left.last_stage) for unit in late]
            order.ground.decoded(dict(zip(before, each.before, strict=True)))

    def _job(self, order: Order) -> Job:
        work = order.work
        history = [order.parents[prefix] for prefix in prefixes(work.paths[0][:-1])]
        starts = [order.parents[path] for path in work.paths] if work.first_stage > 0 else []
        late = order.context.left.before_work(work)
        decoded = history[: late.start]
        state = self._states.get((decoded[-1].ground.number, decoded[-1].branch)) if decoded else None
        before, begun = (tuple(unit.latent for unit in units) for units in (history, starts))
        return Job(0, work, order.context, before, begun, state)

    def _keep(self, ground: Ground, units: Mapping[Latent, Unit]) -> None:
        ground.keep({branch: (unit.latent.x, unit.frames) for branch, unit in units.items()})
        self._remember(ground, units)

    def _remember(self, ground: Ground, units: Mapping[Latent, Unit]) -> None:
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

    def __contains__(self, place: Place) -> bool:
        return place in self._states

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
