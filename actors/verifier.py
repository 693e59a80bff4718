"""The verifier that asks a vision-language model, hosted by vLLM, questions about (partial) videos.

A question is asked about one or several selections of a clip's frames (verification/views.py). All questions about a
selection are sent together: they share the frames before them, which the engine's prefix cache holds once. How a score
is read from what the model says is the verifier's ``score`` (config/scores.py): mostly from the log-probabilities of a
single token. A plain class: ``ray.remote(VllmVerifier)`` makes it an actor, whose runtime_env must carry
``framegrove.config.verifier.environment(config)``.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from framegrove.config.request import unit_lengths
from framegrove.config.scores import Generated, Json, Pairwise, Reward, YesNo
from framegrove.config.verifier import VerifierConfig
from framegrove.errors import UserError
from framegrove.types import Assessment, Cost, Scored, ScoreWork
from framegrove.verification import scoring
from framegrove.verification.bradley_terry import both_orders
from framegrove.verification.clips import Frames, frames_by_one
from framegrove.verification.comparing import compared, comparison_prices
from framegrove.verification.model import (
    Sight,
    VerifierModel,
    VerifierStartError,
    grey_frame,
    pictures_of,
    shown_together,
)
from framegrove.verification.questions import Question
from framegrove.verification.readings import Token, read, reward
from framegrove.verification.verdicts import (
    AGAIN,
    PROBING_PROMPT,
    Asked,
    asked_of,
    check_asked,
    comparison_of,
    read_in_tries,
    verdict,
)
from framegrove.verification.views import View, grouped
from framegrove.verification.workload import expanded

if TYPE_CHECKING:
    from vllm import PoolingRequestOutput, RequestOutput, SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

logger = logging.getLogger(__name__)


class VllmVerifier:
    """Scores clips. Any number of ``score`` calls may run at a time; the engine batches their questions."""

    def __init__(self, config: VerifierConfig) -> None:
        """Nothing is read or started yet, so that what goes wrong comes out of ``ready`` as it is."""
        self._config, self._engine_config = config, config.engine
        self._numbers = itertools.count()
        self._starting = asyncio.Lock()
        self._engine: AsyncLLM | None = None
        self._model: VerifierModel | None = None
        self._examples: dict[Sight, tuple[list[int], list[int]]] = {}

    async def ready(self) -> str:
        """The model's name, once the engine answers; for health checks. The first call starts it (20 to 40 s on a CPU).

        Raises UserError, which names the verifier, for a model that cannot be served or does not answer yes or no.
        """
        engine = await self._running()
        await engine.check_health()
        return self._loaded.name

    async def score(self, work: ScoreWork, prompt: str, *units: Frames) -> Scored:
        """Ask everything that ``work``'s assessment asks about the clip that ``units``, uint8 (T, H, W, 3), make up.

        Raises UserError, which names the verifier and the question, where the model's answer is neither yes nor no.
        """
        began = time.monotonic()
        await self._running()
        if isinstance(self._config.score, Pairwise):
            scored = await compared(work, self._config.score, prompt, units, self._compared)
            return replace(scored, cost=replace(scored.cost, seconds=time.monotonic() - began))
        asked = self._questions(work.assessment, prompt)
        check_asked(self._config, work.assessment, asked)
        answers, flops = await self._answers(asked, units)
        cost = Cost(flops=flops, seconds=time.monotonic() - began)
        return verdict(work, self._config.score, asked, answers, cost)

    async def price(
        self, prompt: str, lengths: Sequence[int], height: int, width: int
    ) -> dict[Assessment, tuple[int, ...]]:
        """FLOPs of judging a branch at each assessment that it takes part in, by depth: what ``score`` will count.

        For videos made for ``prompt``, of units of ``lengths`` frames and height x width pixels. The engine is asked
        about grey pictures of that size, once, to see how many tokens it makes of them.
        """
        await self._running()
        known: dict[tuple[Sight, tuple[str, ...]], int] = {}  # deeper branches are asked the same of as many frames

        async def flops(asked: Sequence[Question], depth: int) -> int:
            total = 0
            for shown, texts in self._asked(asked, lengths[: depth + 1]).items():
                sight, about = Sight(len(shown), height, width), tuple(texts)
                if (sight, about) not in known:
                    known[sight, about] = await self._flops(sight, about)
                total += known[sight, about]
            return total

        if isinstance(score := self._config.score, Pairwise):
            of_one = []
            for depth in range(len(lengths)):
                shown = min(self._engine_config.max_frames // 2, sum(lengths[: depth + 1]))
                text = score.question.format(frames=shown, prompt=prompt)
                of_one.append(await self._flops(Sight(2 * shown, height, width), [text]))
            return comparison_prices(self._config.assessments, score, of_one)
        asked = {each: self._questions(each, prompt) for each in self._config.assessments}
        return {each: tuple([await flops(asked[each], depth) for depth in range(len(lengths))]) for each in asked}

    async def compare(self, prompt: str, first: Frames, second: Frames) -> float:
        """Log-odds that ``first`` is the better of two clips, uint8 (T, H, W, 3), made for ``prompt``.

        For a verifier whose score is of kind pairwise, which is asked in both orders: a liking for the first place
        cancels. Raises UserError where the answer is neither.
        """
        odds, _ = await self._compared(prompt, first, second)
        return odds

    async def _compared(self, prompt: str, first: Frames, second: Frames) -> tuple[float, int]:
        """The same, and the FLOPs."""
        score = comparison_of(self._config)
        clips = shown_together(first, second, self._engine_config.max_frames)
        one, other = (pictures_of(frames, range(len(frames))) for frames in clips)
        text = score.question.format(frames=len(one), prompt=prompt)
        orders = [*one, *other], [*other, *one]
        outputs = await self._ask([(text, shown) for shown in orders])
        heard = [await self._heard(text, shown, [""], each) for shown, each in zip(orders, outputs, strict=True)]
        prompts = [output.prompt_token_ids or [] for output in outputs]
        flops = self._loaded.work.flops(prompts, 0) + sum(more for _, more in heard)
        return both_orders(*(answers[0].odds for answers, _ in heard)), flops

    async def answers(self, texts: Sequence[str], frames_THWC: Frames, view: View = View.VIDEO) -> list[float]:
        """Log-odds of "yes" for each question about a view of a pyramidal model's clip, as exact as they are given."""
        asked = [Question(text, "", "", view=view) for text in texts]
        units = np.split(frames_THWC, np.cumsum(unit_lengths(len(frames_THWC)))[:-1])
        found, _ = await self._answers(asked, units)
        return [scoring.averaged(each).odds for each in found]

    async def describe(self, prompt: str, frames: Frames, max_tokens: int) -> str:
        """What the model writes about a clip's frames, uint8 (T, H, W, 3), when it is told to; greedy."""
        from vllm import SamplingParams

        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0)
        engine = await self._running()
        pictures = pictures_of(frames_by_one(frames), range(len(frames)))
        told = self._loaded.told(prompt, len(pictures))
        output = await self._generated(engine, told, pictures, sampling)
        return output.outputs[0].text.strip()

    async def cached_tokens(self, texts: Sequence[str], frames_THWC: Frames) -> list[int]:
        """How many tokens of each question's prompt the engine found in its cache (asks the questions to find out)."""
        frames = frames_by_one(frames_THWC)
        (shown,) = grouped([View.VIDEO], unit_lengths(len(frames)), self._engine_config.max_frames)
        outputs = await self._ask([(text, pictures_of(frames, shown)) for text in texts])
        return [output.num_cached_tokens or 0 for output in outputs]

    def pid(self) -> int:
        """The actor's process."""
        return os.getpid()

    def close(self) -> None:
        """Stop the engine and its process."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.shutdown()

    @property
    def _loaded(self) -> VerifierModel:
        assert self._model is not None, "the engine has been started"
        return self._model

    async def _running(self) -> AsyncLLM:
        """The engine; started, once for all calls that wait for it, where there is none (yet, or any more)."""
        async with self._starting:
            if self._engine is None:
                if self._model is None:
                    self._model = await asyncio.to_thread(VerifierModel, self._config)
                started: list[AsyncLLM] = []  # a thread's result may be held for ever, by some exception's traceback
                await asyncio.to_thread(lambda: started.append(self._start()))
                engine = started.pop()
                try:
                    await self._probe(engine)
                except BaseException:
                    engine.shutdown()
                    raise
                self._engine = engine
            return self._engine

    async def _probe(self, engine: AsyncLLM) -> None:
        """Ask one question about a grey picture. Raises UserError where the score cannot be read from the answer."""
        score, asked = self._config.score, self._questions(self._config.assessments[0], PROBING_PROMPT)
        text = score.question.format(frames=1, prompt=PROBING_PROMPT) if isinstance(score, Pairwise) else asked[0].text
        pictures = pictures_of([grey_frame(64, 64)], [0]) * (2 if isinstance(score, Pairwise) else 1)
        name = asked[0].score if asked else ""
        who = f"verifier {self._config.name} ({self._loaded.folder})"
        try:
            await read_in_tries(
                who,
                score,
                lambda seed: self._one(engine, text, pictures, seed=seed),
                lambda said: [self._read(said, name)],
            )
        except UserError as error:
            if not isinstance(score, YesNo):
                raise UserError(f"{who} does not answer as its score of kind {score.kind} is read: {error}") from error
            raise UserError(
                f"{who} does not answer yes or no, it writes something else first, as thinking models do ({error}): "
                "use another model, or set engine.instruction, engine.yes_words and engine.no_words to suit it"
            ) from error

    def _questions(self, assessment: Assessment, prompt: str) -> tuple[Question, ...]:
        questions = self._loaded.questions
        return () if questions is None else questions.questions(assessment, prompt)

    def _asked(self, questions: Sequence[Question], lengths: Sequence[int]) -> Asked:
        return asked_of(questions, lengths, self._engine_config.max_frames)

    async def _answers(
        self, questions: Sequence[Question], units: Sequence[Frames]
    ) -> tuple[list[list[scoring.Answer]], int]:
        """The answers to each question, one for each selection of its view, and the FLOPs of all together."""
        frames, asked = frames_by_one(*units), self._asked(questions, [len(unit) for unit in units])
        pictures = {shown: pictures_of(frames, shown) for shown in asked}
        outputs = iter(await self._ask([(text, pictures[shown]) for shown, texts in asked.items() for text in texts]))
        answers: list[list[scoring.Answer]] = [[] for _ in questions]
        flops = 0
        for shown, texts in asked.items():
            of_group = list(itertools.islice(outputs, len(texts)))
            prompts = [output.prompt_token_ids or [] for output in of_group]
            flops += self._loaded.work.flops(prompts, sum(_written(output) for output in of_group))
            for (text, places), output in zip(texts.items(), of_group, strict=True):
                found, more = await self._heard(text, pictures[shown], [questions[at].score for at in places], output)
                flops += more
                for at, answer in zip(places, found, strict=True):
                    answers[at].append(answer)
        return answers, flops

    async def _heard(
        self, text: str, images: list[Image.Image], names: Sequence[str], output: Any
    ) -> tuple[list[scoring.Answer], int]:
        """The scores by these names in ``output`` or, of a model that writes, in other answers, and their FLOPs."""
        others: list[Any] = []

        async def ask(seed: int) -> Any:
            if seed:
                others.extend(await self._ask([(text, images)], seed=seed))
            return others[-1] if others else output

        who = f"verifier {self._config.name}"
        try:
            found = await read_in_tries(
                who, self._config.score, ask, lambda said: [self._read(said, name) for name in names]
            )
        except UserError as error:
            raise UserError(f"{who} did not answer {text!r}: {error}") from error
        return found, sum(self._loaded.work.flops([each.prompt_token_ids], _written(each)) for each in others)

    def _read(self, output: Any, name: str) -> scoring.Answer:
        """The score called ``name`` in what the model has said."""
        score, model, said = self._config.score, self._loaded, output.outputs
        if isinstance(score, Reward):
            return reward(score, name, said.data.tolist())
        logprobs = said[0].logprobs
        if isinstance(score, YesNo | Pairwise):
            found = {token: entry.logprob for token, entry in logprobs[0].items()} if logprobs else {}
            return scoring.read_answer(found, model.yes, model.no)
        if isinstance(score, Json):
            return read(score, name, [Token(said[0].text, {})], model.words)
        return read(score, name, _tokens(model, said[0].token_ids, logprobs or ()), model.words)

    async def _flops(self, sight: Sight, texts: Sequence[str]) -> int:
        """What questions about the same pictures cost, from one that has been asked about such pictures.

        Of a model that writes, the longest answers: how long they are is known afterwards.
        """
        encoder = self._loaded.encoder(sight.pictures)
        if sight not in self._examples:
            pictures = pictures_of([grey_frame(sight.height, sight.width)], [0]) * sight.pictures
            (output,) = await self._ask([(PROBING_PROMPT, pictures)], shortly=True)
            self._examples[sight] = encoder.encode(PROBING_PROMPT), list(output.prompt_token_ids or [])
        prompts = [expanded(encoder.encode(text), *self._examples[sight]) for text in texts]
        return self._loaded.work.flops(prompts, len(texts) * (_longest(self._config) - 1))

    async def _ask(self, asked: Sequence[tuple[str, list[Image.Image]]], **how: Any) -> list[Any]:
        """Ask questions about pictures, all at once; again, and of a new engine, where the engine dies."""
        from vllm.v1.engine.exceptions import EngineDeadError

        engine = await self._running()
        try:
            return await asyncio.gather(*(self._one(engine, text, images, **how) for text, images in asked))
        except EngineDeadError:
            if self._engine is engine:  # the first of the calls that saw it die
                logger.warning("the engine of verifier %s died and is started again", self._config.name)
                self._engine = None
                engine.shutdown()
            engine = await self._running()
            return await asyncio.gather(*(self._one(engine, text, images, **how) for text, images in asked))

    async def _one(
        self, engine: AsyncLLM, text: str, images: list[Image.Image], *, seed: int = 0, shortly: bool = False
    ) -> Any:
        """What the model says to a question about pictures: the likeliest answer, or with a seed another one.

        Its first token alone if ``shortly``.
        """
        tokens = self._loaded.encoder(len(images)).encode(text)
        if isinstance(self._config.score, Reward):
            return await self._rewarded(engine, tokens, images)
        sampling = self._sampling()
        if shortly:
            sampling.max_tokens, sampling.structured_outputs = 1, None
        if seed:
            sampling.temperature, sampling.seed = AGAIN, seed
        return await self._generated(engine, tokens, images, sampling)

    def _sampling(self) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        score, model = self._config.score, self._loaded
        match score:
            case Json():
                schema = StructuredOutputsParams(json=score.json_schema)
                return SamplingParams(max_tokens=score.max_tokens, temperature=0.0, structured_outputs=schema)
            case Generated():
                return SamplingParams(max_tokens=score.max_tokens, temperature=0.0, logprob_token_ids=[*model.digits])
            case _:
                read_from = [*model.yes, *model.no, *model.digits]
                return SamplingParams(max_tokens=1, temperature=0.0, logprob_token_ids=read_from, detokenize=False)

    async def _generated(
        self, engine: AsyncLLM, tokens: list[int], images: list[Image.Image], sampling: SamplingParams
    ) -> RequestOutput:
        from vllm.sampling_params import RequestOutputKind

        sampling.output_kind = RequestOutputKind.FINAL_ONLY
        return await _last(engine.generate(_request(tokens, images), sampling, request_id=self._number()))

    async def _rewarded(self, engine: AsyncLLM, tokens: list[int], images: list[Image.Image]) -> PoolingRequestOutput:
        from vllm import PoolingParams

        pooling = PoolingParams(task="classify", use_activation=False)
        return await _last(engine.encode(_request(tokens, images), pooling, request_id=self._number()))

    def _number(self) -> str:
        return f"question-{next(self._numbers)}"

    def _start(self) -> AsyncLLM:
        config = self._engine_config
        try:
            from vllm.config import StructuredOutputsConfig
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM

            given: dict[str, Any] = {} if config.block_size is None else {"block_size": config.block_size}
            if isinstance(self._config.score, Reward):
                given |= {"runner": "pooling", "convert": "classify"}
            if isinstance(self._config.score, Json):  # with white space allowed, a model may write that for ever
                compact = StructuredOutputsConfig(backend="xgrammar", disable_any_whitespace=True)
                given |= {"structured_outputs_config": compact}
            arguments = AsyncEngineArgs(
                model=self._loaded.folder,
                dtype=config.dtype,
                max_model_len=config.max_model_len,
                max_num_seqs=config.max_questions,
                gpu_memory_utilization=config.gpu_memory,
                tensor_parallel_size=config.tensor_parallel,
                limit_mm_per_prompt={"image": config.max_frames},
                enable_prefix_caching=True,
                mm_processor_cache_gb=config.frame_cache_gib,
                enforce_eager=True,  # single-token answers: nothing to gain from captured graphs
                seed=0,
                **given,
            )
            return AsyncLLM.from_engine_args(arguments)
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise VerifierStartError(
                f"verifier {self._config.name} ({self._loaded.folder}) could not be started: {reason[:300]}"
            ) from error


def _request(tokens: list[int], images: list[Image.Image]) -> Any:
    return {"prompt_token_ids": tokens, "multi_modal_data": {"image": images}}


async def _last(outputs: AsyncIterator[Any]) -> Any:
    last = None
    async for output in outputs:
        last = output
    if last is None:
        raise RuntimeError("the engine ended a question without an answer")
    return last


def _tokens(model: VerifierModel, ids: Sequence[int], logprobs: Sequence[Mapping[int, Any]]) -> list[Token]:
    """What was written, with the log-probability of every digit at each place."""
    return [
        Token(
            model.tokenizer.decode([token]),
            {model.digits[each]: entry.logprob for each, entry in entries.items() if each in model.digits},
        )
        for token, entries in zip(ids, logprobs, strict=True)
    ]


def _written(output: Any) -> int:
    """How many tokens went into the model again to be followed by others."""
    said = output.outputs
    return max(0, len(said[0].token_ids) - 1) if isinstance(said, list) else 0  # what is pooled writes nothing


def _longest(config: VerifierConfig) -> int:
    return config.score.max_tokens if isinstance(config.score, Generated | Json) else 1
