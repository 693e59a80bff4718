"""Scores against cost: bootstrap intervals, paired comparisons, Pareto fronts and their pictures.

Everything is deterministic: resampling draws from a fixed seed, so that a table can be reproduced to the last digit.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from framegrove.evaluation.figures import COLOURS, GRID, INK, MUTED, blank, plain, plain_numbers, save, spread

PRICE = "price of a video, all parts; 1x = sampling and decoding it once, without a search"

RESAMPLES = 10_000  # bootstrap draws


@dataclass(frozen=True)
class Interval:
    """A mean and its bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Comparison:
    """``left`` minus ``right`` over the prompts that both have, with a paired bootstrap interval.

    ``p`` is that of a two-sided paired test (``sign_flips``).
    """

    left: str
    right: str
    prompts: int
    difference: Interval
    p: float


@dataclass(frozen=True)
class CurvePoint:
    """One measured setting: what a video costs, in the unit that the picture's axis names, and how good it is."""

    label: str
    cost: float
    score: Interval


def bootstrap(values: Sequence[float] | npt.NDArray[np.float64], *, level: float = 0.95, seed: int = 0) -> Interval:
    """Mean of ``values`` with its percentile bootstrap interval.

    Values that are all the same give an interval of no width, however few they are. Raises ValueError where there are
    no values, or one is not finite.
    """
    sample = _finite(values)
    if sample.ndim != 1 or not len(sample):
        raise ValueError(f"a bootstrap needs a list of at least one value, not an array of shape {sample.shape}")
    rng = np.random.default_rng(seed)
    means = sample[rng.integers(len(sample), size=(RESAMPLES, len(sample)))].mean(1)
    tail = (1.0 - level) / 2
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return Interval(float(sample.mean()), float(low), float(high))


def compare(left: str, right: str, scores: Mapping[str, Mapping[int, float]]) -> Comparison:
    """Compare two settings prompt by prompt; ``scores`` maps a setting to its scores by prompt.

    Pairing takes the prompts' own difficulty out of the interval. Raises ValueError where no prompt is shared.
    """
    shared = sorted(scores[left].keys() & scores[right].keys())
    if not shared:
        raise ValueError(f"{left} and {right} share no prompt, so there is nothing to compare")
    differences = [scores[left][prompt] - scores[right][prompt] for prompt in shared]
    return Comparison(left, right, len(shared), bootstrap(differences), sign_flips(differences))


def sign_flips(differences: Sequence[float] | npt.NDArray[np.float64], seed: int = 0) -> float:
    """The p-value of a paired permutation test: how often random signs make the mean as far from 0 as it is.

    If both of a pair were the same, each difference could as well have the other sign (Fisher, 1935). All patterns of
    signs are counted where there are at most as many as the bootstrap's draws, otherwise so many are drawn, and the one
    that was found counts among them, so that no p-value is 0. Raises ValueError where a difference is not finite.
    """
    sample = _finite(differences)
    sample = sample[sample != 0]  # a zero has no sign
    if not len(sample):
        return 1.0
    if 2 ** len(sample) <= RESAMPLES:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(sample))))
        drawn, found = np.abs(signs @ sample), 0
    else:
        signs = np.random.default_rng(seed).choice((1.0, -1.0), (RESAMPLES, len(sample)))
        drawn, found = np.abs(signs @ sample), 1
    as_far = drawn >= abs(sample.sum()) * (1 - 1e-12)  # sums in another order differ by rounding
    return float((as_far.sum() + found) / (len(drawn) + found))


def _finite(values: Sequence[float] | npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    # No comparison with NaN is true: it would pass for the smallest of p-values.
    sample = np.asarray(values, np.float64)
    if not np.isfinite(sample).all():
        raise ValueError(f"all values must be finite numbers, not {sample[~np.isfinite(sample)][0]}")
    return sample


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values that hold for all of some tests together (Holm, 1979)."""
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, at in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[at]))
        adjusted[at] = largest
    return adjusted


def pareto(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    """The points that no other one beats in both cost and mean score, cheapest first."""
    front: list[CurvePoint] = []
    for point in sorted(points, key=lambda p: (p.cost, -p.score.mean)):
        if not front or point.score.mean > front[-1].score.mean:
            front.append(point)
    return front


def draw_curves(
    curves: Mapping[str, Sequence[CurvePoint]], path: Path, *, title: str, score: str, cost: str = PRICE
) -> None:
    """Draw score against cost (logarithmic), a line a curve; a PNG at ``path``.

    Costs are total prices (report.Price), with their Pareto front, unless ``cost`` names something else.
    """
    figure = blank(7.6, 4.8)
    axes = figure.add_subplot()
    front = pareto([point for points in curves.values() for point in points]) if cost == PRICE else []
    if len(front) > 1:
        axes.step(
            [p.cost for p in front],
            [p.score.mean for p in front],
            where="post",
            lw=7,
            color=GRID,
            zorder=1,
            label="Pareto front",
        )
    for colour, (name, points) in zip(itertools.cycle(COLOURS), curves.items(), strict=False):
        ordered = sorted(points, key=lambda p: p.cost)
        x, means = [p.cost for p in ordered], [p.score.mean for p in ordered]
        reach = spread(p.score for p in ordered)
        axes.errorbar(x, means, reach, color=colour, marker="o", ms=5, lw=1.6, capsize=3, label=name, zorder=3)
        for point in ordered:
            axes.annotate(
                point.label,
                (point.cost, point.score.mean),
                (6, -11),
                textcoords="offset points",
                fontsize=8,
                color=colour,
            )
    axes.set_xscale("log")
    if cost == PRICE:
        plain_numbers(axes.xaxis, "x")
    axes.set_xlabel(cost, color=INK)
    axes.set_ylabel(score, color=INK)
    axes.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold")
    plain(axes, grid="both")
    axes.tick_params(which="both", colors=MUTED)
    axes.legend(frameon=False, fontsize=9)
    save(figure, path)
