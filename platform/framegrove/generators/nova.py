"""NOVA (arXiv 2412.14169, package ``diffnext``): frame by frame, each latent frame by masked autoregression of its own.

    kind: nova
    where: BAAI/nova-d48w1024-osp480
    options: {trust_remote_code: true, dtype: float16}

A unit is a latent frame; its steps are those of the autoregression inside the frame. What a frame is made from are the
latents of the frames before it, and nothing else: NOVA's own loop over frames is run with those that are there already
put in the place of being made, which costs a pass of its video encoder each (1/64 of the passes of a frame), and ends
after the new one. So no cache travels, and any actor can continue any branch. The order in which a frame's patches are
predicted is drawn for each frame, where NOVA draws one for a whole video.

``diffnext`` is not on PyPI and its weights were not at hand. This is written against its published code (NOVAPipeline
as of 2025: its arguments; ``transformer.generate_frame(states, inputs)``, which makes ``states["x"]``; its
``progress_bar``; ``image_processor.decode_latents``) and tested with a stand-in of that interface. Sizes and prices are
those of nova-d48w1024-osp480 by default; FLOPs are estimated from the width and depth of its transformers, without
those of the diffusion MLP and of decoding. A frame is decoded behind all frames before it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt

from framegrove.config.base import Config, ConfigError, imported, validated
from framegrove.config.generator import Form
from framegrove.errors import UserError
from framegrove.flow.noise import generator_for
from framegrove.flow.sampler import CancelledSampling, StageLatent
from framegrove.generators.protocol import Frames, OnStep, ShouldStop, Task, UnitPrice, Wanted

_LATENT, _PATCH = 8, 2  # pixels of a latent's side, latents of a patch's; the video encoder has patches of twice that
_WIDTH, _VIDEO_LAYERS, _IMAGE_LAYERS = 1024, 16, 32
_LATER = 4  # frames that each latent frame after the first decodes to


class NovaOptions(Config):
    """What may be set."""

    pipeline: str = Field(default="diffnext.pipelines:NOVAPipeline", description="module:Class")
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    trust_remote_code: bool = Field(default=False, description="let the model's folder bring code that is run")
    width: PositiveInt = Field(default=768, description="the only one that the model makes, in pixels")
    height: PositiveInt = 480
    fps: PositiveInt = 12
    latents: PositiveInt = Field(default=9, description="of the longest video: 9 are 33 frames")
    steps: PositiveInt = Field(default=64, description="of the autoregression inside a frame")
    diffusion_steps: PositiveInt = 25
    guidance: float = 5.0
    motion: float = Field(default=5.0, description="how much moves, NOVA's motion_flow")


class Nova:
    """The adapter (protocol.Adapter) of NOVA."""

    def __init__(self, where: str, **options: Any) -> None:
        """Read what is known without the weights. Raises ConfigError for options that it has not."""
        self._where = where
        self._options = given = validated(NovaOptions, options, "options")
        self.form = Form(
            fps=given.fps,
            height=given.height,
            width=given.width,
            units=given.latents,
            most_units=given.latents,
            first_frames=1,
            later_frames=_LATER,
            multiple=_LATENT * _PATCH * 2,
        )

    def identity(self) -> Any:
        """Its options are told from others without this."""
        return {"version": 1}

    def price(self, wanted: Wanted) -> list[UnitPrice]:
        """The same for every frame. Raises UserError for a size that the model does not make."""
        given = self._options
        if (wanted.width, wanted.height) != (given.width, given.height):
            raise UserError(
                f"a video of {wanted.width}x{wanted.height} cannot be made: this NOVA makes {given.width}x"
                f"{given.height} alone"
            )
        tokens = wanted.height * wanted.width // (_LATENT * _PATCH) ** 2
        passes = 2 if self._guidance(wanted) > 1 else 1
        per_layer = 24 * _WIDTH**2 * tokens + 4 * _WIDTH * tokens**2
        steps = steps_of(wanted.sampling.steps or given.steps, tokens)
        flops = passes * int(per_layer * (_IMAGE_LAYERS + _VIDEO_LAYERS / 4 / steps))
        return [UnitPrice(steps=(steps,), step_flops=(flops,))] * wanted.units

    def load(self, device: str) -> None:
        """Read the weights. Raises ConfigError where diffnext is not installed."""
        given = self._options
        made = imported(given.pipeline, f"NOVA ({self._where})", "class")
        dtype = getattr(torch, given.dtype if device != "cpu" else "float32")
        read = made.from_pretrained(self._where, torch_dtype=dtype, trust_remote_code=given.trust_remote_code)
        self._pipe, self._device = read.to(device), device
        size = tuple(self._pipe.transformer.config.image_size)
        if size != (given.height, given.width):
            raise ConfigError(
                f"NOVA ({self._where}) makes videos of {size[1]}x{size[0]}, not {given.width}x{given.height}: set "
                "width and height to these"
            )

    def sample(
        self, tasks: Sequence[Task], stages: range, should_stop: ShouldStop, on_step: OnStep
    ) -> list[StageLatent]:
        """Sample frames, one after the other: a frame's random numbers come from one generator, which is its own."""
        taken = 0

        def step() -> None:
            nonlocal taken
            taken += 1
            if taken % len(tasks) == 0:
                on_step()

        def check() -> None:
            if should_stop():
                raise CancelledSampling(taken // len(tasks))

        return [StageLatent(0, self._frame(task, check, step)) for task in tasks]

    def decode(self, tasks: Sequence[Task], latents: Sequence[StageLatent]) -> list[Frames]:
        """The newest frames of each branch, decoded behind those before them."""
        clips = []
        for task, latent in zip(tasks, latents, strict=True):
            units = [unit.x.to(self._device) for unit in (*task.history, latent)]
            video = self._pipe.image_processor.decode_latents(self._pipe.vae, torch.stack(units, 1)[None])
            pictures = video[0] if video.dim() == 5 else video[0][:, None]  # (3, T, H, W); of one latent, a picture
            newest = pictures[:, -_LATER if task.history else -1 :].float().permute(1, 2, 3, 0)
            clips.append((127.5 * newest + 127.5).clamp(0, 255).to(torch.uint8).cpu().numpy())
        return clips

    def _guidance(self, wanted: Wanted) -> float:
        given = wanted.sampling.guidance
        return self._options.guidance if given is None else given

    def _frame(self, task: Task, check: Callable[[], None], step: Callable[[], None]) -> torch.Tensor:
        """The latents (C, h, w) of a branch's newest frame."""
        transformer, wanted, there = self._pipe.transformer, task.wanted, len(task.history)
        make, found = transformer.generate_frame, []

        def steps(iterable: Iterable[Any], enable: bool = True) -> Iterator[Any]:
            for each in iterable:
                check()
                yield each
                step()

        def frame(states: dict[str, Any], inputs: dict[str, Any]) -> None:
            if states["t"] < there:
                states["x"].copy_(task.history[states["t"]].x[None])
                return
            with _set(transformer, "progress_bar", steps):
                make(states, inputs)
            found.append(states["x"][0].cpu().clone())
            raise _FrameMade

        with _set(transformer, "generate_frame", frame), contextlib.suppress(_FrameMade):
            self._pipe(
                prompt=wanted.prompt,
                negative_prompt=wanted.sampling.negative,
                num_inference_steps=wanted.sampling.steps or self._options.steps,
                num_diffusion_steps=self._options.diffusion_steps,
                max_latent_length=wanted.units,
                guidance_scale=self._guidance(wanted),
                motion_flow=self._options.motion,
                generator=self._generator(task),
                output_type="latent",
                disable_progress_bar=True,
            )
        return torch.clone(found[0])

    def _generator(self, task: Task) -> torch.Generator:
        seed = generator_for(task.wanted.seed, task.path, "nova").initial_seed()
        return torch.Generator(self._device).manual_seed(seed)


def steps_of(asked: int, tokens: int) -> int:
    """How many steps of a frame's autoregression predict something: patches are unmasked by a cosine schedule."""
    masked = [round(tokens * math.cos(0.5 * math.pi * step / asked)) for step in range(asked + 1)]
    return int(np.count_nonzero(np.diff(masked)))


class _FrameMade(Exception):
    """Ends NOVA's loop over frames."""


@contextlib.contextmanager
def _set(owner: Any, name: str, value: Any) -> Iterator[None]:
    """The owner with another method, for as long as this lasts."""
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)  # what is seen again is the class's
