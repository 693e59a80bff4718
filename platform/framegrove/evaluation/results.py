"""Results of an evaluation: a row for every video, kept on disk as they come in, and what they say together."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import fmean
from typing import Any, Self, TypeVar

from framegrove import files
from framegrove.config.suite import Setting
from framegrove.errors import UserError
from framegrove.evaluation.curves import Comparison, CurvePoint, Interval, bootstrap, compare
from framegrove.evaluation.ledger import Ledger
from framegrove.evaluation.report import Price

Metric = Callable[[Any], float]  # of a Sample, or of a Row where the oracle says it

_VERSION = 2  # of the rows
PANEL = "panel"  # the search's own judges, as a judge among others


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One video. ``prompt_index`` pairs videos of different settings; costs are of the whole search, in FLOPs.

    ``take`` counts the videos of a prompt and setting, which differ by their seeds, and ``video`` is the file, below
    the evaluation's folder, None where it is not kept. ``dimensions`` are those that a suite has the prompt for.
    ``seconds`` is how long the search took, from the first work to the last, and ``generators_busy`` and
    ``verifiers_busy`` are the shares of it that these had something to do. In virtual time where the search was one
    over a cache of branches; of a search that was ``resumed`` these three are of its last part.

    ``verifier_score`` is the mean of the panel's scores of the finished video, ``panel_log_p`` the logarithm of the
    panel's probability that it is right, and ``search_score`` its path score, by which the policy chose it, None where
    none was needed. ``held_out`` are the scores of judges that no search saw, by "judge/score".
    """

    prompt_index: int
    prompt: str
    setting: Setting
    units: int
    seed: int
    verifier_score: float
    nfe: int
    generator_flops: int
    wasted_flops: int
    decoding_flops: int
    verifier_flops: int
    single_flops: int
    branches: int
    seconds: float
    generators_busy: float = 0.0
    verifiers_busy: float = 0.0
    panel_log_p: float = 0.0
    search_score: float | None = None
    held_out: Mapping[str, float] = field(default_factory=dict)
    take: int = 0
    video: str | None = None
    dimensions: tuple[str, ...] = ()
    resumed: bool = False

    @property
    def believed(self) -> float:
        """The panel's probability that the video is right."""
        return math.exp(self.panel_log_p)

    def as_json(self) -> dict[str, Any]:
        """As JSON values; the setting's stand beside the others."""
        own = {part.name: getattr(self, part.name) for part in fields(self) if part.name != "setting"}
        plain = {"held_out": dict(self.held_out), "dimensions": list(self.dimensions)}
        return {**self.setting.model_dump(mode="json"), **own, **plain}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of ``as_json``."""
        of_setting = {name: value[name] for name in Setting.model_fields if name in value}
        own = {name: each for name, each in value.items() if name not in Setting.model_fields}
        own["dimensions"] = tuple(own.get("dimensions", ()))
        return cls(setting=Setting.model_validate(of_setting), **own)

    @property
    def key(self) -> tuple[int, tuple[Setting, int]]:
        """Its place in a ledger."""
        return self.prompt_index, (self.setting, self.take)

    @property
    def price(self) -> Price:
        """What the video cost, in samples without a search."""
        return Price(
            sampling=self.generator_flops / self.single_flops,
            decoding=self.decoding_flops / self.single_flops,
            judging=self.verifier_flops / self.single_flops,
            wasted=self.wasted_flops / self.single_flops,
        )

    def judgements(self) -> dict[str, float]:
        """What each judge says of the video: the mean of its scores. The search's own panel is one of them."""
        return {PANEL: self.verifier_score} | {
            judge: fmean(score for name, score in self.held_out.items() if _judge_of(name) == judge)
            for judge in dict.fromkeys(map(_judge_of, self.held_out))
        }


@dataclass(frozen=True, kw_only=True)
class Row(Sample):
    """A video of the digits world, of which the oracle says how right it is.

    ``travel`` says how far its objects move between two frames, in px, ``moving_as_asked`` which share of those asked
    for moves as asked.
    """

    objects: int
    oracle_score: float
    fully_right: bool
    travel: float = 0.0
    moving_as_asked: float = 0.0

    def judgements(self) -> dict[str, float]:
        """What each judge says of the video, the oracle among them."""
        return {"oracle": self.oracle_score, **super().judgements()}


def _judge_of(column: str) -> str:
    return column.rpartition("/")[0]


METRICS: dict[str, Metric] = {
    "oracle score": lambda row: row.oracle_score,
    "fully right": lambda row: float(row.fully_right),
    "verifier score": lambda row: row.verifier_score,
}


def metrics_of(rows: Sequence[Sample]) -> dict[str, Metric]:
    """What is compared in some rows: what the oracle says, where it says something, the panel, and each other judge."""
    known = METRICS if all(isinstance(row, Row) for row in rows) else {"verifier score": METRICS["verifier score"]}
    judges = [name for name in rows[0].judgements() if name not in (PANEL, "oracle")] if rows else []
    return {**known, **{name: functools.partial(_judged, name) for name in judges}}


def _judged(judge: str, row: Sample) -> float:
    return row.judgements()[judge]


def open_ledger(path: Path, identity: Mapping[str, Any]) -> Ledger[Sample]:
    """The rows that are there. Raises UserError when the file holds rows of another evaluation, or version."""
    _lines(path)
    return Ledger(path, {**identity, "rows": _VERSION}, _row)


def read_ledger(path: Path) -> tuple[dict[str, Any], list[Sample]]:
    """What a ledger says is measured, and its rows. Raises UserError where it has rows of another version."""
    lines = _lines(path)
    if not lines:
        raise UserError(f"{path} holds no results yet: run the evaluation that it is of")
    try:
        return dict(lines[0]), [_row(line) for line in lines[1:]]
    except (KeyError, TypeError, ValueError):  # pydantic's, too
        raise files.damaged(path) from None


def _lines(path: Path) -> list[Any]:
    lines = files.whole_lines(path)
    if lines and not (isinstance(lines[0], Mapping) and lines[0].get("rows") == _VERSION):
        raise UserError(f"{path} holds no results of this version: remove the file, or choose another --out")
    return lines


def _row(line: Mapping[str, Any]) -> Sample:
    return Row.from_json(line) if "oracle_score" in line else Sample.from_json(line)


def write_parquet(rows: Sequence[Sample], path: Path, judges: Sequence[str] = ()) -> None:
    """All rows as one parquet file; with ``judges``, who judged the search of each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    flat = [_flat(row) for row in rows]
    columns = dict.fromkeys(name for row in flat for name in row)  # not all rows have the same judge held out
    table = pa.table({name: [row.get(name) for row in flat] for name in columns})
    if judges:
        table = table.append_column("judge", [list(judges)])
    with files.replacing(path) as partial:
        pq.write_table(table, partial)


def _flat(row: Sample) -> dict[str, Any]:
    """A row without sections: options as text, a column for each score of the judge held out."""
    flat = row.as_json()
    held_out = {f"held_out/{name}": score for name, score in flat.pop("held_out").items()}
    return {**flat, "options": json.dumps(flat["options"]), **held_out, "price": row.price.total}


AnySample = TypeVar("AnySample", bound=Sample)


def by_setting(rows: Iterable[AnySample]) -> dict[Setting, list[AnySample]]:
    """Rows of each setting, in order of first appearance."""
    groups: dict[Setting, list[AnySample]] = {}
    for row in rows:
        groups.setdefault(row.setting, []).append(row)
    return groups


def by_prompt(rows: Iterable[Sample], metric: Metric) -> dict[int, float]:
    """A metric's mean over the takes of each prompt: prompts are what is drawn, and takes of one are no two prompts."""
    values: dict[int, list[float]] = {}
    for row in rows:
        values.setdefault(row.prompt_index, []).append(metric(row))
    return {prompt: fmean(each) for prompt, each in values.items()}


def summary(rows: Sequence[Sample], metric: Metric) -> Interval:
    """A metric's mean over some rows, with its bootstrap interval over prompts."""
    return bootstrap(list(by_prompt(rows, metric).values()))


def comparisons(rows: Iterable[Sample], metric: Metric) -> list[Comparison]:
    """Every search against the single sample, and against linear search at the same budget."""
    groups = by_setting(rows)
    scores = {str(setting): by_prompt(group, metric) for setting, group in groups.items()}
    pairs = [(s, single) for single in groups if single.policy == "single" for s in groups if s != single]
    linear = {s.budget: s for s in groups if s.policy == "linear"}
    pairs += [(s, linear[s.budget]) for s in groups if s.policy not in ("single", "linear") and s.budget in linear]
    return [compare(str(left), str(right), scores) for left, right in pairs]


def mean_price(rows: Sequence[Sample]) -> Price:
    """The mean price of some videos, part by part."""
    prices = [row.price for row in rows]
    return Price(**{part.name: sum(getattr(p, part.name) for p in prices) / len(prices) for part in fields(Price)})


def timed(rows: Sequence[Sample]) -> Sequence[Sample]:
    """Those whose searches were not interrupted, which tell how long a search takes; all if there are none."""
    return [row for row in rows if not row.resumed] or rows


def mean_load(rows: Sequence[Sample]) -> tuple[float, float]:
    """The mean share of the time in which generators, and verifiers, had something to do."""
    rows = timed(rows)
    return fmean(row.generators_busy for row in rows), fmean(row.verifiers_busy for row in rows)


def findings(rows: Sequence[Sample]) -> dict[str, Any]:
    """Means and paired differences of every metric, as JSON values: for all prompts, and for each kind of prompt.

    Kinds are numbers of objects in the digits world, and the dimensions of a suite that has some.
    """
    kinds: dict[str, list[Sample]] = {"all": list(rows)}
    for row in rows:
        for kind in (_objects(row),) if isinstance(row, Row) else row.dimensions:
            kinds.setdefault(kind, []).append(row)
    first, *others = kinds.items()
    return {
        kind: {
            name: {
                "means": {str(setting): asdict(summary(group, metric)) for setting, group in by_setting(some).items()},
                "differences": [asdict(comparison) for comparison in comparisons(some, metric)],
            }
            for name, metric in metrics_of(some).items()
        }
        for kind, some in (first, *sorted(others))
    }


def _objects(row: Row) -> str:
    return f"{row.objects} object{'s' if row.objects > 1 else ''}"


def curves(rows: Iterable[Sample], metric: Metric) -> dict[str, list[CurvePoint]]:
    """Score against price for each policy; the single sample is the first point of each."""
    groups = by_setting(rows)
    single = [row for setting, group in groups.items() if setting.policy == "single" for row in group]
    drawn: dict[str, list[CurvePoint]] = {}
    for setting, group in groups.items():
        if setting.policy == "single":
            continue
        if setting.policy not in drawn:
            drawn[setting.policy] = [_point("1x", single, metric)] if single else []
        drawn[setting.policy].append(_point(f"{setting.budget:g}x", group, metric))
    return drawn or {"single": [_point("1x", single, metric)]}


def _point(label: str, rows: Sequence[Sample], metric: Metric) -> CurvePoint:
    return CurvePoint(label, mean_price(rows).total, summary(rows, metric))
