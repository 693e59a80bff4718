"""The ``reward`` verifier: a vision-language model with a reward head, run with transformers.

For models that vLLM does not serve with their head: of VideoReward's class (arXiv 2501.13918), whose outputs are read
at tokens of their own. The folder holds the model as transformers saves it, low-rank adapters merged, and its head, a
linear layer on the last hidden state, as the tensors ``score.weight`` (outputs x hidden size, or 1 x hidden size for
one head at several tokens) and, if it has one, ``score.bias`` in its safetensors: where transformers and vLLM keep the
head of a sequence classifier.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from framegrove.config.scores import Reward
from framegrove.config.verifier import VerifierConfig
from framegrove.errors import UserError
from framegrove.types import Assessment, Cost, Scored, ScoreWork
from framegrove.verification.clips import Frames, frames_by_one
from framegrove.verification.encoding import QuestionEncoder
from framegrove.verification.model import VerifierModel, VerifierStartError, grey_frame, pictures_of
from framegrove.verification.questions import Question
from framegrove.verification.readings import reward
from framegrove.verification.scoring import Answer
from framegrove.verification.verdicts import PROBING_PROMPT, asked_of, check_asked, verdict
from framegrove.verification.workload import common, expanded

if TYPE_CHECKING:
    import torch


class RewardVerifier:
    """Scores clips, one question at a time, on a GPU if there is one."""

    def __init__(self, config: VerifierConfig) -> None:
        """Nothing is read yet, so that what goes wrong comes out of ``ready`` as it is."""
        assert isinstance(config.score, Reward), "a verifier of kind reward reads rewards"
        self._config, self._score = config, config.score
        self._starting, self._turn = asyncio.Lock(), asyncio.Lock()
        self._loaded: _Loaded | None = None

    async def ready(self) -> str:
        """The model's name, once it is loaded. Raises UserError, which names the verifier, where it cannot be used."""
        return (await self._running()).model.name

    async def score(self, work: ScoreWork, prompt: str, *units: Frames) -> Scored:
        """The rewards of the clip that ``units``, uint8 (T, H, W, 3), make up, for what the questions ask there."""
        began = time.monotonic()
        loaded, frames = await self._running(), frames_by_one(*units)
        questions = loaded.questions(work.assessment, prompt)
        check_asked(self._config, work.assessment, questions)
        answers: list[list[Answer]] = [[] for _ in questions]
        flops = 0
        for shown, texts in loaded.asked(questions, [len(unit) for unit in units]).items():
            pictures = pictures_of(frames, shown)
            for places in texts.values():
                async with self._turn:
                    inputs = await asyncio.to_thread(loaded.inputs, work.assessment, places[0], prompt, pictures)
                    outputs = await asyncio.to_thread(loaded.outputs, inputs)
                flops += loaded.flops(inputs)
                for at in places:
                    answers[at].append(self._read(questions[at].score, outputs))
        cost = Cost(flops=flops, seconds=time.monotonic() - began)
        return verdict(work, self._score, questions, answers, cost)

    async def price(
        self, prompt: str, lengths: Sequence[int], height: int, width: int
    ) -> dict[Assessment, tuple[int, ...]]:
        """FLOPs of judging a branch at each assessment that it takes part in, by depth: what ``score`` will count."""
        loaded = await self._running()
        known: dict[tuple[Assessment, int, int], int] = {}

        def flops(assessment: Assessment, depth: int) -> int:
            total = 0
            for shown, texts in loaded.asked(loaded.questions(assessment, prompt), lengths[: depth + 1]).items():
                for places in texts.values():
                    key = assessment, places[0], len(shown)
                    if key not in known:
                        pictures = pictures_of([grey_frame(height, width)], [0]) * len(shown)
                        known[key] = loaded.flops(loaded.inputs(assessment, places[0], prompt, pictures))
                    total += known[key]
            return total

        def by_depth() -> dict[Assessment, tuple[int, ...]]:
            return {
                each: tuple(flops(each, depth) for depth in range(len(lengths))) for each in self._config.assessments
            }

        async with self._turn:
            return await asyncio.to_thread(by_depth)

    def pid(self) -> int:
        """The actor's process."""
        return os.getpid()

    def close(self) -> None:
        """Let go of the model."""
        self._loaded = None

    def _read(self, name: str, outputs: Sequence[float]) -> Answer:
        try:
            return reward(self._score, name, outputs)
        except UserError as error:
            raise UserError(f"verifier {self._config.name}: {error}") from error

    async def _running(self) -> _Loaded:
        async with self._starting:
            if self._loaded is None:
                self._loaded = await asyncio.to_thread(_Loaded, self._config, self._score)
            return self._loaded


class _Loaded:
    """The model in memory."""

    def __init__(self, config: VerifierConfig, score: Reward) -> None:
        import torch
        from transformers import AutoModel

        self.model = VerifierModel(config)
        self._config, self._score = config, score
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype: torch.dtype = getattr(torch, config.engine.dtype)
        self._weight_OC, self._bias_O = _head(self.model.local, config.name)
        self._tokens = [self._token(output.token) for output in score.outputs.values()]
        rows, needed = len(self._weight_OC), len(score.outputs)
        if rows != needed and not (rows == 1 and None not in self._tokens):
            raise VerifierStartError(
                f"verifier {config.name}: the head in {self.model.folder} has {rows} outputs, and score.outputs names "
                f"{needed}"
            )
        try:
            # Neither code nor pickles from a folder or the hub.
            safely = {"use_safetensors": True, "trust_remote_code": False}
            backbone: Any = AutoModel.from_pretrained(self.model.folder, dtype=dtype, **safely)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise VerifierStartError(f"verifier {config.name} cannot be loaded: {reason[:300]}") from error
        self._backbone = backbone.to(self._device).eval()
        self._encoders: dict[tuple[Assessment, int, int], QuestionEncoder] = {}
        for each in config.assessments:
            self._encoder(each, 0, 1)  # whether the questions can be encoded is told at once

    def questions(self, assessment: Assessment, prompt: str) -> tuple[Question, ...]:
        """What is asked there."""
        assert self.model.questions is not None, "only comparisons have none"
        return self.model.questions.questions(assessment, prompt)

    def asked(self, questions: Sequence[Question], lengths: Sequence[int]) -> Any:
        """What is asked about which frames."""
        return asked_of(questions, lengths, self._config.engine.max_frames)

    def inputs(self, assessment: Assessment, at: int, prompt: str, pictures: list[Image.Image]) -> dict[str, Any]:
        """The model's inputs for a question about pictures. The prompt in it is text and nothing else (encoding.py)."""
        import torch

        encoder = self._encoder(assessment, at, len(pictures))
        probe = self.model.rendered(len(pictures), self.questions(assessment, PROBING_PROMPT)[at].text)
        given = dict(
            self.model.processor(text=[probe], images=[pictures], add_special_tokens=False, return_tensors="pt")
        )
        example, own = encoder.encode(PROBING_PROMPT), encoder.encode(prompt)
        whole = given["input_ids"][0].tolist()
        kept = common((own, example)) + len(whole) - len(example)
        tokens = expanded(own, example, whole)
        for name, value in given.items():
            if value.shape == (1, len(whole)) and name != "input_ids":  # something for each token, all of them text
                fill = torch.full((1, len(tokens) - kept), 1 if name == "attention_mask" else 0, dtype=value.dtype)
                given[name] = torch.cat([value[:, :kept], fill], dim=1)
        return given | {"input_ids": torch.tensor([tokens])}

    def outputs(self, inputs: dict[str, Any]) -> list[float]:
        """The head's outputs. Raises UserError where a token that they are read at is not in the question."""
        import torch

        given = {name: value.to(self._device) for name, value in inputs.items()}
        with torch.inference_mode():
            hidden_TC = self._backbone(**given).last_hidden_state[0].float().cpu()
        rewards_TO = hidden_TC @ self._weight_OC.T + self._bias_O
        ids = inputs["input_ids"][0].tolist()
        found = []
        for column, token in enumerate(self._tokens):
            if token is not None and token not in ids:
                raise UserError(
                    f"verifier {self._config.name}: its question does not hold every token of score.outputs"
                )
            row = -1 if token is None else len(ids) - 1 - ids[::-1].index(token)
            found.append(float(rewards_TO[row, min(column, rewards_TO.shape[1] - 1)]))
        return found

    def flops(self, inputs: dict[str, Any]) -> int:
        """FLOPs of one question."""
        return self.model.work.flops([inputs["input_ids"][0].tolist()])

    def _encoder(self, assessment: Assessment, at: int, pictures: int) -> QuestionEncoder:
        key = assessment, at, pictures
        if key not in self._encoders:

            def render(prompt: str) -> str:
                return self.model.rendered(pictures, self.questions(assessment, prompt)[at].text)

            if PROBING_PROMPT not in render(PROBING_PROMPT):
                raise UserError(f"verifier {self._config.name}: a reward model's question must hold {{prompt}}, once")
            self._encoders[key] = QuestionEncoder(self.model.tokenizer, render)
        return self._encoders[key]

    def _token(self, text: str | None) -> int | None:
        if text is None:
            return None
        ids = self.model.tokenizer.encode(text, add_special_tokens=False)
        if len(ids) != 1:
            raise VerifierStartError(f"verifier {self._config.name}: {text} is no single token of its vocabulary")
        return int(ids[0])


def _head(folder: Path, verifier: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (outputs, channels) and bias (outputs) of the head in a folder, as float32."""
    import torch
    from safetensors import safe_open

    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            names = [name for name in list(tensors.keys()) if name.startswith("score.")]
            found |= {name: tensors.get_tensor(name).float() for name in names}
    if "score.weight" not in found:
        raise VerifierStartError(f"verifier {verifier}: there is no reward head, score.weight, in {folder}")
    weight = found["score.weight"]
    return weight, found.get("score.bias", torch.zeros(len(weight)))
