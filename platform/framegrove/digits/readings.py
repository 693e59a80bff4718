"""What the oracle reads of branches, for the laboratory alone: no search of the product sees it.

Two uses. ``read_branch`` says whether a branch is right so far, in its newest unit and as a whole, so that a judge's
verdicts and a policy's cuts can be held against the truth. ``OracleJudge`` puts the oracle in the verifier's place:
what a policy would reach with a perfect judge is a ceiling, and is drawn apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from framegrove.config.verifier import VerifierConfig
from framegrove.digits.oracle import DigitsOracle, ObjectReading, Verdict
from framegrove.digits.world import DigitObject, parse
from framegrove.errors import UserError
from framegrove.types import Assessment, Cost, Scored, ScoreWork
from framegrove.verification.clips import clip_of

Frames = npt.NDArray[np.uint8]

RIGHT, WRONG = 0.98, 0.02  # what the perfect judge says: a little short of certainty, as a score of the field is


@dataclass(frozen=True)
class BranchReading:
    """The oracle's reading of a branch: of its newest unit alone, and of everything up to there.

    ``whole.fully_right`` means that all that was asked for is right so far. A single frame has no motion to be wrong.
    """

    newest: Verdict
    whole: Verdict

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of ``as_json``."""
        return cls(_verdict(value["newest"]), _verdict(value["whole"]))


def read_branch(oracle: DigitsOracle, units: Sequence[Frames], asked: Sequence[DigitObject]) -> BranchReading:
    """Read a branch whose ``units``, uint8 (T, H, W, 3) each, are given oldest first."""
    return BranchReading(oracle.judge(units[-1], asked), oracle.judge(clip_of(*units), asked))


class OracleJudge:
    """A verifier (actors/verifier.py) that asks the oracle; a worker for a pool, made from a VerifierConfig.

    At every assessment but the last it is asked about the newest unit, at the last about the whole video.
    """

    def __init__(self, config: VerifierConfig) -> None:
        self._name = config.name
        self._oracle = DigitsOracle()

    async def ready(self) -> str:
        """The judge's name."""
        return self._name

    async def score(self, work: ScoreWork, prompt: str, *units: Frames) -> Scored:
        """One score, ``right``: 0.98 or 0.02. Raises UserError for a prompt that is no caption of the digits world."""
        asked = parse(prompt)
        if asked is None:
            raise UserError(f"the oracle reads digits, and cannot judge {prompt[:60]!r}: give it a caption of theirs")
        frames = clip_of(*units) if work.assessment is Assessment.FINAL else units[-1]
        right = self._oracle.judge(frames, asked).fully_right
        return Scored(work, (("right", RIGHT if right else WRONG),), Cost())

    async def price(
        self, prompt: str, lengths: Sequence[int], height: int, width: int
    ) -> dict[Assessment, tuple[int, ...]]:
        """FLOPs of judging a branch, by assessment and depth: none are counted."""
        return dict.fromkeys(Assessment, (0,) * len(lengths))

    def close(self) -> None:
        """Nothing to stop."""


def oracle_config() -> VerifierConfig:
    """The oracle as a member of a panel."""
    return VerifierConfig(name="oracle", kind="callable", function=f"{__name__}:{OracleJudge.__name__}")


def _verdict(value: Mapping[str, Any]) -> Verdict:
    return Verdict(value["score"], value["fully_right"], tuple(ObjectReading(**each) for each in value["readings"]))
