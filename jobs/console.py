"""What every job does at a terminal: shared options, one line for an error, and progress.

Exit statuses: 0 done; 1 a mistake in what was asked for, said in one line; 2 an unknown or malformed option; 3 (of
jobs.serve) what it runs on is gone; 70 a failure, with its traceback; 130 interrupted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

import framegrove
from framegrove import logs
from framegrove.errors import UserError
from framegrove.search import policies

if TYPE_CHECKING:
    from framegrove.config.generator import AnySource
    from framegrove.config.model import ModelSource

_LINE_EVERY = 10.0  # seconds between lines where there is no terminal to draw a bar on
_LONGEST_SILENCE = 60.0  # seconds: a step that says nothing is mentioned after 10, 20, 40 and then every 60
_SOON, _ENOUGH = 5.0, 0.02  # seconds, and share of a task, after which the time that is left can be guessed
_TICK = 0.5  # seconds between two looks at how long the task has been silent

log = logging.getLogger(__name__)


def _embedded_knows() -> str:
    """What the embedded model was trained on, in its own words."""
    recipe = Path(framegrove.__file__).parent / "assets" / "digits" / "framegrove.json"
    return str(json.loads(recipe.read_text(encoding="utf-8"))["knows"])


ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Model folder or hub id (owner/name); for commands that take other systems also a diffusers pipeline or a "
        "YAML file that describes one (platform/README.md). Default: the embedded model, which knows only "
        f"{_embedded_knows()}.",
    ),
]
VariantOption = Annotated[
    str | None,
    typer.Option("--variant", help="Variant of a public model: 384p, 768p or image. Default: the largest."),
]
DtypeOption = Annotated[
    str, typer.Option("--dtype", help="float32 or bfloat16, for all of the model but a small text encoder.")
]
VerifierOption = Annotated[
    str | None,
    typer.Option(
        "--verifier",
        help="YAML file that lists verifiers, like jobs/configs/verifiers_example.yaml, or the folder or hub id of a "
        "vision-language model. Default: the embedded verifier.",
    ),
]
GeneratorsOption = Annotated[
    str,
    typer.Option(
        "--generators",
        help="Generator actors (per model), or a range such as 1:4: more are started while work waits and the cluster "
        "has room, and idle ones are stopped after a minute. The videos are the same either way.",
        metavar="LEAST[:MOST]",
    ),
]
PickleOption = Annotated[
    bool,
    typer.Option("--allow-pickle", help="Read pickled weights where there are no safetensors. A pickle can run code."),
]
OverwriteOption = Annotated[
    bool,
    typer.Option("--overwrite", help="Start over, and replace what an earlier run left in --out."),
]
LogLevelOption = Annotated[
    str | None,
    typer.Option(
        "--log-level",
        help="debug, info, warning or error. Default: FRAMEGROVE_LOG_LEVEL if it is set, else warning. With "
        "FRAMEGROVE_LOG=json the log has one JSON object per line.",
    ),
]


def policy_help() -> str:
    """Every policy in the registry, in half a sentence each."""
    return "; ".join(f"{name}: {summary}" for name, summary in policies.summaries().items())


def application() -> typer.Typer:
    """A job's command line. Help is plain text: markup would swallow what stands in square brackets."""
    return typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def any_source(name: str | None, variant: str | None, dtype: str, allow_pickle: bool) -> AnySource:
    """The model that these options name, whatever it is. Raises UserError, in one sentence."""
    from framegrove.config.base import ConfigError
    from framegrove.config.generator import is_file, read_source

    if name is not None and is_file(name):
        if variant is not None or allow_pickle:
            raise ConfigError(f"--variant and --allow-pickle are for model folders: write what is meant into {name}")
        return read_source(name)
    from framegrove.generators.finding import pipeline_at

    pipeline = pipeline_at(name, {"dtype": dtype}) if name is not None else None
    if pipeline is None:
        return model_source(name, variant, dtype, allow_pickle)
    if variant is not None or allow_pickle:
        raise ConfigError(
            f"--variant and --allow-pickle are for pyramidal models, and {name} is not one: leave them out"
        )
    return pipeline


def model_source(name: str | None, variant: str | None, dtype: str, allow_pickle: bool) -> ModelSource:
    """The pyramidal model that these options name. Raises UserError, in one sentence."""
    from framegrove.config.base import ConfigError, absolute, validated
    from framegrove.config.generator import is_file
    from framegrove.config.model import ModelSource

    if is_file(name):
        raise ConfigError(f"{name} describes a model of another system, and this command takes pyramidal models alone")
    given = {"name": absolute(name), "variant": variant, "dtype": dtype, "allow_pickle": allow_pickle}
    return validated(ModelSource, given, "model")


@contextlib.contextmanager
def one_line_errors(log_level: str | None = None) -> Iterator[None]:
    """Run a job: set up logging, and end with an exit status that tells a mistake from a failure.

    A UserError becomes one line and exit status 1. An interruption becomes status 130; SIGTERM, by which a submitted
    job is stopped, counts as one, so that everything is cleaned up. Anything else is a defect in this code or a
    failure of the machines: it is logged with its traceback, and the status is 70.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        logs.set_up(log_level)
        yield
    except UserError as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt as stop:
        typer.echo(": ".join(["stopped", *map(str, stop.args)]), err=True)
        raise typer.Exit(130) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        log.critical("unexpected %s: this is no mistake in what was asked for", type(error).__name__, exc_info=error)
        raise typer.Exit(70) from None


@contextlib.contextmanager
def when_stopped(advice: str) -> Iterator[None]:
    """Have a job that is interrupted inside this block say how to resume it, or what was lost."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(advice) from None


def make_folder(path: Path) -> None:
    """Make an output folder unless it is there. Raises UserError where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"no folder can be made at {path} ({error.strerror}): choose another --out") from None


def given_options(context: typer.Context) -> set[str]:
    """The options that were given, by their parameters' names, even if as they are by default."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name != "DEFAULT"}


def refuse(given: Collection[str], why: str) -> None:
    """Raise UserError if one of these options was given."""
    for name in sorted(given):
        raise UserError(f"--{name.rstrip('_').replace('_', '-')} {why}")


# What commands leave, by files that only they write: two of them in one folder would replace each other's.
_LEFT = {
    "a search": ("tree.html", ".search"),
    "a study": ("trials.jsonl",),
    "a training run": ("checkpoints",),
    "an evaluation": ("results.jsonl",),
}


def refuse_others_results(folder: Path, ours: str) -> None:
    """Raise UserError for a folder with another command's results; ``ours`` is what this command leaves."""
    for what, names in _LEFT.items():
        for name in names:
            if what != ours and (folder / name).exists():
                raise UserError(f"{folder} has {what} in it ({name}): give another --out")


def refuse_finished(file: Path, overwrite: bool) -> None:
    """Raise UserError where an earlier run has left its last ``file``, unless that is to be replaced."""
    if file.is_file() and not overwrite:
        raise UserError(
            f"a finished run is in {file.parent} ({file.name}): give another --out, or --overwrite to replace it"
        )


def refuse_taken(folder: Path, mark: str, overwrite: bool) -> None:
    """Raise UserError where a folder that is written as a whole is there, unless it is to be replaced.

    Only a folder is replaced that holds a file like ``mark``, as those that the command writes do.
    """
    if not folder.exists():
        return
    if not overwrite:
        raise UserError(f"{folder} already exists: give another --out, or --overwrite to replace it")
    if next(folder.glob(mark), None) is None:
        raise UserError(f"{folder} has no {mark} and so is not from this command: remove it, or give another --out")


def duration(seconds: float) -> str:
    """As "45 s", "12 min" or "3 h 05 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


class Display:
    """One task's progress at a time: a bar on a terminal, lines anywhere else.

    ``show`` may be called as often as there is news; once some of a task has been seen to get done, the time that is
    left is shown beside it. A task without news is mentioned now and then by itself, with how long it has been going
    on: a bar shows that anyway.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        # Into a file or a pipe tables are as wide as they need to be.
        plain = not sys.stdout.isatty() and "COLUMNS" not in os.environ
        self.console = Console(soft_wrap=True, highlight=False, width=160 if plain else None)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console, transient=True, disable=not self.console.is_terminal,
        )  # fmt: skip
        self._task: Any = None
        self._what = ""
        self._state = self._to_go = ""  # how far the task is, and the time left, in words
        self._began = self._said = time.monotonic()
        self._first: tuple[float, float] | None = None  # when the task was shown first, and how much of it was done
        self._patience = self._silence = _LINE_EVERY  # at first, and until the task is mentioned next
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self._bar.start()
        if not self.console.is_terminal:
            threading.Thread(target=self._mention, name="display", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._bar.stop()

    def begin(self, what: str, patience: float = _LINE_EVERY) -> None:
        """Start a new task, which takes the place of the one before; it may be silent for ``patience`` seconds."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(what, total=1.0, note="", left="")
        self._what, self._state, self._to_go, self._first = what, "", "", None
        self._began, self._patience = time.monotonic(), patience
        self._line(f"{what} ...")

    def show(self, done: float, note: str = "") -> None:
        """Show that the task is ``done`` in [0, 1]."""
        self._to_go = self._left(done)
        self._bar.update(self._task, completed=done, note=note, left=self._to_go)
        self._state = ", ".join(filter(None, (f"{done:.0%}", note)))
        if time.monotonic() - self._said >= _LINE_EVERY:
            self._line(f"{self._what}: {self._state} ({', '.join(filter(None, (self._seconds(), self._to_go)))})")

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self._heard()
        self.console.print(line, markup=False)

    @contextlib.contextmanager
    def giving_way(self) -> Iterator[None]:
        """Take the bar off the terminal while something else is drawn there."""
        self._bar.stop()
        try:
            yield
        finally:
            self._bar.start()

    def _left(self, done: float) -> str:
        """The time left at the speed so far: what was done when the task began says nothing about that."""
        now = time.monotonic()
        since, before = self._first = self._first or (now, done)
        if now - since < _SOON or done - before < _ENOUGH or done >= 1.0:
            return ""
        return f"about {duration((now - since) / (done - before) * (1.0 - done))} left"

    def _line(self, text: str) -> None:
        self._heard()
        if not self.console.is_terminal:
            self.console.print(text, markup=False)

    def _heard(self) -> None:
        self._said, self._silence = time.monotonic(), self._patience

    def _seconds(self) -> str:
        return f"{time.monotonic() - self._began:.0f} s"

    def _mention(self) -> None:
        """Until the display ends, say what is waited for whenever nothing has been said for a while."""
        while not self._ended.wait(_TICK):
            if self._what and time.monotonic() - self._said >= self._silence:
                said = (f"still {self._what} after {self._seconds()}", self._state, self._to_go)
                self.console.print(", ".join(filter(None, said)), markup=False)
                self._said = time.monotonic()
                self._silence = max(self._patience, min(2 * self._silence, _LONGEST_SILENCE))
