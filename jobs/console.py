"""What jobs do at a terminal: errors in one line; progress as a bar on a terminal, as lines anywhere else."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from framegrove.errors import UserError

if TYPE_CHECKING:
    from framegrove.config.model import ModelSource

_LINE_EVERY = 10.0  # seconds between lines where there is no terminal to draw a bar on

ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="Model folder, or a hub id as in owner/name; the embedded digits model if absent."),
]
VariantOption = Annotated[
    str | None,
    typer.Option("--variant", help="Of a public model: 384p, 768p or image; the largest if absent."),
]
DtypeOption = Annotated[
    str, typer.Option("--dtype", help="float32 or bfloat16: what all of the model but a small text encoder works in.")
]
VerifierOption = Annotated[
    str | None,
    typer.Option(
        "--verifier",
        help="A YAML file that lists verifiers, as jobs/configs/verifiers_example.yaml, or the folder or hub id of a "
        "vision-language model; the embedded one if absent.",
    ),
]
PickleOption = Annotated[
    bool,
    typer.Option("--allow-pickle", help="Read pickled weights where there are no safetensors; a pickle can run code."),
]


def model_source(name: str | None, variant: str | None, dtype: str, allow_pickle: bool) -> ModelSource:
    """The model that these options name. Raises UserError, in one sentence."""
    from framegrove.config.base import absolute, validated
    from framegrove.config.model import ModelSource

    given = {"name": absolute(name), "variant": variant, "dtype": dtype, "allow_pickle": allow_pickle}
    return validated(ModelSource, given, "model")


@contextlib.contextmanager
def one_line_errors(*expected: type[Exception]) -> Iterator[None]:
    """End the job with one line and exit status 1 for UserError and ``expected``, with 130 when it is interrupted.

    SIGTERM, which is how a submitted job is stopped, counts as an interruption, so that everything is cleaned up.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    caught: tuple[type[Exception], ...] = (UserError, *expected)
    try:
        yield
    except caught as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        raise typer.Exit(130) from None


def make_folder(path: Path) -> None:
    """Make an output folder unless it is there. Raises UserError where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"no folder can be made at {path} ({error.strerror}): choose another --out") from None


class Display:
    """One task's progress at a time. ``show`` may be called as often as there is news."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        # Into a file or a pipe tables are as wide as they need to be.
        plain = not sys.stdout.isatty() and "COLUMNS" not in os.environ
        self.console = Console(soft_wrap=True, highlight=False, width=160 if plain else None)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn(),
            console=self.console, transient=True, disable=not self.console.is_terminal,
        )  # fmt: skip
        self._task: Any = None
        self._began = self._said = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, what: str) -> None:
        """A new task, which takes the place of the one before."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(what, total=1.0, note="")
        self._what, self._began = what, time.monotonic()
        self._line(f"{what} ...")

    def show(self, done: float, note: str = "") -> None:
        """The task is ``done`` in [0, 1]."""
        self._bar.update(self._task, completed=done, note=note)
        if time.monotonic() - self._said >= _LINE_EVERY:
            self._line(f"{self._what}: {done:.0%} {note} ({time.monotonic() - self._began:.0f} s)")

    def say(self, line: str) -> None:
        """A line that stays."""
        self.console.print(line, markup=False)

    def _line(self, text: str) -> None:
        self._said = time.monotonic()
        if not self.console.is_terminal:
            self.say(text)
