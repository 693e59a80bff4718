"""What a dispatcher tells its conductor to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from framegrove.search.tree import Work
from framegrove.types import Path


@dataclass(frozen=True)
class Attempt:
    """One try at a work by one worker; ``speculative`` if the work was not certain when it began."""

    number: int
    work: Work
    worker: str
    start: float
    speculative: bool = False


@dataclass(frozen=True)
class Start:
    """Command: begin this attempt, with the handles of what the work builds on."""

    attempt: Attempt
    inputs: Mapping[Path, Any]


@dataclass(frozen=True)
class Cancel:
    """Command: ask this running attempt to stop."""

    attempt: Attempt


@dataclass(frozen=True)
class Recover:
    """Command: wait until this worker can take work again, then say ``on_recovered`` or ``on_gone``."""

    worker: str


@dataclass(frozen=True)
class Release:
    """Command: no work will need this handle any more, its branch was dropped."""

    handle: Any


Command = Start | Cancel | Recover | Release
