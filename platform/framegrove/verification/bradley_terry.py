"""From comparisons of two to a strength for each of a cohort, by the model of Bradley and Terry (1952).

The probability that a beats b is the logistic function of the difference of their strengths. Strengths are those of
greatest likelihood under a normal prior, which keeps the undefeated finite, and sum up to 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

_MOST = 16.0  # log-odds beyond this count as certain, as in scoring.py
_STEPS = 50


def both_orders(first: float, second: float) -> float:
    """The log-odds that a beats b, from those that whoever is shown first wins, in the orders a, b and b, a.

    What a judge likes the first place better by appears in both and cancels. Infinite odds count as 16.
    """
    ab, ba = (max(-_MOST, min(_MOST, odds)) for odds in (first, second))
    return (ab - ba) / 2


def strengths(
    count: int,
    won: Mapping[tuple[int, int], float],
    pull: float = 0.1,
    weights: Mapping[tuple[int, int], float] | None = None,
) -> tuple[float, ...]:
    """The strengths of ``count`` contestants, in log-odds; ``won[a, b]`` is the probability that a is better than b.

    ``pull`` is the precision of the prior on every strength. ``weights`` say how many comparisons a pair stands for, 1
    if absent. A pair may be missing, or be there in both orders, and then counts twice. Raises ValueError for a pair
    that is not of the cohort and for what is no probability.
    """
    for (a, b), chance in won.items():
        if a == b or not {a, b} <= set(range(count)) or not 0 <= chance <= 1:
            raise ValueError(f"a comparison is of two of the {count} and has a probability, not {(a, b)}: {chance}")
    a_P, b_P = (np.array([pair[at] for pair in won], int) for at in (0, 1))
    chance_P = np.array(list(won.values()), float)
    times_P = np.array([weights[pair] if weights is not None else 1.0 for pair in won], float)
    strengths_N = np.zeros(count)
    for _ in range(_STEPS):
        expected_P = 0.5 * (1 + np.tanh((strengths_N[a_P] - strengths_N[b_P]) / 2))
        slope_N, curve_NN = -pull * strengths_N, pull * np.eye(count)
        ahead_P, weight_P = times_P * (chance_P - expected_P), times_P * expected_P * (1 - expected_P)
        np.add.at(slope_N, a_P, ahead_P)
        np.add.at(slope_N, b_P, -ahead_P)
        for rows_P, columns_P, sign in ((a_P, a_P, 1), (b_P, b_P, 1), (a_P, b_P, -1), (b_P, a_P, -1)):
            np.add.at(curve_NN, (rows_P, columns_P), sign * weight_P)
        step_N = np.linalg.solve(curve_NN, slope_N)
        strengths_N += step_N * min(1.0, 2.0 / max(float(np.abs(step_N).max()), 1e-12))
        if np.abs(step_N).max() < 1e-10:
            break
    return tuple(float(strength) for strength in strengths_N - strengths_N.mean())


def against_anchors(odds: Sequence[float], *, of_anchor: bool) -> float:
    """The strength of one of a cohort, in log-odds against an average anchor, from those against each other anchor.

    Where odds are differences of strengths, their mean is the strength less the anchors' mean. That holds for an
    anchor as well (``of_anchor``), which against itself has log-odds of 0; a lone one has nothing to beat.
    """
    count = len(odds) + of_anchor
    return sum(odds) / count if count else 0.0
