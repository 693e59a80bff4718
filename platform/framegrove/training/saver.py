"""Writes checkpoints while training goes on.

A step copies the state to host memory and goes on; a thread writes the copy. The next checkpoint waits for the last.
Every worker has a saver and writes its own fragments. The writers of all workers then tell each other how that went,
over a connection of their own, and worker 0 gives the checkpoint its name only once all of it is on the disk.
"""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from framegrove.files import StorageFailed, patiently
from framegrove.training import checkpoint
from framegrove.training.checkpoint import About, Checkpoint
from framegrove.training.fragments import Counts, File, Fragment, write

_log = logging.getLogger(__name__)

_SETTLING_S = 60.0


class CheckpointFailed(StorageFailed):
    """A checkpoint could not be written. Those before it are intact."""


class Trained(Protocol):
    """What is saved of an engine."""

    rank: int

    def fragments(self) -> list[Fragment]: ...

    def counts(self) -> Counts: ...

    def most(self, count: int) -> int: ...

    def gathered(self, texts: Sequence[str], aside: bool = False) -> list[str]: ...


class Saver:
    """One worker's writer of checkpoints into ``folder``, which exists. ``session`` is the same on all workers.

    ``write_files`` is how a worker's fragments become files: `framegrove.training.fragments.write`.
    """

    def __init__(
        self,
        folder: Path,
        engine: Trained,
        session: int,
        keep_last: int = 2,
        keep_best: int = 0,
        write_files: Callable[[Path, int, Sequence[Fragment]], list[File]] = write,
    ) -> None:
        self.folder, self.engine, self.session = folder, engine, session
        self._keep = (keep_last, keep_best)
        self._write_files = write_files
        self._host: dict[str, Tensor] = {}  # one copy of the state, used for every checkpoint
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Let what is being written become whole; after an error, which goes first, for a while at most."""
        if kind is None:
            self.wait()
        elif self._thread is not None:
            self._thread.join(_SETTLING_S)

    def save(self, about: About) -> None:
        """Copy the state and have it written; first wait for the checkpoint before. Raises CheckpointFailed for it."""
        self.wait()
        held = [self._copied(fragment) for fragment in self.engine.fragments()]
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._thread = threading.Thread(
            target=self._run, args=(about, held, self.engine.counts()), name="checkpoint", daemon=True
        )
        self._thread.start()

    def check(self) -> None:
        """Raise what has ended the writing, if anything has. Does not wait."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait until the last checkpoint is on the disk. Raises CheckpointFailed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _copied(self, fragment: Fragment) -> Fragment:
        buffer = self._host.get(fragment.key)
        if buffer is None or buffer.shape != fragment.values.shape:
            buffer = torch.empty(fragment.values.shape, pin_memory=fragment.values.is_cuda)
            self._host[fragment.key] = buffer
        buffer.copy_(fragment.values, non_blocking=True)
        return Fragment(fragment.kind, fragment.name, fragment.first, buffer)

    def _run(self, about: About, held: Sequence[Fragment], counts: Counts) -> None:
        try:
            self._write(about, held, counts)
        except BaseException as error:  # noqa: BLE001 - of a thread: `wait` raises it
            self._error = error
            if self.engine.rank == 0:
                unfinished = checkpoint.unfinished_path(self.folder, about.step, self.session)
                shutil.rmtree(unfinished, ignore_errors=True)  # it may be what fills the disk

    def _write(self, about: About, held: Sequence[Fragment], counts: Counts) -> None:
        unfinished = checkpoint.unfinished_path(self.folder, about.step, self.session)

        def write_mine() -> Mapping[str, Any]:
            checkpoint.begin(unfinished, self.engine.rank)
            return {"files": [asdict(file) for file in self._write_files(unfinished, self.engine.rank, held)]}

        parts = self._agreed(about, write_mine, {"steps": dict(counts.steps)})
        files = tuple(File.of(file) for part in parts for file in part["files"])
        steps = {name: count for part in parts for name, count in part["steps"].items()}
        path = checkpoint.path_of(self.folder, about.step)
        whole = Checkpoint(path, about, Counts(counts.updates, steps), files)

        def name_it() -> Mapping[str, Any]:
            if self.engine.rank == 0:
                checkpoint.finish(unfinished, whole)
                checkpoint.tidy(self.folder, *self._keep)
            return {}

        self._agreed(about, name_it, {})
        _log.info("checkpoint after step %d written", about.step)

    def _agreed(
        self, about: About, act: Callable[[], Mapping[str, Any]], more: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """What ``act`` returned on every worker, with ``more``. Raises CheckpointFailed on all where one failed."""
        try:
            said = {**more, **patiently(f"writing the checkpoint after step {about.step}", act)}
        except StorageFailed as error:
            said = {"failed": _sentence(about.step, self.folder, error)}
        everyone = [json.loads(text) for text in self.engine.gathered([json.dumps(said)], aside=True)]
        for each in everyone:
            if "failed" in each:
                raise CheckpointFailed(each["failed"])
        return everyone


def new_session(engine: Trained) -> int:
    """A number that tells this start of a run from all others, the same on all workers."""
    return engine.most(secrets.randbelow(2**31) if engine.rank == 0 else 0)


def _sentence(step: int, folder: Path, error: StorageFailed) -> str:
    last = checkpoint.newest(folder)
    good = f"the last good one is {last.path.name}" if last else "there is none before it"
    todo = "make room" if error.full else "see to the storage"
    return (
        f"the checkpoint after step {step} cannot be written to {folder} ({error.reason}; {good}): {todo}, "
        "and run the same command again"
    )
