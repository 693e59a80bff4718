"""report.html: the videos of an evaluation side by side, prompt by prompt, those that judges disagree about first.

One page for a browser, without a network, beside the folder of videos that it shows. What it says is JSON inside of it,
which reaches the page as text, never as markup (pages.embedded).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path as File
from typing import Any
from urllib.parse import quote

from framegrove.evaluation.curves import Interval, holm
from framegrove.evaluation.disagreement import disagreements
from framegrove.evaluation.pages import assembled, embedded, part
from framegrove.evaluation.results import (
    Sample,
    by_setting,
    comparisons,
    mean_price,
    metrics_of,
    summary,
)
from framegrove.files import replacing

_DECIDED = 0.05  # a corrected p below it is in bold


def write(rows: Sequence[Sample], path: File) -> None:
    """Write the page at ``path``, which is in the folder that the videos' files are named from."""
    with replacing(path) as partial:
        partial.write_text(page(rows), encoding="utf-8")


def page(rows: Sequence[Sample]) -> str:
    """The page."""
    return assembled("results.html", STYLE=part("results.css"), DATA=embedded(data_of(rows)), SCRIPT=part("results.js"))


def data_of(rows: Sequence[Sample]) -> dict[str, Any]:
    """What the page shows, as JSON values."""
    settings = list(by_setting(rows))
    prompts: dict[int, list[tuple[Sample, float]]] = {}
    apart = disagreements([row.judgements() for row in rows])
    for row, disputed in zip(rows, apart, strict=True):
        prompts.setdefault(row.prompt_index, []).append((row, disputed))
    return {
        "settings": [str(setting) for setting in settings],
        "judges": list(rows[0].judgements()) if rows else [],
        "table": _table(rows),
        "differences": _differences(rows),
        "prompts": [_prompt(some, {setting: n for n, setting in enumerate(settings)}) for some in prompts.values()],
    }


def _prompt(some: Sequence[tuple[Sample, float]], places: Mapping[Any, int]) -> dict[str, Any]:
    first = some[0][0]
    ordered = sorted(some, key=lambda each: (each[0].take, places[each[0].setting]))
    return {
        "index": first.prompt_index,
        "text": first.prompt,
        "kinds": list(first.dimensions),
        "disagreement": round(max(apart for _, apart in some), 4),
        "videos": [
            {
                "setting": places[row.setting],
                "take": row.take,
                "seed": row.seed,
                "file": quote(row.video) if row.video is not None else None,
                "price": round(row.price.total, 2),
                "scores": [round(score, 4) for score in row.judgements().values()],
                "disagreement": round(apart, 4),
            }
            for row, apart in ordered
        ],
    }


def _table(rows: Sequence[Sample]) -> dict[str, Any]:
    """Means of every metric, and prices."""
    metrics = metrics_of(rows)
    return {
        "head": [*metrics, "price"],
        "rows": [
            [str(setting), *(_interval(summary(group, metric)) for metric in metrics.values()), mean_price(group).total]
            for setting, group in by_setting(rows).items()
        ],
    }


def _differences(rows: Sequence[Sample]) -> dict[str, Any]:
    metrics = metrics_of(rows)
    columns = [comparisons(rows, metric) for metric in metrics.values()]
    corrected = [holm([each.p for each in column]) for column in columns]
    return {
        "head": list(metrics),
        "rows": [
            [
                f"{found[0].left} − {found[0].right}",
                *(
                    {**_interval(each.difference), "p": p[at], "decided": p[at] < _DECIDED}
                    for each, p in zip(found, corrected, strict=True)
                ),
            ]
            for at, found in enumerate(zip(*columns, strict=True))
        ],
    }


def _interval(interval: Interval) -> dict[str, Any]:
    return asdict(interval)
