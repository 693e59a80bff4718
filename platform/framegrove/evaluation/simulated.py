"""Searches in a simulated world: branches that go wrong with known chances, and judges that err at a known rate.

The policies, budgets, the conductor and its clock are those of every search; workers alone are simulated. A branch is
right so far if each of its units is, and a unit is wrong with the world's chance for its depth, independently given its
past: a branch that is wrong stays so. Whether a unit is right is a function of (seed, path), as a real branch's noise
is, and a mutated child's luck is correlated with that of the sibling that it was mutated from, by the strengths in its
name (lineage.py).

A judge sees one number about a branch, d if it is right and 0 if not, with standard normal noise on it. Between a right
and a wrong sibling it then sides with the right one with probability Phi(d / sqrt 2): its AUC. It says the probability
that the branch is right, given what it sees and how often branches are: it is calibrated, whatever its AUC, so that
policies which compare and policies which accept are both told all that it knows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from framegrove.config.search import SearchConfig
from framegrove.evaluation.virtual_time import run_virtual
from framegrove.lineage import mutation_of, sibling
from framegrove.search.conductor import Conductor
from framegrove.search.policies import make_policy
from framegrove.search.prices import Prices
from framegrove.search.protocols import PanelMember
from framegrove.types import Assessment, Cost, Path, Sampled, SampleWork, Scored, ScoreWork, prefixes

_NORMAL = NormalDist()
_NEVER, _ALWAYS = 1e-4, 1 - 1e-4  # what a judge says at the least and at the most


@dataclass(frozen=True)
class World:
    """``hazards`` are the chances of a unit to be wrong, given that all before are right, by depth; ``seed`` is that of
    luck."""

    hazards: tuple[float, ...]
    seed: int

    def right(self, path: Path) -> bool:
        """Whether a branch is right so far."""
        return all(self.unit_right(prefix) for prefix in prefixes(path))

    def unit_right(self, path: Path) -> bool:
        """Whether a branch's newest unit is."""
        return _NORMAL.cdf(self._luck(path)) >= self.hazards[len(path) - 1]

    def _luck(self, path: Path) -> float:
        """A standard normal number."""
        mutation = mutation_of(path[-1])
        fresh = gauss(self.seed, path, "luck")
        if mutation is None:
            return fresh
        strength = max(mutation.initial, mutation.jump) / 100
        return math.sqrt(1 - strength**2) * self._luck(sibling(path, mutation)) + strength * fresh


def gauss(seed: int, path: Path, about: str) -> float:
    """A standard normal number, a function of what is given."""
    digest = hashlib.blake2b(repr((seed, path, about)).encode(), digest_size=8).digest()
    return _NORMAL.inv_cdf((int.from_bytes(digest, "big") + 0.5) / 2**64)


@dataclass(frozen=True)
class SimulatedJudge:
    """A judge of this ``auc`` between right and wrong siblings, in [0.5, 1]; 1 knows the truth.

    Of an unfinished branch it is asked about the newest unit, of a finished one about the whole video.
    """

    world: World
    auc: float

    def __post_init__(self) -> None:
        if not 0.5 <= self.auc <= 1:
            raise ValueError(f"an AUC is 0.5 to 1 for a judge that is worth something, not {self.auc}")

    def says(self, path: Path, assessment: Assessment) -> float:
        """The probability that the branch is right, as far as it can tell."""
        final = assessment is Assessment.FINAL
        right = self.world.right(path) if final else self.world.unit_right(path)
        if self.auc == 1:
            return _ALWAYS if right else _NEVER
        prior = math.prod(1 - h for h in self.world.hazards) if final else 1 - self.world.hazards[len(path) - 1]
        distance = self.distance
        seen = distance * right + gauss(self.world.seed, path, f"seen at {assessment}")
        # Bayes: the ratio of the two normal densities is exp(d z - d^2 / 2).
        odds = prior / max(1 - prior, 1e-9) * math.exp(distance * seen - distance**2 / 2)
        return min(max(odds / (1 + odds), _NEVER), _ALWAYS)

    @property
    def distance(self) -> float:
        """Between what it sees of right and of wrong branches, in standard deviations."""
        return math.sqrt(2) * _NORMAL.inv_cdf(self.auc)


@dataclass(frozen=True)
class Outcome:
    """A finished search: whether its winner is right, and what it cost, in samples without a search."""

    right: bool
    cost: float


@dataclass(frozen=True)
class Grid:
    """What is searched: videos of ``units`` units over ``stages`` stages, at these prices."""

    units: int
    stages: int
    prices: Prices


def searched(config: SearchConfig, grid: Grid, judge: SimulatedJudge) -> Outcome:
    """Run one search, in no time. Raises as make_policy does for what cannot be searched."""
    policy, _ = make_policy(config, grid.units, grid.stages, grid.prices, seed=judge.world.seed)
    generators = {f"g{number}": _Generator(grid.prices) for number in range(4)}
    panel = {"verifier": PanelMember({"v0": _Verifier(judge, grid.prices)}, at_a_time=config.scores_in_flight)}
    result = run_virtual(Conductor(policy, generators, panel, config).run())
    spent = result.sampling.spent.all_flops + result.scoring.spent.all_flops
    return Outcome(judge.world.right(result.winner), spent / grid.prices.one_sample(policy.layout))


class _Worker:
    async def recover(self) -> None:
        """Never needed: simulated workers do not die."""


class _Generator(_Worker):
    """Takes no time (search.protocols.GeneratorClient); a handle is a path."""

    def __init__(self, prices: Prices) -> None:
        self._prices = prices

    async def sample(self, work: SampleWork, parents: Mapping[Path, Any]) -> Sampled:
        """At once, at its price."""
        return Sampled(work, Cost(flops=self._prices.work(work)), work.paths)

    def cancel(self, work: SampleWork) -> None:
        """Too late, always."""


class _Verifier(_Worker):
    """Says what its judge says (search.protocols.VerifierClient)."""

    def __init__(self, judge: SimulatedJudge, prices: Prices) -> None:
        self._judge, self._prices = judge, prices

    async def score(self, work: ScoreWork, units: Mapping[Path, Any]) -> Scored:
        """At once, at its price."""
        said = self._judge.says(work.path, work.assessment)
        flops = self._prices.judge(len(work.path) - 1, work.assessment)
        return Scored(work, (("right", said),), Cost(flops=flops))
