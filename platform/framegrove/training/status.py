"""What a run is doing right now, in a small file: what a terminal shows while workers elsewhere start and train."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from framegrove.files import write_json

STATUS = "status.json"
_SECONDS_BETWEEN_STEPS = 1.0


@dataclass(frozen=True)
class Status:
    """What a run is doing, in a few words ("loading the model"), and the steps done, once steps are being done."""

    doing: str
    step: int | None = None


class StatusFile:
    """Writes a run's status; one process at a time does."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / STATUS
        self._step_written = float("-inf")

    def say(self, doing: str) -> None:
        """Record what the run does from now on."""
        write_json(self.path, asdict(Status(doing)))

    def step(self, done: int) -> None:
        """Record the steps done, at most once a second: some runs make many steps in that time."""
        now = time.monotonic()
        if now - self._step_written >= _SECONDS_BETWEEN_STEPS:
            self._step_written = now
            write_json(self.path, asdict(Status("training", done)))


class StatusReader:
    """Reads the status that another process writes. What an earlier session of the run has left does not count."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / STATUS
        self._seen = self._version()

    def news(self) -> Status | None:
        """The status, if it was written since the last call."""
        version = self._version()
        if version is None or version == self._seen:
            return None
        self._seen = version
        return Status(**json.loads(self.path.read_text(encoding="utf-8")))

    def _version(self) -> tuple[int, int] | None:
        """Another one whenever the file was written: it is replaced as a whole each time."""
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            return None
        return stat.st_ino, stat.st_mtime_ns
