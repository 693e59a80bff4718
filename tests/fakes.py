"""Hand-written stand-ins for the search: workers that compute nothing, and a clock that costs no time.

A fake's handle is a digest of everything that would decide the bits of a real latent: which branches were denoised in
step, over which stages, on top of which latents. Two searches whose winners have equal handles made the same video.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import pathlib
import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from framegrove.curation.clip import Clip, Frames, Rejection
from framegrove.errors import UserError
from framegrove.evaluation.virtual_time import run_virtual
from framegrove.search.prices import Prices
from framegrove.search.protocols import UnitsLost, WorkCancelled, WorkFailed
from framegrove.search.tree import PanelWork, Plan, Policy, Scores
from framegrove.serving.live import LiveTree, OnLive
from framegrove.types import (
    Assessment,
    Cost,
    GenerationRequest,
    GenerationResult,
    Path,
    Progress,
    Sampled,
    SampleWork,
    Scored,
    ScoreWork,
)
from framegrove.verification.bradley_terry import against_anchors

__all__ = ["run_virtual"]  # for tests that use the fakes

STEPS = 4  # denoising steps of a stage
STAGE_FLOPS = (1, 4, 16)


def fake_cost(depth: int, first_stage: int, last_stage: int, siblings: int) -> int:
    """A cost table in which siblings carry a prefix once, later units carry more of it, and drafts are previewed."""
    steps = {s: STEPS if s <= last_stage else 1 for s in range(first_stage, len(STAGE_FLOPS))}
    return sum(count * step_flops(depth, s, siblings) for s, count in steps.items())


FREE = Prices(fake_cost)  # judging costs nothing
PAID = Prices(fake_cost, {each: [depth + 9 for depth in range(64)] for each in Assessment})


def step_flops(depth: int, stage: int, siblings: int) -> int:
    """FLOPs of one denoising step."""
    return STAGE_FLOPS[stage] * (10 * siblings + 3 * depth)


@dataclass
class World:
    """What the fakes of one search share: how branches score, how long things take, who dies when.

    ``grid`` scores are spread over so many values: a small one makes ties. ``timing`` seeds the delays and
    nothing else. ``deaths`` maps a worker's name to the numbers of the calls during which it dies; a worker in ``gone``
    does not recover. ``losses`` are the numbers of the calls, to whomever, at which some handle is lost; with
    ``buried`` everything that a generator made is lost when it dies. Sampling a branch in ``poison`` kills the worker.
    """

    seed: int = 0
    aspects: tuple[str, ...] = ("left", "right")
    grid: int = 1000
    timing: int = 0
    step_s: float = 1.0
    score_s: float = 2.0
    deaths: Mapping[str, frozenset[int]] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()
    losses: frozenset[int] = frozenset()
    buried: bool = False
    poison: frozenset[Path] = frozenset()
    scored: int = 0
    called: int = 0
    made: list[tuple[str, Handle]] = field(default_factory=list)

    def score(self, handle: str, assessment: Assessment, aspect: str) -> float:
        digest = hashlib.blake2b(f"{self.seed} {handle} {assessment} {aspect}".encode()).digest()
        return int.from_bytes(digest[:4]) % (self.grid + 1) / self.grid

    def panel(self, handle: str, work: ScoreWork) -> tuple[tuple[str, float], ...]:
        """What a verifier says: its name decides too, so that the verifiers of a panel differ."""
        about = f"{handle} {work.verifier}"
        return tuple((aspect, self.score(about, work.assessment, aspect)) for aspect in self.aspects)

    def lose(self, maker: str | None = None) -> None:
        """Lose one of the handles, or all that one worker made."""
        lost = [handle for name, handle in self.made if name == maker]
        if maker is None and self.made:
            lost = [random.Random(f"{self.timing} {self.called}").choice(self.made)[1]]
        for handle in lost:
            handle.lost = True

    async def lost_of(self, handles: Mapping[Path, Any]) -> Collection[Path]:
        """What a conductor asks before it ends."""
        await asyncio.sleep(self.score_s)
        return [path for path, handle in handles.items() if getattr(handle, "lost", False)]


class Handle(str):
    """A handle that can be lost. Made again it is equal, and another object."""

    lost = False


class FakeWorker:
    """Delays of its own, and deaths as the world has it."""

    def __init__(self, name: str, world: World) -> None:
        self.name, self.world, self.calls, self.alive = name, world, 0, True
        self.random = random.Random(f"{world.timing} {name}")

    def begin(self, inputs: Mapping[Path, Any]) -> bool:
        """Count a call; whether the worker dies during it. A dead worker takes no calls, a lost handle ends one."""
        if not self.alive:
            raise WorkFailed(f"{self.name} is not there")
        if self.world.called in self.world.losses:
            self.world.lose()
        self.world.called += 1
        for path, handle in inputs.items():
            if getattr(handle, "lost", False):
                raise UnitsLost([path], Cost(0, 0, 0.5))
        self.calls += 1
        return self.calls - 1 in self.world.deaths.get(self.name, frozenset())

    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds * self.random.choice((0.0, 0.5, 1.0, 1.0, 3.0)) if self.world.timing else seconds)

    def die(self, cost: Cost) -> None:
        self.alive = False
        if self.world.buried:
            self.world.lose(self.name)
        raise WorkFailed(f"{self.name} died", cost)

    async def recover(self) -> None:
        await self.wait(5.0)
        if self.name in self.world.gone:
            raise WorkFailed(f"{self.name} is gone")
        self.alive = True


class FakeGenerator(FakeWorker):
    """Steps through stages, looking for a cancellation between steps as real ones do."""

    def __init__(self, name: str, world: World) -> None:
        super().__init__(name, world)
        self.current: SampleWork | None = None
        self.cancelled = False

    async def sample(self, work: SampleWork, parents: Mapping[Path, Any]) -> Sampled:
        assert self.current is None, "a generator samples one work at a time"
        dies = self.begin(parents) or any(path in self.world.poison for path in work.paths)
        self.current, self.cancelled, nfe, flops = work, False, 0, 0
        try:
            for stage in range(work.first_stage, work.last_stage + 1):
                for _ in range(STEPS):
                    await self.wait(self.world.step_s)
                    if self.cancelled:
                        raise WorkCancelled(Cost(nfe, flops, 1.0))
                    nfe += 1
                    flops += step_flops(work.depth, stage, len(work.paths))
                    if dies and stage == work.last_stage:
                        self.die(Cost(nfe, flops, 1.0))
        finally:
            self.current = None
        handles = tuple(Handle(digest(work, path, parents)) for path in work.paths)
        self.world.made += [(self.name, handle) for handle in handles]
        return Sampled(work, Cost(nfe, flops, 1.0), handles)

    def cancel(self, work: SampleWork) -> None:
        if self.current == work:
            self.cancelled = True


class FakeVerifier(FakeWorker):
    """Scores what it is given by looking at the newest handle alone, or at those of the anchors too."""

    def __init__(self, name: str, world: World, anchors: int = 0) -> None:
        super().__init__(name, world)
        self.anchors = anchors

    async def score(self, work: ScoreWork, units: Mapping[Path, Any]) -> Scored:
        assert list(units) == list(dict.fromkeys(work.shown)), "a branch's units, oldest first, and those of its rivals"
        dies = self.begin(units)
        await self.wait(self.world.score_s)
        if dies or not self.alive:
            self.die(Cost(1, 1, 1.0))
        handle = units[work.path]
        assert handle.startswith(f"{work.path} "), f"asked about {work.path}, given {handle}"
        self.world.scored += 1
        scores = self.compared(work, units) if self.anchors else self.world.panel(handle, work)
        answers = tuple((f"Is the {aspect} right?", score) for aspect, score in scores)
        return Scored(work, scores, Cost(1, 7, 1.0), answers=answers)

    def compared(self, work: ScoreWork, units: Mapping[Path, Any]) -> tuple[tuple[str, float], ...]:
        """The chance to beat an average anchor."""
        own, *others = (self.world.score(units[path], work.assessment, "good") for path in (work.path, *work.against))
        odds = [4 * (own - other) for other in others]
        strength = against_anchors(odds, of_anchor=len(others) < self.anchors)
        return (("better", 1 / (1 + math.exp(-strength))),)


def digest(work: SampleWork, path: Path, parents: Mapping[Path, Any]) -> str:
    """The handle of a branch; checks that the work was handed exactly what it builds on."""
    wanted = {path[:length] for path in work.paths for length in range(1, len(path) + (work.first_stage > 0))}
    assert set(parents) == wanted, f"{work} builds on {wanted}, it was given {set(parents)}"
    text = f"{work} {path} {sorted(parents.items())}"
    return f"{path} {work.last_stage} {hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def replayed(policy: Policy, scores: Mapping[PanelWork, Scores]) -> Plan:
    """What a fresh policy has decided when it knows these scores, as far as it asks for them."""
    plan = Plan()
    plan.add(policy.start())
    told: set[PanelWork] = set()
    while news := [work for work in scores if work in plan.certain and work not in told]:
        told.add(news[0])
        plan.add(policy.judged(news[0], scores[news[0]]))
    return plan


def played(policy: Policy, world: World) -> Plan:
    """What a policy has decided at the end, when it gets whatever scores it asks for."""
    plan = Plan()
    plan.add(policy.start())
    told: set[PanelWork] = set()
    while open_ := [work for work in plan.certain if isinstance(work, PanelWork) and work not in told]:
        told.add(open_[0])
        scores = ((aspect, world.score(str(open_[0].path), open_[0].assessment, aspect)) for aspect in world.aspects)
        plan.add(policy.judged(open_[0], tuple(scores)))
    return plan


class Game:
    """A policy that is told the scores of branches by name, step by step."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.plan = Plan()
        self.plan.add(policy.start())

    def tell(self, scores: Mapping[Path, float]) -> list[Path]:
        """The branches that are sampled next."""
        before = set(self.plan.certain)
        for path, score in scores.items():
            (work,) = (each for each in before if isinstance(each, PanelWork) and each.path == path)
            self.plan.add(self.policy.judged(work, (("only", score),)))
        new = [work for work in self.plan.certain if work not in before]
        return [path for work in new if isinstance(work, SampleWork) for path in work.paths]


class MemoryStore:
    """Latents that outlive a search, not the test."""

    def __init__(self) -> None:
        self.latents: dict[str, Any] = {}

    async def save(self, name: str, handle: Any) -> None:
        await asyncio.sleep(0)
        self.latents[name] = handle

    async def load(self, name: str) -> Any | None:
        await asyncio.sleep(0)
        return self.latents.get(name)


class FakeLive:
    """A search of which there is what a test puts in."""

    def __init__(self) -> None:
        self.branches: dict[str, dict[str, Any]] = {}
        self.summary: dict[str, Any] = {}
        self.previews: dict[str, bytes] = {}

    def look(self) -> LiveTree:
        return LiveTree({name: dict(facts) for name, facts in self.branches.items()}, dict(self.summary))

    async def preview(self, branch: str) -> bytes | None:
        return self.previews.get(branch)


class FakeRunner:
    """Makes "videos" that tell what was asked for; ``gate`` holds it before the end, ``failure`` is how it ends.

    ``gates`` and ``failures`` are those of single videos, by seed.
    ``no_start`` and ``no_close`` are what starting and closing raise.
    """

    def __init__(self, failure: Exception | None = None, no_start: Exception | None = None) -> None:
        self.failure, self.no_start = failure, no_start
        self.no_close: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.gates: dict[int, asyncio.Event] = {}
        self.live = FakeLive()
        self.failures: dict[int, Exception] = {}
        self.running = 0
        self.asked: list[GenerationRequest] = []
        self.judging: list[bool] = []  # of every start
        self.closed = 0

    async def start(self, *, judging: bool = True) -> None:
        self.judging.append(judging)
        if self.no_start is not None:
            raise self.no_start

    async def run(
        self, request: GenerationRequest, on_progress: Callable[[Progress], None], on_live: OnLive
    ) -> GenerationResult:
        self.asked.append(request)
        on_live(self.live)
        for step in range(1, 5):
            on_progress(Progress(step / 5, f"step {step} of 5"))
            await asyncio.sleep(0)
        self.running += 1
        try:
            await self.gates.get(request.seed, self.gate).wait()
        finally:
            self.running -= 1
        failure = self.failures.get(request.seed, self.failure)
        if failure is not None:
            raise failure
        files = {"thumbnail.webp": b"a small picture", "tree.json": b'{"branches": {}, "winner": "0"}'}
        files["latents.safetensors"] = b"latents of " + str(request.seed).encode()
        return GenerationResult(f"{request.prompt} from {request.seed}".encode(), {"seed": request.seed}, files)

    async def close(self) -> None:
        assert not self.running, "nothing is taken from those who still use it"
        self.closed += 1
        if self.no_close is not None:
            raise self.no_close


def redness(frames: npt.NDArray[np.uint8], prompt: str) -> float:
    """A verifier's function: how red a clip, uint8 (T, H, W, 3), is."""
    return float(frames[..., 0].mean()) / 255


def no_opening_of_the_second(clip: Clip) -> Clip | Rejection:
    """A stage of curation as a user would write it."""
    if clip.path.endswith("2.mp4") and clip.start == 0:
        return clip.rejected("opening", "begins the second film")
    return clip


def refuses(clip: Clip) -> Clip | Rejection:
    """A stage that finds a mistake of the user's."""
    raise UserError("nothing is good enough")


class FakeDescriber:
    """Describes clips by how many frames it is shown, and what has no light in it by nothing."""

    def __init__(self, config: object) -> None:
        self.asked: list[tuple[str, int]] = []

    async def describe(self, prompt: str, frames: Frames, max_tokens: int) -> str:
        self.asked.append((prompt, max_tokens))
        return f"{len(frames)} frames\nof light" if frames.any() else ""

    def close(self) -> None:
        pass


class FakeTracking:
    """A service that keeps the figures of runs, seen through the packages wandb and mlflow."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, str | None, str | None]] = []  # project, name, and identity of a run that goes on
        self.figures: list[tuple[int, frozenset[str]]] = []
        self.pictures: list[tuple[int, str]] = []
        self.ended = 0
        self._runs = 0
        self._project = ""

    def modules(self) -> dict[str, ModuleType]:
        """Both packages, by name."""
        wandb, mlflow = (ModuleType(name) for name in ("wandb", "mlflow"))
        for module in (wandb, mlflow):
            module.__spec__ = ModuleSpec(module.__name__, None)
        vars(wandb).update(init=self._init, Image=lambda picture: ("picture", picture))
        vars(mlflow).update(
            set_experiment=self._set_experiment,
            start_run=lambda run_id, run_name: SimpleNamespace(
                info=SimpleNamespace(run_id=self._begin(self._project, run_name, run_id))
            ),
            log_dict=lambda values, file: None,
            log_metrics=lambda values, step: self._figures(step, values),
            log_image=lambda picture, key, step: self.pictures.append((step, key)),
            end_run=self._end,
        )
        return {"wandb": wandb, "mlflow": mlflow}

    def _set_experiment(self, name: str) -> None:
        self._project = name

    def _begin(self, project: str, name: str | None, identity: str | None) -> str:
        self.begun.append((project, name, identity))
        self._runs += identity is None
        return identity or f"run {self._runs}"

    def _init(
        self, *, project: str, name: str, id: str | None, resume: str, dir: str, config: dict[str, Any]
    ) -> SimpleNamespace:
        assert resume == "allow"
        identity = self._begin(project, name, id)
        metrics: list[tuple[str, str]] = []
        return SimpleNamespace(
            id=identity,
            define_metric=lambda name, step_metric: metrics.append((name, step_metric)),
            log=self._log,
            finish=self._end,
        )

    def _log(self, values: dict[str, Any]) -> None:
        step = values.pop("step")
        pictures = [name for name, value in values.items() if isinstance(value, tuple)]
        self.pictures += [(step, name) for name in pictures]
        if not pictures:
            self._figures(step, values)

    def _figures(self, step: int, values: Mapping[str, float]) -> None:
        assert all(isinstance(value, int | float) for value in values.values())
        self.figures.append((step, frozenset(values)))

    def _end(self) -> None:
        self.ended += 1


@dataclass
class FakeChatServer:
    """A server in the shape of OpenAI's chat completions, whose requests and answers are checked by vLLM's own schema.

    ``reply`` says what the model writes to a request: tokens, each with the log-probabilities of what could have stood
    there. What it samples is their text, or the next of ``samples``, anew for each conversation. Without
    ``offers_logprobs`` it keeps those to itself. The first answers are the ``failures``: a status and headers; each
    answer takes ``delay`` seconds. It gives at most ``most`` choices at a time, and wants ``key``.
    """

    reply: Callable[[Any], list[tuple[str, dict[str, float]]]]
    offers_logprobs: bool = True
    samples: list[str] = field(default_factory=list)
    failures: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    delay: float = 0.0
    most: int = 128
    key: str | None = None
    requests: list[Any] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    given: dict[str, int] = field(default_factory=dict)

    @property
    def app(self) -> Any:
        """Its ASGI application."""
        from starlette.applications import Starlette
        from starlette.responses import JSONResponse
        from starlette.routing import Route
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        async def completions(request: Any) -> JSONResponse:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            try:
                await asyncio.sleep(self.delay)
                if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
                    return JSONResponse({"error": {"message": "no such key", "code": 401}}, 401)
                if self.failures:
                    status, headers = self.failures.pop(0)
                    return JSONResponse({"error": {"message": "not now", "code": status}}, status, headers)
                asked = ChatCompletionRequest.model_validate(await request.json())
                self.requests.append(asked)
                return JSONResponse(self._answer(asked).model_dump())
            finally:
                self.at_once -= 1

        return Starlette(routes=[Route("/v1/chat/completions", completions, methods=["POST"])])

    def _sample(self, asked: Any) -> str:
        conversation = str(asked.messages)
        place = self.given[conversation] = self.given.get(conversation, -1) + 1
        return self.samples[place % len(self.samples)]

    def _answer(self, asked: Any) -> Any:
        from vllm.entrypoints.openai.chat_completion import protocol
        from vllm.entrypoints.serve.engine.protocol import UsageInfo

        tokens = self.reply(asked)

        def entry(text: str, log: float) -> dict[str, Any]:
            return {"token": text, "logprob": log, "bytes": list(text.encode())}

        def listed(text: str, could: dict[str, float]) -> Any:
            likeliest = sorted(could, key=lambda each: -could[each])[: asked.top_logprobs]
            top = [protocol.ChatCompletionLogProb(**entry(each, could[each])) for each in likeliest]
            return protocol.ChatCompletionLogProbsContent(**entry(text, could.get(text, 0.0)), top_logprobs=top)

        shown = asked.logprobs and self.offers_logprobs
        choices = [
            protocol.ChatCompletionResponseChoice(
                index=index,
                message=protocol.ChatMessage(
                    role="assistant",
                    content=self._sample(asked) if self.samples else "".join(text for text, _ in tokens),
                ),
                logprobs=protocol.ChatCompletionLogProbs(content=[listed(*each) for each in tokens]) if shown else None,
                finish_reason="stop",
            )
            for index in range(min(asked.n or 1, self.most))
        ]
        return protocol.ChatCompletionResponse(model=asked.model, choices=choices, usage=UsageInfo())


class FakeVBench:
    """VBench's class, as jobs.vbench_scoring uses it: scores by the length of a dimension's name."""

    def __init__(self, device: object, suite: str, out: str) -> None:
        self._out = pathlib.Path(out)
        self._out.mkdir(parents=True)

    def evaluate(self, videos_path: str, name: str, dimension_list: list[str], **how: object) -> None:
        """Leave the two files that VBench leaves."""
        assert how["local"] is True, "nothing is downloaded"
        (self._out / f"{name}_full_info.json").write_text("[]")
        results = {dimension: [len(dimension) / 100, []] for dimension in dimension_list}
        (self._out / f"{name}_eval_results.json").write_text(json.dumps(results))


class FakeEvaluator:
    """FastVideo's evaluator: a score of 0.25 and more for each video of "bird", and nothing for others."""

    def __init__(self, metrics: list[str], device: str) -> None:
        self._metrics = metrics
        self.asked: list[dict[str, Any]] = []

    def evaluate(self, samples: list[dict[str, Any]]) -> list[dict[str, SimpleNamespace]]:
        """A result for each metric and sample."""
        self.asked += samples
        scores = [0.25 + 0.5 * n if "bird" in sample["text_prompt"] else None for n, sample in enumerate(samples)]
        skipped = {"skipped": "no bird"}
        return [{name: SimpleNamespace(score=score, details=skipped) for name in self._metrics} for score in scores]
