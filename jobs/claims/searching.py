"""Rows of small searches over a cache of branches: what the claims about searching are measured on.

Claims share the cache and the rows below one --out: what one has sampled or judged, another finds there. Interrupted,
the same command resumes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from framegrove.config.suite import Setting
from framegrove.errors import UserError

if TYPE_CHECKING:
    from framegrove.config.verifier import PanelConfig
    from framegrove.evaluation.curves import Comparison, Interval
    from framegrove.evaluation.results import Row
    from jobs.claims.claim import Bench

UNITS = 8
DIGITS = 2  # of each prompt
_TOGETHER = 8  # searches whose works are sampled in shared passes
_AMPLE = 100.0  # budget, in samples, of settings whose size is given by their options

Metric = Callable[["Row"], float]


def best_of(roots: int, **more: Any) -> Setting:
    """Best of so many videos, judged at the end."""
    label = f"best of {roots}"
    return Setting(label=label, policy="linear", budget=_AMPLE, options={"roots": roots}, **more)


@dataclass(frozen=True)
class Rows:
    """What was measured, by the label of its setting and then by prompt."""

    rows: Sequence[Row]

    def of(self, label: str, metric: Metric) -> dict[int, float]:
        """A metric by prompt."""
        return {row.prompt_index: metric(row) for row in self.rows if str(row.setting) == label}

    def mean(self, label: str, metric: Metric) -> Interval:
        """Its mean over prompts."""
        from framegrove.evaluation.curves import bootstrap

        return bootstrap(list(self.of(label, metric).values()))

    def minus(self, left: str, right: str, metric: Metric) -> Comparison:
        """One setting minus another, paired by prompt."""
        from framegrove.evaluation.curves import compare

        return compare(left, right, {label: self.of(label, metric) for label in (left, right)})

    def cost(self, label: str) -> Interval:
        """Total FLOPs, in samples."""
        return self.mean(label, lambda row: row.price.total)


def right(row: Row) -> float:
    """Whether the oracle calls the video fully right."""
    return float(row.fully_right)


def score(row: Row) -> float:
    """The share of attributes that the oracle calls right."""
    return row.oracle_score


def believed(row: Row) -> float:
    """The panel's own probability that the video is right."""
    return row.believed


def measured(bench: Bench, name: str, settings: Sequence[Setting], panel: PanelConfig) -> Rows:
    """Make the searches that are missing, and return the rows of all.

    ``name`` is the file of rows, below the claim's folder. Raises UserError for a model of another world.
    """
    from actors.model_files import ModelFiles
    from framegrove.config.base import load
    from framegrove.config.search import SearchConfig
    from framegrove.digits import world
    from framegrove.evaluation.results import Row
    from jobs.evaluations import measuring
    from jobs.evaluations.laboratory import over_cache
    from jobs.evaluations.prompts import digits_prompts

    recipe = ModelFiles.read(bench.model).recipe
    if (recipe.height, recipe.width) != (world.SIZE, world.SIZE):
        raise UserError(
            f"the model makes videos of {recipe.width}x{recipe.height}, and the oracle reads those of the digits "
            f"world, {world.SIZE}x{world.SIZE}: choose a --model that was trained on it"
        )
    search = load(SearchConfig, None, ["speculate=off"])
    asked = digits_prompts(bench.prompts, bench.seed, DIGITS)
    which: Mapping[str, Any] = {"prompts": asked.which}
    from actors.adapted import card_of

    items = measuring.items(card_of(bench.model).native, settings, asked, bench.seed, units=UNITS)
    with over_cache(bench.cache, bench.model, panel, search, 2, whole_trees=False, searches=_TOGETHER) as lab:
        ledger = measuring.open_ledger(lab, bench.out / f"{name}.jsonl", which)
        measuring.measure(lab, [(item, ledger) for item in items], bench.display)
        if (effort := lab.effort()) is not None:
            bench.display.say(effort)
    wanted = {item.place for item in items}
    return Rows([row for row in ledger.rows if row.key in wanted and isinstance(row, Row)])
