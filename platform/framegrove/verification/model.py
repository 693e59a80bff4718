"""What is known of a vision-language model in a folder besides its weights: how it is asked, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from framegrove.config.engine import model_folder
from framegrove.config.scores import Digits, Generated, Pairwise, YesNo
from framegrove.config.verifier import VerifierConfig
from framegrove.errors import UserError
from framegrove.verification.clips import Frames
from framegrove.verification.encoding import QuestionEncoder
from framegrove.verification.readings import Words
from framegrove.verification.verdicts import checked_questions
from framegrove.verification.workload import Workload


class VerifierStartError(UserError):
    """A verifier's model could not be started; the message is one sentence."""


class Sight(NamedTuple):
    """What decides into how many tokens a model turns the pictures of a question."""

    pictures: int
    height: int
    width: int


def pictures_of(frames: Sequence[Frames], shown: Sequence[int]) -> list[Image.Image]:
    """Some of a clip's frames as pictures."""
    return [Image.fromarray(frames[at]) for at in shown]


def grey_frame(height: int, width: int) -> Frames:
    """A frame with nothing on it."""
    return np.full((height, width, 3), 128, np.uint8)


def shown_together(first: Frames, second: Frames, most: int) -> tuple[list[Frames], list[Frames]]:
    """As many frames of each of two clips, ``most`` in all, for a comparison: from all over them, the last among them.

    Of a clip with fewer frames than there is room for, all; then no more of the other.
    """
    each = min(most // 2, len(first), len(second))
    one, other = (
        [clip[at] for at in np.linspace(0, len(clip) - 1, each).round().astype(int)] for clip in (first, second)
    )
    return one, other


class VerifierModel:
    """The processor of a verifier's model, its questions, and the ids of the tokens that its scores are read from."""

    def __init__(self, config: VerifierConfig) -> None:
        """Read it. Raises UserError, in one sentence."""
        from transformers import AutoProcessor

        self.folder = model_folder(config.engine)
        self.name = Path(self.folder).name
        self._config, score = config, config.score
        self.questions = None if isinstance(score, Pairwise) else checked_questions(config)
        try:
            self.processor: Any = AutoProcessor.from_pretrained(self.folder, trust_remote_code=False)
            self.local = _local(self.folder)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise VerifierStartError(f"verifier {config.name} cannot be read from {self.folder}: {reason}") from error
        self.tokenizer = self.processor.tokenizer
        self.words = words_of(config)
        self.yes: list[int] = []
        self.no: list[int] = []
        if isinstance(score, YesNo | Pairwise):
            self.yes, self.no = (self._ids(words) for words in self.words)
        self.digits: dict[int, str] = {}  # by the ids of their tokens
        if isinstance(score, Digits | Generated):
            numbers = range(score.low, score.high + 1) if isinstance(score, Digits) else range(10)
            self.digits = {self._digit(number): str(number) for number in numbers}
        self.work = Workload(self.local)
        if self.work.is_empty:
            raise VerifierStartError(
                f"verifier {config.name}: there are no weights in safetensors in {self.folder}, which is what its "
                "FLOPs are counted by: use a model that has them"
            )
        self._encoders: dict[int, QuestionEncoder] = {}

    def encoder(self, pictures: int) -> QuestionEncoder:
        """Encodes questions about so many pictures, which come first, and begins the answer as the score says."""
        if pictures not in self._encoders:
            score = self._config.score
            after = self._config.engine.instruction if isinstance(score, YesNo) else ""
            begun = score.answer if isinstance(score, Digits) else ""
            self._encoders[pictures] = QuestionEncoder(
                self.tokenizer, lambda question: self.rendered(pictures, question + after) + begun
            )
        return self._encoders[pictures]

    def told(self, prompt: str, pictures: int) -> list[int]:
        """Token ids of an instruction about so many pictures, which come first; no answer of one word is asked for."""
        return QuestionEncoder(self.tokenizer, lambda text: self.rendered(pictures, text)).encode(prompt)

    def rendered(self, pictures: int, question: str) -> str:
        """The chat template around a question about so many pictures."""
        content = [{"type": "image"} for _ in range(pictures)] + [{"type": "text", "text": question}]
        message = [{"role": "user", "content": content}]
        return str(self.processor.apply_chat_template(message, tokenize=False, add_generation_prompt=True))

    def _ids(self, words: Sequence[str]) -> list[int]:
        """Ids of the words that are one token. Raises VerifierStartError when none is."""
        ids = [single for word in words if (single := self._single(word)) is not None]
        if not ids:
            raise VerifierStartError(
                f"verifier {self._config.name}: none of the words {', '.join(words)} is a single token of its "
                "vocabulary"
            )
        return ids

    def _digit(self, number: int) -> int:
        single = self._single(str(number))
        if single is None:
            raise VerifierStartError(
                f"verifier {self._config.name}: the digit {number} is no single token of its vocabulary: read its "
                "scores as yes_no or json"
            )
        return single

    def _single(self, word: str) -> int | None:
        ids: list[int] = self.tokenizer.encode(word, add_special_tokens=False)
        return ids[0] if len(ids) == 1 and ids[0] != self.tokenizer.unk_token_id else None


def words_of(config: VerifierConfig) -> Words:
    """What says yes and no to a verifier's questions, or which of two."""
    if isinstance(config.score, Pairwise):
        return Words(config.score.first, config.score.second)
    asked = config.endpoint or config.engine
    return Words(asked.yes_words, asked.no_words)


def _local(model: str) -> Path:
    """The folder of a model; of one on the hub its weights are fetched here, where that has not been done."""
    if Path(model).exists():
        return Path(model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, allow_patterns=["config.json", "*.safetensors"]))
