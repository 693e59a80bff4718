"""Train a generator through its phases, from parquet shards to a model folder.

    python -m jobs.train --config jobs/configs/digits_demo.yaml --set data=runs/digits-clips --out runs/train

On the Ray cluster at RAY_ADDRESS, on the one this was submitted to (ray job submit), or on an own local one. Run it
again with the same --out to go on from the newest checkpoint. --engine plain trains in this process, without Ray.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from framegrove.errors import UserError
from jobs.console import Display, LogLevelOption, application, make_folder, one_line_errors

if TYPE_CHECKING:
    from framegrove.config.train import TrainConfig

app = application()


class EngineName(StrEnum):
    """Who trains."""

    PLAIN = "plain"
    DEEPSPEED = "deepspeed"


@app.command()
def main(
    config: Annotated[Path, typer.Option(help="YAML file, see jobs/configs.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; an unfinished run in it is resumed.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a key, as in seed=1 (repeatable).")] = None,
    engine: Annotated[
        EngineName, typer.Option(help="deepspeed: ZeRO over workers on a Ray cluster; plain: in this process.")
    ] = EngineName.DEEPSPEED,
    workers: Annotated[int, typer.Option(min=1, help="Workers of the deepspeed engine; a GPU each, if any.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each worker; more help only on idle cores.")] = 1,
    log_level: LogLevelOption = None,
) -> None:
    """Train through all phases of a configuration."""
    from framegrove.config.base import load
    from framegrove.config.train import TrainConfig

    with one_line_errors(log_level), Display() as display:
        checked = load(TrainConfig, config, set_ or ())
        if engine is EngineName.PLAIN and workers > 1:
            raise UserError(f"the plain engine trains in one process, not with --workers {workers}: leave that out")
        make_folder(out.parent)
        _check_unused(out, engine)
        if engine is EngineName.PLAIN:
            model = _in_this_process(checked, out, threads, display)
        else:
            model = _on_a_cluster(checked, out.absolute(), workers, threads, display)
        display.say(f"model: {model}   loss curve: {out / 'loss.png'}")


def _check_unused(out: Path, engine: EngineName) -> None:
    """Raise UserError where the other engine has begun a run."""
    from framegrove.config.train import CHECKPOINTS, RAY_STATE

    other = out / (RAY_STATE if engine is EngineName.PLAIN else CHECKPOINTS)
    if other.exists():
        raise UserError(f"{out} holds a run of the other engine ({other.name}/): give another --out, or remove it")


def _in_this_process(config: TrainConfig, out: Path, threads: int, display: Display) -> Path:
    display.begin("training")
    import torch

    from framegrove.training.loop import Point
    from framegrove.training.run import Watch, run

    torch.set_num_threads(threads)

    def on_start(done: int) -> None:
        if done:
            display.say(f"resumed after step {done}")

    def on_step(done: int, loss: float) -> None:
        display.show(done / config.steps, f"step {done} of {config.steps}")

    def on_point(point: Point) -> None:
        from dataclasses import asdict

        display.say(line_of(asdict(point)))

    return run(config, out, Watch(on_start, on_step, on_point))


def _on_a_cluster(config: TrainConfig, out: Path, workers: int, threads: int, display: Display) -> Path:
    display.begin("connecting to Ray")
    from framegrove.cluster.session import connect

    with connect(num_cpus=workers + 1) as cluster:
        from actors.trainer import fit

        display.begin(f"training with {workers} worker{'s' if workers > 1 else ''}")
        with _shown(config, out, display):
            return fit(config, out, cluster, workers=workers, threads=threads)


@contextlib.contextmanager
def _shown(config: TrainConfig, out: Path, display: Display) -> Iterator[None]:
    """Show the loss curve while it grows on disk, from the thread beside the one that waits for the workers."""
    from framegrove.training.curve import Follower

    follower, finished = Follower(out), threading.Event()

    def show() -> None:
        back_to, lines = follower.news()
        if back_to is not None:
            display.say(f"resumed after step {back_to}")
        for line in lines:
            display.show(line["step"] / config.steps, f"step {line['step']} of {config.steps}")
            display.say(line_of(line))

    def watch() -> None:
        while not finished.wait(0.5):
            show()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        finished.set()
        watcher.join()
        show()


def line_of(point: dict[str, Any]) -> str:
    """A point of the loss curve in words."""
    losses = "  ".join(f"{name} {value:.4f}" for name, value in point["losses"].items())
    speed = f"rate {point['learning_rate']:.2e}  {point['samples_per_second']:.0f} samples/s"
    return f"{point['phase']} {point['step']}: {losses}  {speed}"


if __name__ == "__main__":
    app()
