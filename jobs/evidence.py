"""Measure what the papers claim, one claim a command.

    python -m jobs.evidence --list
    python -m jobs.evidence renoise --out runs/claims

leaves NAME.json (figures with 95% bootstrap intervals, the aim that was set beforehand, whether it was met) and
NAME.png in --out. Claims may share a folder, and those that search share its branches and rows: what one has made, the
others find there. Interrupted, the same command resumes.

    python -m jobs.evidence --table tests/evidence/claims

prints what such a folder holds as a table in Markdown; tests/evidence/claims has what jobs/README.md shows.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from framegrove.errors import UserError
from jobs.claims import registry, results
from jobs.claims.claim import SEED, Bench, Claim, result_of
from jobs.console import (
    Display,
    LogLevelOption,
    ModelOption,
    OverwriteOption,
    application,
    duration,
    given_options,
    make_folder,
    model_source,
    one_line_errors,
    refuse_finished,
    when_stopped,
)

if TYPE_CHECKING:
    from jobs.claims.claim import Finding

app = application()

_LOCK = ".evidence"


@app.command()
def main(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="The claim; --list has all.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for NAME.json and NAME.png.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the claims, and end.")] = False,
    table: Annotated[
        Path | None, typer.Option(help="Print the results in this folder as a table in Markdown, and end.")
    ] = None,
    prompts: Annotated[
        int | None, typer.Option(min=2, help="How many prompts, or simulated ones. Default: as the claim says.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which prompts, and the seed of the first.")] = SEED,
    model: ModelOption = None,
    other: Annotated[
        str | None,
        typer.Option(help="Of block-causal: a model trained alike with bidirectional attention, to compare with."),
    ] = None,
    runs: Annotated[
        list[Path] | None,
        typer.Option(help="Of spatial-pyramid, twice: folders of runs of jobs.train, of one stage and of more."),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder of branches and verdicts of the claims that search. Default: OUT/branches."),
    ] = None,
    overwrite: OverwriteOption = False,
    log_level: LogLevelOption = None,
) -> None:
    """Measure one of the papers' claims."""
    with one_line_errors(log_level), Display() as display:
        if list_ or table is not None:
            if name is not None or given_options(context) - {"list_", "table", "log_level"} or (list_ and table):
                raise UserError("--list and --table measure nothing and stand alone: leave the rest out")
            typer.echo(listed() if table is None else results.as_markdown(results.read_all(table)))
            return
        if name is None:
            raise UserError(f"name a claim: {', '.join(registry.CLAIMS)}")
        claim = registry.find(name)
        if out is None:
            raise UserError("--out is missing: name the folder for what is found")
        if prompts is not None and not claim.prompts:
            raise UserError(f"the claim {name} takes no prompts: leave --prompts out")
        if other is not None and name != "block-causal":
            raise UserError(f"--other is for block-causal, and {name} compares no two models: leave it out")
        if runs and name != "spatial-pyramid":
            raise UserError(f"--runs is for spatial-pyramid, and {name} compares no runs: leave it out")
        make_folder(out)
        refuse_finished(out / f"{name}.json", overwrite)
        source = model_source(model, None, "float32", False)
        compared = None if other is None else model_source(other, None, "float32", False)
        paths = (out, cache or out / "branches")
        bench = Bench(*paths, seed, prompts or claim.prompts, source, compared, display, tuple(runs or ()))
        _measure(claim, bench)


def listed() -> str:
    """All claims in words, with what of each is not measured."""
    return "\n\n".join(
        "\n".join(
            [
                f"{claim.name}: {claim.question}",
                *(
                    f"    {what}: {said}"
                    for what, said in (
                        ("source", claim.source),
                        ("measured", claim.measured),
                        ("aim", claim.aim),
                        ("takes", f"about {claim.takes}, on two cores"),
                        ("not measured", claim.missing),
                    )
                    if said
                ),
            ]
        )
        for claim in registry.CLAIMS.values()
    )


def _measure(claim: Claim, bench: Bench) -> None:
    import time

    import torch

    from framegrove.files import locked, write_json

    torch.set_num_threads(1)  # models this small gain nothing from more
    busy = f"another run of jobs.evidence writes to {bench.out}: wait for its end, or give another --out"
    with locked(bench.out / _LOCK, busy):
        bench.display.begin(claim.question)
        began = time.monotonic()
        with when_stopped("what is sampled and judged is kept: run the same command again to go on"):
            finding = claim.run(bench)
        took = time.monotonic() - began
        finding.draw(bench.out / f"{claim.name}.png")
        facts: dict[str, Any] = {
            "command": shlex.join(["python", "-m", "jobs.evidence", *sys.argv[1:]]),
            "seed": bench.seed,
            "prompts": bench.prompts,
            "seconds": round(took, 1),
        }
        write_json(bench.out / f"{claim.name}.json", result_of(claim, finding, facts))
    _tell(claim, finding, bench, took)


def _tell(claim: Claim, finding: Finding, bench: Bench, took: float) -> None:
    for figure in finding.figures:
        bench.display.say(f"{'* ' if figure.name == finding.headline else '  '}{figure.name}: {figure}")
    bench.display.say(f"aim: {claim.aim}: {results.verdict(finding.met)}")
    for remark in (*finding.remarks, *([f"not measured: {claim.missing}"] if claim.missing else [])):
        bench.display.say(f"- {remark}")
    files = "\n".join(str(bench.out / f"{claim.name}.{end}") for end in ("json", "png"))
    bench.display.say(f"{files}\nin {duration(took)}")


if __name__ == "__main__":
    app()
