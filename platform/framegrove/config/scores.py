"""How a score is read out of what a vision-language model answers: the ``score`` of a verifier, told by its ``kind``.

| kind      | the model                      | the score                                                |
|-----------|--------------------------------|----------------------------------------------------------|
| yes_no    | says one token                 | P(yes) of the probability on yes and no                  |
| digits    | says one token                 | the expected digit                                       |
| generated | writes, with a number a label  | the expected number, digit by digit, where it stands     |
| json      | writes JSON that fits a schema | the numbers in it                                        |
| reward    | has a head and does not write  | the head's outputs                                       |
| pairwise  | says which of two is better    | none of one video: strengths in a cohort (``jobs.rank``) |

Scales ``low`` to ``high`` become [0, 1].
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from framegrove.config.base import Config

MOST_DIGIT = 9
_Tries = Annotated[int, Field(ge=1, le=16)]


_NUMBER = r"\s*(?P<whole>\d)(?:\.(?P<decimals>\d+))?(?!\d)"  # one digit, and decimals if any


def numbered(label: str) -> re.Pattern[str]:
    """What finds a label, a regular expression, with the number that follows it. Raises re.error."""
    return re.compile(f"(?:{label}){_NUMBER}", re.IGNORECASE)


class YesNo(Config):
    """The probability of "yes", of all that is on yes and no: the default.

    A score is the ``product`` of its questions' probabilities, each to the power of its weight, or their weighted
    ``mean``, as of VisionReward's published list.
    """

    kind: Literal["yes_no"] = "yes_no"
    combine: Literal["product", "mean"] = "product"


class _Scale(Config):
    """Whole numbers from ``low``, the worst, to ``high``, the best."""

    low: int = Field(1, ge=0, le=MOST_DIGIT - 1)
    high: int = Field(5, ge=1, le=MOST_DIGIT)

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"a scale must ascend, and low is {self.low}, high {self.high}")
        return self


class Digits(_Scale):
    """The expected digit of a one-token answer, over the digits of the scale.

    ``answer`` is put into the model's mouth before it: with "Score: " it need not say that itself.
    """

    kind: Literal["digits"]
    answer: str = ""


class Generated(_Scale):
    """The model writes, and its scores stand in the text; each is the expected value where its number stands.

    ``scores`` has a regular expression for each score, whose last match in the text the number follows. A number is one
    digit of the scale, which may have decimals: each digit counts with its expected value, given those before it.
    """

    kind: Literal["generated"]
    scores: dict[str, str] = Field(min_length=1)
    max_tokens: int = Field(1024, ge=1)
    tries: _Tries = 3  # answers until one holds its scores: the likeliest one, then some sampled at temperature 0.7

    @field_validator("scores")
    @classmethod
    def _compile(cls, scores: dict[str, str]) -> dict[str, str]:
        for name, label in scores.items():
            try:
                numbered(label)
            except re.error as error:
                raise ValueError(f"the label of {name} is no regular expression ({error})") from None
        return scores


class Json(Config):
    """The model writes JSON under a schema: a whole number from ``low`` to ``high`` for each of ``scores``.

    With ``reasoning`` a text of that name comes before them, for the model to think in.
    """

    kind: Literal["json"]
    scores: tuple[str, ...] = Field(min_length=1)
    low: int = 0
    high: int = 10
    reasoning: bool = False
    max_tokens: int = Field(512, ge=1)
    tries: _Tries = 3  # as of generated

    @model_validator(mode="after")
    def _is_a_scale(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"a scale must ascend, and low is {self.low}, high {self.high}")
        if self.reasoning and "reasoning" in self.scores:
            raise ValueError("a score cannot be called reasoning where the model also gives its reasoning")
        return self

    @property
    def json_schema(self) -> dict[str, Any]:
        """The JSON schema, strict: every key is there and no other."""
        number = {"type": "integer", "minimum": self.low, "maximum": self.high}
        keys: dict[str, Any] = {"reasoning": {"type": "string"}} if self.reasoning else {}
        keys |= dict.fromkeys(self.scores, number)
        return {"type": "object", "properties": keys, "required": list(keys), "additionalProperties": False}


class RewardOutput(Config):
    """One output of a reward head, of which the score is the logistic function of (output - mean) / std.

    ``token`` is a token of the prompt at which the output is read (VideoReward's "<|VQ_reward|>"); None is the last.
    """

    mean: float = Field(0.0, allow_inf_nan=False)
    std: float = Field(1.0, gt=0, allow_inf_nan=False)
    token: str | None = None


class Reward(Config):
    """The outputs of a reward head, a linear layer on the last hidden state, by name and in the head's order."""

    kind: Literal["reward"]
    outputs: dict[str, RewardOutput] = Field(min_length=1)


class Pairwise(Config):
    """Which of two videos is better, asked in both orders.

    The frames of the first come before those of the second, ``{frames}`` of each. The answer is a word of ``first`` or
    one of ``second``. A search has each branch compared with the first ``anchors`` of its cohort.
    """

    kind: Literal["pairwise"]
    question: str = (
        "The first {frames} pictures are frames of video A, the other {frames} are frames of video B. Both were made "
        "for this description: {prompt}\nWhich of the two videos shows it better? Answer with A or B only."
    )
    first: tuple[str, ...] = Field(("A",), min_length=1)
    second: tuple[str, ...] = Field(("B",), min_length=1)
    anchors: int = Field(2, ge=1, le=16, description="branches of its cohort that a search has each one compared with")

    @field_validator("question")
    @classmethod
    def _has_places(cls, question: str) -> str:
        try:
            question.format(frames=4, prompt="a cat")
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise ValueError(f"the question may hold {{prompt}} and {{frames}} and no other braces ({error})") from None
        if "{prompt}" not in question:
            raise ValueError("the question must hold {prompt}")
        return question


Score = Annotated[YesNo | Digits | Generated | Json | Reward | Pairwise, Field(discriminator="kind")]


def names_of(score: Score) -> tuple[str, ...] | None:
    """The scores that a reading gives by itself; None where those are its questions'."""
    match score:
        case Generated() | Json():
            return tuple(score.scores)
        case Reward():
            return tuple(score.outputs)
        case _:
            return None
