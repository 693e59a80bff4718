"""Results of an evaluation: a row for every video, kept on disk as they come in, and what they say together."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from framegrove import files
from framegrove.errors import UserError
from framegrove.evaluation.curves import Comparison, CurvePoint, Interval, bootstrap, compare
from framegrove.evaluation.report import Price

Metric = Callable[["Row"], float]


@dataclass(frozen=True)
class Setting:
    """How a video is made: without a search (policy none, 1x), or by a policy on a budget."""

    policy: str
    budget: float

    def __str__(self) -> str:
        return "single" if self.policy == "single" else f"{self.policy} {self.budget:g}x"


@dataclass(frozen=True)
class Row:
    """One video. ``prompt_index`` pairs videos of different settings; costs are of the whole search, in FLOPs.

    ``seconds`` is how long the search took, from the first work to the last, and ``generators_busy`` and
    ``verifiers_busy`` are the shares of it that these had something to do. In virtual time where the search was one
    over a cache of branches.
    """

    prompt_index: int
    prompt: str
    objects: int
    policy: str
    budget: float
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

    @property
    def setting(self) -> Setting:
        return Setting(self.policy, self.budget)

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


class Ledger:
    """Rows as lines of JSON, on the disk one by one; the first line says what is measured.

    Raises UserError when the file holds rows of another evaluation. A torn last line is dropped.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self._path = path
        wanted = files.identity(identity)
        lines = _whole_lines(path)
        other = files.difference(lines[0], wanted) if lines else None
        if other is not None:
            raise UserError(
                f"{path} holds results of another evaluation, {other}: choose another --out, or remove the file"
            )
        self.rows = [Row(**line) for line in lines[1:]]
        whole = "".join(json.dumps(line) + "\n" for line in lines or [wanted])
        if not path.is_file() or path.read_text(encoding="utf-8") != whole:  # new, or its last line is torn
            with files.replacing(path) as partial:
                partial.write_text(whole, encoding="utf-8")

    def has(self, prompt_index: int, setting: Setting) -> bool:
        return any(row.prompt_index == prompt_index and row.setting == setting for row in self.rows)

    def add(self, row: Row) -> None:
        """Keep a row; when this returns it is on the disk."""
        self.rows.append(row)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _whole_lines(path: Path) -> list[Any]:
    lines: list[Any] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def write_parquet(rows: Sequence[Row], path: Path) -> None:
    """All rows as one parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([{**asdict(row), "price": row.price.total} for row in rows])
    with files.replacing(path) as partial:
        pq.write_table(table, partial)


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
    single = Setting("single", 1.0)
    pairs = [(s, single) for s in groups if s != single and single in groups]
    pairs += [
        (s, Setting("linear", s.budget)) for s in groups if s.policy == "tof" and Setting("linear", s.budget) in groups
    ]
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
    single = groups.get(Setting("single", 1.0), [])
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
