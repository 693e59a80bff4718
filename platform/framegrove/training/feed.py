"""A worker's samples, step by step: planned with all other workers', read and noised one step ahead in a thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from framegrove.data.ingest import DataError
from framegrove.data.reading import ClipReader
from framegrove.data.schema import LatentClip, Rival, StoredText
from framegrove.flow.noise import generator_for
from framegrove.flow.objective import Contender, StageSample, build
from framegrove.flow.schedule import PyramidSchedule
from framegrove.models.packed import TextEmbedding
from framegrove.models.vae_files import LatentNorm
from framegrove.training.curriculum import StepPlan

log = logging.getLogger(__name__)

_SAID_EVERY = 60.0  # s between messages that a step's clips are still waited for
_LONGEST = 900.0  # s after which nobody waits any longer: the other workers and their GPUs wait too


@dataclass(frozen=True, eq=False)
class Share:
    """What a worker is trained on in a step: its forward passes; ``batch`` counts the samples of all workers."""

    packs: list[list[StageSample]]
    batch: int


class Feed:
    """The shares of worker ``rank`` of ``world`` in the steps that ``plan`` gives, below ``steps``."""

    def __init__(
        self,
        plan: Callable[[int], StepPlan],
        reader: ClipReader,
        name: Callable[[int], str],
        schedule: PyramidSchedule,
        norm: LatentNorm,
        seed: int,
        steps: int,
        rank: int = 0,
        world: int = 1,
        no_caption: StoredText | None = None,
    ) -> None:
        """``name`` says where a row of the catalog is from.

        Where ``no_caption`` is given, the embeddings of the empty caption, samples carry those that are stored.
        """
        self._plan = plan
        self._reader = reader
        self._name = name
        self._schedule, self._norm, self._seed = schedule, norm, seed
        self._steps = steps
        self._rank, self._world = rank, world
        self._no_caption = None if no_caption is None else _embedding(no_caption)
        self._ahead: tuple[int, Future[Share]] | None = None

    def at(self, step: int) -> Share:
        """The share of a step; then the next one's is begun. Raises DataError, also where reading stands still."""
        if self._ahead is None or self._ahead[0] != step:
            self._begin(step)
        assert self._ahead is not None
        share = self._wait(*self._ahead)
        self._ahead = None
        if step + 1 < self._steps:
            self._begin(step + 1)
        return share

    def _begin(self, step: int) -> None:
        if self._ahead is not None:  # the reader is for one thread at a time
            self._wait(*self._ahead)
        future: Future[Share] = Future()

        def work() -> None:
            try:
                future.set_result(self._make(step))
            except BaseException as error:  # noqa: BLE001 - it is raised where the share is asked for
                future.set_exception(error)

        # A daemon, so that a process can end while its storage hangs.
        threading.Thread(target=work, name=f"clips of step {step}", daemon=True).start()
        self._ahead = step, future

    def _wait(self, step: int, future: Future[Share]) -> Share:
        waited = 0.0
        while True:
            try:
                return future.result(timeout=_SAID_EVERY)
            except NotYet:
                if future.done():  # it was the reading that timed out
                    raise
                waited += _SAID_EVERY
            if waited >= _LONGEST:
                raise DataError(
                    f"the clips of step {step} were not read within {waited:.0f} s: see that the data's storage answers"
                )
            log.warning("still waiting for the clips of step %d after %.0f s", step, waited)

    def _make(self, step: int) -> Share:
        plan = self._plan(step)
        packs = plan.share_out(self._world)[self._rank]
        mine = [index for members in packs for index in members]
        clips = self._reader.read(plan.rows_N[mine].tolist())
        choices = plan.choices.of(mine)
        place = plan.position.phase_index, plan.position.step
        samples = build(
            [self._units(clip, cell.unit) for clip, cell in zip(clips, choices.cells, strict=True)],
            [clip.caption for clip in clips],
            choices,
            self._schedule,
            [generator_for(self._seed, (*place, index), "training noise") for index in mine],
            [self._name(row) for row in plan.rows_N[mine].tolist()],
            [
                None if clip.rival is None else self._contender(clip.rival, cell.unit)
                for clip, cell in zip(clips, choices.cells, strict=True)
            ],
        )
        if self._no_caption is not None:
            texts = [
                self._no_caption if dropped else _embedding(clip.text)
                for clip, dropped in zip(clips, choices.dropped, strict=True)
            ]
            samples = [replace(sample, text=text) for sample, text in zip(samples, texts, strict=True)]
        rest = iter(samples)
        return Share([[next(rest) for _ in members] for members in packs], len(plan.rows_N))

    def _units(self, clip: LatentClip, last: int) -> list[Tensor]:
        """A clip's units up to the last one that is needed, normalised, each (C, 1, h, w)."""
        latents = torch.from_numpy(clip.latents[:, : last + 1].astype("float32"))
        return list(self._norm.normalise(latents).split(1, dim=1))

    def _contender(self, rival: Rival, unit: int) -> Contender:
        latents = torch.from_numpy(rival.latents.astype("float32"))
        return Contender(self._norm.normalise(latents, unit), rival.chances)


def _embedding(stored: StoredText | None) -> TextEmbedding:
    """A caption's embeddings as the transformer is given them, in float16."""
    assert stored is not None  # the catalog has counted its tokens
    return TextEmbedding(torch.from_numpy(stored.tokens.copy()), torch.from_numpy(stored.pooled.copy()))
