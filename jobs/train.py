"""Train a generator through its phases, from parquet shards to a model folder.

    python -m jobs.train --config jobs/configs/digits_demo.yaml --engine plain --out runs/train

Run it again with the same --out to go on from the newest checkpoint.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


class EngineName(StrEnum):
    """Who trains."""

    PLAIN = "plain"


@app.command()
def main(
    config: Annotated[Path, typer.Option(help="YAML file, see jobs/configs.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; an unfinished run in it is resumed.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a key, as in seed=1 (repeatable).")] = None,
    engine: Annotated[EngineName, typer.Option(help="plain: this process.")] = EngineName.PLAIN,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of the plain engine.")] = 1,
) -> None:
    """Train through all phases of a configuration."""
    from framegrove.config.base import load
    from framegrove.config.train import TrainConfig

    try:
        checked = load(TrainConfig, config, set_ or ())
        import torch

        from framegrove.training.loop import TrainingDiverged
        from framegrove.training.run import run

        torch.set_num_threads(threads)
        with _Display(checked.steps) as display:
            try:
                model = run(checked, out, display.watch())
            except TrainingDiverged as error:
                raise ValueError(str(error)) from None
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"model: {model}   loss curve: {out / 'loss.png'}")


class _Display:
    """A progress bar on a terminal, a line for every point of the curve anywhere."""

    def __init__(self, steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=Console(soft_wrap=True), transient=True,
        )  # fmt: skip
        self.task = self.progress.add_task("training", total=steps)

    def __enter__(self) -> _Display:
        self.progress.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self.progress.stop()

    def watch(self):  # type: ignore[no-untyped-def]
        from framegrove.training.loop import Point
        from framegrove.training.run import Watch

        def on_start(done: int) -> None:
            self.progress.update(self.task, completed=done)
            if done:
                self.progress.console.print(f"resumed after step {done}")

        def on_step(done: int, loss: float) -> None:
            self.progress.update(self.task, completed=done)

        def on_point(point: Point) -> None:
            losses = "  ".join(f"{name} {value:.4f}" for name, value in point.losses.items())
            self.progress.update(self.task, description=point.phase)
            self.progress.console.print(
                f"{point.phase} {point.step}: {losses}  rate {point.learning_rate:.2e}  "
                f"{point.samples_per_second:.0f} samples/s"
            )

        return Watch(on_start, on_step, on_point)


if __name__ == "__main__":
    app()
