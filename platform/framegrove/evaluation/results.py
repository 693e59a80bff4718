"""Results of an evaluation: a row for every video, kept on disk as they come in, and what they say together."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from framegrove import files
from framegrove.config.suite import Setting
from framegrove.errors import UserError
from framegrove.evaluation.curves import Comparison, CurvePoint, Interval, bootstrap, compare
from framegrove.evaluation.ledger import Ledger
from framegrove.evaluation.report import Price

Metric = Callable[["Row"], float]


_VERSION = 2  # of the rows


@dataclass(frozen=True)
class Row:
    """One video. ``prompt_index`` pairs videos of different settings; costs are of the whole search, in FLOPs.

    ``seconds`` is how long the search took, from the first work to the last, and ``generators_busy`` and
    ``verifiers_busy`` are the shares of it that these had something to do. In virtual time where the search was one
    over a cache of branches.

    ``verifier_score`` is the mean of the panel's scores of the finished video, ``panel_log_p`` the logarithm of the
    panel's probability that it is right, and ``search_score`` its path score, by which the policy chose it, None where
    none was needed.
    ``travel`` says how far its objects move between two frames, in px, ``moving_as_asked`` which share of those asked
    for moves as asked. ``held_out`` are the scores of a judge that no search saw, by name.
    """

    prompt_index: int
    prompt: str
    objects: int
    setting: Setting
    units: int
    seed: int
    oracle_score: float
    fully_right: bool
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
    travel: float = 0.0
    moving_as_asked: float = 0.0
    held_out: Mapping[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """As JSON values; the setting's stand beside the others."""
        own = {part.name: getattr(self, part.name) for part in fields(self) if part.name != "setting"}
        return {**self.setting.model_dump(mode="json"), **own, "held_out": dict(self.held_out)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of ``as_json``."""
        of_setting = {name: value[name] for name in Setting.model_fields if name in value}
        own = {name: each for name, each in value.items() if name not in Setting.model_fields}
        return cls(setting=Setting.model_validate(of_setting), **own)

    @property
    def key(self) -> tuple[int, Setting]:
        """Its place in a ledger."""
        return self.prompt_index, self.setting

    @property
    def price(self) -> Price:
        """What the video cost, in samples without a search."""
        return Price(
            sampling=self.generator_flops / self.single_flops,
            decoding=self.decoding_flops / self.single_flops,
            judging=self.verifier_flops / self.single_flops,
            wasted=self.wasted_flops / self.single_flops,
        )


METRICS: dict[str, Metric] = {
    "oracle score": lambda row: row.oracle_score,
    "fully right": lambda row: float(row.fully_right),
    "verifier score": lambda row: row.verifier_score,
}


def open_ledger(path: Path, identity: Mapping[str, Any]) -> Ledger[Row]:
    """The rows that are there. Raises UserError when the file holds rows of another evaluation."""
    return Ledger(path, {**identity, "rows": _VERSION}, Row.from_json)


def read_ledger(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """What a ledger says is measured, and its rows. Raises UserError where it has rows of another version."""
    lines = files.whole_lines(path)
    if not lines or lines[0].get("rows") != _VERSION:
        raise UserError(f"{path} holds no results of this version: remove the file, or choose another --out")
    return lines[0], [Row.from_json(line) for line in lines[1:]]


def write_parquet(rows: Sequence[Row], path: Path, judges: Sequence[str] = ()) -> None:
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


def _flat(row: Row) -> dict[str, Any]:
    """A row without sections: options as text, a column for each score of the judge held out."""
    flat = row.as_json()
    held_out = {f"held_out/{name}": score for name, score in flat.pop("held_out").items()}
    return {**flat, "options": json.dumps(flat["options"]), **held_out, "price": row.price.total}


def by_setting(rows: Iterable[Row]) -> dict[Setting, list[Row]]:
    """Rows of each setting, in order of first appearance."""
    groups: dict[Setting, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.setting, []).append(row)
    return groups


def summary(rows: Sequence[Row], metric: Metric) -> Interval:
    """A metric's mean over some rows, with its bootstrap interval."""
    return bootstrap([metric(row) for row in rows])


def comparisons(rows: Iterable[Row], metric: Metric) -> list[Comparison]:
    """Every search against the single sample, and Tree-of-Frames against linear search at the same budget."""
    groups = by_setting(rows)
    scores = {str(setting): {row.prompt_index: metric(row) for row in group} for setting, group in groups.items()}
    pairs = [(s, single) for single in groups if single.policy == "single" for s in groups if s != single]
    linear = {s.budget: s for s in groups if s.policy == "linear"}
    pairs += [(s, linear[s.budget]) for s in groups if s.policy == "tof" and s.budget in linear]
    return [compare(str(left), str(right), scores) for left, right in pairs]


def mean_price(rows: Sequence[Row]) -> Price:
    """The mean price of some videos, part by part."""
    prices = [row.price for row in rows]
    return Price(**{part.name: sum(getattr(p, part.name) for p in prices) / len(prices) for part in fields(Price)})


def mean_load(rows: Sequence[Row]) -> tuple[float, float]:
    """The mean share of the time in which generators, and verifiers, had something to do."""
    count = len(rows)
    return sum(row.generators_busy for row in rows) / count, sum(row.verifiers_busy for row in rows) / count


def findings(rows: Sequence[Row]) -> dict[str, Any]:
    """Means and paired differences of every metric, for all prompts and by the number of objects, as JSON values."""
    kinds = {"all": list(rows)} | {
        f"{n} object{'s' if n > 1 else ''}": [row for row in rows if row.objects == n]
        for n in sorted({r.objects for r in rows})
    }
    return {
        kind: {
            name: {
                "means": {str(setting): asdict(summary(group, metric)) for setting, group in by_setting(some).items()},
                "differences": [asdict(comparison) for comparison in comparisons(some, metric)],
            }
            for name, metric in METRICS.items()
        }
        for kind, some in kinds.items()
    }


def curves(rows: Iterable[Row], metric: Metric) -> dict[str, list[CurvePoint]]:
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


def _point(label: str, rows: Sequence[Row], metric: Metric) -> CurvePoint:
    return CurvePoint(label, mean_price(rows).total, summary(rows, metric))
