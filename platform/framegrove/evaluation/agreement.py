"""How well a judge agrees with the truth: in accuracy, in order, and in what it says of its own certainty.

A verdict is a probability that something is right; the truth says whether it is. All figures come with 95% bootstrap
intervals whose draws are of whole prompts: verdicts about one prompt's videos are anything but independent. Ties count
one half throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from framegrove.evaluation.curves import Interval
from framegrove.verification.calibration import calibration_error, pairs_within

Numbers = Sequence[float] | npt.NDArray[np.float64]

RESAMPLES = 2000
_TAIL = 0.025
NOTHING = Interval(math.nan, math.nan, math.nan)
"""What could not be measured."""


@dataclass(frozen=True)
class Agreement:
    """A judge's verdicts held against the truth; NaN where there was nothing to measure.

    ``accuracy`` is the share of verdicts on the right side of one half. ``within`` is the probability that of two
    members of one group, of which one is right, that one has the higher score (area under the ROC curve, AUC);
    ``across`` the same of any two. ``calibration`` is the expected calibration error over ten bins of as many verdicts
    each. ``verdicts``, ``right`` and ``pairs`` (of a right and a wrong member of a group) are numbers.
    """

    verdicts: int
    right: int
    pairs: int
    accuracy: Interval
    within: Interval
    across: Interval
    calibration: Interval


def numbered(names: Sequence[Hashable]) -> list[int]:
    """The names as numbers from 0, by their first appearance.

    >>> numbered(["b", "a", "b"])
    [0, 1, 0]
    """
    number = {name: at for at, name in enumerate(dict.fromkeys(names))}
    return [number[name] for name in names]


def agreement(
    said: Numbers, right: Sequence[bool], prompts: Sequence[int], groups: Sequence[int] | None = None
) -> Agreement:
    """Hold probabilities against the truth. ``groups`` (absent: the prompts) says whose siblings are whose.

    Raises ValueError without verdicts.
    """
    said_N, right_N, prompts_N = np.asarray(said, float), np.asarray(right, bool), np.asarray(prompts)
    groups_N = prompts_N if groups is None else np.asarray(groups)
    if not len(said_N):
        raise ValueError("there are no verdicts to hold against the truth")
    clusters = [np.flatnonzero(prompts_N == prompt) for prompt in np.unique(prompts_N)]
    correct_N = np.where(said_N == 0.5, 0.5, (said_N > 0.5) == right_N)
    within = [pairs_within(said_N[at], right_N[at].tolist(), groups_N[at].tolist()) for at in clusters]
    won_P, pairs_P = (np.array(column, float) for column in zip(*within, strict=True))
    return Agreement(
        len(said_N),
        int(right_N.sum()),
        int(pairs_P.sum()),
        share([correct_N[at].sum() for at in clusters], [len(at) for at in clusters]),
        share(won_P, pairs_P),
        _across(said_N, right_N, clusters),
        _resampled(lambda at: calibration_error(said_N[at], right_N[at].tolist()), clusters),
    )


def pairs_agreement(better: Numbers, worse: Numbers, prompts: Sequence[int]) -> Interval:
    """Share of pairs in which the one that is better by the truth has the higher score, a tie counting half."""
    ahead_N, prompts_N = np.asarray(better, float) - np.asarray(worse, float), np.asarray(prompts)
    won_N = np.where(ahead_N == 0, 0.5, ahead_N > 0)
    clusters = [prompts_N == prompt for prompt in np.unique(prompts_N)]
    return share([won_N[at].sum() for at in clusters], [at.sum() for at in clusters])


def as_json(found: Any) -> dict[str, Any]:
    """Any dataclass of figures as JSON values; what could not be measured is null."""
    return {name: _plain(value) for name, value in asdict(found).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def share(won: Numbers, total: Numbers) -> Interval:
    """A ratio of two sums over prompts, with its interval; draws without anything to count are left out."""
    won_P, total_P = np.asarray(won, float), np.asarray(total, float)
    if not total_P.sum():
        return NOTHING
    counts_RP = _draws(len(won_P))
    with np.errstate(invalid="ignore"):
        drawn_R = (counts_RP @ won_P) / (counts_RP @ total_P)
    return _interval(float(won_P.sum() / total_P.sum()), drawn_R)


def _across(
    said_N: npt.NDArray[np.float64], right_N: npt.NDArray[np.bool_], clusters: Sequence[npt.NDArray[np.int64]]
) -> Interval:
    """AUC over all verdicts: from how often the right ones of one prompt stand above the wrong ones of another."""
    good_P, bad_P = (np.array([(right_N[at] == kind).sum() for at in clusters], float) for kind in (True, False))
    if not good_P.sum() or not bad_P.sum():
        return NOTHING
    wrong_M = np.concatenate([said_N[at][~right_N[at]] for at in clusters])
    owners_M = np.repeat(np.arange(len(clusters)), bad_P.astype(int))
    won_PP = np.zeros((len(clusters), len(clusters)))
    for one, at in enumerate(clusters):
        above = said_N[at][right_N[at]][:, None] - wrong_M[None]
        won_M = (above > 0).sum(0) + (above == 0).sum(0) / 2
        won_PP[one] = np.bincount(owners_M, won_M, len(clusters))
    counts_RP = _draws(len(clusters))
    with np.errstate(invalid="ignore"):
        drawn_R = ((counts_RP @ won_PP) * counts_RP).sum(1) / ((counts_RP @ good_P) * (counts_RP @ bad_P))
    return _interval(float(won_PP.sum() / (good_P.sum() * bad_P.sum())), drawn_R)


def _resampled(
    measure: Callable[[npt.NDArray[np.int64]], float], clusters: Sequence[npt.NDArray[np.int64]]
) -> Interval:
    """Any figure of some verdicts, given by their places."""
    places_N = np.concatenate(clusters)
    sizes_P = [len(at) for at in clusters]
    drawn = [measure(np.repeat(places_N, np.repeat(counts_P, sizes_P))) for counts_P in _draws(len(clusters))]
    return _interval(measure(places_N), np.array(drawn))


def _draws(clusters: int) -> npt.NDArray[np.int64]:
    """How often each cluster is drawn, (RESAMPLES, clusters); the same every time."""
    return np.random.default_rng(0).multinomial(clusters, [1 / clusters] * clusters, RESAMPLES)


def _interval(value: float, drawn_R: npt.NDArray[np.float64]) -> Interval:
    found_R = drawn_R[np.isfinite(drawn_R)]
    if not len(found_R):
        return NOTHING
    low, high = np.quantile(found_R, [_TAIL, 1 - _TAIL])
    return Interval(value, float(low), float(high))
