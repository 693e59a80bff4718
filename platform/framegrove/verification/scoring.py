"""From the log-probabilities of "yes" and "no" to a verifier's scores.

A score is the probability that everything it was asked about holds, were the answers independent: the product of
P(yes), each to the power of its question's weight. Log-odds are put on a grid of 1/64 first, so that the last bits,
which depend on what else was in the engine's batch, hardly ever change a score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from framegrove.errors import UserError
from framegrove.types import Assessment
from framegrove.verification.questions import Question

GRID = 64
LEAST_MASS = 0.005
CLARITY = "clarity"  # the score that says how far a preview can be judged at all
_MOST = 16.0  # log-odds beyond this count as certain


@dataclass(frozen=True)
class Answer:
    """A model's answer to a yes/no question: ``odds`` are the log-odds of yes, infinite where it is certain.

    ``mass`` is the probability of yes and no together, of all that the model could have said next.
    """

    odds: float
    mass: float


def read_answer(logprobs: Mapping[int, float], yes: Sequence[int], no: Sequence[int]) -> Answer:
    """The answer in the log-probabilities of the tokens that say yes and of those that say no.

    A log-probability of -inf is a probability of 0. Raises UserError, which says what is wrong and leaves it to the
    caller to say with whom, where one is not a number, or where yes and no together get less than ``LEAST_MASS``: the
    odds of two outcomes next to impossible say nothing. Raises ValueError where the engine left a token out.
    """
    missing = [token for token in (*yes, *no) if token not in logprobs]
    if missing:
        raise ValueError(f"the engine returned no log-probability for the tokens {missing}")
    return answer_of(*(log_sum([logprobs[token] for token in tokens]) for tokens in (yes, no)))


def answer_of(for_yes: float, for_no: float) -> Answer:
    """The answer in the log-probability of all that says yes and of all that says no. Raises UserError, as above."""
    if math.isnan(for_yes) or math.isnan(for_no):
        raise UserError("the log-probability of yes or no is not a number")
    mass = math.exp(for_yes) + math.exp(for_no)
    if mass == 0:
        raise UserError("there is no mass on yes or no")
    if mass < LEAST_MASS:
        raise UserError(f"only {short_mass(mass)} of the probability is on yes or no")
    return Answer(for_yes - for_no, mass)


def averaged(answers: Sequence[Answer]) -> Answer:
    """The answer to a question that was asked about several views of a clip: the mean of the log-odds.

    No view is surer than certain: infinite odds count as 16. The mass is the least of all.
    """
    if len(answers) == 1:
        return answers[0]
    odds = [max(-_MOST, min(_MOST, answer.odds)) for answer in answers]
    return Answer(sum(odds) / len(odds), min(answer.mass for answer in answers))


def on_grid(value: float) -> float:
    """``value`` cut to [-16, 16] and rounded to a multiple of 1/64."""
    return round(max(-_MOST, min(_MOST, value)) * GRID) / GRID


def probability(odds: float) -> float:
    """P(yes) for log-odds, which may be infinite."""
    return 1.0 / (1.0 + math.exp(-odds)) if odds > -700 else 0.0  # exp(709) is the largest that a float holds


def scores_of(
    assessment: Assessment,
    questions: Sequence[Question],
    odds: Sequence[float],
    combine: Literal["product", "mean"] = "product",
) -> tuple[tuple[str, float], ...]:
    """Each score in [0, 1], in the order in which the questions first name them; ``odds``, one a question, on the grid.

    A score is the product of its answers' probabilities, each to the power of its question's weight, or their weighted
    mean.

    A preview is judged as in Video-T1's image chain-of-thought: first whether it is clear enough to tell, then whether
    it has potential. As far as its score called "clarity" is low, the other scores move to one half: no verdict.
    """
    if len(questions) != len(odds):
        raise ValueError(f"{len(questions)} questions need as many answers, not {len(odds)}")
    scores = {question.score: 1.0 if combine == "product" else 0.0 for question in questions}
    weights = dict.fromkeys(scores, 0.0)
    for question, odd in zip(questions, odds, strict=True):
        chance = probability(-odd if question.against else odd)
        weights[question.score] += question.weight
        if combine == "product":
            scores[question.score] *= chance**question.weight
        else:
            scores[question.score] += chance * question.weight
    if combine == "mean":
        scores = {name: total / weights[name] for name, total in scores.items()}
    if assessment is Assessment.POTENTIAL and CLARITY in scores:
        clear = scores.pop(CLARITY)
        scores = {name: clear * score + (1 - clear) * 0.5 for name, score in scores.items()}
        scores[CLARITY] = clear
    return tuple(scores.items())


def log_sum(logs: Sequence[float]) -> float:
    """The logarithm of the sum of what these are the logarithms of; nan if any of them is."""
    top = max(logs)
    if math.isnan(sum(logs)):  # max does not see a nan that stands behind another value
        return math.nan
    if top == -math.inf:
        return -math.inf
    return top + math.log(sum(math.exp(value - top) for value in logs))


def short_mass(mass: float) -> str:
    """A small probability to one digit, as 5e-3."""
    mantissa, _, exponent = f"{mass:.0e}".partition("e")
    return f"{mantissa}e{int(exponent)}"
