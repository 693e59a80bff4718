"""Measure what searching is worth, on held-out prompts of the digits world, by an oracle that no search ever sees.

    python -m jobs.evaluate --policies linear,tof --budgets 1x,4x --prompts 64 --out runs/evaluation

Leaves results.parquet (a row for every video), curves.png and summary.json in --out, and prints the table. The same
prompts and seeds are used in every setting, so differences are paired. Run it again to go on where it was interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from rich.table import Table

    from actors.model_files import ModelFiles
    from actors.searches import SearchRunner
    from framegrove.digits.oracle import DigitsOracle
    from framegrove.digits.world import DigitObject
    from framegrove.evaluation.report import SearchRecord
    from framegrove.evaluation.results import Ledger, Row, Setting
    from framegrove.types import GenerationRequest

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
    log_level: LogLevelOption = None,
) -> None:
    """Compare searches with each other and with a single sample."""
    with one_line_errors(log_level), Display() as display:
        from framegrove.config.base import load
        from framegrove.config.search import SearchConfig

        search = load(SearchConfig, None, set_ or ())
        settings, panel = _settings(policy, budgets), load_panel(verifier)
        display.begin("reading the model")
        import asyncio

        from actors.model_files import ModelFiles
        from actors.searches import search_runner
        from framegrove.evaluation.results import Ledger

        source = model_source(model, variant, dtype, allow_pickle)
        files = ModelFiles.read(source)
        items = _items(files, settings, prompts, digits, seed)
        make_folder(out)
        runner = search_runner(source, panel, search, generators=generators)
        for setting in settings:
            policies.options_of(search, policies.find(setting.policy))
        identity = asyncio.run(runner.identity())
        identity["search"] = {
            key: value for key, value in identity["search"].items() if key not in ("policy", "budget")
        }
        ledger = Ledger(out / "results.jsonl", {**identity, "prompts": [seed, digits]})
        missing = [item for item in items if not ledger.has(item.index, item.setting)]
        if missing:
            _measure(runner, missing, ledger, display)
        wanted = {(item.index, item.setting) for item in items}
        _finish([row for row in ledger.rows if (row.prompt_index, row.setting) in wanted], out, display)


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


def _measure(runner: SearchRunner, items: list[Item], ledger: Ledger, display: Display) -> None:
    """Make the videos and add a row for each."""
    import asyncio

    from framegrove.cluster.session import connect
    from framegrove.digits.oracle import DigitsOracle

    oracle = DigitsOracle()

    async def measure() -> None:
        try:
            display.begin("starting generators and verifier")
            await runner.start()
            display.begin(f"making {len(items)} videos")
            for done, item in enumerate(items):
                display.show(done / len(items), f"{done} of {len(items)}, now {item.setting}: {item.request.prompt}")
                record = await runner.search(item.request)
                ledger.add(measured(item, record, await runner.judge(record), oracle))
        finally:
            await runner.close()

    display.begin("connecting to Ray")
    with connect():
        asyncio.run(measure())


def measured(item: Item, record: SearchRecord, panel: Mapping[str, float], oracle: DigitsOracle) -> Row:
    """The row of one video; ``panel`` are the verifiers' scores of it as a whole."""
    from framegrove.evaluation.report import lost
    from framegrove.evaluation.results import Row

    verdict = oracle.judge(record.frames, item.objects)
    outcome = record.outcome
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
    table = Table(
        title="Means with 95% bootstrap intervals; prices: 1x = sampling and decoding a video once, without a search"
    )
    for column in ("setting", *results.METRICS, *parts, "total", "seconds"):
        table.add_column(column, justify="left" if column == "setting" else "right", overflow="fold")
    for setting, group in results.by_setting(rows).items():
        price = results.mean_price(group)
        table.add_row(
            str(setting),
            *(str(results.summary(group, metric)) for metric in results.METRICS.values()),
            *(f"{value:.2f}x" for value in (*(getattr(price, part) for part in parts), price.total)),
            f"{sum(row.seconds for row in group) / len(group):.1f}",
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
