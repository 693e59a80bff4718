"""From a panel's scores to one number for a branch, and along its path.

**Fusion.** Three ways to fuse the scores of a panel:

- ``log-p``: each verifier's scores make up its probability that the branch is right so far; the fused score is the
  mean of the logarithms, weighted by verifier. It is absolute: a branch need not be compared with others, so that it
  can be accepted alone. It is as good as its calibration (`framegrove.config.verifier.Calibration`).
- ``ranks``: the weighted mean of ranks in a cohort (VT1 eq. 7; ranks.py). Needs no scale at all.
- ``z-scores``: the weighted mean of the scores' distances from their mean in a cohort, in standard deviations.

**Path score.** What a branch is compared by: ``last``, the newest fused score alone; ``sum``, that of its path (with
log-p the logarithm of the probability that every unit is right, each given those before it; with ranks VT1's);
``min``, the weakest point of its path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from framegrove.config.search import Fusion, PathScore
from framegrove.config.verifier import VerifierConfig
from framegrove.errors import UserError
from framegrove.search.ranks import Weigh, equally
from framegrove.search.tree import Scores
from framegrove.types import Assessment

LogP = Callable[[Assessment, Scores], float]
"""The logarithm of the panel's probability that a branch is right, from its scores at an assessment."""

GIVEN_UP = "given up"
"""The only column of a branch that was given up where no branch was scored: no verifier's, and no chance at all."""

LEAST = 1e-6  # no score counts as less: a verifier that rounds to 0 must not have a veto for ever


def chance(assessment: Assessment, scores: Scores, log_p: LogP) -> float:
    """The panel's probability that a branch is right."""
    return math.exp(log_p(assessment, scores))


def chances(judged: Iterable[tuple[Assessment, Scores]], log_p: LogP) -> tuple[float, ...]:
    """The same for each time that a branch was judged."""
    return tuple(chance(assessment, scores, log_p) for assessment, scores in judged)


def product(assessment: Assessment, scores: Scores) -> float:
    """The logarithm of the product of all scores."""
    return sum(math.log(max(score, LEAST)) for _, score in scores)


@dataclass(frozen=True)
class Scoring:
    """How a policy reads a panel's scores: fused by ``fusion``, then along a path by ``path``; None: as it likes best.

    ``weigh`` gives the weight of a column of scores in ranks and z-scores, ``log_p`` the fused logarithm.
    """

    weigh: Weigh = equally
    log_p: LogP = product
    fusion: Fusion | None = None
    path: PathScore | None = None

    def along(self, before: float | None, own: float, default: PathScore) -> float:
        """The path score of a branch whose parent has ``before`` (None: it has no judged parent)."""
        if before is None:
            return own
        match self.path or default:
            case "sum":
                return before + own
            case "min":
                return min(before, own)
            case "last":
                return own


class Panel:
    """The verifiers of a panel as the fusion sees them: what their scores weigh, and their probability.

    ``weights`` are those given for a search, by column; otherwise the verifiers' own count. A column is called
    verifier/aspect, or by its aspect alone where there is a single verifier. ``factors`` say how many times its weight
    a verifier counts, by name; once if it is not among them. Raises UserError for a weight given to a verifier that is
    not there.
    """

    def __init__(
        self,
        verifiers: Sequence[VerifierConfig],
        weights: Mapping[str, float],
        factors: Mapping[str, float] | None = None,
    ) -> None:
        self._configs = {config.name: config for config in verifiers}
        self._given = weights
        self._factors = factors or {}
        for name in weights:
            if len(verifiers) > 1 and name.rpartition("/")[0] not in self._configs:
                raise UserError(
                    f"the weight of {name} is of no verifier of the panel: write it verifier/score, where the verifier "
                    f"is one of {', '.join(self._configs)}"
                )

    def weigh(self, column: str) -> float:
        """The weight of a column of scores in ranks and z-scores."""
        if column == GIVEN_UP:
            return 1.0
        config, aspect = self._of(column)
        own = self._given[column] if column in self._given else config.weight_of(aspect)
        return own * self._factor(config.name)

    def log_p(self, assessment: Assessment, scores: Scores) -> float:
        """The mean of the verifiers' log-probabilities, weighted by verifier; 0 where none of them counts."""
        if any(column == GIVEN_UP for column, _ in scores):
            return math.log(LEAST)
        by_verifier: dict[str, list[tuple[str, float, float]]] = {}
        for column, score in scores:
            config, aspect = self._of(column)
            by_verifier.setdefault(config.name, []).append((aspect, score, self.weigh(column)))
        total = shares = 0.0
        for name, found in by_verifier.items():
            share = self._share(name, found)
            shares += share
            total += share * self._opinion(name, assessment, found) if share else 0.0
        return total / shares if shares else 0.0

    def _of(self, column: str) -> tuple[VerifierConfig, str]:
        verifier, _, aspect = column.rpartition("/")
        return self._configs[verifier or next(iter(self._configs))], aspect

    def _share(self, name: str, found: Sequence[tuple[str, float, float]]) -> float:
        """A single weight is the verifier's share; weights by score are exponents of a verifier that counts once."""
        if not any(weight for _, _, weight in found):
            return 0.0
        weight = self._configs[name].weight
        return (1.0 if isinstance(weight, dict) else weight) * self._factor(name)

    def _factor(self, name: str) -> float:
        return self._factors.get(name, 1.0)

    def _opinion(self, name: str, assessment: Assessment, found: Sequence[tuple[str, float, float]]) -> float:
        """One verifier's log-probability: calibrated, or the product of its scores."""
        config = self._configs[name]
        calibration = config.calibration.get(assessment)
        if calibration is not None:
            return calibration.log_p({aspect: score for aspect, score, _ in found})
        one = (config.weight if not isinstance(config.weight, dict) else 1.0) * self._factor(name)
        return sum(weight / (one or 1.0) * math.log(max(score, LEAST)) for _, score, weight in found)


def fused(fusion: Fusion, assessment: Assessment, cohort: Sequence[Scores], scoring: Scoring) -> list[float]:
    """The fused score of each member of a complete cohort."""
    if fusion == "log-p":
        return [scoring.log_p(assessment, scores) for scores in cohort]
    names = sorted(name for name, _ in cohort[0])
    by_name = [dict(scores) for scores in cohort]
    if any(sorted(each) != names for each in by_name):
        raise UserError(
            "the branches of a cohort have scores of different names: a verifier must return the same for every clip"
        )
    weights_C = np.array([scoring.weigh(name) for name in names])
    if weights_C.min() < 0 or not weights_C.sum():
        raise UserError("weights must not be negative, and not all 0")
    scores_NC = np.array([[each[name] for name in names] for each in by_name])
    table_NC = _ranks(scores_NC) if fusion == "ranks" else _z_scores(scores_NC)
    means: list[float] = (table_NC @ weights_C / weights_C.sum()).tolist()
    return means


def _ranks(scores_NC: np.ndarray) -> np.ndarray:
    """The rank in (0, 1) of each score in its column, equals in the middle of their places (ranks.py)."""
    below = (scores_NC[:, None] > scores_NC[None]).sum(1)
    level = (scores_NC[:, None] == scores_NC[None]).sum(1)
    return (below + level / 2) / len(scores_NC)


def _z_scores(scores_NC: np.ndarray) -> np.ndarray:
    level = scores_NC.max(axis=0) == scores_NC.min(axis=0)  # by rounding, equal scores can have a spread of 1e-17
    spread = np.where(level, 1.0, scores_NC.std(axis=0))
    return np.where(level, 0.0, (scores_NC - scores_NC.mean(axis=0)) / spread)
