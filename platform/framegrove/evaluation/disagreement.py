"""Where judges disagree: which videos one of them ranks high and another one low."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

LEAST = 2  # judges, to disagree


def disagreements(judgements: Sequence[Mapping[str, float]]) -> list[float]:
    """For each video, by how much its places among all videos differ from judge to judge, from 0 to 1.

    ``judgements`` has each judge's score of each video. A place is the share of videos that the judge finds worse, with
    half of those that it finds equal: so judges need no common scale, only an order. What is told is the distance
    between the highest and the lowest place; 0 for all where there are fewer than two judges.
    """
    judges = list(judgements[0]) if judgements else []
    if len(judges) < LEAST:
        return [0.0] * len(judgements)
    places_JV = np.array([_places([said[judge] for said in judgements]) for judge in judges])
    return [float(apart) for apart in np.ptp(places_JV, axis=0)]


def _places(scores: Sequence[float]) -> npt.NDArray[np.float64]:
    """Shares in [0, 1]; all the same where all scores are."""
    ranks = stats.rankdata(scores, method="average")
    return np.asarray((ranks - 1) / max(1, len(scores) - 1))
