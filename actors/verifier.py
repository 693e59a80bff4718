"""The verifier actor: a vision-language model in vLLM that answers yes/no questions about (partial) videos.

All questions about a clip are sent at once: they share the frames before them, which the engine's prefix cache holds
once, and a branch's clip begins with its parent's frames. One token is generated a question; the score is read from
the log-probabilities of yes and no. A plain class: ``ray.remote(Verifier)`` makes it an actor, whose runtime_env must
carry ``framegrove.config.verifier.environment(config)``.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from framegrove.config.verifier import EngineConfig, model_folder
from framegrove.errors import UserError
from framegrove.types import Cost, Scored, ScoreWork
from framegrove.verification import scoring
from framegrove.verification.questions import questions, shown_frames
from framegrove.verification.rewriting import StagedPrompt

if TYPE_CHECKING:
    from vllm import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

logger = logging.getLogger(__name__)

Frames = npt.NDArray[np.uint8]


class VerifierStartError(RuntimeError):
    """The engine could not be started; the message is one sentence."""


class Verifier:
    """Scores clips. Any number of ``score`` calls may run at a time; the engine batches their questions."""

    def __init__(self, config: EngineConfig) -> None:
        """Start the engine (20 to 40 s on a CPU). Raises VerifierStartError."""
        self._config = config
        self._model = model_folder(config)
        self._numbers = itertools.count()
        self._restarting = asyncio.Lock()
        self._engine = self._start()
        self._processor = _processor(self._model)
        self._yes, self._no = (_token_ids(self._processor.tokenizer, w) for w in (config.yes_words, config.no_words))
        self._work = _Workload(Path(_local(self._model)))

    async def ready(self) -> str:
        """The model's name, once the engine answers; for health checks. Raises when the engine is dead."""
        await self._engine.check_health()
        return Path(self._model).name

    async def score(self, work: ScoreWork, prompt: StagedPrompt, frames_THWC: Frames) -> Scored:
        """Ask everything that ``work``'s assessment asks about these frames (all of the branch so far, uint8 RGB).

        Raises UserError for frames of another shape or type.
        """
        began = time.monotonic()
        asked = questions(work.assessment, prompt)
        odds, flops = await self._answers([q.text for q in asked], frames_THWC)
        scores = scoring.panel_scores(work.assessment, asked, [scoring.on_grid(odd) for odd in odds])
        return Scored(work, scores, Cost(flops=flops, seconds=time.monotonic() - began))

    async def answers(self, texts: Sequence[str], frames_THWC: Frames) -> list[float]:
        """Log-odds of "yes" for each question, as exact as the engine gives them."""
        odds, _ = await self._answers(texts, frames_THWC)
        return odds

    async def cached_tokens(self, texts: Sequence[str], frames_THWC: Frames) -> list[int]:
        """How many tokens of each question's prompt the engine found in its cache (asks the questions to find out)."""
        return [output.num_cached_tokens or 0 for output in await self._ask(texts, frames_THWC)]

    def pid(self) -> int:
        """The actor's process."""
        return os.getpid()

    def close(self) -> None:
        """Stop the engine and its process."""
        self._engine.shutdown()

    async def _answers(self, texts: Sequence[str], frames: Frames) -> tuple[list[float], int]:
        outputs = await self._ask(texts, frames)
        odds = []
        for output in outputs:
            logprobs = output.outputs[0].logprobs
            found = {token: entry.logprob for token, entry in logprobs[0].items()} if logprobs else {}
            odds.append(scoring.log_odds(found, self._yes, self._no))
        return odds, self._work.flops([output.prompt_token_ids or [] for output in outputs])

    async def _ask(self, texts: Sequence[str], frames: Frames) -> list[RequestOutput]:
        from vllm.v1.engine.exceptions import EngineDeadError

        images = self._images(frames)
        engine = self._engine
        try:
            return await asyncio.gather(*(self._one(engine, text, images) for text in texts))
        except EngineDeadError:
            await self._restart(engine)
            return await asyncio.gather(*(self._one(self._engine, text, images) for text in texts))

    async def _one(self, engine: AsyncLLM, text: str, images: list[Image.Image]) -> RequestOutput:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            logprob_token_ids=[*self._yes, *self._no],
            output_kind=RequestOutputKind.FINAL_ONLY,
            detokenize=False,
        )
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": text + self._config.instruction}]
        message = [{"role": "user", "content": content}]
        prompt = self._processor.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        request: Any = {"prompt": prompt, "multi_modal_data": {"image": images}}
        last: RequestOutput | None = None
        async for output in engine.generate(request, sampling, request_id=f"question-{next(self._numbers)}"):
            last = output
        if last is None:
            raise RuntimeError("the engine ended a question without an answer")
        return last

    def _images(self, frames: Frames) -> list[Image.Image]:
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
            raise UserError(
                f"frames must be uint8 of shape (frames, height, width, 3), not {frames.dtype} {frames.shape}"
            )
        return [Image.fromarray(frames[at]) for at in shown_frames(len(frames), self._config.max_frames)]

    async def _restart(self, dead: AsyncLLM) -> None:
        """Start the engine anew, once for all the calls that saw it die."""
        async with self._restarting:
            if self._engine is dead:
                logger.warning("the verifier's engine died and is started again")
                dead.shutdown()
                self._engine = await asyncio.to_thread(self._start)

    def _start(self) -> AsyncLLM:
        config = self._config
        try:
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM

            given: dict[str, Any] = {} if config.block_size is None else {"block_size": config.block_size}
            arguments = AsyncEngineArgs(
                model=self._model,
                dtype=config.dtype,
                max_model_len=config.max_model_len,
                max_num_seqs=config.max_questions,
                gpu_memory_utilization=config.gpu_memory,
                tensor_parallel_size=config.tensor_parallel,
                limit_mm_per_prompt={"image": config.max_frames},
                enable_prefix_caching=True,
                enforce_eager=True,  # single-token answers: nothing to gain from captured graphs
                seed=0,
                **given,
            )
            return AsyncLLM.from_engine_args(arguments)
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise VerifierStartError(f"the verifier {self._model} could not be started: {reason[:300]}") from error


class _Workload:
    """FLOPs of questions by the usual estimate, two per parameter and token; shared tokens and frames count once."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self._image_token = config.get("image_token_id")
        merged = config.get("scale_factor") or config.get("vision_config", {}).get("spatial_merge_size") or 1
        self._patches_per_token = int(merged) ** 2
        self._vision, self._text = _parameters(folder)

    def flops(self, prompts: Sequence[Sequence[int]]) -> int:
        alike = (len(set(tokens)) == 1 for tokens in zip(*prompts, strict=False))
        shared = sum(1 for _ in itertools.takewhile(bool, alike))
        tokens = shared + sum(len(prompt) - shared for prompt in prompts)
        patches = self._patches_per_token * sum(token == self._image_token for token in prompts[0])
        return 2 * (self._text * tokens + self._vision * patches)


def _parameters(folder: Path) -> tuple[int, int]:
    """(vision, text) parameters that take part in every token, read from the headers of the weight files."""
    vision = text = 0
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
        for name, entry in header.items():
            if name == "__metadata__" or "embed_tokens" in name:
                continue
            count = int(np.prod(entry["shape"], dtype=np.int64))
            vision, text = (vision + count, text) if "vis" in name else (vision, text + count)
    return vision, text


def _local(model: str) -> str:
    if Path(model).exists():
        return model
    from huggingface_hub import snapshot_download

    return snapshot_download(model, local_files_only=True)


def _processor(model: str) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(model)


def _token_ids(tokenizer: Any, words: Sequence[str]) -> list[int]:
    """Ids of the words that are one token. Raises VerifierStartError when none is."""
    encoded = [tokenizer.encode(word, add_special_tokens=False) for word in words]
    ids = [ids[0] for ids in encoded if len(ids) == 1 and ids[0] != tokenizer.unk_token_id]
    if not ids:
        raise VerifierStartError(f"none of the words {', '.join(words)} is a single token of the verifier's vocabulary")
    return ids
