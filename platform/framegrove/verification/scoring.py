"""From the probabilities of "yes" to the scores of a panel of verifiers.

A panel member's score is the probability that everything it was asked holds, were the answers independent: the product
of P(yes), each to the power of its question's weight. Log-odds are put on a grid of 1/64 first, so that the last
bits, which depend on what else was in the engine's batch, hardly ever change a score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from framegrove.types import Assessment
from framegrove.verification.questions import Panel, Question

GRID = 64
_MOST = 16.0  # log-odds beyond this are all "certain"


def log_odds(logprobs: Mapping[int, float], yes: Sequence[int], no: Sequence[int]) -> float:
    """Log-odds of "yes" from log-probabilities of tokens that say yes and that say no.

    Raises ValueError when no token of either kind has a log-probability.
    """
    for_yes = [logprobs[token] for token in yes if token in logprobs]
    for_no = [logprobs[token] for token in no if token in logprobs]
    if not for_yes or not for_no:
        raise ValueError(
            "the engine returned no log-probability for yes or for no: check the verifier's yes and no words"
        )
    return _log_sum(for_yes) - _log_sum(for_no)


def on_grid(value: float) -> float:
    """``value`` cut to [-16, 16] and rounded to a multiple of 1/64."""
    return round(max(-_MOST, min(_MOST, value)) * GRID) / GRID


def probability(odds: float) -> float:
    """P(yes) for log-odds."""
    return 1.0 / (1.0 + math.exp(-odds))


def panel_scores(
    assessment: Assessment, questions: Sequence[Question], odds: Sequence[float]
) -> tuple[tuple[str, float], ...]:
    """Each verifier's score in [0, 1], in a fixed order; ``odds`` are log-odds on the grid, one a question.

    A preview is judged as in Video-T1's image chain-of-thought: first whether it is clear enough to tell, then whether
    it has potential. As far as it is not clear, the other scores move to one half: no verdict.
    """
    if len(questions) != len(odds):
        raise ValueError(f"{len(questions)} questions need as many answers, not {len(odds)}")
    scores = {panel: 1.0 for panel in Panel if any(q.panel is panel for q in questions)}
    for question, odd in zip(questions, odds, strict=True):
        scores[question.panel] *= probability(odd) ** question.weight
    if assessment is Assessment.POTENTIAL and Panel.CLARITY in scores:
        clear = scores.pop(Panel.CLARITY)
        scores = {panel: clear * score + (1 - clear) * 0.5 for panel, score in scores.items()}
        scores[Panel.CLARITY] = clear
    return tuple((panel.value, score) for panel, score in scores.items())


def _log_sum(logs: Sequence[float]) -> float:
    top = max(logs)
    return top + math.log(sum(math.exp(value - top) for value in logs))
