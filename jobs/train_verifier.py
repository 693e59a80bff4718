"""Train the small vision-language model that judges clips of the digits world, and examine it on held-out clips.

    python -m jobs.train_verifier --config jobs/configs/digits_verifier.yaml --out runs/verifier

leaves in OUT/model the folder that vLLM and transformers load, with metrics.json and a README.md of figures beside the
weights. Interrupted, the same command continues from its newest checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from framegrove.config.base import load
from framegrove.config.verifier import VerifierTraining

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder for checkpoint, log.jsonl and model.")],
    config: Annotated[Path, typer.Option(help="YAML file.")] = Path("jobs/configs/digits_verifier.yaml"),
    overrides: Annotated[list[str] | None, typer.Option("--set", help="key.sub=value, may be repeated.")] = None,
) -> None:
    """Train, examine, write OUT/model."""
    try:
        settings = load(VerifierTraining, config, overrides or [])
        _train(settings, out, f"python -m jobs.train_verifier --config {config} --out {out}")
    except ValueError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(2) from None


def _train(settings: VerifierTraining, out: Path, command: str) -> None:
    import sys

    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    from framegrove.training.verifier import Progress, VerifierRun

    run = VerifierRun(settings, out)
    figures = TextColumn("{task.fields[figures]}")
    columns = ("{task.description}", BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(), figures)
    with Bars(*columns, disable=not sys.stdout.isatty()) as bars:
        bar = bars.add_task("starting", total=None, figures="")

        def report(progress: Progress) -> None:
            figures = "  ".join(f"{key} {value:.4g}" for key, value in progress.figures.items())
            what = f"{progress.stage} {progress.step}/{progress.steps}"
            bars.update(bar, description=what, completed=progress.done, total=progress.total, figures=figures)
            if bars.disable and progress.step % 50 == 0:
                print(what, figures, flush=True)

        run.train(report)
    from framegrove.training.verifier_exam import examine, save

    model = run.finished()
    marks = examine(model, run.packer, settings.heldout_clips, report=lambda line: print(line, flush=True))
    Console().print(marks.table())
    save(run, model, marks, out / "model", command)
    print(f"wrote {out / 'model'}")


if __name__ == "__main__":
    app()
