"""Whether a model has become better, by what it was not trained on: a judge apart, motion, variety.

Searches prefer videos in which little can go wrong, that is stills; training on what they choose can make a model that
shows one thing for every seed. So a round's model is held against the one before in three ways: how right its videos
are by a judge that no search saw, how much moves in them, and how different they are for one prompt.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from framegrove.evaluation.curves import Comparison, Interval, bootstrap, compare
from framegrove.evaluation.figures import COLOURS, GRID, blank, plain_numbers, save, spread
from framegrove.evaluation.ledger import Ledger

Latents = npt.NDArray[np.float32]
Group = tuple[str, str]  # a kind of prompts, and a setting


@dataclass(frozen=True)
class GuardRow:
    """What a model made of a prompt, one of its ``kind``, in one setting: means over ``videos`` videos of other seeds.

    ``judged`` is how right they are by the judge apart and ``panel`` by the searches' own, in [0, 1]; ``motion`` in px
    a frame; ``variety`` the mean distance between any two of them, None of a single one; ``price`` is that of a video
    in FLOPs.
    """

    kind: str
    prompt: int
    setting: str
    videos: int
    judged: float
    panel: float
    motion: float
    variety: float | None
    price: float

    @property
    def key(self) -> tuple[int, Group]:
        """Its place in a ledger."""
        return self.prompt, (self.kind, self.setting)

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
class GuardResult:
    """A model held against the one before, for one kind of prompts in one setting: differences of the same seeds.

    ``motion`` and ``variety`` are ratios to those of before, None where there was nothing of the kind; ``worse`` is the
    share of prompts that the judge finds worse made.
    """

    kind: str
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


def verdicts(before: Iterable[GuardRow], after: Iterable[GuardRow], groups: Iterable[Group]) -> list[GuardResult]:
    """One for each of ``groups`` that both have, in order."""
    old, new = _by_group(before), _by_group(after)
    return [_verdict(group, old[group], new[group]) for group in groups if group in old and group in new]


def _by_group(rows: Iterable[GuardRow]) -> dict[Group, dict[int, GuardRow]]:
    found: dict[Group, dict[int, GuardRow]] = {}
    for row in rows:
        found.setdefault((row.kind, row.setting), {})[row.prompt] = row
    return found


def _verdict(group: Group, old: Mapping[int, GuardRow], new: Mapping[int, GuardRow]) -> GuardResult:
    shared = sorted(old.keys() & new.keys())

    def gain(name: str) -> Comparison:
        return compare("after", "before", {"after": _column(new, shared, name), "before": _column(old, shared, name)})

    return GuardResult(
        *group,
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


@dataclass(frozen=True)
class Instead:
    """An unsearched video of a model instead of a search with the first one, in ``setting``, for the same prompts.

    ``difference`` is how much more often it is right, by the judge apart. ``saved`` are FLOPs a video, and ``videos``
    is how many make up for what the model has cost: None where nothing is saved.
    """

    kind: str
    setting: str
    difference: Comparison
    saved: float
    videos: int | None

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def instead(
    before: Iterable[GuardRow], after: Iterable[GuardRow], groups: Sequence[Group], cost: float
) -> list[Instead]:
    """What a model that has cost so many FLOPs is worth, beside each search with the first one.

    ``groups`` begin with the unsearched videos that count.
    """
    old, new = _by_group(before), _by_group(after)
    (kind, unsearched), *_ = groups
    rows = new.get((kind, unsearched), {})
    return [
        _instead(group, old[group], rows, cost) for group in groups[1:] if group[0] == kind and old.get(group) and rows
    ]


def _instead(group: Group, old: Mapping[int, GuardRow], new: Mapping[int, GuardRow], cost: float) -> Instead:
    shared = sorted(old.keys() & new.keys())
    scores = {"after": _column(new, shared, "judged"), "before": _column(old, shared, "judged")}
    saved = float(np.mean([old[prompt].price - new[prompt].price for prompt in shared]))
    videos = math.ceil(cost / saved) if saved > 0 else None
    return Instead(*group, compare("after", "before", scores), saved, videos)


def draw(rounds: Mapping[int, Sequence[GuardRow]], groups: Sequence[Group], path: Path) -> None:
    """A picture of how good the models of some rounds are; 0 is the first model.

    On the left how right videos are by the judge apart against their price, a line a model, for the first kind of
    prompts in all of their settings; on the right, for their unsearched videos, the judge apart beside the searches'
    own panel: where the panel alone rises, training has found its weakness.
    """
    figure = blank(11, 4.4)
    by_price, by_round = figure.subplots(1, 2)
    unsearched = groups[0]
    found = {number: _by_group(rows) for number, rows in rounds.items()}
    one = _mean(found[min(found)][unsearched], "price")
    for colour, (number, of_groups) in zip(itertools.cycle(COLOURS), found.items()):
        tried = [of_groups[group] for group in groups if group[0] == unsearched[0] and group in of_groups]
        scores = [bootstrap([row.judged for row in rows.values()]) for rows in tried]
        label = f"after round {number}" if number else "the first model"
        _points(by_price, [_mean(rows, "price") / one for rows in tried], scores, label, colour)
    what = f"videos of {unsearched[0]} right" if unsearched[0] else "videos right"
    by_price.set(xscale="log", xlabel="FLOPs of a video, in unsearched ones of the first model", ylabel=what)
    plain_numbers(by_price.xaxis)
    for colour, name, label in (
        (COLOURS[2], "judged", "the judge apart"),
        (COLOURS[4], "panel", "the searches' panel"),
    ):
        columns = [[float(getattr(row, name)) for row in each[unsearched].values()] for each in found.values()]
        _points(by_round, [float(number) for number in found], [bootstrap(each) for each in columns], label, colour)
    by_round.set(xlabel="round", ylabel=f"unsearched {what}, by", xticks=list(rounds))
    for axes in (by_price, by_round):
        axes.grid(color=GRID)
        axes.legend(fontsize=8)
    save(figure, path)


def _mean(rows: Mapping[int, GuardRow], name: str) -> float:
    return float(np.mean([getattr(row, name) for row in rows.values()]))


def _points(axes: Any, xs: Sequence[float], scores: Sequence[Interval], label: str, colour: str) -> None:
    means = [score.mean for score in scores]
    axes.errorbar(xs, means, yerr=spread(scores), marker="o", capsize=3, color=colour, label=label)
