"""A published list of yes/no questions with a weight each, read where its user keeps it.

VisionReward (arXiv 2412.21059) publishes its questions as a text file, one a line with [[prompt]] where the prompt
goes, and their weights beside it as weight.json. Its score of a video is the mean of the answers, 1 for yes and -1 for
no, times the weights. A question of negative weight thus speaks against the video. With P(yes) in place of 1 and -1,
and scaled to [0, 1], this is the mean of the probabilities that the answers speak for the video, weighted by the
weights' sizes: a verifier's ``score: {kind: yes_no, combine: mean}``.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

from framegrove.config.base import ConfigError
from framegrove.config.verifier import LIST_WEIGHTS
from framegrove.types import Assessment
from framegrove.verification.questions import Question
from framegrove.verification.views import View

PLACE = "[[prompt]]"
SCORE = "preference"


class ListedSet:
    """A question set from such a list. All of it is asked at every assessment, about frames from the whole video."""

    def __init__(self, file: Path) -> None:
        """Read ``file`` and its weights. Raises ConfigError, which names the file."""
        lines = [line.strip() for line in _read(file).splitlines() if line.strip()]
        weights = _weights(file.with_name(LIST_WEIGHTS))
        if len(lines) != len(weights):
            raise ConfigError(
                f"{file} has {len(lines)} questions and {LIST_WEIGHTS} beside it {len(weights)} weights: there must be "
                "one for each"
            )
        self._weighted = [(line, weight) for line, weight in zip(lines, weights, strict=True) if weight]
        if not self._weighted:
            raise ConfigError(f"{file} has no question with a weight other than 0")
        self._total = sum(abs(weight) for _, weight in self._weighted)

    @property
    def fingerprint(self) -> str:
        """Depends on the questions and their weights."""
        return hashlib.blake2b(json.dumps(self._weighted).encode(), digest_size=12).hexdigest()

    def questions(self, assessment: Assessment, prompt: str) -> tuple[Question, ...]:
        """All of them, in the file's order; those of weight 0 are left out."""
        return tuple(
            Question(line.replace(PLACE, prompt), SCORE, SCORE, abs(weight) / self._total, weight < 0, View.VIDEO)
            for line, weight in self._weighted
        )


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None


def _weights(file: Path) -> list[float]:
    try:
        found = json.loads(_read(file))
    except ValueError as error:
        raise ConfigError(f"{file} is not valid JSON: {error}") from None
    numbers = isinstance(found, list) and all(type(each) in (int, float) and math.isfinite(each) for each in found)
    if not numbers:
        raise ConfigError(f"{file} must hold a list of finite numbers")
    return [float(each) for each in found]
