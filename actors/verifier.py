"""The verifier that asks a vision-language model, hosted by vLLM, yes/no questions about (partial) videos.

A question is asked about one or several selections of a clip's frames (verification/views.py). All questions about a
selection are sent together: they share the frames before them, which the engine's prefix cache holds once. One token is
generated a question; the score is read from the log-probabilities of yes and no. A plain class:
``ray.remote(VllmVerifier)`` makes it an actor, whose runtime_env must carry
``framegrove.config.verifier.environment(config)``. Also here: which class a verifier of another kind is.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from framegrove.config.request import frames_of
from framegrove.config.verifier import Kind, VerifierConfig, model_folder, question_source
from framegrove.errors import UserError
from framegrove.types import Assessment, Cost, Scored, ScoreWork
from framegrove.verification import scoring
from framegrove.verification.callables import CallableVerifier
from framegrove.verification.clips import Frames, frames_by_one
from framegrove.verification.encoding import QuestionEncoder
from framegrove.verification.questions import Question, QuestionSet, load_question_set
from framegrove.verification.signals import SignalsVerifier
from framegrove.verification.views import View, grouped
from framegrove.verification.workload import Workload, expanded

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

logger = logging.getLogger(__name__)


class VerifierStartError(UserError):
    """The engine could not be started; the message is one sentence."""


class VllmVerifier:
    """Scores clips. Any number of ``score`` calls may run at a time; the engine batches their questions."""

    def __init__(self, config: VerifierConfig) -> None:
        """Nothing is read or started yet, so that what goes wrong comes out of ``ready`` as it is."""
        self._config, self._engine_config = config, config.engine
        self._numbers = itertools.count()
        self._starting = asyncio.Lock()
        self._engine: AsyncLLM | None = None
        self._model: _Model | None = None
        self._examples: dict[_Sight, tuple[list[int], list[int]]] = {}

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
        asked = self._loaded.questions.questions(work.assessment, prompt)
        if not asked:
            raise UserError(
                f"verifier {self._config.name} judges {work.assessment.value}, and its questions "
                f"({question_source(self._config)}) ask nothing there: leave it out of what it judges"
            )
        answers, flops = await self._answers([(each.text, each.view) for each in asked], frames_by_one(*units))
        odds = [scoring.on_grid(answer.odds) for answer in answers]
        said = tuple((each.text, scoring.probability(odd)) for each, odd in zip(asked, odds, strict=True))
        cost = Cost(flops=flops, seconds=time.monotonic() - began)
        scores = scoring.scores_of(work.assessment, asked, odds)
        return Scored(work, scores, cost, min(answer.mass for answer in answers), said)

    async def price(self, prompt: str, units: int, height: int, width: int) -> dict[Assessment, tuple[int, ...]]:
        """FLOPs of judging a branch at each assessment that it takes part in, by depth: what ``score`` will count.

        For videos made for ``prompt``, of ``units`` units and height x width pixels. The engine is asked about grey
        pictures of that size, once, to see how many tokens it makes of them.
        """
        await self._running()
        known: dict[tuple[_Sight, tuple[str, ...]], int] = {}  # deeper branches are asked the same of as many frames

        async def flops(asked: Sequence[Question], depth: int) -> int:
            groups = grouped([each.view for each in asked], frames_of(depth + 1), self._engine_config.max_frames)
            total = 0
            for shown, places in groups.items():
                sight, texts = _Sight(len(shown), height, width), tuple(asked[at].text for at in places)
                if (sight, texts) not in known:
                    known[sight, texts] = await self._flops(sight, texts)
                total += known[sight, texts]
            return total

        asked = {each: self._loaded.questions.questions(each, prompt) for each in self._config.assessments}
        return {each: tuple([await flops(asked[each], depth) for depth in range(units)]) for each in asked}

    async def answers(self, texts: Sequence[str], frames_THWC: Frames, view: View = View.VIDEO) -> list[float]:
        """Log-odds of "yes" for each question about a view of a clip, as exact as the engine gives them."""
        found, _ = await self._answers([(text, view) for text in texts], frames_by_one(frames_THWC))
        return [answer.odds for answer in found]

    async def describe(self, prompt: str, frames: Frames, max_tokens: int) -> str:
        """What the model writes about a clip's frames, uint8 (T, H, W, 3), when it is told to; greedy."""
        from vllm import SamplingParams

        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0)
        engine = await self._running()
        pictures = _pictures(frames_by_one(frames), range(len(frames)))
        output = await self._generated(engine, self._loaded.told(prompt, len(pictures)), pictures, sampling)
        return output.outputs[0].text.strip()

    async def cached_tokens(self, texts: Sequence[str], frames_THWC: Frames) -> list[int]:
        """How many tokens of each question's prompt the engine found in its cache (asks the questions to find out)."""
        frames = frames_by_one(frames_THWC)
        (shown,) = grouped([View.VIDEO], len(frames), self._engine_config.max_frames)
        outputs = await self._ask([(text, _pictures(frames, shown)) for text in texts])
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
    def _loaded(self) -> _Model:
        assert self._model is not None, "the engine has been started"
        return self._model

    async def _running(self) -> AsyncLLM:
        """The engine; started, once for all calls that wait for it, where there is none (yet, or any more)."""
        async with self._starting:
            if self._engine is None:
                if self._model is None:
                    self._model = await asyncio.to_thread(_Model, self._config)
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
        """Ask one question about a grey picture. Raises UserError where what the model says is neither yes nor no."""
        question = self._loaded.questions.questions(self._config.assessments[0], _PROBING_PROMPT)[0].text
        output = await self._one(engine, question, [_grey(64, 64)])
        try:
            self._read(output)
        except UserError as error:
            raise UserError(
                f"verifier {self._config.name} ({self._loaded.folder}) does not answer yes or no, it writes something "
                f"else first, as thinking models do ({error}): use another model, or set engine.instruction, "
                "engine.yes_words and engine.no_words to suit it"
            ) from error

    async def _answers(
        self, asked: Sequence[tuple[str, View]], frames: Sequence[Frames]
    ) -> tuple[list[scoring.Answer], int]:
        """The answer to each question, averaged over the selections of its view, and the FLOPs of all together."""
        groups = grouped([view for _, view in asked], len(frames), self._engine_config.max_frames)
        pictures = {shown: _pictures(frames, shown) for shown in groups}
        outputs = iter(await self._ask([(asked[at][0], pictures[shown]) for shown in groups for at in groups[shown]]))
        answers: list[list[scoring.Answer]] = [[] for _ in asked]
        flops = 0
        for places in groups.values():
            of_group = list(itertools.islice(outputs, len(places)))
            flops += self._loaded.work.flops([output.prompt_token_ids or [] for output in of_group])
            for at, output in zip(places, of_group, strict=True):
                answers[at].append(self._answer(asked[at][0], output))
        return [scoring.averaged(each) for each in answers], flops

    def _answer(self, text: str, output: RequestOutput) -> scoring.Answer:
        try:
            return self._read(output)
        except UserError as error:
            raise UserError(f"verifier {self._config.name} did not answer {text!r}: {error}") from error

    def _read(self, output: RequestOutput) -> scoring.Answer:
        logprobs = output.outputs[0].logprobs
        found = {token: entry.logprob for token, entry in logprobs[0].items()} if logprobs else {}
        return scoring.read_answer(found, self._loaded.yes, self._loaded.no)

    async def _flops(self, sight: _Sight, texts: Sequence[str]) -> int:
        """What questions about the same pictures cost, from one that has been asked about such pictures."""
        encoder = self._loaded.encoder(sight.pictures)
        if sight not in self._examples:
            grey = [_grey(sight.height, sight.width)] * sight.pictures
            (output,) = await self._ask([(_PROBING_PROMPT, grey)])
            self._examples[sight] = encoder.encode(_PROBING_PROMPT), list(output.prompt_token_ids or [])
        return self._loaded.work.flops([expanded(encoder.encode(text), *self._examples[sight]) for text in texts])

    async def _ask(self, asked: Sequence[tuple[str, list[Image.Image]]]) -> list[RequestOutput]:
        """Ask questions about pictures, all at once; again, and of a new engine, where the engine dies."""
        from vllm.v1.engine.exceptions import EngineDeadError

        engine = await self._running()
        try:
            return await asyncio.gather(*(self._one(engine, text, images) for text, images in asked))
        except EngineDeadError:
            if self._engine is engine:  # the first of the calls that saw it die
                logger.warning("the engine of verifier %s died and is started again", self._config.name)
                self._engine = None
                engine.shutdown()
            engine = await self._running()
            return await asyncio.gather(*(self._one(engine, text, images) for text, images in asked))

    async def _one(self, engine: AsyncLLM, text: str, images: list[Image.Image]) -> RequestOutput:
        from vllm import SamplingParams

        model = self._loaded
        sampling = SamplingParams(
            max_tokens=1, temperature=0.0, logprob_token_ids=[*model.yes, *model.no], detokenize=False
        )
        return await self._generated(engine, model.encoder(len(images)).encode(text), images, sampling)

    async def _generated(
        self, engine: AsyncLLM, tokens: list[int], images: list[Image.Image], sampling: SamplingParams
    ) -> RequestOutput:
        from vllm.sampling_params import RequestOutputKind

        sampling.output_kind = RequestOutputKind.FINAL_ONLY
        request: Any = {"prompt_token_ids": tokens, "multi_modal_data": {"image": images}}
        last: RequestOutput | None = None
        async for output in engine.generate(request, sampling, request_id=f"question-{next(self._numbers)}"):
            last = output
        if last is None:
            raise RuntimeError("the engine ended a question without an answer")
        return last

    def _start(self) -> AsyncLLM:
        config = self._engine_config
        try:
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM

            given: dict[str, Any] = {} if config.block_size is None else {"block_size": config.block_size}
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


_PROBING_PROMPT = "a ball rolls over the floor"


class _Sight(NamedTuple):
    """What decides into how many tokens an engine turns the pictures of a question."""

    pictures: int
    height: int
    width: int


def _pictures(frames: Sequence[Frames], shown: Sequence[int]) -> list[Image.Image]:
    return [Image.fromarray(frames[at]) for at in shown]


def _grey(height: int, width: int) -> Image.Image:
    return Image.new("RGB", (width, height), (128, 128, 128))


class _Model:
    """What is known of the model besides its weights: how it is asked, and what it is asked."""

    def __init__(self, config: VerifierConfig) -> None:
        """Read it. Raises UserError, in one sentence."""
        from transformers import AutoProcessor

        self.folder = model_folder(config.engine)
        self.name = Path(self.folder).name
        self.questions = _questions(config)
        try:
            self._processor: Any = AutoProcessor.from_pretrained(self.folder)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise VerifierStartError(f"verifier {config.name} cannot be read from {self.folder}: {reason}") from error
        self._instruction = config.engine.instruction
        words = (config.engine.yes_words, config.engine.no_words)
        self.yes, self.no = (_token_ids(config.name, self._processor.tokenizer, each) for each in words)
        self.work = Workload(Path(_local(self.folder)))
        self._encoders: dict[int, QuestionEncoder] = {}

    def encoder(self, pictures: int) -> QuestionEncoder:
        """Encodes questions about so many pictures, which come first."""
        if pictures not in self._encoders:
            self._encoders[pictures] = QuestionEncoder(
                self._processor.tokenizer, lambda q: self._render(pictures, q + self._instruction)
            )
        return self._encoders[pictures]

    def told(self, prompt: str, pictures: int) -> list[int]:
        """Token ids of an instruction about so many pictures, which come first; no answer of one word is asked for."""
        return QuestionEncoder(self._processor.tokenizer, lambda text: self._render(pictures, text)).encode(prompt)

    def _render(self, pictures: int, question: str) -> str:
        content = [{"type": "image"} for _ in range(pictures)] + [{"type": "text", "text": question}]
        message = [{"role": "user", "content": content}]
        return str(self._processor.apply_chat_template(message, tokenize=False, add_generation_prompt=True))


def _questions(config: VerifierConfig) -> QuestionSet:
    """The verifier's question set. Raises UserError where it has nothing to ask at something the verifier judges."""
    source = question_source(config)
    found = load_question_set(source)
    silent = [each.value for each in config.assessments if not found.questions(each, _PROBING_PROMPT)]
    if silent:
        raise UserError(
            f"verifier {config.name} judges {', '.join(silent)}, but the questions {source} ask nothing there: "
            "leave it out of what the verifier judges"
        )
    return found


def _local(model: str) -> str:
    if Path(model).exists():
        return model
    from huggingface_hub import snapshot_download

    return snapshot_download(model, local_files_only=True, allow_patterns=["config.json", "*.safetensors"])


def _token_ids(verifier: str, tokenizer: Any, words: Sequence[str]) -> list[int]:
    """Ids of the words that are one token. Raises VerifierStartError when none is."""
    encoded = [tokenizer.encode(word, add_special_tokens=False) for word in words]
    ids = [ids[0] for ids in encoded if len(ids) == 1 and ids[0] != tokenizer.unk_token_id]
    if not ids:
        raise VerifierStartError(
            f"verifier {verifier}: none of the words {', '.join(words)} is a single token of its vocabulary"
        )
    return ids


VerifierClass = type[VllmVerifier] | type[SignalsVerifier] | type[CallableVerifier]

_CLASSES: dict[Kind, VerifierClass] = {
    "vllm": VllmVerifier,
    "signals": SignalsVerifier,
    "callable": CallableVerifier,
}


def verifier_class(kind: Kind) -> VerifierClass:
    """The class whose instances score as a verifier of this kind; all are made from a VerifierConfig alone."""
    return _CLASSES[kind]
