"""Whether a verifier's scores order branches, and whether its probabilities are true; and making them so.

All functions are pure, of a few thousand branches with a verdict each: right or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from framegrove.config.verifier import Calibration, log_odds

Numbers = Sequence[float] | npt.NDArray[np.float64]
# Strength of the pull of all slopes to 0: a perfect verifier's would be infinite, and that of a score that hardly
# varies is anybody's guess.
_RIDGE = 1.0
_STEPS = 50


def fitted(scores: Sequence[Mapping[str, float]], right: Sequence[float]) -> Calibration:
    """Platt's calibration (1999): logistic regression of being right on the scores' log-odds, one slope each.

    ``right`` is 1 or true, 0 or false, or one half for a branch of which that cannot be told: those must not be left
    out, or what is hard would seem to be rare. A score that would count against a branch is left out: on other branches
    it would do harm. With branches that are all right, or all wrong, there is nothing to learn and the bias alone says
    so. Raises ValueError without branches.
    """
    if not scores:
        raise ValueError("a calibration needs branches to be fitted to")
    verdicts_N = np.asarray(right, float)
    # Platt's targets: a little short of certainty, so that no probability becomes 0 or 1.
    yes, no = verdicts_N.sum(), len(verdicts_N) - verdicts_N.sum()
    least, most = 1 / (no + 2), (yes + 1) / (yes + 2)
    targets_N = least + (most - least) * verdicts_N
    names = sorted(scores[0]) if 0 < yes < len(verdicts_N) else []
    while True:
        odds_NS = np.array([[log_odds(each[name]) for name in names] for each in scores]).reshape(len(scores), -1)
        bias, *slopes = _logistic(np.column_stack([np.ones(len(scores)), odds_NS]), targets_N)
        if all(slope >= 0 for slope in slopes):
            return Calibration(
                bias=round(bias, 4),
                slopes={name: round(slope, 4) for name, slope in zip(names, slopes, strict=True)},
            )
        names.pop(int(np.argmin(slopes)))


def _logistic(inputs_NF: npt.NDArray[np.float64], targets_N: npt.NDArray[np.float64]) -> list[float]:
    """The weights of a logistic regression, by Newton's method; the first one, the bias, is not pulled to 0."""
    pull = np.full(inputs_NF.shape[1], _RIDGE)
    pull[0] = 1e-9
    weights_F = np.zeros(inputs_NF.shape[1])
    for _ in range(_STEPS):
        said_N = _sigmoid(inputs_NF @ weights_F)
        slope_F = inputs_NF.T @ (said_N - targets_N) + pull * weights_F
        curve_FF = (inputs_NF * (said_N * (1 - said_N))[:, None]).T @ inputs_NF + np.diag(pull + 1e-9)
        step_F = np.linalg.solve(curve_FF, slope_F)
        weights_F -= step_F * min(1.0, 2.0 / max(float(np.abs(step_F).max()), 1e-12))
        if np.abs(step_F).max() < 1e-8:
            break
    found: list[float] = weights_F.tolist()
    return found


def auc(scores: Numbers, right: Sequence[bool]) -> float:
    """Probability that a right branch has a higher score than a wrong one, a tie counting half; NaN without both."""
    return auc_within(scores, right, [0] * len(right))


def auc_within(scores: Numbers, right: Sequence[bool], groups: Sequence[int]) -> float:
    """The same among members of one group: over all pairs of a right and a wrong sibling, every pair counting once."""
    won, pairs = pairs_within(scores, right, groups)
    return won / pairs if pairs else float("nan")


def pairs_within(scores: Numbers, right: Sequence[bool], groups: Sequence[int]) -> tuple[float, int]:
    """Pairs of a right and a wrong sibling that are in the right order, a tie being half a pair, and all pairs."""
    scores_N, right_N, groups_N = np.asarray(scores, float), np.asarray(right, bool), np.asarray(groups)
    won, pairs = 0.0, 0
    for group in np.unique(groups_N):
        good, bad = (scores_N[(groups_N == group) & (right_N == kind)] for kind in (True, False))
        above = good[:, None] - bad[None]
        won += float((above > 0).sum() + (above == 0).sum() / 2)
        pairs += above.size
    return won, pairs


def calibration_error(probabilities: Numbers, right: Sequence[bool], bins: int = 10) -> float:
    """Expected calibration error: the mean distance of what is said from what is true.

    Over ``bins`` bins with as many branches each, ordered by what is said. NaN without branches.
    """
    if not len(right):
        return float("nan")
    said_N, right_N = np.asarray(probabilities, float), np.asarray(right, float)
    order = np.argsort(said_N, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return float(sum(len(part) * abs(said_N[part].mean() - right_N[part].mean()) for part in parts) / len(order))


def confident_mistakes(probabilities: Numbers, right: Sequence[bool], above: float = 0.9) -> float:
    """Share of branches that are wrong though their probability is more than ``above``, of all branches."""
    said_N, right_N = np.asarray(probabilities, float), np.asarray(right, bool)
    return float(((said_N > above) & ~right_N).mean()) if len(right_N) else float("nan")


def _sigmoid(odds: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    said: npt.NDArray[np.float64] = 0.5 * (1 + np.tanh(odds / 2))
    return said
