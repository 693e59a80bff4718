"""Train a generator through its phases, from parquet shards to a model folder.

    python -m jobs.train --config jobs/configs/digits_demo.yaml --set data=runs/digits-clips --out runs/train

Trains on the Ray cluster at RAY_ADDRESS, on the one that this was submitted to (ray job submit), or on a local one
started for the run. Run it again with the same --out to continue from the newest checkpoint. --engine plain trains in
this process, without Ray.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from framegrove.config.pool import PoolSize
from framegrove.config.train import ModelConfig as TrainedModelConfig
from framegrove.config.train import PhaseConfig, TrainConfig
from framegrove.config.tune import LoraConfig, TuneConfig
from framegrove.config.watch import SamplesConfig, TrackingConfig
from framegrove.errors import UserError
from jobs.console import (
    Display,
    LogLevelOption,
    application,
    duration,
    make_folder,
    one_line_errors,
    refuse_others_results,
    when_stopped,
)
from jobs.keys import keys_help

if TYPE_CHECKING:
    from framegrove.training.curve import Follower
    from framegrove.training.loop import Point
    from framegrove.training.status import StatusReader

_POLL_SECONDS = 0.5

app = application()


class EngineName(StrEnum):
    """Which engine trains."""

    PLAIN = "plain"
    DEEPSPEED = "deepspeed"


_KEYS = keys_help(
    ("Keys of the configuration file, which --set overrides (--set phases.0.learning_rate=1e-4):", TrainConfig, ""),
    ("Of each phase:", PhaseConfig, "phases.N."),
    ("Of the model:", TrainedModelConfig, "model."),
    ("Of what is trained of it:", TuneConfig, "model.tune."),
    ("Of an adapter:", LoraConfig, "model.tune.lora."),
    ("Of samples:", SamplesConfig, "samples."),
    ("Of tracking:", TrackingConfig, "tracking."),
)


@app.command(epilog=_KEYS)
def main(
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; an unfinished run in it is resumed. Not needed for --plan.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML file, see jobs/configs; its keys are listed below. To resume a run: leave it out for its own."
        ),
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a key, as in seed=1 (repeatable).")] = None,
    engine: Annotated[
        EngineName, typer.Option(help="deepspeed: ZeRO over workers on a Ray cluster; plain: in this process.")
    ] = EngineName.DEEPSPEED,
    workers: Annotated[
        str,
        typer.Option(
            help="Workers of the deepspeed engine, each with a GPU of its own if there are any; as 2:8, the least and "
            "the most: as many as there is room for."
        ),
    ] = "1",
    max_failures: Annotated[
        int, typer.Option(min=-1, help="How many times workers are started again after one was lost; -1: always.")
    ] = 3,
    threads: Annotated[
        int, typer.Option(min=1, help="CPU threads of each worker; more than one helps only on idle cores.")
    ] = 1,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print what the run needs of each worker's GPU memory, and start nothing.")
    ] = False,
    log_level: LogLevelOption = None,
) -> None:
    """Train through all phases of a configuration, and write the model folder OUT/model and the curve OUT/loss.png."""
    from framegrove.config.base import load

    with one_line_errors(log_level), Display() as display:
        range_ = range_of(engine, workers)
        if config is not None:
            checked = load(TrainConfig, config, set_ or ())
        elif out is not None:
            checked = _own(out, set_ or ())
        else:
            raise UserError("--config is missing: give a configuration (see jobs/configs), or the --out of a run")
        if plan:
            from jobs.planning import show_plan

            show_plan(checked, range_[0] if engine is EngineName.DEEPSPEED else None, display)
            return
        if out is None:
            raise UserError("--out is missing: name the folder of the run, or give --plan to start nothing")
        refuse_others_results(out, "a training run")
        make_folder(out.parent)
        checked = _from_newest(checked, out, display)
        with when_stopped("run the same command again, and it continues from its newest checkpoint"):
            if engine is EngineName.PLAIN:
                model = in_this_process(checked, out, threads, display)
            else:
                model = on_a_cluster(checked, out.absolute(), range_, threads, max_failures, display)
        display.say(f"model: {model}   loss curve: {out / 'loss.png'}")


def range_of(engine: EngineName, workers: str) -> tuple[int, int]:
    """The least and the most workers that --workers asks for. Raises UserError for more than the engine can have."""
    size = PoolSize.option("--workers", workers)
    if engine is EngineName.PLAIN and size.most > 1:
        raise UserError(f"the plain engine trains in one process, not with --workers {workers}: leave that out")
    return size.least, size.most


def _own(out: Path, overrides: Sequence[str]) -> TrainConfig:
    """The configuration of the run in ``out``, with overrides. Raises UserError where there is none."""
    from framegrove.config.base import overridden
    from framegrove.config.train import CHECKPOINTS
    from framegrove.training import checkpoint

    begun = checkpoint.newest(out / CHECKPOINTS)
    if begun is None:
        raise UserError(f"there is no run in {out} to resume: give its --config, see jobs/configs")
    return overridden(TrainConfig, begun.about.config, overrides, f"the configuration of the run in {out}")


def _from_newest(config: TrainConfig, out: Path, display: Display) -> TrainConfig:
    """The configuration, made to start from the newest checkpoint of another run where its start is one."""
    if config.model.start is None or not Path(config.model.start).is_dir():
        return config
    display.begin(f"reading the model in {config.model.start}")
    from framegrove.training.starting import from_newest

    changed, step = from_newest(config, out)
    if step is not None:
        display.say(f"starting from {config.model.start} after its step {step}, kept as {changed.model.start}")
    return changed


def in_this_process(config: TrainConfig, out: Path, threads: int, display: Display) -> Path:
    """Train with the plain engine; returns the model folder."""
    display.begin("loading the model and the data")
    import torch

    from framegrove.training.loop import Hooks
    from framegrove.training.run import run

    torch.set_num_threads(threads)

    events, steps = _Events(out, display, logged=True), _Steps(config.steps, display)

    def on_pause(doing: str) -> None:
        events.show()
        steps.pause(doing)

    def on_start(done: int) -> None:
        if done < config.steps:
            on_pause("training")

    def on_step(done: int, loss: float) -> None:
        events.show()
        steps.show(done)

    def on_point(point: Point) -> None:
        display.say(line_of(asdict(point)))

    model = run(config, out, Hooks(on_start=on_start, on_step=on_step, on_pause=on_pause, on_point=on_point))
    events.show()
    return model


def on_a_cluster(
    config: TrainConfig, out: Path, workers: tuple[int, int], threads: int, failures: int, display: Display
) -> Path:
    """Train with the deepspeed engine on a Ray cluster; returns the model folder."""
    display.begin("connecting to Ray")
    from framegrove.cluster.session import connect

    with connect(num_cpus=workers[1]) as cluster:
        from actors.trainer import fit

        display.begin("checking the data and the model")
        with _shown(config, out, display):
            return fit(config, out, cluster, workers=workers, threads=threads, failures=failures)


@contextlib.contextmanager
def _shown(config: TrainConfig, out: Path, display: Display) -> Iterator[None]:
    """Show, while the caller waits for the workers, what they are doing and the loss curve that they write."""
    from framegrove.training.curve import Follower
    from framegrove.training.status import StatusReader

    progress = _Progress(_Steps(config.steps, display), Follower(out), StatusReader(out), display)
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(_POLL_SECONDS):
            progress.show()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        finished.set()
        watcher.join()
        progress.show()


class _Steps:
    """Shows how many steps are done, and what is done before, between and after them."""

    def __init__(self, count: int, display: Display) -> None:
        self.count, self.display = count, display
        self.doing = ""

    def pause(self, doing: str) -> None:
        """Show what is done now instead of steps."""
        if doing != self.doing:
            self.doing = doing
            self.display.begin(doing)

    def show(self, done: int) -> None:
        """Show the steps done."""
        self.pause("training")
        self.display.show(done / self.count, f"step {done} of {self.count}")


class _Progress:
    """Turns what a run writes to its folder into what a terminal shows."""

    def __init__(self, steps: _Steps, follower: Follower, statuses: StatusReader, display: Display) -> None:
        self.steps = steps
        self.follower = follower
        self.statuses = statuses
        self.display = display
        self.events = _Events(follower.path.parent, display)

    def show(self) -> None:
        """Show what is new; where nothing is, the display says by itself what is still being waited for."""
        status = self.statuses.news()
        if status is not None:
            if status.step is None:
                self.steps.pause(status.doing)
            else:
                self.steps.show(status.step)
        self.events.show()
        for line in self.follower.news()[1]:
            self.display.say(line_of(line))


class _Events:
    """Shows what is added to a run's history, but for warnings where this process has ``logged`` them already."""

    def __init__(self, out: Path, display: Display, *, logged: bool = False) -> None:
        from framegrove.training.curve import Follower
        from framegrove.training.resume import HISTORY, WARNINGS

        self.follower, self.display = Follower(out, HISTORY), display
        self.told = WARNINGS if logged else frozenset()

    def show(self) -> None:
        for line in self.follower.news()[1]:
            if line["event"] not in self.told:
                self.display.say(line["says"])


def line_of(point: dict[str, Any]) -> str:
    """A point of the loss curve as one line of text; losses of single units are left to the curve."""
    parts = [f"{name} {value:.4f}" for name, value in point["losses"].items() if not name.startswith("unit")]
    if held_out := point.get("held_out"):
        parts.append(f"held out {held_out['loss']:.4f}")
    parts += [f"learning rate {point['learning_rate']:.2e}", f"{point['samples_per_second']:.0f} samples/s"]
    return f"{point['phase']} {point['step']}: {'  '.join([*parts, *_speed(point)])}"


def _speed(point: dict[str, Any]) -> list[str]:
    """What a point says of speed, memory and the time left; one of an earlier version says nothing."""
    speed, left = point.get("speed"), point.get("seconds_left")
    if speed is None:
        return []
    mfu, flops = speed["mfu"], speed["flops_per_second"] / 1e12
    return [
        f"{speed['tokens_per_second']:.0f} tokens/s",
        f"{flops:.3g} TFLOP/s" if mfu is None else f"MFU {mfu:.0%}",
        f"waiting {speed['data_wait']:.0%}",
        f"{speed['peak_memory'] / 2**30:.1f} GiB",
        *([] if left is None else [f"{duration(left)} left"]),
    ]


if __name__ == "__main__":
    app()
