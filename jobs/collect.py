"""Turn searches into training data: their winners, and pairs of siblings of which one was found better.

    python -m jobs.collect --prompts digits:500 --policy tree --budget 6x --out runs/collected

--prompts names a text file of prompts, one a line, or so many prompts of the digits world (of its training split, so
that held-out combinations stay unseen). Leaves in --out:

    examples/         winners, parquet files of clips as jobs.prepare makes them: data for jobs.train
    pairs/            two children of one branch after their history, both scored; for phases with objective.preference
    summary.json      how many, and by how much siblings differ

Interrupted or killed, the same command resumes: no search that is finished is done again, and none counts twice. With
more prompts it continues, too. The model is told from others in the files, and only the model that sampled pairs learns
from them.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from framegrove.config.verifier import load_panel
from framegrove.errors import UserError
from framegrove.words import counted
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
    from jobs.collecting import Findings

app = application()


@app.command()
def main(
    prompts: Annotated[str, typer.Option(help="A text file, one prompt a line; or digits:N.")],
    out: Annotated[Path, typer.Option(help="Folder for examples and pairs; an unfinished one is continued.")],
    digits: Annotated[
        list[int] | None,
        typer.Option(min=1, max=2, help="How many digits those of digits:N have, in turn (repeatable); else either."),
    ] = None,
    policy: Annotated[str, typer.Option(help=f"{policy_help()}; or module:ENTRY.")] = "tree",
    budget: Annotated[str, typer.Option(help="Cap of a search: a multiple of sampling and decoding once.")] = "6x",
    units: Annotated[
        int | None, typer.Option(min=1, help="Length of the videos, in units. Default: the model's own.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of digits:N, and of the first search; the others' follow.")] = 0,
    margin: Annotated[
        float, typer.Option(min=0, help="Least difference in log-odds of a pair; 1 is 0.73 to 0.5.")
    ] = 1.0,
    least: Annotated[
        float, typer.Option(min=0, max=1, help="Least probability that the better unit, or the winner, is right.")
    ] = 0.5,
    most: Annotated[float, typer.Option(min=0, max=1, help="Greatest probability that the worse unit is right.")] = 1.0,
    model: ModelOption = None,
    variant: VariantOption = None,
    dtype: DtypeOption = "float32",
    allow_pickle: PickleOption = False,
    verifier: VerifierOption = None,
    generators: Annotated[int, typer.Option(min=1, help="Generator actors.")] = 2,
    searches: Annotated[
        int, typer.Option(min=1, help="Searches at a time; what they sample at the same time is packed.")
    ] = 4,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A search setting, as in options.tree.children=4.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Search over this folder of branches, in one process, as jobs.evaluate does.")
    ] = None,
    log_level: LogLevelOption = None,
) -> None:
    """Search for many prompts, and keep what can be learned from the searches."""
    with one_line_errors(log_level), Display() as display:
        from jobs import collecting
        from jobs.evaluations.laboratory import on_ray, over_cache

        search = collecting.search_config(policy, budget, set_ or ())
        source, panel = model_source(model, variant, dtype, allow_pickle), load_panel(verifier)
        if least > 0:
            panel.check_absolute(f"that one is right with probability {least:g}: give --least 0, or another verifier")
        if digits and not prompts.startswith("digits:"):
            raise UserError("--digits is for prompts of the digits world, digits:N: leave it out")
        texts = collecting.read_prompts(prompts, seed, digits or ())
        display.begin("reading the model")
        task = collecting.CollectingTask.of(
            source, search, texts, units=units, seed=seed, margin=margin, least=least, most=most
        )
        make_folder(out)
        over = functools.partial(over_cache, cache) if cache else on_ray
        with over(source, panel, search, generators, searches=searches) as lab:
            found = collecting.collect(task, lab, out, display)
        _tell(found, out, display)
        if not found.pairs and not found.examples:
            raise UserError(
                f"nothing is left to learn from: of {len(found.compared)} pairs of siblings none differs by {margin:g} "
                f"in log-odds with a better one that is right with {least:g} and a worse one with at most {most:g}, "
                f"nor is any winner of {found.searches} searches right: lower --margin or --least, raise --most, or "
                "search more widely"
            )


def _tell(found: Findings, out: Path, display: Display) -> None:
    """Print the summary."""
    from rich.table import Table

    from framegrove.files import write_json

    table = Table(title="How far siblings lie apart, in log-odds that the unit is right")
    for column in ("unit", "pairs compared", "kept", "0 to 1", "1 to 2", "2 to 4", "4 and more"):
        table.add_column(column, justify="right")
    for row in found.by_depth():
        *counts, margins = row
        table.add_row(*map(str, (*counts, *margins)))
    display.console.print(table)
    kept = f"{counted(found.examples, 'winner')} and {counted(found.pairs, 'pair')} kept, of {len(found.compared)}"
    spent = f"{found.flops:.3g} FLOPs, {found.seconds / 3600:.2f} h of searching"
    display.say(f"{counted(found.searches, 'search')}: {kept} compared; {spent}\n{out}")
    write_json(out / "summary.json", found.summary())


if __name__ == "__main__":
    app()
