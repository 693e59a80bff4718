"""What jobs.evaluate does with searches that are compared: makes their videos, and leaves rows, a page and tables."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from framegrove.errors import UserError
from framegrove.files import locked
from framegrove.words import counted
from jobs.console import make_folder, refuse_others_results, when_stopped
from jobs.evaluations import measuring

if TYPE_CHECKING:
    from rich.table import Table

    from framegrove.evaluation.results import Sample
    from jobs.console import Display
    from jobs.evaluations.laboratory import Laboratory
    from jobs.evaluations.measuring import Item

LEDGER = "results.jsonl"  # from whose rows all else is written
SUMMARY = "summary.json"
WRITTEN = ("results.parquet", "curves.png", "report.html", SUMMARY)
_LOCK = ".evaluating"


def taken(out: Path) -> IO[str]:
    """An evaluation's folder for this process alone, while what is returned is open. Raises UserError."""
    refuse_others_results(out, "an evaluation")
    make_folder(out)
    return locked(out / _LOCK, f"another evaluation writes to {out}: wait for its end, or give another --out")


def make_way(out: Path, items: Sequence[Item], *, overwrite: bool, again: bool = False) -> None:
    """See to what an earlier evaluation has left in a folder: it is continued, added to, or removed.

    Raises UserError where it is finished and these videos add nothing to it, or leave some of its own out. ``again``:
    something else is asked of it, so that it need not be added to.
    """
    from framegrove.evaluation.results import read_ledger

    if overwrite:
        for name in (LEDGER, *WRITTEN):  # videos that are made again take the places of those that are there
            (out / name).unlink(missing_ok=True)
        shutil.rmtree(out / measuring.UNFINISHED, ignore_errors=True)
    if (out / LEDGER).is_file() and (out / SUMMARY).is_file():
        there, wanted = {row.key for row in read_ledger(out / LEDGER)[1]}, {item.place for item in items}
        if not (there < wanted or (again and there == wanted)):
            raise UserError(
                f"a finished evaluation is in {out}: add to it by more of --prompts, --policies, --budgets or --seeds "
                "than it has, give another --out, or --overwrite to replace it"
            )


def compare(
    lab: Laboratory, items: Sequence[Item], which: Mapping[str, Any], out: Path, display: Display
) -> list[Sample]:
    """Make what is missing of some videos, and show what all of them say."""
    ledger = measuring.open_ledger(lab, out / LEDGER, which)
    (out / SUMMARY).unlink(missing_ok=True)  # until it is finished again
    with when_stopped("what is done is kept: run the same command again to go on"):
        measuring.measure(lab, [(item, ledger) for item in items], display, keep=out)
    wanted = {item.place for item in items}
    rows = [row for row in ledger.rows if row.key in wanted]
    finish(rows, out, display)
    return rows


def finish(rows: Sequence[Sample], out: Path, display: Display) -> None:
    """Write what was found and print it."""
    from framegrove.evaluation import results, results_page
    from framegrove.evaluation.curves import draw_curves
    from framegrove.files import write_json

    display.begin("writing the results")
    metrics = results.metrics_of(rows)
    results.write_parquet(rows, out / "results.parquet")
    prompts = counted(len({row.prompt_index for row in rows}), "prompt")
    name = "fully right" if "fully right" in metrics else next(iter(metrics))
    title = f"Share of videos fully right, {prompts}" if name == "fully right" else f"Mean {name}, {prompts}"
    draw_curves(results.curves(rows, metrics[name]), out / "curves.png", title=title, score=name)
    results_page.write(rows, out / "report.html")
    write_json(out / SUMMARY, results.findings(rows))
    display.console.print(_settings_table(rows))
    if any(row.setting.policy == "single" for row in rows):
        display.say("single is the sample without a search: what 1x buys, whatever the policy")
    if results.comparisons(rows, metrics[name]):
        display.console.print(_differences_table(rows))
    else:
        display.say("no differences to show: they take 1x and a search, or linear and another of the same budget")
    display.say("\n".join(str(out / name) for name in WRITTEN))


def _settings_table(rows: Sequence[Sample]) -> Table:
    from dataclasses import fields
    from statistics import fmean

    from rich.table import Table

    from framegrove.evaluation import results
    from framegrove.evaluation.report import Price

    metrics = results.metrics_of(rows)
    parts = [part.name for part in fields(Price)]
    one = "1x = sampling and decoding a video once, without a search"
    table = Table(title=f"Means with 95% bootstrap intervals; prices: {one}")
    last = ("seconds", "generators busy", "verifiers busy")
    for column in ("setting", *metrics, *parts, "total", *last):
        table.add_column(column, justify="left" if column == "setting" else "right", overflow="fold")
    for setting, group in results.by_setting(rows).items():
        price = results.mean_price(group)
        table.add_row(
            str(setting),
            *(str(results.summary(group, metric)) for metric in metrics.values()),
            *(f"{value:.2f}x" for value in (*(getattr(price, part) for part in parts), price.total)),
            f"{fmean(row.seconds for row in results.timed(group)):.1f}",
            *(f"{share:.0%}" for share in results.mean_load(group)),
        )
    return table


def _differences_table(rows: Sequence[Sample]) -> Table:
    from rich.table import Table

    from framegrove.evaluation import results
    from framegrove.evaluation.curves import holm

    metrics = results.metrics_of(rows)
    table = Table(
        title="Paired differences, prompt by prompt, with 95% bootstrap intervals; p of a paired permutation test, "
        "corrected for the rows of the table (Holm)"
    )
    for column in ("left minus right", "prompts", *metrics):
        table.add_column(column, justify="left" if column == "left minus right" else "right", overflow="fold")
    columns = [results.comparisons(rows, metric) for metric in metrics.values()]
    corrected = [holm([each.p for each in column]) for column in columns]
    for at, row in enumerate(zip(*columns, strict=True)):
        shown = [f"{each.difference} p={p[at]:.2g}" for each, p in zip(row, corrected, strict=True)]
        table.add_row(f"{row[0].left} - {row[0].right}", str(row[0].prompts), *shown)
    return table
