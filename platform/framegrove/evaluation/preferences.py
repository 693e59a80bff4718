"""What a finished search says about siblings: which child of a branch was better, and by how much.

Children of one branch share their whole past and differ in their newest unit, so that a verdict about the difference is
a verdict about that unit: preference data that no comparison of whole videos gives. Policies compare paths; here a
child counts for itself, by the panel's probability that it is right (search/fusion.py, log-p).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from framegrove.search.fusion import LogP, chance
from framegrove.search.result import Fate, Node
from framegrove.search.tree import Scores
from framegrove.types import Assessment, Path

_SAME = 1e-9  # log-odds that differ by less are equal
_SURE = 1e-4  # a panel is never surer than this: beyond, its log-odds say nothing


@dataclass(frozen=True)
class Preference:
    """Two children of one branch: ``chances`` that they are right, and ``scores`` by column, the better one's first.

    ``cut`` says whether the search cut the worse one.
    """

    better: Path
    worse: Path
    chances: tuple[float, float]
    scores: Mapping[str, tuple[float, float]]
    cut: bool

    @property
    def margin(self) -> float:
        """By how much their log-odds differ."""
        return log_odds(self.chances[0]) - log_odds(self.chances[1])


def log_odds(chance: float) -> float:
    """Of a probability in (0, 1)."""
    return math.log(chance / (1 - chance))


def chance_of(assessment: Assessment, scores: Scores, log_p: LogP) -> float:
    """The panel's probability that a branch is right, within (0, 1)."""
    return min(max(chance(assessment, scores, log_p), _SURE), 1 - _SURE)


def comparisons(nodes: Iterable[Node], log_p: LogP, usable: Collection[Path]) -> list[Preference]:
    """The best child of every branch beside each of its siblings, from the nodes of a search.

    Only children in ``usable`` take part, and only assessments of finished units: a preview tells little of the unit.
    Where some siblings were asked more than others, all are compared by the last assessment that they have in common.
    Near-ties are among the comparisons: see `told_apart`.
    """
    families: dict[Path, list[Node]] = defaultdict(list)
    for node in nodes:
        if node.path in usable:
            families[node.path[:-1]].append(node)
    found: list[Preference] = []
    for children in families.values():
        asked = _asked_of_all(children)
        if asked is None or len(children) < 2:
            continue
        chances = {node.path: chance_of(asked, dict(node.scores)[asked], log_p) for node in children}
        best, *others = sorted(children, key=lambda node: (-chances[node.path], node.path))
        found += [
            Preference(
                best.path,
                other.path,
                (chances[best.path], chances[other.path]),
                _side_by_side(dict(best.scores)[asked], dict(other.scores)[asked]),
                other.fate is Fate.DROPPED,
            )
            for other in others
        ]
    return found


def told_apart(found: Iterable[Preference], margin: float, least: float, most: float = 1.0) -> list[Preference]:
    """Those that differ by ``margin`` in log-odds or more, a better one that is right and a worse one that is not.

    That is, with a probability of at least ``least`` and of at most ``most``. Without the latter, most of what is kept
    are two siblings of which both are right, one more surely: they teach a model what their verifier likes.
    """
    return [
        each
        for each in found
        if each.margin >= max(margin, _SAME) and each.chances[0] >= least and each.chances[1] <= most
    ]


def _asked_of_all(children: Sequence[Node]) -> Assessment | None:
    """The last assessment of a finished unit that all of them have."""
    common = set.intersection(*({asked for asked, _ in node.scores} for node in children)) - {Assessment.POTENTIAL}
    return max(common, key=list(Assessment).index, default=None)


def _side_by_side(one: Scores, other: Scores) -> dict[str, tuple[float, float]]:
    theirs = dict(other)
    return {column: (score, theirs[column]) for column, score in one if column in theirs}
