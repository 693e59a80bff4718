"""Train the causal video VAE on the digits world: ``python -m jobs.train_vae --out DIR``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from jobs.console import LogLevelOption, application, make_folder, one_line_errors

app = application()
_DEFAULT = Path(__file__).parent / "configs" / "digits_vae.yaml"


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder for log, checkpoint and the finished model.")],
    config: Annotated[Path, typer.Option(help="Training configuration.")] = _DEFAULT,
    override: Annotated[list[str] | None, typer.Option("--set", help="key.sub=value, may be repeated.")] = None,
    log_level: LogLevelOption = None,
) -> None:
    """Train, or go on from the checkpoint in OUT; the finished model lies in OUT/causal_video_vae."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from framegrove.config.base import load
    from framegrove.config.vae import VaeTrainingConfig

    console = Console()
    with one_line_errors(log_level):
        settings = load(VaeTrainingConfig, config, override or ())
        from framegrove.training.vae import Record, train

        make_folder(out)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        with (
            Progress(*columns, TimeRemainingColumn(), console=console) as progress,
            (out / "log.jsonl").open("a", encoding="utf-8") as log,
        ):
            task = progress.add_task("training the VAE", total=settings.steps)

            def on_record(record: Record) -> None:
                values = {key: round(value, 6) for key, value in record.values().items()}
                print(json.dumps(values), file=log, flush=True)
                progress.console.print("  ".join(f"{key} {value:g}" for key, value in values.items()), highlight=False)
                progress.update(task, completed=record.step)

            last = train(settings, out, on_record)
            on_record(last)
    console.print(f"the model is in {out / 'causal_video_vae'}")


if __name__ == "__main__":
    app()
