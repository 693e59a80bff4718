"""Whether a model has become better, by what it was not trained on: a judge apart, motion, variety.

Searches prefer videos in which little can go wrong, that is stills; training on what they choose can make a model that
shows one thing for every seed. So a round's model is held against the one before in three ways: how right its videos
are by a judge that no search saw, how much moves in them, and how different they are for one prompt.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from framegrove import files
from framegrove.evaluation.curves import COLOURS, GRID, Comparison, Interval, bootstrap, compare
from framegrove.evaluation.ledger import Ledger

Latents = npt.NDArray[np.float32]


@dataclass(frozen=True)
class GuardRow:
    """What a model made of a prompt in one setting: means over ``videos`` videos of different seeds.

    ``judged`` is how right they are by the judge apart and ``panel`` by the searches' own, in [0, 1]; ``motion`` in px
    a frame; ``variety`` the mean distance between any two of them, None of a single one; ``price`` is that of a video
    in FLOPs.
    """

    prompt: int
    setting: str
    videos: int
    judged: float
    panel: float
    motion: float
    variety: float | None
    price: float

    @property
    def key(self) -> tuple[int, str]:
        """Its place in a ledger."""
        return self.prompt, self.setting

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def open_ledger(path: Path, identity: Mapping[str, Any]) -> Ledger[GuardRow]:
    """The rows that are there. Raises UserError when the file holds figures of another model or judge."""
    return Ledger(path, identity, lambda line: GuardRow(**line))


def variety_of(latents: Sequence[Latents]) -> float | None:
    """Mean root mean square distance between the latents of any two videos, None where there is only one."""
    pairs = [float(np.sqrt(np.square(one - other).mean())) for one, other in itertools.combinations(latents, 2)]
    return sum(pairs) / len(pairs) if pairs else None


@dataclass(frozen=True)
class Verdict:
    """A model held against the one before, in one setting: paired differences over the same prompts and seeds.

    ``motion`` and ``variety`` are ratios to those of before, None where there was nothing of the kind; ``worse`` is the
    share of prompts that the judge finds worse made.
    """

    setting: str
    judged: Interval
    panel: Interval
    gain: Comparison
    panel_gain: Comparison
    motion: float | None
    variety: float | None
    worse: float

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def verdicts(before: Iterable[GuardRow], after: Iterable[GuardRow]) -> list[Verdict]:
    """One for each setting that both have, in order."""
    old, new = _by_setting(before), _by_setting(after)
    return [_verdict(setting, old[setting], new[setting]) for setting in new if setting in old]


def _by_setting(rows: Iterable[GuardRow]) -> dict[str, dict[int, GuardRow]]:
    found: dict[str, dict[int, GuardRow]] = {}
    for row in rows:
        found.setdefault(row.setting, {})[row.prompt] = row
    return found


def _verdict(setting: str, old: Mapping[int, GuardRow], new: Mapping[int, GuardRow]) -> Verdict:
    shared = sorted(old.keys() & new.keys())

    def gain(name: str) -> Comparison:
        return compare("after", "before", {"after": _column(new, shared, name), "before": _column(old, shared, name)})

    return Verdict(
        setting,
        bootstrap([new[prompt].judged for prompt in shared]),
        bootstrap([new[prompt].panel for prompt in shared]),
        gain("judged"),
        gain("panel"),
        _ratio([new[prompt].motion for prompt in shared], [old[prompt].motion for prompt in shared]),
        _ratio([new[prompt].variety for prompt in shared], [old[prompt].variety for prompt in shared]),
        sum(new[prompt].judged < old[prompt].judged for prompt in shared) / len(shared),
    )


def _column(rows: Mapping[int, GuardRow], prompts: Sequence[int], name: str) -> dict[int, float]:
    return {prompt: float(getattr(rows[prompt], name)) for prompt in prompts}


def _ratio(after: Sequence[float | None], before: Sequence[float | None]) -> float | None:
    """Of the sums over what both have."""
    both = [(new, old) for new, old in zip(after, before, strict=True) if new is not None and old is not None]
    old = sum(each for _, each in both)
    return sum(new for new, _ in both) / old if old else None


def draw(rounds: Mapping[int, Sequence[GuardRow]], path: Path) -> None:
    """A picture of how good the models of some rounds are; 0 is the first model.

    On the left how right videos are by the judge apart against their price, a line a model; on the right, for
    unsearched videos, the judge apart beside the searches' own panel: where the panel alone rises, training has found
    its weakness.
    """
    figure = Figure(figsize=(11, 4.4), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    by_price, by_round = figure.subplots(1, 2)
    first = next(iter(rounds.values()))
    unsearched = first[0].setting
    one = float(np.mean([row.price for row in first if row.setting == unsearched]))
    for colour, (number, rows) in zip(itertools.cycle(COLOURS), rounds.items()):
        groups = _by_setting(rows)
        scores = [bootstrap([row.judged for row in group.values()]) for group in groups.values()]
        prices = [float(np.mean([row.price for row in group.values()])) / one for group in groups.values()]
        label = f"after round {number}" if number else "the first model"
        _points(by_price, prices, scores, label, colour)
    by_price.set(xscale="log", xlabel="FLOPs of a video, in unsearched ones of the first model", ylabel="right")
    for colour, name, label in (
        (COLOURS[2], "judged", "the judge apart"),
        (COLOURS[4], "panel", "the searches' panel"),
    ):
        columns = [[float(getattr(row, name)) for row in rows if row.setting == unsearched] for rows in rounds.values()]
        _points(by_round, [float(number) for number in rounds], [bootstrap(each) for each in columns], label, colour)
    by_round.set(xlabel="round", ylabel="unsearched videos right, by", xticks=list(rounds))
    for axes in (by_price, by_round):
        axes.grid(color=GRID)
        axes.legend(fontsize=8)
    with files.replacing(path) as partial:
        figure.savefig(partial, format="png")


def _points(axes: Any, xs: Sequence[float], scores: Sequence[Interval], label: str, colour: str) -> None:
    means = [score.mean for score in scores]
    spread = [[s.mean - s.low for s in scores], [s.high - s.mean for s in scores]]
    axes.errorbar(xs, means, yerr=spread, marker="o", capsize=3, color=colour, label=label)
