"""Measure what searching is worth, on held-out prompts of the digits world, by an oracle that no search ever sees.

    python -m jobs.evaluate --policies linear,tof --budgets 1x,4x --prompts 64 --out runs/evaluation

Leaves results.parquet (a row for every video), curves.png and summary.json in --out, and prints the table. The same
prompts and seeds are used in every setting, so differences are paired. Run it again to go on where it was interrupted.

    python -m jobs.evaluate --policies linear,tof --budgets 1x,2x,4x --cache runs/branches --out runs/tuning

searches over a cache instead of a cluster: in one process and in virtual time, with the very same policies. What the
cache has is neither sampled nor judged again, so a policy is tried in seconds; what is missing is computed and kept.
Recording and replaying are one thing, and --record and --replay are other names of --cache: a record is a replay that
misses everything, and a policy that strays from what was recorded goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from framegrove.config.verifier import load_panel
from framegrove.errors import UserError
from framegrove.search import policies
from jobs.console import (
    Display,
    DtypeOption,
    LogLevelOption,
    ModelOption,
    PickleOption,
    VariantOption,
    VerifierOption,
    application,
    make_folder,
    model_source,
    one_line_errors,
    policy_help,
)
from jobs.laboratory import check_judge, on_ray, over_cache

if TYPE_CHECKING:
    from rich.table import Table

    from actors.model_files import ModelFiles
    from framegrove.digits.oracle import Verdict
    from framegrove.digits.world import DigitObject
    from framegrove.evaluation.report import SearchRecord
    from framegrove.evaluation.results import Ledger, Row, Setting
    from framegrove.types import GenerationRequest
    from jobs.laboratory import Laboratory

app = application()

SEED = 90_000  # of the prompts; clips that models are trained on have small seeds, and another split


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder for results.parquet, curves.png and summary.json.")],
    policy: Annotated[
        str, typer.Option("--policies", help=f"Comma-separated names. {policy_help()}; or module:ENTRY.")
    ] = "linear,tof",
    budgets: Annotated[str, typer.Option(help="Comma-separated; 1x is the sample without a search.")] = "1x,4x",
    prompts: Annotated[int, typer.Option(min=1, help="How many held-out prompts.")] = 64,
    digits: Annotated[int | None, typer.Option(min=1, max=2, help="Only prompts of so many digits.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which prompts.")] = SEED,
    model: ModelOption = None,
    variant: VariantOption = None,
    dtype: DtypeOption = "float32",
    allow_pickle: PickleOption = False,
    verifier: VerifierOption = None,
    generators: Annotated[int, typer.Option(min=1, help="Generator actors.")] = 2,
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
    log_level: LogLevelOption = None,
) -> None:
    """Compare searches with each other and with a single sample."""
    with one_line_errors(log_level), Display() as display:
        from framegrove.config.base import load
        from framegrove.config.search import SearchConfig

        check_judge(judge, cached=cache is not None)
        search = load(SearchConfig, None, set_ or ())
        settings, panel = _settings(policy, budgets), load_panel(verifier)
        display.begin("reading the model")
        from actors.model_files import ModelFiles

        source = model_source(model, variant, dtype, allow_pickle)
        items = _items(ModelFiles.read(source), settings, prompts, digits, seed)
        for setting in settings:
            policies.options_of(search, policies.find(setting.policy))
        make_folder(out)
        if cache is None:
            laboratory = on_ray(source, panel, search, generators)
        else:
            laboratory = over_cache(
                cache, source, panel, search, generators, verifier_speed=verifier_speed, judge=judge
            )
        with laboratory as lab:
            rows = _rows(lab, items, out, {"prompts": [seed, digits]}, display)
            effort = lab.effort()
        _finish(rows, out, display)
        if effort is not None:
            display.say(effort)


@dataclass(frozen=True)
class Item:
    """One video to be made and measured."""

    index: int
    setting: Setting
    objects: tuple[DigitObject, ...]
    request: GenerationRequest


def _settings(names: str, budgets: str) -> list[Setting]:
    """The single sample for 1x, whatever the policy, and every policy at every larger budget."""
    from framegrove.config.search import parse_budget
    from framegrove.evaluation.results import Setting

    entries = [policies.find(name.strip()) for name in names.split(",") if name.strip()]
    multiples = [parse_budget(text) for text in budgets.split(",") if text.strip()]
    if not entries or not multiples:
        raise UserError("nothing to evaluate: give at least one policy and one budget")
    settings = [Setting("single", 1.0)] if 1.0 in multiples else []
    searches = [entry for entry in entries if entry.judged]
    return settings + [Setting(entry.name, multiple) for multiple in multiples if multiple > 1 for entry in searches]


def _items(files: ModelFiles, settings: list[Setting], count: int, digits: int | None, seed: int) -> list[Item]:
    """Prompt by prompt, so that an evaluation that is cut short has whole pairs."""
    from framegrove.digits import world
    from framegrove.types import GenerationRequest

    recipe = files.recipe
    return [
        Item(
            index,
            setting,
            objects,
            GenerationRequest(
                prompt=world.caption(objects),
                seed=seed + index,
                units=recipe.units,
                height=recipe.height,
                width=recipe.width,
                policy=setting.policy,
                budget=setting.budget,
            ),
        )
        for index, objects in enumerate(world.prompts(count, seed, digits=digits))
        for setting in settings
    ]


def _rows(lab: Laboratory, items: list[Item], out: Path, which: Mapping[str, Any], display: Display) -> list[Row]:
    """Make the videos that are still missing, and give the rows of all."""
    from framegrove.evaluation.results import Ledger

    identity = lab.run(lab.runner.identity())
    identity["search"] = {key: value for key, value in identity["search"].items() if key not in ("policy", "budget")}
    ledger = Ledger(out / "results.jsonl", {**identity, **lab.facts, **which})
    missing = [item for item in items if not ledger.has(item.index, item.setting)]
    if missing:
        display.begin("connecting to the workers")
        with lab.connected():
            lab.run(_measure(lab, missing, ledger, display))
    wanted = {(item.index, item.setting) for item in items}
    return [row for row in ledger.rows if (row.prompt_index, row.setting) in wanted]


async def _measure(lab: Laboratory, items: list[Item], ledger: Ledger, display: Display) -> None:
    """Make the videos and add a row for each."""
    try:
        display.begin("starting generators and verifier")
        await lab.runner.start()
        display.begin(f"making {len(items)} videos")
        for done, item in enumerate(items):
            display.show(done / len(items), f"{done} of {len(items)}, now {item.setting}: {item.request.prompt}")
            record = await lab.runner.search(item.request)
            panel = await lab.runner.judge(record)
            ledger.add(measured(item, record, panel, lab.verdict(record, item.objects), lab.workers))
    finally:
        await lab.runner.close()


def measured(
    item: Item, record: SearchRecord, panel: Mapping[str, float], verdict: Verdict, workers: tuple[int, int]
) -> Row:
    """The row of one video.

    ``panel`` are the verifiers' scores of it as a whole, ``verdict`` is the oracle's; ``workers`` are the numbers of
    generators and of verifiers.
    """
    from framegrove.evaluation.report import busy_seconds, lost
    from framegrove.evaluation.results import Row
    from framegrove.types import SampleWork

    outcome = record.outcome
    sampling = [span for span in outcome.spans if isinstance(span.work, SampleWork)]
    scoring = [span for span in outcome.spans if not isinstance(span.work, SampleWork)]
    return Row(
        prompt_index=item.index,
        prompt=item.request.prompt,
        objects=len(item.objects),
        policy=item.setting.policy,
        budget=item.setting.budget,
        seed=item.request.seed,
        oracle_score=verdict.score,
        fully_right=verdict.fully_right,
        verifier_score=sum(panel.values()) / len(panel),
        nfe=outcome.sampling.spent.nfe,
        generator_flops=outcome.sampling.certain.flops,
        decoding_flops=outcome.sampling.certain.decoding,
        verifier_flops=outcome.scoring.certain.flops,
        wasted_flops=(lost(outcome.sampling) + lost(outcome.scoring)).all_flops,
        single_flops=record.single.all_flops,
        branches=len(outcome.nodes),
        seconds=outcome.seconds,
        generators_busy=busy_seconds(sampling) / (workers[0] * outcome.seconds),
        verifiers_busy=busy_seconds(scoring) / (workers[1] * outcome.seconds),
    )


def _finish(rows: list[Row], out: Path, display: Display) -> None:
    """Write what was found and print it."""
    from framegrove.evaluation import results
    from framegrove.evaluation.curves import draw_curves
    from framegrove.files import write_json

    results.write_parquet(rows, out / "results.parquet")
    prompts = len({row.prompt_index for row in rows})
    metric = results.METRICS["fully right"]
    title = f"Share of videos fully right, {prompts} held-out prompts"
    draw_curves(results.curves(rows, metric), out / "curves.png", title=title, score="fully right (oracle)")
    found = results.findings(rows)
    write_json(out / "summary.json", found)
    for table in (_settings_table(rows), _differences_table(rows)):
        display.console.print(table)
    display.say("\n".join(str(out / name) for name in ("results.parquet", "curves.png", "summary.json")))


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
