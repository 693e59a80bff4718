"""The generator: samples the newest units of branches, and decodes them where somebody is to look at them.

A plain class, made an actor by ``ray.remote``.

It keeps nothing that a search depends on: what a branch is made from comes in as arguments, what it makes goes out as
returned values, and the same call gives the same bits on any generator. So one that dies is replaced by a new one.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from actors.packing import Packer, alike_together
from framegrove.cluster.priority import give_way
from framegrove.config.flow import latent_size
from framegrove.config.model import ModelSource
from framegrove.flow.decoding import NOTHING_LEFT, LeftAsLatents
from framegrove.flow.generation import encode_clip, encode_image, sampler_of, to_pixels
from framegrove.flow.sampler import CancelledSampling, Sampler, StageLatent, UnitTask, unpacked
from framegrove.media.pictures import read_picture, small_copy
from framegrove.media.writing import decode_mp4
from framegrove.models.packed import TextEmbedding
from framegrove.models.pretrained import load_source
from framegrove.models.vae_tiling import decode_units
from framegrove.types import SampleWork, Sampling

_KEPT = 32  # samplers, and pairs of encoded prompts

Frames = npt.NDArray[np.uint8]
State = list[Tensor]

SMALL = 192  # px: large enough to see what a branch was like


@dataclass(frozen=True)
class Context:
    """What a generator must know of a request: the same for all its branches. Sides in pixels.

    Of a branch that is dropped frames are kept whose longer side is at most ``small``. What is ``left`` is not decoded.
    """

    prompt: str
    negative: str
    seed: int
    height: int
    width: int
    units: int
    from_image: bool = False  # unit 0 is given
    sampling: Sampling = Sampling()  # noqa: RUF009 - it is frozen
    small: int = SMALL
    left: LeftAsLatents = NOTHING_LEFT

    @property
    def are_frames_large(self) -> bool:
        """Whether frames are scaled down for that."""
        return max(self.height, self.width) > self.small


@dataclass(frozen=True)
class TextRead:
    """How a prompt was read: its tokens and those of the negative prompt; how far, and the first words of the rest."""

    tokens: int
    negative_tokens: int
    readable: str
    unread: str | None


@dataclass(frozen=True)
class Made:
    """How a piece of work went: forward passes, and when it ran (wall clock, s). Not ``whole``: it was cancelled.

    ``state_bytes`` is the size of each unit's decoder state, 0 where none comes with it.
    """

    steps: int
    started: float
    ended: float
    whole: bool = True
    state_bytes: int = 0


class Unit(NamedTuple):
    """A branch's newest unit: its latent, its frames, uint8 (T, H, W, 3), and the decoder's state after it.

    Of a draft the frames are a preview (the draft finished in a few large steps). Its state is None, and so is that of
    a video's last unit. Where it is left as a latent, there are neither frames nor a state.
    """

    latent: StageLatent
    frames: Frames | None
    state: State | None


class Job(NamedTuple):
    """A sample work with all that it is made from; see ``Generator.sample``."""

    number: int
    work: SampleWork
    context: Context
    history: tuple[StageLatent, ...]
    starts: tuple[StageLatent, ...]
    state: State | None


class Done(NamedTuple):
    """What became of a work: one Unit a path, none if it was cancelled.

    ``before`` are the frames of the units before it that were left as latents, and are decoded by now.
    """

    made: Made
    units: tuple[Unit, ...]
    before: tuple[Frames, ...] = ()


class Generator:
    """Samples and decodes with one model. ``cancel`` may come from another thread.

    Up to ``pack`` works that were given at the same time, each from a thread of its own, are done together. With
    ``gives_way`` other processes of this machine go first.
    """

    def __init__(
        self, model: ModelSource | None = None, threads: int = 1, pack: int = 1, *, gives_way: bool = False
    ) -> None:
        if gives_way:
            give_way()
        self._threads = threads
        torch.set_num_threads(threads)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._pipeline = load_source(model or ModelSource()).to(device)
        # Calls come from several threads, and what they ask for is chosen by clients.
        self._sampler = functools.lru_cache(_KEPT)(self._new_sampler)
        self._encoded = functools.lru_cache(_KEPT)(self._encode)
        self._cancellations = Cancellations()
        self._packer: Packer[Job, Done] = Packer(self.sample_together, pack)

    def ready(self) -> bool:
        """Answers as soon as the model is loaded."""
        return True

    def pid(self) -> int:
        """The actor's process."""
        return os.getpid()

    def read(self, context: Context, asked: str) -> TextRead:
        """Encode the prompts, and tell how much the model reads of what the user ``asked`` for, its suffix aside.

        Raises UserError where the model cannot read them.
        """
        text, negative = self._encoded(context.prompt, context.negative)
        encoder = self._pipeline.text
        return TextRead(
            tokens=len(text.tokens_LD),
            negative_tokens=len(negative.tokens_LD),
            readable=encoder.readable(asked),
            unread=encoder.unread(asked),
        )

    def sample(
        self, number: int, work: SampleWork, context: Context, history: int, state: State | None, *latents: StageLatent
    ) -> tuple[Any, ...]:
        """Do one piece of work, which ``cancel`` knows by its ``number``.

        Of ``latents``, the first ``history`` are the finished units before, oldest first, and the others what each path
        continues from (none: noise); ``state`` is the decoder's after what of that history is decoded, None where it
        must be made again. Laid out flat for Ray, which moves each result only to where it is asked for: Made, then
        the three of each path's Unit and its small frames, then frames and small frames of every unit of the history
        that was left as a latent, if the work is decoded. All but the first are None when the work was cancelled; so
        are the small frames of a video that is small itself.
        """
        job = Job(number, work, context, latents[:history], latents[history:], state)
        done = self._packer.ask(job)
        if not done.made.whole:
            return (done.made, *[None] * (4 * len(work.paths) + 2 * len(context.left.before_work(work))))
        parts: list[Any] = []
        for unit in done.units:
            parts += (*unit, small_copy(unit.frames, context.small))
        for frames in done.before:
            parts += (frames, small_copy(frames, context.small))
        return (done.made, *parts)

    def decode(self, state: State | None, first: int, *latents: StageLatent) -> list[Frames]:
        """The frames of a branch's units from number ``first`` on; ``state`` is the decoder's before that one."""
        return [unit.frames for unit in self.decoded(latents[first:], first, state) if unit.frames is not None]

    def sample_together(self, jobs: Sequence[Job]) -> list[Done]:
        """Do some works in as few forward passes as they allow, of whichever searches they are.

        Works that go through the same stages in the same steps share their passes, which changes their rounding.
        A work that was cancelled stops unless it shares its passes with one that was not.
        """
        torch.set_num_threads(self._threads)  # a setting of the thread, and an actor may run each call in another one

        def alike(job: Job) -> tuple[Any, ...]:
            work, asked = job.work, job.context.sampling
            return work.first_stage, work.last_stage, min(work.depth, 1), asked.steps, asked.guidance

        return alike_together(jobs, alike, self._packed)

    def _packed(self, jobs: Sequence[Job]) -> list[Done]:
        """Do works that go through the same stages in the same steps."""
        started, steps = time.time(), 0
        sampling = jobs[0].context.sampling
        sampler = self._sampler(Sampling(steps=sampling.steps, guidance=sampling.guidance))
        tasks = [task for job in jobs for task in self._tasks(job)]
        stages = range(jobs[0].work.first_stage, jobs[0].work.last_stage + 1)

        def cancelled() -> bool:
            return all(job.number in self._cancellations for job in jobs)

        def count(done: int, total: int) -> None:
            nonlocal steps
            steps += 1

        try:
            sampled = finished = sampler.sample(tasks, stages, cancelled, count)
            if stages[-1] < self._last_stage:
                drafts = [replace(task, start=latent) for task, latent in zip(tasks, sampled, strict=True)]
                finished = sampler.preview(drafts, cancelled, count)
        except CancelledSampling:
            return [Done(Made(steps, started, time.time(), whole=False), ()) for _ in jobs]
        finally:
            for job in jobs:
                self._cancellations.ended(job.number)
        before = [self._before(job) for job in jobs]
        states = [state for job, (state, _) in zip(jobs, before, strict=True) for _ in job.work.paths]
        last = [job.work.depth + 1 == job.context.units for job in jobs for _ in job.work.paths]
        left = [job.context.left.has_work(job.work) for job in jobs for _ in job.work.paths]
        seen = [number for number, is_left in enumerate(left) if not is_left]
        shown = self._shown(
            [sampled[n] for n in seen],
            [finished[n] for n in seen],
            [tasks[n].unit for n in seen],
            [states[n] for n in seen],
            [last[n] for n in seen],
        )
        decoded = dict(zip(seen, shown, strict=True))
        made = iter([decoded.get(n) or _undecoded(latent) for n, latent in enumerate(sampled)])
        done = []
        for job, (_, frames) in zip(jobs, before, strict=True):
            units = tuple(next(made) for _ in job.work.paths)
            size = sum(part.nbytes for part in units[0].state or ())
            done.append(Done(Made(steps, started, time.time(), state_bytes=size), units, tuple(frames)))
        return done

    def _before(self, job: Job) -> tuple[State | None, list[Frames]]:
        """The decoder's state after a work's history, and the frames of what of it is decoded only now."""
        if job.context.left.has_work(job.work):
            return None, []
        late, state = job.context.left.before_work(job.work), job.state
        if state is None:
            state = self._state_after(job.history[: late.start])
        units = self.decoded(job.history[late.start :], late.start, state)
        return (units[-1].state if units else state), [unit.frames for unit in units if unit.frames is not None]

    def given(self, context: Context, image: bytes) -> Unit:
        """A given first frame (an image file's bytes) as unit 0, fitted to the request's size."""
        frame = read_picture(image, (context.height, context.width))
        clean = encode_image(self._pipeline, frame, context.height, context.width)
        return self._whole(StageLatent(self._last_stage, clean), 0, None)

    def gone_on(self, start: bytes) -> list[Unit]:
        """The units of an earlier video, as ``packed`` has kept them, decoded: those that a longer one begins with."""
        return self.decoded(unpacked(start, self._last_stage), 0, None)

    def after_clip(self, context: Context, clip: bytes) -> list[Unit]:
        """The units of a clip, a lossless video of the request's size, encoded: those that a video begins with."""
        frames, _ = decode_mp4(clip)
        clean = encode_clip(self._pipeline, frames, context.height, context.width)
        return self.decoded([StageLatent(self._last_stage, latent) for latent in clean], 0, None)

    def cancel(self, number: int) -> None:
        """Give up the work of this number at its next denoising step, or as soon as it is started."""
        self._cancellations.add(number)

    def _tasks(self, job: Job) -> list[UnitTask]:
        context = job.context
        text, negative = self._encoded(context.prompt, context.negative)
        past = tuple(latent.x for latent in job.history)
        recipe, patch = self._pipeline.recipe, self._pipeline.transformer.config.patch_size
        factor = self._pipeline.vae.config.spatial_factor
        shape = (
            1,
            *latent_size(context.height, context.width, stages=recipe.pyramid.stages, patch=patch, factor=factor),
        )
        continued: Sequence[StageLatent | None] = job.starts or [None] * len(job.work.paths)
        return [
            UnitTask(text, negative, past, shape, context.seed, path, start, context.from_image)
            for path, start in zip(job.work.paths, continued, strict=True)
        ]

    def _new_sampler(self, sampling: Sampling) -> Sampler:
        """A sampler for requests that want the same."""
        return sampler_of(replace(self._pipeline, recipe=self._pipeline.recipe.sampled(sampling)))

    @torch.no_grad()
    def _encode(self, *prompts: str) -> list[TextEmbedding]:
        """Text embeddings, encoded in one batch as an unsearched sample does, so that the bits agree."""
        return self._pipeline.text.encode(prompts)

    @torch.no_grad()
    def _shown(
        self,
        latents: Sequence[StageLatent],
        finished: Sequence[StageLatent],
        depths: Sequence[int],
        before: Sequence[State | None],
        last: Sequence[bool],
    ) -> list[Unit]:
        """Decode units, drafts as ``finished`` in a few steps, each from the state after its parent.

        ``last`` says which of them have no children, whatever becomes of them.
        """
        norm, device = self._pipeline.latent_norm, next(self._pipeline.transformer.parameters()).device
        raw = [norm.denormalise(part.x.to(device), unit)[None] for part, unit in zip(finished, depths, strict=True)]
        decoded = decode_units(self._pipeline.vae, raw, before)
        units = []
        for latent, (video, after), ends in zip(latents, decoded, last, strict=True):
            kept = StageLatent(latent.stage, latent.x.cpu())
            goes_on = not ends and latent.stage == self._last_stage
            units.append(Unit(kept, to_pixels(video)[0], [part.cpu() for part in after] if goes_on else None))
        return units

    def _state_after(self, history: Sequence[StageLatent]) -> State | None:
        units = self.decoded(history, 0, None)
        return units[-1].state if units else None

    def decoded(self, latents: Sequence[StageLatent], first: int, state: State | None) -> list[Unit]:
        """Decode units that follow on each other, from number ``first`` on."""
        units: list[Unit] = []
        for number, latent in enumerate(latents, start=first):
            units.append(self._whole(latent, number, units[-1].state if units else state))
        return units

    def _whole(self, latent: StageLatent, depth: int, before: State | None) -> Unit:
        """Decode a unit that is finished and may have children."""
        return self._shown([latent], [latent], [depth], [before], [False])[0]

    @property
    def _last_stage(self) -> int:
        return self._pipeline.recipe.pyramid.stages - 1


def _undecoded(latent: StageLatent) -> Unit:
    return Unit(StageLatent(latent.stage, latent.x.cpu()), None, None)


class Cancellations:
    """Numbers of works that are to be given up, from several threads.

    A cancellation may come before its work is started, or after it has ended; the latter is of no use and forgotten.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers: set[int] = set()
        self._ended: deque[int] = deque(maxlen=1024)  # the latest: nobody cancels what ended long ago

    def __contains__(self, number: int) -> bool:
        with self._lock:
            return number in self._numbers

    def add(self, number: int) -> None:
        with self._lock:
            if number not in self._ended:
                self._numbers.add(number)

    def ended(self, number: int) -> None:
        with self._lock:
            self._ended.append(number)
            self._numbers.discard(number)
