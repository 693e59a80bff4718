"""What a suite of searches shows: whether a tree is worth its compute, by rules that were fixed before it was run.

Everything is taken at one length of videos and by one judge at a time, over the prompts that every setting has, and is
paired by prompt. Costs are total prices in samples (report.Price). Intervals are 95% bootstrap intervals over prompts.

*Plateau*: linear search with the fewest videos whose share of right ones is within the margin of the best linear
search's. A setting *reaches* it if its own share is not below the plateau's by more than the margin. An aim compares
the cheapest setting of a tree policy that reaches the plateau with what linear search costs there. Being the cheapest
of many flatters; so each aim also says in which share of the bootstrap draws it is met when plateau and setting are
chosen anew in each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from framegrove.config.suite import Setting, SuiteConfig
from framegrove.evaluation.curves import RESAMPLES, Interval
from framegrove.evaluation.report import Price
from framegrove.evaluation.results import Metric, Row, by_setting, mean_price

_LEAST = 1e-9  # shares that differ by less differ by rounding
_SEED = 0  # of the draws, as in curves.bootstrap
_TAILS = (0.025, 0.975)

Array = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]  # of settings


def right(row: Row) -> float:
    """Whether the oracle calls a video fully right."""
    return float(row.fully_right)


def total(row: Row) -> float:
    """What a video cost, all parts together, in samples."""
    return row.price.total


def believed(row: Row) -> float:
    """The panel's probability that a video is right: the search score, made comparable between policies."""
    return row.believed


@dataclass(frozen=True)
class Outcome:
    """What a setting gives: means over prompts.

    ``right`` is the share that the oracle calls fully right, ``cost`` the total price and ``price`` its parts,
    ``believed`` the panel's P(right) of the winner, and ``agreement`` the rank correlation of that with the oracle's
    score over prompts, None where either is the same for all. ``travel`` is the motion in px per frame, ``as_asked``
    the share of objects that move as asked, ``held_out`` what a judge says that no search saw. ``beside_single`` and
    ``beside_plateau`` are paired differences of ``right``.
    """

    setting: Setting
    right: Interval
    cost: Interval
    price: Price
    oracle_score: Interval
    believed: Interval
    agreement: float | None
    travel: Interval
    as_asked: Interval
    held_out: Mapping[str, Interval]
    beside_single: Interval | None
    beside_plateau: Interval | None


@dataclass(frozen=True)
class BesideLinear:
    """A tree policy's setting beside linear search: the cheapest that reaches the plateau or, if none does, the one
    that comes closest. ``of_plateau`` and ``of_stop`` are ratios of mean costs."""

    policy: str
    setting: str
    reached: bool
    difference: Interval
    of_plateau: Interval
    of_stop: Interval | None


@dataclass(frozen=True)
class Aim:
    """Whether the cheapest tree setting that reaches the plateau costs at most ``allowed`` times what ``against`` does.

    ``setting`` is that, and ``ratio`` that of the costs; None where none reaches the plateau. ``met_in`` is the share
    of bootstrap draws in which the aim is met when everything is chosen anew in each. ``short_by`` says how far the
    aim was missed: the ratio beyond what is allowed or, if none reaches the plateau, None.
    """

    against: str
    allowed: float
    setting: str | None
    ratio: Interval | None
    met: bool
    met_in: float
    short_by: float | None


@dataclass(frozen=True)
class Trend:
    """What more budget buys within a family of settings, from the cheapest to the dearest (paired differences)."""

    family: str
    settings: tuple[str, ...]
    believed: Interval
    right: Interval

    @property
    def rises(self) -> bool:
        """Whether both do, by their means."""
        return self.believed.mean > 0 and self.right.mean > 0


@dataclass(frozen=True)
class Teamwork:
    """A panel beside the best part of it in the same setting: difference of right videos, paired; ratio of costs."""

    panel: str
    best: str
    difference: Interval
    cost: Interval


@dataclass(frozen=True)
class Chapter:
    """What is shown at one length, with one judge. ``stop`` is the linear search with stop that trees are held against.

    ``plateau`` and what follows from it is absent where the suite has no linear search.
    """

    units: int
    prompts: int
    outcomes: tuple[Outcome, ...]
    plateau: str | None
    stop: str | None
    standings: tuple[BesideLinear, ...]
    aims: tuple[Aim, ...]
    trends: tuple[Trend, ...]
    teamwork: tuple[Teamwork, ...]

    def find(self, label: str) -> Outcome:
        """The outcome of a setting."""
        return next(outcome for outcome in self.outcomes if outcome.setting.label == label)


def complete(rows: Sequence[Row]) -> list[Row]:
    """The rows of the prompts that every setting has."""
    groups = by_setting(rows)
    shared = set.intersection(*({row.prompt_index for row in group} for group in groups.values())) if groups else set()
    return [row for row in rows if row.prompt_index in shared]


def chapter(rows: Sequence[Row], suite: SuiteConfig) -> Chapter:
    """What the complete rows of one length and one judge show. Raises ValueError where there are none."""
    table = _Table(complete(rows), suite)
    return Chapter(
        units=rows[0].units,
        prompts=table.prompts,
        outcomes=tuple(table.outcomes()),
        plateau=table.plateau,
        stop=table.stop,
        standings=tuple(table.standings()),
        aims=tuple(table.aims()),
        trends=tuple(table.trends()),
        teamwork=tuple(table.teamwork()),
    )


class _Table:
    """Rows as matrices: prompts by settings. Every interval is from the same draws of prompts."""

    def __init__(self, rows: Sequence[Row], suite: SuiteConfig) -> None:
        if not rows:
            raise ValueError("no prompt has been measured in every setting: there is nothing to show")
        self._suite = suite
        self._rows = by_setting(sorted(rows, key=lambda row: row.prompt_index))
        self.settings = list(by_setting(rows))
        self.prompts = len(next(iter(self._rows.values())))
        self._right, self._cost, self._believed = map(self._matrix, (right, total, believed))
        self._draws = _draws(self.prompts)
        self._as_it_is = np.full((1, self.prompts), 1.0 / self.prompts)  # every prompt counts once
        costs = self._cost.mean(0)
        self._linear = sorted(self._those(lambda setting: setting.family == "linear"), key=lambda n: float(costs[n]))
        self._trees = self._those(lambda setting: setting.policy in suite.trees)
        self._single = next(iter(self._those(lambda setting: setting.policy == "single")), None)
        self._plateau = int(self._plateaus(self._as_it_is)[0]) if self._linear else None
        self._stop = self._best_of(self._those(lambda setting: setting.family == "linear with stop"))

    def label(self, number: int | None) -> str | None:
        """A setting's name."""
        return self.settings[number].label if number is not None else None

    @property
    def plateau(self) -> str | None:
        """Linear search's plateau."""
        return self.label(self._plateau)

    @property
    def stop(self) -> str | None:
        """The linear search with stop that trees are held against."""
        return self.label(self._stop)

    def outcomes(self) -> list[Outcome]:
        """What each setting gives."""
        return [self._outcome(number, self._rows[setting]) for number, setting in enumerate(self.settings)]

    def standings(self) -> list[BesideLinear]:
        """Every tree policy beside linear search."""
        if self._plateau is None:
            return []
        found = []
        for policy in dict.fromkeys(self.settings[n].policy for n in self._trees):
            best = self._best_of([n for n in self._trees if self.settings[n].policy == policy])
            assert best is not None
            found.append(
                BesideLinear(
                    policy=policy,
                    setting=self.settings[best].label,
                    reached=bool(self._reach(self._as_it_is, np.array([self._plateau]))[0, best]),
                    difference=self._interval(self._right[:, best] - self._right[:, self._plateau]),
                    of_plateau=self._ratio(best, self._plateau),
                    of_stop=self._ratio(best, self._stop) if self._stop is not None else None,
                )
            )
        return found

    def aims(self) -> list[Aim]:
        """What the suite aims at, beside what was found."""
        if self._plateau is None or not self._trees:
            return []
        best = int(self._cheapest(self._as_it_is, np.array([self._plateau]))[0])
        plateaus = self._plateaus(self._draws)
        chosen, costs = self._cheapest(self._draws, plateaus), self._draws @ self._cost
        aims = [self._aim(best, self._plateau, self._suite.aims.of_plateau, chosen, plateaus, costs)]
        if self._stop is not None:
            stops = np.full_like(plateaus, self._stop)
            aims.append(self._aim(best, self._stop, self._suite.aims.of_stop, chosen, stops, costs))
        return aims

    def trends(self) -> list[Trend]:
        """What more budget buys, for every family with several settings."""
        families: dict[str, list[int]] = {}
        for number, setting in enumerate(self.settings):
            families.setdefault(setting.family, []).append(number)
        found = []
        for family, numbers in families.items():
            ordered = sorted(numbers, key=lambda n: float(self._cost[:, n].mean()))
            if len(ordered) > 1:
                first, last = ordered[0], ordered[-1]
                found.append(
                    Trend(
                        family,
                        tuple(self.settings[n].label for n in ordered),
                        self._interval(self._believed[:, last] - self._believed[:, first]),
                        self._interval(self._right[:, last] - self._right[:, first]),
                    )
                )
        return found

    def teamwork(self) -> list[Teamwork]:
        """Every setting that is there with several panels: the largest beside the one that is right most often."""
        alike: dict[str, list[int]] = {}
        for number, setting in enumerate(self.settings):
            if setting.panel is not None:
                alike.setdefault(setting.model_dump_json(exclude={"label", "panel"}), []).append(number)
        shares, found = self._right.mean(0), []
        for numbers in alike.values():
            largest = max(numbers, key=lambda n: len(self.settings[n].panel or ()))
            parts = [n for n in numbers if set(self.settings[n].panel or ()) < set(self.settings[largest].panel or ())]
            if parts:
                best = max(parts, key=lambda n: float(shares[n]))
                difference = self._interval(self._right[:, largest] - self._right[:, best])
                labels = self.settings[largest].label, self.settings[best].label
                found.append(Teamwork(*labels, difference, self._ratio(largest, best)))
        return found

    def _outcome(self, number: int, rows: Sequence[Row]) -> Outcome:
        def over(metric: Metric) -> Interval:
            return self._interval(np.array([metric(row) for row in rows]))

        return Outcome(
            setting=self.settings[number],
            right=over(right),
            cost=over(total),
            price=mean_price(rows),
            oracle_score=over(lambda row: row.oracle_score),
            believed=over(believed),
            agreement=correlation([row.panel_log_p for row in rows], [row.oracle_score for row in rows]),
            travel=over(lambda row: row.travel),
            as_asked=over(lambda row: row.moving_as_asked),
            held_out={name: over(functools.partial(_held_out, name)) for name in rows[0].held_out},
            beside_single=self._beside(number, self._single),
            beside_plateau=self._beside(number, self._plateau),
        )

    def _beside(self, number: int, other: int | None) -> Interval | None:
        """How much more often a setting is right than another."""
        if other is None or other == number:
            return None
        return self._interval(self._right[:, number] - self._right[:, other])

    def _those(self, wanted: Callable[[Setting], bool]) -> list[int]:
        return [number for number, setting in enumerate(self.settings) if wanted(setting)]

    def _matrix(self, metric: Metric) -> Array:
        return np.array([[metric(row) for row in self._rows[setting]] for setting in self.settings]).T

    def _interval(self, values: Array) -> Interval:
        low, high = np.quantile(self._draws @ values, _TAILS)
        return Interval(float(values.mean()), float(low), float(high))

    def _ratio(self, one: int, other: int) -> Interval:
        """One setting's mean cost over another's."""
        low, high = np.quantile((self._draws @ self._cost[:, one]) / (self._draws @ self._cost[:, other]), _TAILS)
        return Interval(float(self._cost[:, one].mean() / self._cost[:, other].mean()), float(low), float(high))

    # Below, rows of weights (D, N) count the prompts: once each, or as often as a bootstrap draw has them.

    def _plateaus(self, weights: Array) -> Numbers:
        """Which setting is linear search's plateau (D,)."""
        shares = (weights @ self._right)[:, self._linear]
        close = shares >= shares.max(1, keepdims=True) - self._suite.margin - _LEAST
        return np.asarray(self._linear)[close.argmax(1)]  # the first that is: the linear ones are cheapest first

    def _reach(self, weights: Array, plateaus: Numbers) -> npt.NDArray[np.bool_]:
        """Which settings reach these plateaus (D, S)."""
        shares = weights @ self._right
        level = np.take_along_axis(shares, plateaus[:, None], 1)
        return np.asarray(shares >= level - self._suite.margin - _LEAST)

    def _cheapest(self, weights: Array, plateaus: Numbers) -> Numbers:
        """The cheapest tree setting that reaches the plateau (D,), -1 where none does."""
        trees = np.asarray(self._trees)
        costs = np.where(self._reach(weights, plateaus)[:, trees], (weights @ self._cost)[:, trees], np.inf)
        return np.where(np.isfinite(costs.min(1)), trees[costs.argmin(1)], -1)

    def _best_of(self, numbers: Sequence[int]) -> int | None:
        """Of some settings the cheapest that reaches the plateau, else the one that is right most often."""
        if self._plateau is None or not numbers:
            return None
        reach = self._reach(self._as_it_is, np.array([self._plateau]))[0]
        shares, costs = self._right.mean(0), self._cost.mean(0)
        return min(numbers, key=lambda n: (not reach[n], 0.0 if reach[n] else -shares[n], costs[n]))

    def _aim(self, best: int, against: int, allowed: float, chosen: Numbers, others: Numbers, costs: Array) -> Aim:
        """An aim of ``best`` (-1: none) against a setting; ``chosen`` and ``others`` are the same two in each draw."""
        own = np.take_along_axis(costs, np.maximum(chosen, 0)[:, None], 1)
        bound = allowed * np.take_along_axis(costs, others[:, None], 1)
        met_in = float(((chosen >= 0) & (own <= bound)[:, 0]).mean())
        name = self.settings[against].label
        if best < 0:
            return Aim(name, allowed, None, None, False, met_in, None)
        ratio = self._ratio(best, against)
        over = ratio.mean - allowed
        met = over <= _LEAST
        return Aim(name, allowed, self.settings[best].label, ratio, met, met_in, None if met else over)


def correlation(ones: Sequence[float], others: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None where one side is the same for all."""
    if len(set(ones)) < 2 or len(set(others)) < 2:
        return None
    return float(stats.spearmanr(ones, others).statistic)


def _draws(prompts: int) -> Array:
    """Weights of the prompts (draws, prompts) in each bootstrap draw."""
    counts = np.random.default_rng(_SEED).multinomial(prompts, np.full(prompts, 1.0 / prompts), size=RESAMPLES)
    return np.asarray(counts / prompts)


def _held_out(name: str, row: Row) -> float:
    return row.held_out[name]
