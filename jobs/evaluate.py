"""Measure what searching is worth, on held-out prompts of the digits world, by an oracle that no search ever sees.

    python -m jobs.evaluate --policies linear,tof --budgets 1x,4x --prompts 64 --out runs/evaluation

Leaves results.parquet (a row for every video), curves.png and summary.json in --out, and prints the table. The same
prompts and seeds are used in every setting, so differences are paired. Run it again to go on where it was interrupted,
or with more prompts, policies or budgets to add to what is there.

    python -m jobs.evaluate --policies linear,tof --budgets 1x,2x,4x --cache runs/branches --out runs/tuning

searches over a cache instead of a cluster: in one process and in virtual time, with the very same policies. What the
cache has is neither sampled nor judged again, so a policy is tried in seconds; what is missing is computed and kept.
Recording and replaying are one thing, and --record and --replay are other names of --cache: a record is a replay that
misses everything, and a policy that strays from what was recorded goes on.

    python -m jobs.evaluate --suite digits-long --cache runs/branches --out runs/evidence

runs a suite: many settings, with prompts, rules and aims that stand in a file (jobs/configs/suite_*.yaml; the path of
another will do). It takes hours to days, can be ended at any time, and goes on when it is run again. Leaves
evidence.md, evidence.json, rows.parquet and pictures; with fewer --prompts, of those that are done. With --judge oracle
and the same --out it adds the ceiling to them; with --tuning it runs on the prompts that constants are fixed on.

    python -m jobs.evaluate --calibrate --policies beam,linear --budgets 6x --cache runs/branches --out runs/calibrated

holds what a panel says of the branches of such searches against the oracle, and leaves verifiers.yaml in --out: the
same panel, for --verifier, with probabilities that are fitted to that. The prompts are those of no evaluation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from framegrove.config.suite import Setting
from framegrove.config.verifier import PanelConfig, VerifierConfig, load_panel
from framegrove.errors import UserError
from framegrove.search import policies
from framegrove.words import counted
from jobs import calibrating, measuring, suite
from jobs.console import (
    Display,
    DtypeOption,
    LogLevelOption,
    ModelOption,
    OverwriteOption,
    PickleOption,
    VariantOption,
    VerifierOption,
    application,
    make_folder,
    model_source,
    one_line_errors,
    policy_help,
    refuse_finished,
)
from jobs.laboratory import ORACLE, check_judge, on_ray, over_cache

if TYPE_CHECKING:
    from rich.table import Table

    from actors.model_files import ModelFiles
    from framegrove.config.model import ModelSource
    from framegrove.config.search import SearchConfig
    from framegrove.evaluation.results import Row
    from jobs.laboratory import Laboratory
    from jobs.measuring import Item

app = application()

LEDGER, SUMMARY = "results.jsonl", "summary.json"
WRITTEN = ("results.parquet", "curves.png", SUMMARY)  # from the rows of the ledger


@app.command()
def main(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for what is found: tables, rows and pictures.")],
    policy: Annotated[
        str, typer.Option("--policies", help=f"Comma-separated names. {policy_help()}; or module:ENTRY.")
    ] = "linear,tof",
    budgets: Annotated[str, typer.Option(help="Comma-separated; 1x is the sample without a search.")] = "1x,4x",
    prompts: Annotated[int, typer.Option(min=1, help="How many held-out prompts; of a suite, at most.")] = 64,
    digits: Annotated[int | None, typer.Option(min=1, max=2, help="Only prompts of so many digits.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which prompts.")] = measuring.SEED,
    model: ModelOption = None,
    variant: VariantOption = None,
    dtype: DtypeOption = "float32",
    allow_pickle: PickleOption = False,
    verifier: VerifierOption = None,
    generators: Annotated[int, typer.Option(min=1, help="Generator actors.")] = 2,
    searches: Annotated[
        int,
        typer.Option(
            min=1,
            help="Searches at a time. What they sample at the same time is packed in fewer passes, which takes less "
            "time and changes the last bits of the videos.",
        ),
    ] = 1,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A search setting, as in speculate=false.")] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache",
            "--record",
            "--replay",
            help="Folder of branches and verdicts: search over these, in one process and in virtual time, and add what "
            "is missing.",
        ),
    ] = None,
    judge: Annotated[str, typer.Option(help="With --cache: panel, or oracle for a ceiling.")] = "panel",
    verifier_speed: Annotated[
        float,
        typer.Option(min=0.001, help="With --cache: how many times faster than a generator a virtual verifier is."),
    ] = 1.0,
    suite_: Annotated[
        str | None,
        typer.Option("--suite", help="With --cache: name or YAML file of a suite, in place of policies and budgets."),
    ] = None,
    tuning: Annotated[bool, typer.Option("--tuning", help="The suite's prompts for tuning, not its own.")] = False,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="With --cache: hold what the panel says of all branches of these searches against the oracle, and "
            "write the panel with calibrated probabilities to OUT/verifiers.yaml.",
        ),
    ] = False,
    held_out: Annotated[
        str | None,
        typer.Option(help="A verifier, as of --verifier, that judges what a suite finds and takes no part in it."),
    ] = None,
    overwrite: OverwriteOption = False,
    log_level: LogLevelOption = None,
) -> None:
    """Compare searches with each other and with a single sample."""
    with one_line_errors(log_level), Display() as display:
        check_judge(judge, cached=cache is not None)
        given = _given(context)
        _check_together(given, judge)
        source, panel = model_source(model, variant, dtype, allow_pickle), load_panel(verifier)
        over = functools.partial(
            over_cache,
            source=source,
            panel=panel,
            generators=generators,
            verifier_speed=verifier_speed,
            judge=judge,
            searches=searches,
        )
        if suite_ is not None:
            # A suite is about costs: what is sampled ahead to save time would only be counted as wasted.
            search = _search(["speculate=off", *(set_ or ())])
            most = prompts if "prompts" in given else None
            chosen = suite.read_suite(suite_, search, panel, tuning=tuning, prompts=most)
            own = functools.partial(over, cache, search=search, held_out=_apart(held_out, panel), whole_trees=False)
            _run_suite(chosen, own, source, out, judge, display)
            return
        if calibrate and "seed" not in given:
            seed = calibrating.SEED
        settings, search = _settings(policy, budgets), _search(set_ or ())
        for setting in settings:
            measuring.search_of(search, setting)
        items = measuring.items(_read(source, out, display), settings, prompts, seed, digits=digits)
        if calibrate:
            refuse_finished(out / calibrating.FILE, overwrite)
        else:
            _make_way(out, items, overwrite=overwrite)
        real = functools.partial(on_ray, source, panel, generators=generators, searches=searches)
        with over(cache, search=search) if cache else real(search=search) as lab:
            if calibrate:
                _calibrate(lab, items, panel, out, display)
            else:
                _compare(lab, items, {"prompts": [seed, digits]}, out, display)
            _tell_effort(lab, display)


def _check_together(given: Collection[str], judge: str) -> None:
    """Raise UserError for options that do not go together."""
    given, cached = set(given), "cache" in given
    if "suite_" in given:
        _refuse(given & {"policy", "budgets", "digits", "seed"}, "is what a suite says itself: leave it out")
        if not cached:
            raise UserError("a suite is run over a cache of branches: add --cache DIR")
        _refuse(given & {"calibrate"}, "is not for a suite: leave one of them out")
        _refuse(given & {"overwrite"}, "is not for a suite, which takes days and always goes on: give another --out")
        return
    _refuse(given & {"tuning", "held_out"}, "is for a suite: add --suite NAME")
    if "calibrate" in given and (not cached or judge == ORACLE):
        raise UserError("a panel is calibrated over a cache of branches: add --cache DIR, and leave out --judge")


def _make_way(out: Path, items: Sequence[Item], *, overwrite: bool) -> None:
    """See to what an earlier evaluation has left in a folder: it is gone on with, added to, or removed.

    Raises UserError where it is finished and these videos add nothing to it, or leave some of its own out.
    """
    from framegrove.evaluation.results import read_ledger

    if overwrite:
        for name in (LEDGER, *WRITTEN):
            (out / name).unlink(missing_ok=True)
    if (out / LEDGER).is_file() and (out / SUMMARY).is_file():
        there = {(row.prompt_index, row.setting) for row in read_ledger(out / LEDGER)[1]}
        if not there < {(item.index, item.setting) for item in items}:
            raise UserError(
                f"a finished evaluation is in {out}: add to it by more of --prompts, --policies or --budgets than it "
                "has, give another --out, or --overwrite to replace it"
            )


def _run_suite(
    chosen: suite.Suite,
    laboratory: Callable[[], AbstractContextManager[Laboratory]],
    source: ModelSource,
    out: Path,
    judge: str,
    display: Display,
) -> None:
    """Make what is missing of a suite, and show what all of it says."""
    files = _read(source, out, display)
    with laboratory() as lab:
        suite.run(chosen, lab, files, out, judge, display)
        _tell_effort(lab, display)
    suite.report(chosen, out, display)


def _tell_effort(lab: Laboratory, display: Display) -> None:
    if (effort := lab.effort()) is not None:
        display.say(effort)


def _given(context: typer.Context) -> set[str]:
    """The options that were given, even if as they are by default."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name != "DEFAULT"}


def _refuse(given: Collection[str], why: str) -> None:
    """Raise UserError if one of these options was given."""
    names = {"policy": "policies", "held_out": "held-out"}
    for name in sorted(given):
        raise UserError(f"--{names.get(name, name)} {why}")


def _search(overrides: Iterable[str]) -> SearchConfig:
    from framegrove.config.base import load
    from framegrove.config.search import SearchConfig

    return load(SearchConfig, None, overrides)


def _read(source: ModelSource, out: Path, display: Display) -> ModelFiles:
    """The model's files; and the folder for what comes out, once the model is known to be there."""
    display.begin("reading the model")
    from actors.model_files import ModelFiles

    files = ModelFiles.read(source)
    make_folder(out)
    return files


def _apart(held_out: str | None, panel: PanelConfig) -> PanelConfig | None:
    """The judges that take no part in a suite's searches: the one given, and signals unless the panel has them."""
    given = load_panel(held_out).verifiers if held_out is not None else ()
    for each in given:
        if any(
            (each.kind, each.engine.model, each.function) == (own.kind, own.engine.model, own.function)
            for own in panel.verifiers
        ):
            raise UserError(
                f"the judge held out, {each.name}, is one of the panel: give one that the search does not use"
            )
    signals = (
        ()
        if any(each.kind == "signals" for each in (*panel.verifiers, *given))
        else (VerifierConfig(name="signals", kind="signals"),)
    )
    apart = (*given, *signals)
    return PanelConfig(verifiers=apart) if apart else None


def _calibrate(lab: Laboratory, items: Sequence[Item], panel: PanelConfig, out: Path, display: Display) -> None:
    """Fit calibrations to what the panel says of the branches of some searches."""
    from rich.table import Table

    assert lab.reading is not None, "searches over a cache can be read"
    verdicts = calibrating.Verdicts(lab.reading)
    measuring.make(lab, items, verdicts.add, display)
    found = list(calibrating.fits(verdicts.said, panel))
    file = calibrating.write(panel, found, out)
    table = Table(title="Expected calibration error, on prompts that the fit has not seen")
    for column in ("verifier", "assessment", "branches", "right", "before", "after"):
        table.add_column(column, justify="left" if column in ("verifier", "assessment") else "right")
    for each in found:
        figures = f"{each.branches}", f"{each.share_right:.0%}", f"{each.before:.3f}", f"{each.after:.3f}"
        table.add_row(each.verifier, each.assessment, *figures)
    display.console.print(table)
    for each in found:
        if each.few:
            display.say(f"{each.verifier}, {each.assessment}: too few branches that differ; raise --prompts")
    display.say(str(file))


def _compare(lab: Laboratory, items: Sequence[Item], which: Mapping[str, Any], out: Path, display: Display) -> None:
    """Make what is missing of some videos, and show all of them."""
    ledger = measuring.open_ledger(lab, out / LEDGER, which)
    (out / SUMMARY).unlink(missing_ok=True)  # until it is finished again
    measuring.measure(lab, [(item, ledger) for item in items], display)
    wanted = {(item.index, item.setting) for item in items}
    _finish([row for row in ledger.rows if (row.prompt_index, row.setting) in wanted], out, display)


def _settings(names: str, budgets: str) -> list[Setting]:
    """The single sample for 1x, whatever the policy, and every policy at every larger budget."""
    from framegrove.config.search import parse_budget

    entries = {name: policies.find(name) for name in map(str.strip, names.split(",")) if name}
    multiples = [parse_budget(text) for text in budgets.split(",") if text.strip()]
    if not entries or not multiples:
        raise UserError("nothing to evaluate: give at least one policy and one budget")
    settings = [Setting(policy="single")] if 1.0 in multiples else []
    searches = [name for name, entry in entries.items() if entry.judged]
    settings += [Setting(policy=name, budget=multiple) for multiple in multiples if multiple > 1 for name in searches]
    if not settings:
        raise UserError(f"nothing to evaluate: {names} searches on no budget, add 1x to --budgets, or a policy")
    return settings


def _finish(rows: list[Row], out: Path, display: Display) -> None:
    """Write what was found and print it."""
    from framegrove.evaluation import results
    from framegrove.evaluation.curves import draw_curves
    from framegrove.files import write_json

    results.write_parquet(rows, out / "results.parquet")
    prompts = len({row.prompt_index for row in rows})
    metric = results.METRICS["fully right"]
    title = f"Share of videos fully right, {counted(prompts, 'held-out prompt')}"
    draw_curves(results.curves(rows, metric), out / "curves.png", title=title, score="fully right (oracle)")
    found = results.findings(rows)
    write_json(out / SUMMARY, found)
    display.console.print(_settings_table(rows))
    if any(row.setting.policy == "single" for row in rows):
        display.say("single is the sample without a search: what 1x buys, whatever the policy")
    if found["all"]["fully right"]["differences"]:
        display.console.print(_differences_table(rows))
    else:
        display.say("no differences to show: they take 1x and a search, or tof and linear of the same budget")
    display.say("\n".join(str(out / name) for name in WRITTEN))


def _settings_table(rows: list[Row]) -> Table:
    from dataclasses import fields

    from rich.table import Table

    from framegrove.evaluation import results
    from framegrove.evaluation.report import Price

    parts = [part.name for part in fields(Price)]
    one = "1x = sampling and decoding a video once, without a search"
    table = Table(title=f"Means with 95% bootstrap intervals; prices: {one}")
    last = ("seconds", "generators busy", "verifiers busy")
    for column in ("setting", *results.METRICS, *parts, "total", *last):
        table.add_column(column, justify="left" if column == "setting" else "right", overflow="fold")
    for setting, group in results.by_setting(rows).items():
        price = results.mean_price(group)
        table.add_row(
            str(setting),
            *(str(results.summary(group, metric)) for metric in results.METRICS.values()),
            *(f"{value:.2f}x" for value in (*(getattr(price, part) for part in parts), price.total)),
            f"{sum(row.seconds for row in group) / len(group):.1f}",
            *(f"{share:.0%}" for share in results.mean_load(group)),
        )
    return table


def _differences_table(rows: list[Row]) -> Table:
    from rich.table import Table

    from framegrove.evaluation import results

    table = Table(title="Paired differences, prompt by prompt, with 95% bootstrap intervals")
    for column in ("left minus right", "prompts", *results.METRICS):
        table.add_column(column, justify="left" if column == "left minus right" else "right", overflow="fold")
    columns = [results.comparisons(rows, metric) for metric in results.METRICS.values()]
    for row in zip(*columns, strict=True):
        table.add_row(f"{row[0].left} - {row[0].right}", str(row[0].prompts), *(str(each.difference) for each in row))
    return table


if __name__ == "__main__":
    app()
