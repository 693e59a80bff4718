"""Watching a run: held-out loss, samples, time left, and the tracker that shows them. Hooks of the training loop.

All workers measure the held-out loss together. Samples are made by worker 0, between two steps: the others wait at the
next step for as long as that takes. A thread that samples while training goes on would take memory from it at its peak,
and what fails while all workers sample together would end the run. What happens here on worker 0 alone may fail: it is
said, and the run goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from framegrove.data.reading import ClipReader
from framegrove.errors import UserError
from framegrove.files import patiently
from framegrove.training import curve, heldout, samples
from framegrove.training.curriculum import Position
from framegrove.training.loop import Point
from framegrove.training.resume import GOT_WORSE, HISTORY, UNSEEN, AnyEngine, History, asdict_of
from framegrove.training.samples import SAMPLES, Shown
from framegrove.training.setup import Setup
from framegrove.training.trackers import Tracker, open_tracker

_log = logging.getLogger(__name__)

_WORSE = 1.01  # times the loss at the start: less may be the first steps of a high learning rate
_RECONSTRUCTED = 4  # clips
_BEGUN = "held-out"  # an event of the history


class Watch:
    """What one worker contributes to watching the run in ``out``, which goes on after ``first_step`` steps.

    ``on_pause`` is told what is done before and between steps.
    """

    def __init__(
        self, setup: Setup, engine: AnyEngine, out: Path, first_step: int, on_pause: Callable[[str], None]
    ) -> None:
        self.config = setup.config
        self._setup, self._engine, self._out, self._step = setup, engine, out, first_step
        self._on_pause = on_pause
        self._feed = setup.heldout_feed(engine.data_rank, engine.data_world)
        self._history = History(out)
        self._tracker: Tracker | None = None
        self._start: dict[str, float] = {}  # held-out losses at the run's start by phase; on worker 0
        self._said_worse = False
        self._tokens: list[int] = []  # of a step of each phase; on worker 0

    def begin(self) -> None:
        """Before the first step; all workers call it."""
        if self._engine.rank == 0:
            past = curve.read(self._out / HISTORY)
            self._start = next((line["losses"] for line in past if line["event"] == _BEGUN), {})
            self._said_worse = any(line["event"] == GOT_WORSE for line in past)
            self._tokens = [self._tokens_of(index) for index in range(len(self.config.phases))]
            self._open_tracker()
            if not (self._out / SAMPLES / samples.RECONSTRUCTIONS).exists():
                self._attempt("no reconstructions", self._reconstruct)
        if self._feed and not self._engine.most(int(bool(self._start))):
            self._measure_start()

    def completed(self, point: Point) -> Point:
        """A point with the held-out loss, where it is due, and the time left; all workers call it."""
        position = Position.of(self.config, point.step - 1)
        held_out = self._measure(position.phase_index) if self.config.validates(point.step) else {}
        left = self._seconds_left(point, position) if self._engine.rank == 0 else None
        self._step = point.step
        return dataclasses.replace(point, held_out=held_out, seconds_left=left)

    def show(self, point: Point) -> None:
        """Have a point in the tracker, and samples where they are due; all workers call it."""
        due = self.config.samples_due(point.step)
        if due:
            self._on_pause(f"making samples after step {point.step}")
        averaged = self._engine.averaged_weights() if due else {}
        if self._engine.rank == 0:
            self._warn(point)
            self._track(lambda tracker: tracker.figures(point.step, figures_of(point)))
            if due:
                self._attempt(f"no samples after step {point.step}", lambda: self._sample(point.step, averaged))

    def close(self) -> None:
        """At the session's end."""
        self._track(lambda tracker: tracker.close())

    def _open_tracker(self) -> None:
        config, step = self.config.tracking, self._step

        def open_it() -> None:
            self._tracker = open_tracker(config, self._out, step, asdict_of(self.config))

        if step:
            self._attempt(f"no figures in {config.to}", open_it)
            return
        try:
            open_it()
        except Exception as error:  # of any package
            raise UserError(
                f"tracking.to is {config.to}, which cannot be begun ({_in_a_line(error)}): set it up, or choose "
                "tensorboard or none"
            ) from error

    def _measure(self, phase_index: int) -> dict[str, float]:
        """The held-out losses of a phase; empty where it has no clips."""
        setup = self._setup
        if self._feed is None or setup.heldout is None or setup.heldout.clips[phase_index] is None:
            return {}
        return heldout.measure(self._engine, self._feed, phase_index, setup.schedule.stages, self.config.units)

    def _measure_start(self) -> None:
        """Every phase's held-out loss before anything is trained, to which later ones are compared."""
        self._on_pause("measuring the held-out loss before training")
        measured = {phase.name: self._measure(index) for index, phase in enumerate(self.config.phases)}
        losses = {name: found["loss"] for name, found in measured.items() if found}
        if self._engine.rank == 0 and losses:
            self._start = losses
            told = ", ".join(f"{loss:.4f} as phase {name} draws" for name, loss in losses.items())
            says = f"held-out loss after {self._step} steps: {told}"
            self._note(_BEGUN, self._step, says, losses=losses)

    def _warn(self, point: Point) -> None:
        """Say once that the model has become worse than it was."""
        start, now = self._start.get(point.phase), point.held_out.get("loss")
        if self._said_worse or start is None or now is None or now <= _WORSE * start:
            return
        self._said_worse = True
        says = (
            f"the model has become worse than at its start: its held-out loss after step {point.step} is {now:.4f} and "
            f"was {start:.4f} (phase {point.phase}); a lower learning_rate, more data or fewer steps may help"
        )
        _log.warning(says)
        self._note(GOT_WORSE, point.step, says)

    def _note(self, event: str, step: int, says: str, **facts: Any) -> None:
        patiently("writing the history", lambda: self._history.add(event, step, says, **facts))

    def _seconds_left(self, point: Point, position: Position) -> float:
        """At the speed since the last point, if every step takes as long as it has tokens."""
        tokens = self._tokens[position.phase_index] * (point.step - self._step)
        left = self._tokens[position.phase_index] * (position.phase.steps - position.step - 1)
        later = zip(self.config.phases, self._tokens, strict=True)
        left += sum(each.steps * count for each, count in list(later)[position.phase_index + 1 :])
        return point.speed.seconds * left / tokens

    def _tokens_of(self, phase_index: int) -> int:
        before = sum(phase.steps for phase in self.config.phases[:phase_index])
        return sum(self._setup.plan(before).tokens)

    def _sample(self, step: int, averaged: Mapping[str, Tensor]) -> None:
        config, device = self.config.samples, self._engine.device
        pipeline = self._setup.averaged_pipeline(averaged)
        if device.type == "cuda" and self.config.precision == "bf16":
            pipeline.transformer.to(torch.bfloat16)
        phase = Position.of(self.config, step - 1).phase
        with samples.placed([pipeline.transformer.eval(), pipeline.vae, pipeline.text], device):
            shown = samples.sample(pipeline, phase, config, samples.scorer_of(config))
        samples.write(shown, self._out / SAMPLES / f"step-{step:07d}")
        scores = [each.score for each in shown if each.score is not None]
        if scores:
            mean = float(np.mean(scores))
            says = f"samples after step {step} score {mean:.3f} on average, by {config.scorer}"
            self._history.add("samples", step, says, scores=scores)
            self._track(lambda tracker: tracker.figures(step, {"samples/score": mean}))
        self._show(step, "samples", shown)

    def _reconstruct(self) -> None:
        """Once a run: some clips as the VAE decodes them, held-out ones if there are any."""
        setup, vae = self._setup, self._setup.pipeline.vae
        catalog = setup.heldout.catalog if setup.heldout else setup.catalog
        assert catalog is not None
        rows = np.linspace(0, len(catalog) - 1, min(_RECONSTRUCTED, len(catalog))).round().astype(int)
        with samples.placed([vae], self._engine.device):
            shown = samples.reconstruct(vae, ClipReader(catalog, 0).read(rows.tolist()))
        samples.write(shown, self._out / SAMPLES / samples.RECONSTRUCTIONS)
        self._show(self._step, samples.RECONSTRUCTIONS, shown)

    def _show(self, step: int, name: str, shown: list[Shown]) -> None:
        for number, each in enumerate(shown):
            self._track(lambda tracker, at=number, it=each: tracker.picture(step, f"{name}/{at:02d}", it.strip))

    def _track(self, act: Callable[..., Any]) -> None:
        if (tracker := self._tracker) is not None:
            self._attempt(f"{self.config.tracking.to} failed", lambda: act(tracker))

    def _attempt(self, failed: str, act: Callable[[], None]) -> None:
        """Do what may fail without an end to the run."""
        try:
            act()
        except Exception as error:  # noqa: BLE001 - training is worth more than looking at it
            _log.warning("%s, training goes on", failed, exc_info=True)
            with contextlib.suppress(OSError):  # the storage may be what has failed
                self._history.add(UNSEEN, self._step, f"{failed} ({_in_a_line(error)}); training goes on")


def figures_of(point: Point) -> dict[str, float]:
    """The figures of a point by their names in a tracker."""
    speed, phase = point.speed, point.phase
    optional = {"speed/mfu": speed.mfu, "time/hours_left": point.seconds_left and point.seconds_left / 3600}
    return {
        **{f"train/{name}": loss for name, loss in point.losses.items()},
        **{f"held_out/{name}": loss for name, loss in point.held_out.items()},
        **{f"phase_{phase}/{name}": losses["loss"] for name, losses in _of_phase(point).items() if losses},
        "optimizer/learning_rate": point.learning_rate,
        "optimizer/gradient_norm": point.gradient_norm,
        "optimizer/skipped": point.skipped,
        "speed/samples_per_second": point.samples_per_second,
        "speed/tokens_per_second": speed.tokens_per_second,
        "speed/teraflops_per_second": speed.flops_per_second / 1e12,
        "speed/data_wait": speed.data_wait,
        "memory/peak_gib": speed.peak_memory / 2**30,
        "time/hours": point.seconds / 3600,
        **{name: value for name, value in optional.items() if value is not None},
    }


def _of_phase(point: Point) -> dict[str, Mapping[str, float]]:
    return {"loss": point.losses, "held_out": point.held_out}


def _in_a_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
