"""Measure what searching is worth: prompts x policies x budgets x seeds, judged by whoever took no part in it.

    python -m jobs.evaluate --policies linear,tof --budgets 1x,4x --prompts 64 --out runs/evaluation

uses held-out prompts of the digits world, and an oracle that no search ever sees. Leaves the videos, report.html to
look through them, results.parquet (a row for every video), curves.png and summary.json in --out, and prints the table.
The same prompts and seeds are used in every setting, so differences are paired. Run it again to go on where it was
interrupted, or with more prompts, seeds, policies or budgets to add to what is there.

    python -m jobs.evaluate --suite prompts:mine.txt --model MODEL --held-out judges.yaml --seeds 2 --out runs/mine
    python -m jobs.evaluate --suite vbench:VBench_full_info.json --dimension color,scene --model MODEL --out runs/vbench
    python -m jobs.evaluate --totals vbench:evaluation_results

use other prompts: one a line, or those of VBench, whose videos are called as VBench expects them. With --weights it
scores them by VBench's own code as well; --totals turns what VBench or EvalCrafter (evalcrafter:metrics.json) says into
the totals of their leaderboards.

    python -m jobs.evaluate --study runs/evaluation

serves a page on which people choose between two videos of a prompt without knowing where they are from, on three
questions; --tally shows what they have chosen, as strengths with intervals.

    python -m jobs.evaluate --policies linear,tof --budgets 1x,2x,4x --cache runs/branches --out runs/tuning

searches over a cache instead of a cluster: in one process and in virtual time, with the very same policies. What the
cache has is neither sampled nor judged again, so a policy is tried in seconds; what is missing is computed and kept.
Recording and replaying are one thing, and --record and --replay are other names of --cache: a record is a replay that
misses everything, and a policy that strays from what was recorded goes on.

    python -m jobs.evaluate --suite digits-long --cache runs/branches --out runs/evidence

runs a suite: many settings, with prompts, rules and aims that stand in a file (jobs/configs/suite_*.yaml; the path of
another will do). It takes hours to days, can be stopped at any time, and resumes when it is run again. Leaves
evidence.md, evidence.json, rows.parquet and pictures; with fewer --prompts, of those that are done. With --judge oracle
and the same --out it adds the ceiling to them; with --tuning it runs on the prompts that constants are fixed on.

    python -m jobs.evaluate --calibrate --policies beam,linear --budgets 6x --cache runs/branches --out runs/calibrated

holds what a panel says of the branches of such searches against the oracle, and leaves verifiers.yaml in --out: the
same panel, for --verifier, with probabilities that are fitted to that. The prompts are those of no evaluation.

    python -m jobs.evaluate --judges judges.yaml --policies beam --budgets 6x --cache runs/branches --out runs/judges
    python -m jobs.evaluate --judges judges.yaml --pairs preferred.csv --out runs/judges

compares judges, a file of verifiers as for --verifier: how often they agree with the oracle on the branches of such
searches, or with people who chose between two videos of one prompt (columns prompt, a, b, choice), and what a verdict
costs. Leaves results.parquet, a row a verdict, and judges.json.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from framegrove.config.suite import Setting
from framegrove.config.verifier import PanelConfig, load_panel
from framegrove.errors import UserError
from framegrove.search import policies
from jobs.console import (
    Display,
    DtypeOption,
    LogLevelOption,
    ModelOption,
    OverwriteOption,
    PickleOption,
    VariantOption,
    VerifierOption,
    any_source,
    application,
    given_options,
    model_source,
    one_line_errors,
    policy_help,
    refuse,
    refuse_finished,
)
from jobs.evaluations import benchmarks, calibrating, comparing, judging, measuring, suite, user_study
from jobs.evaluations.comparing import LEDGER
from jobs.evaluations.laboratory import check_judge, on_ray, over_cache
from jobs.evaluations.options import check_together, judges_apart, with_signals
from jobs.evaluations.prompts import Prompts, digits_prompts, is_listed, listed_prompts

if TYPE_CHECKING:
    from actors.model_files import Card
    from framegrove.config.generator import AnySource
    from framegrove.config.search import SearchConfig
    from jobs.evaluations.laboratory import Laboratory
    from jobs.evaluations.measuring import Item

    Place = Callable[..., AbstractContextManager[Laboratory]]  # on_ray, or over_cache

app = application()


@app.command()
def main(
    context: typer.Context,
    out: Annotated[
        Path | None, typer.Option(help="Folder for what is found: videos, tables, rows and pictures.")
    ] = None,
    policies_: Annotated[
        str, typer.Option("--policies", help=f"Comma-separated names. {policy_help()}; or module:ENTRY.")
    ] = "linear,tof",
    budgets: Annotated[str, typer.Option(help="Comma-separated; 1x is the sample without a search.")] = "1x,4x",
    prompts: Annotated[int, typer.Option(min=1, help="How many held-out prompts; of a suite, at most.")] = 64,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="Videos of each prompt and setting. Default: 1, for VBench as many as it asks for."),
    ] = None,
    digits: Annotated[int | None, typer.Option(min=1, max=2, help="Only prompts of so many digits.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Selects the prompts, and seeds the first video.")] = measuring.SEED,
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
        typer.Option(
            "--suite",
            help="Other prompts: vbench:FILE.json, which is VBench's VBench_full_info.json, or prompts:FILE.txt, one a "
            "line. Or, with --cache, name or YAML file of a suite, in place of prompts, policies and budgets.",
        ),
    ] = None,
    dimension: Annotated[
        str | None, typer.Option(help="Comma-separated: VBench's prompts for these dimensions alone.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="With --suite vbench: the folder of VBench's weights (~/.cache/vbench, where it has downloaded them). "
            "Scores the videos by VBench's own code, in an environment of its own on the cluster's GPUs."
        ),
    ] = None,
    totals: Annotated[
        str | None,
        typer.Option(
            help="Show totals of vbench:RESULTS, a file, folder or zip of VBench's results, or of "
            "evalcrafter:METRICS.json, its 17 metrics by name; nothing is run."
        ),
    ] = None,
    distances: Annotated[
        bool,
        typer.Option(
            "--distances",
            help="Also the Fréchet distances of each setting's videos from clips of the digits world itself.",
        ),
    ] = False,
    study_: Annotated[
        Path | None,
        typer.Option("--study", help="Serve a page of pairs for people, from the folder of a finished evaluation."),
    ] = None,
    tally: Annotated[bool, typer.Option("--tally", help="With --study: show what people chose, and end.")] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="With --study: where the page is served.")] = 8100,
    host: Annotated[
        str, typer.Option(help="With --study: 0.0.0.0 lets people in from other machines, without a password.")
    ] = "127.0.0.1",
    tuning: Annotated[bool, typer.Option("--tuning", help="The suite's prompts for tuning, not its own.")] = False,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="With --cache: hold what the panel says of all branches of these searches against the oracle, and "
            "write the panel with calibrated probabilities to OUT/verifiers.yaml.",
        ),
    ] = False,
    judges: Annotated[
        str | None,
        typer.Option(
            help="With --cache: hold each of these verifiers, a YAML file as of --verifier, against the oracle, on the "
            "branches that are judged in these searches; with --pairs: against people.",
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(help="With --judges: .csv or .jsonl with prompt, a, b (video files) and choice (a, b or tie)."),
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option(
            help="Verifiers, as of --verifier, that judge the videos and take no part in their searches: judges beside "
            "the searches' own panel."
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    log_level: LogLevelOption = None,
) -> None:
    """Compare searches with each other and with a single sample."""
    with one_line_errors(log_level), Display() as display:
        given = given_options(context)
        if _without_searches(given, totals, study_, tally, host, port, display):
            return
        if out is None:
            raise UserError("--out is missing: name the folder for what is found")
        check_judge(judge, cached=cache is not None)
        listed = is_listed(suite_)
        check_together(given, judge, listed=listed)
        if judges is not None:
            if (out / LEDGER).is_file():
                raise UserError(f"an evaluation is in {out}, whose {judging.RESULTS} would be lost: give another --out")
            refuse_finished(out / judging.FIGURES, overwrite)
        if judges is not None and pairs is not None:
            judging.compare_with_people(judges, pairs, out, display)
            return
        panel = load_panel(verifier)
        source, place = _where((model, variant, dtype, allow_pickle), panel, cache, verifier_speed, judge)
        place = functools.partial(place, generators=generators, searches=searches)
        most = prompts if "prompts" in given else None
        if suite_ is not None and not listed:
            # A suite is about costs: what is sampled ahead to save time would only be counted as wasted.
            search = _search(["speculate=off", *(set_ or ())])
            chosen = suite.read_suite(suite_, search, panel, tuning=tuning, prompts=most)
            own = functools.partial(place, search, held_out=with_signals(held_out, panel), whole_trees=False)
            _run_suite(chosen, own, source, out, judge, display)
            return
        search = _search(set_ or ())
        settings = _settings(policies_, budgets, search)
        names = benchmarks.names(dimension)
        if suite_ is not None:
            asked = listed_prompts(suite_, seed, names, most=most, takes=seeds)
            benchmarks.check_weights(suite_, asked, names, weights)
        else:
            if calibrate and "seed" not in given:
                seed = calibrating.SEED
            asked = digits_prompts(prompts, seed, digits, seeds or 1)
        if calibrate:
            task = _calibration(panel, out, display, overwrite=overwrite)
        elif judges is not None:
            task = _of_judges(judges, out, display)
        else:
            apart = judges_apart(held_out, panel)
            task = _comparison(apart, asked, out, display, overwrite=overwrite, distances=distances)
        card = _read(source, display)
        with comparing.taken(out):
            items = measuring.items(card.native, settings, asked, seed)
            for item in {each.request.prompt: each for each in items}.values():
                card.check(item.request)  # a prompt that no search could take is told before the first one begins
            task.ready(items)
            with place(search, held_out=task.apart) as lab:
                task.work(lab, items)
                _tell_effort(lab, display)
            if asked.suite and suite_ is not None:
                benchmarks.score(suite_, asked, settings, names, weights, out, display)


def _without_searches(
    given: Collection[str], totals: str | None, folder: Path | None, tally: bool, host: str, port: int, display: Display
) -> bool:
    """Do what takes no search. Returns whether that was it. Raises UserError for options that do not go with it."""
    if totals is not None:
        refuse(set(given) - {"totals", "log_level"}, "is not for --totals, which runs nothing: leave it out")
        benchmarks.tell_totals(totals, display)
    elif folder is not None:
        refuse(set(given) - {"study_", "tally", "host", "port", "log_level"}, "is not for --study: leave it out")
        user_study.tell(folder, display) if tally else user_study.serve(folder, host, port, display)
    else:
        refuse(set(given) & {"tally", "host", "port"}, "is for a study: add --study DIR")
        return False
    return True


def _where(
    named: tuple[str | None, str | None, str, bool],
    panel: PanelConfig,
    cache: Path | None,
    verifier_speed: float,
    judge: str,
) -> tuple[AnySource, Place]:
    """The model's source, and where it is searched with: on a cluster, or over a cache, which takes our own alone."""
    if cache is None:
        source = any_source(*named)
        return source, functools.partial(on_ray, source, panel)
    pyramidal = model_source(*named)
    place = functools.partial(over_cache, cache, pyramidal, panel, verifier_speed=verifier_speed, judge=judge)
    return pyramidal, place


@dataclass(frozen=True)
class _Task:
    """What searches are made for."""

    apart: PanelConfig | None  # verifiers that judge and take no part
    ready: Callable[[Sequence[Item]], None]  # before the first search: makes room in --out, or refuses
    work: Callable[[Laboratory, Sequence[Item]], None]


def _comparison(
    apart: PanelConfig | None, asked: Prompts, out: Path, display: Display, *, overwrite: bool, distances: bool
) -> _Task:
    """Compare the settings with each other."""
    if distances:
        benchmarks.check_distances(asked)

    def ready(items: Sequence[Item]) -> None:
        comparing.make_way(out, items, overwrite=overwrite, again=distances or bool(asked.suite))

    def work(lab: Laboratory, items: Sequence[Item]) -> None:
        rows = comparing.compare(lab, items, {"prompts": asked.which}, out, display)
        if distances:
            benchmarks.tell_distances(rows, asked, out, display)

    return _Task(apart, ready, work)


def _of_judges(judges: str, out: Path, display: Display) -> _Task:
    """Hold each of some judges against the oracle."""
    apart = load_panel(judges)
    work = functools.partial(judging.compare_with_the_oracle, judges=apart, out=out, display=display)
    return _Task(apart, lambda _: None, work)


def _calibration(panel: PanelConfig, out: Path, display: Display, *, overwrite: bool) -> _Task:
    """Hold the panel against the oracle, and fit its calibrations."""

    def ready(_: Sequence[Item]) -> None:
        refuse_finished(out / calibrating.FILE, overwrite)

    return _Task(None, ready, functools.partial(_calibrate, panel=panel, out=out, display=display))


def _run_suite(
    chosen: suite.Suite,
    laboratory: Callable[[], AbstractContextManager[Laboratory]],
    source: AnySource,
    out: Path,
    judge: str,
    display: Display,
) -> None:
    """Make what is missing of a suite, and show what all of it says."""
    card = _read(source, display)
    with comparing.taken(out):
        with laboratory() as lab:
            suite.run(chosen, lab, card, out, judge, display)
            _tell_effort(lab, display)
        suite.report(chosen, out, display)


def _tell_effort(lab: Laboratory, display: Display) -> None:
    if (effort := lab.effort()) is not None:
        display.say(effort)


def _search(overrides: Iterable[str]) -> SearchConfig:
    from framegrove.config.base import load
    from framegrove.config.search import SearchConfig

    return load(SearchConfig, None, overrides)


def _read(source: AnySource, display: Display) -> Card:
    """What is known of the model, before anything is written."""
    display.begin("reading the model")
    from actors.adapted import card_of

    return card_of(source)


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


def _settings(names: str, budgets: str, search: SearchConfig) -> list[Setting]:
    """The single sample for 1x, whatever the policy, and every policy at every larger budget.

    Raises UserError for one that cannot be searched with, and for options in ``search`` that no policy has.
    """
    from framegrove.config.search import parse_budget

    entries = {name: policies.find(name) for name in map(str.strip, names.split(",")) if name}
    multiples = list(dict.fromkeys(parse_budget(text) for text in budgets.split(",") if text.strip()))
    if not entries or not multiples:
        raise UserError("nothing to evaluate: give at least one policy and one budget")
    settings = [Setting(policy="single")] if 1.0 in multiples else []
    searches = [name for name, entry in entries.items() if entry.judged]
    settings += [Setting(policy=name, budget=multiple) for multiple in multiples if multiple > 1 for name in searches]
    if not settings:
        raise UserError(f"nothing to evaluate: {names} searches on no budget, add 1x to --budgets, or a policy")
    for setting in settings:
        measuring.search_of(search, setting)
    policies.check_options(search, [policies.find(setting.policy) for setting in settings])
    return settings


if __name__ == "__main__":
    app()
