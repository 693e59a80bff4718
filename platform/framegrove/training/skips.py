"""Steps that engines skip, as their loss or gradient is infinite or no number: counted, logged, and limited."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from framegrove.errors import UserError
from framegrove.flow.objective import StageSample
from framegrove.training.engine import Update

_log = logging.getLogger(__name__)

_NAMED = 8  # samples in a sentence


class TrainingDiverged(UserError):
    """The loss is no longer a number."""


class Workers(Protocol):
    """Those who make a step together."""

    rank: int

    def gathered(self, texts: Sequence[str]) -> list[str]: ...


class Skips:
    """Counts the steps that were skipped: ``total`` in the whole run, and how many in a row, ``most`` at most."""

    def __init__(self, most: int, total: int, on_skip: Callable[[int, str], None]) -> None:
        self.total = total
        self._most, self._in_a_row, self._on_skip = most, 0, on_skip

    def count(
        self, done: int, phase: str, packs: Sequence[Sequence[StageSample]], update: Update, workers: Workers
    ) -> None:
        """Take note of what became of a step, ``done`` counting it; all workers call this.

        Raises TrainingDiverged, which names the samples, when too many were skipped in a row.
        """
        if not update.skipped:
            self._in_a_row = 0
            return
        self.total += 1
        self._in_a_row += 1
        says = f"step {done} of phase {phase} was skipped: {_reason(packs, update, workers)}"
        if workers.rank == 0:
            _log.warning(says)
            self._on_skip(done, says)
        if self._in_a_row > self._most:
            raise TrainingDiverged(
                f"{self._in_a_row} steps in a row had an infinite loss or gradient or one that is no number, the last: "
                f"{says}; look at these clips, or lower the phase's learning_rate or clip"
            )


def _reason(packs: Sequence[Sequence[StageSample]], update: Update, workers: Workers) -> str:
    """What was infinite or no number, and of which samples, for a sentence that is the same on all workers."""
    pairs = [
        (sample, loss)
        for samples, losses in zip(packs, update.losses, strict=True)
        for sample, loss in zip(samples, losses.tolist(), strict=True)
    ]
    bad = workers.gathered([_name(sample) for sample, loss in pairs if not abs(loss) < float("inf")])
    named = bad or workers.gathered([_name(sample) for sample, _ in pairs])
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return f"no finite {'loss' if bad else 'gradient'} from {', '.join(named[:_NAMED])}{more}"


def _name(sample: StageSample) -> str:
    """A sample as a user finds it again: where it comes from, and its cell of the video."""
    origin = getattr(sample, "origin", "") or repr(sample.prompt)
    return f"{origin} (unit {sample.cell.unit}, stage {sample.cell.stage})"
