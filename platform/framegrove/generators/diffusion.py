"""Pipelines of the diffusers library: a video is one unit, and its stages are segments of the denoising schedule.

The pipeline's own call does the work (segments.Stretch), with its own guidance, scheduler, VAE and video processor: a
video sampled segment by segment, on any actors, is to the last bit that of one uninterrupted call with the same latents
and generator. Initial noise is flow.noise's, by seed and path. A scheduler that draws noise at each step draws it from
a generator by seed and path, too; a mutated branch (EvoSearch) has that noise of the branch it was mutated from, and
so stays close to it. What a branch looks like after a segment is the clean video that its last step has predicted.

Branches are denoised one by one, or up to ``batch`` of them together. These are of one sample work, so that the last
bits do not depend on timing, unless generators pack works of several searches: then of any works that are wanted alike.
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from framegrove.config.base import ConfigError, validated
from framegrove.config.diffusion import PIPELINES, DiffusionOptions
from framegrove.config.generator import Form
from framegrove.errors import UserError
from framegrove.flow.noise import HashNoise, generator_for
from framegrove.flow.sampler import StageLatent
from framegrove.generators.outline import ONE_AT_A_TIME, Meter, Outline, outlined
from framegrove.generators.places import INDEX, Place
from framegrove.generators.protocol import Frames, Needs, OnStep, ShouldStop, Task, UnitPrice, Wanted
from framegrove.generators.schedules import CLEAN, check_scheduler, keeping
from framegrove.generators.segments import Stretch, stepwise
from framegrove.lineage import unmutated
from framegrove.media.pictures import read_picture

_HELD = 4  # tensors of the size of a layer's output that are there at a time: what goes in, comes out, and between
_COUNTED = 256  # shapes of videos whose prices are remembered
_PACKS_PICTURE = "LTXImageToVideoPipeline"  # whose latents begin with the picture itself, which no step changes


class Spent(NamedTuple):
    """What a video of some shape takes."""

    step: Meter
    decoding: Meter


class Diffusion:
    """A text- or image-to-video pipeline (generators.protocol.Adapter).

    ``where`` is a folder or a hub id, owner/name or owner/name@revision, ``options`` are those of DiffusionOptions.
    Raises UserError where there is no such pipeline, for one that cannot be searched, and for options it cannot have.
    """

    def __init__(self, where: str, **options: Any) -> None:
        self.options = validated(DiffusionOptions, options, f"the options of {where}")
        self._place = Place.read(where)
        self._index = self._place.json(INDEX)
        self._name = _pipeline_name(self._place, self.options, self._index)
        self._plain: Any = _class(self._name)
        self._taken = inspect.signature(self._plain.__call__).parameters
        unknown = ", ".join(name for name in self.options.call if name not in self._taken)
        if unknown:
            raise ConfigError(f"the options of {where}: {self._name} is not called with {unknown}, leave that out")
        if self._takes_image and self.options.batch > 1:
            raise ConfigError(f"the options of {where}: videos from a picture are denoised one by one, leave batch out")
        self._class: Any = stepwise(self._plain)
        self._scheduler, self._schedule = self._read_scheduler()
        self._pipe: Any = None
        self._shapes: dict[tuple[int, ...], tuple[tuple[int, ...], torch.dtype]] = {}
        self._spent: dict[str, Spent] = {}

    @property
    def together(self) -> int:
        """How many branches share their passes, of whichever works."""
        return self.options.batch

    @functools.cached_property
    def form(self) -> Form:
        """The grid of the search, and what videos of this pipeline are like."""
        options, pipe = self.options, self.outline.pipe
        config, spatial = pipe.transformer.config, _spatial(pipe)
        patch = config.get("patch_size") or 1
        frames = options.frames or self._default("num_frames") or config["sample_frames"]
        return Form(
            fps=options.fps or PIPELINES[self._name],
            height=options.height or self._default("height") or config["sample_height"] * spatial,
            width=options.width or self._default("width") or config["sample_width"] * spatial,
            stages=options.stages,
            first_frames=frames,
            multiple=spatial * (patch if isinstance(patch, int) else patch[-1]),
            takes_image=self._takes_image,
            needs_image=self._takes_image,
            negative_prompt=options.negative_prompt,
        )

    @functools.cached_property
    def outline(self) -> Outline:
        """The pipeline without its weights."""
        parts = {name: part for name, part in self._index.items() if isinstance(part, list) and part[1]}
        networks = {
            name: (_class(kind), self._place.json(f"{name}/config.json"))
            for name, (library, kind) in parts.items()
            if library == "diffusers" and name != "scheduler"
        }
        taken = inspect.signature(self._plain.__init__).parameters
        others = {name: it for name, it in self._index.items() if name in taken and not isinstance(it, list)}
        absent = dict.fromkeys(name for name in taken if name not in (*networks, *others, "self"))
        made = outlined(self._class, networks, {**absent, **others, "scheduler": self._new_scheduler()})
        if self.options.vae_tiling:
            made.pipe.vae.enable_tiling()
        return made

    def identity(self) -> Any:
        """What the videos depend on beside the options: the files, and the library."""
        return {"files": self._place.identity(), "diffusers": importlib.metadata.version("diffusers")}

    def price(self, wanted: Wanted) -> list[UnitPrice]:
        """The price of a video. Raises UserError for fewer steps than there are segments."""
        ends = self.options.ends(self.steps(wanted))
        spent = self.spent(wanted)
        steps = tuple(end - start for start, end in zip((0, *ends), ends, strict=False))
        return [UnitPrice(steps, (spent.step.flops,) * len(steps), spent.decoding.flops)]

    def spent(self, wanted: Wanted) -> Spent:
        """What one step of a video takes, with guidance, and what decoding it takes; counted once for each shape."""
        arguments = self._arguments(wanted)
        # How strong guidance is does not matter, but whether there is any, which pipelines decide by comparing with 1.
        alike = {"prompt": "", "negative_prompt": "", "num_inference_steps": 0}
        guided = arguments["guidance_scale"] > 1 if "guidance_scale" in arguments else None
        key = json.dumps({**arguments, **alike, "guidance_scale": guided}, sort_keys=True, default=str)
        with ONE_AT_A_TIME:
            if key not in self._spent:
                if len(self._spent) >= _COUNTED:
                    self._spent.pop(next(iter(self._spent)))
                if self._takes_image:
                    arguments["image"] = Image.new("RGB", (wanted.width, wanted.height))
                self._spent[key] = Spent(self.outline.step(arguments), self.outline.decoding(arguments))
            return self._spent[key]

    def needs(self, wanted: Wanted) -> Needs:
        """Weights and memory, text encoders included; of a layer four tensors as large as its output are counted."""
        width = getattr(torch, self.options.dtype).itemsize
        spent = self.spent(wanted)
        parts = {name: sum(weight.numel() for weight in it.parameters()) for name, it in self.outline.networks.items()}
        return Needs(
            weights={**self._encoders(), **parts},
            width=width,
            latent=spent.step.carried,
            denoising=_HELD * width * spent.step.largest,
            decoding=_HELD * width * spent.decoding.largest,
        )

    def steps(self, wanted: Wanted) -> int:
        """Denoising steps of a video."""
        segments = self.options.segments
        own = sum(segments) if isinstance(segments, tuple) else None
        return int(wanted.sampling.steps or self.options.steps or own or self._default("num_inference_steps"))

    def load(self, device: str) -> None:
        """Read the weights, from safetensors alone; they are fetched first where that has not been done."""
        options = self.options
        _be_quiet()
        try:
            pipe = self._class.from_pretrained(
                self._place.repo,
                revision=self._place.commit(),
                dtype=getattr(torch, options.dtype),
                use_safetensors=True,
            )
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{self._place.called} cannot be read: {reason}") from error
        pipe.set_progress_bar_config(disable=True)
        if options.vae_tiling:
            pipe.vae.enable_tiling()
        if options.offload == "none" or device == "cpu":
            pipe.to(device)
        elif options.offload == "model":
            pipe.enable_model_cpu_offload(device=device)
        else:
            pipe.enable_sequential_cpu_offload(device=device)
        self._pipe = pipe

    def sample(
        self, tasks: Sequence[Task], stages: range, should_stop: ShouldStop, on_step: OnStep
    ) -> list[StageLatent]:
        """Take each branch from the end of the segment before ``stages`` to the end of the last of them."""
        ends = (0, *self.options.ends(self.steps(tasks[0].wanted)))
        steps = range(ends[stages[0]], ends[stages[-1] + 1])
        batches = self._batches(tasks)
        done = 0

        def stepped() -> None:  # a step of all tasks is done whenever each batch could have done one
            nonlocal done
            done += 1
            if done % len(batches) == 0:
                on_step()

        made = []
        for batch in batches:
            starts = [task.start.more for task in batch if task.start is not None]
            stretch = Stretch(steps, [_generator(task) for task in batch], starts, should_stop, stepped)
            begun = torch.cat([task.start.x if task.start else self._noise(task) for task in batch])
            self._run(batch[0].wanted, stretch, begun, "latent", [task.wanted for task in batch])
            made += [self._latent(stretch, number, stages[-1]) for number in range(len(batch))]
        return made

    def decode(self, tasks: Sequence[Task], latents: Sequence[StageLatent]) -> list[Frames]:
        """The finished videos, or the clean ones that the last step has predicted, through the pipeline's decoder."""
        made = []
        for task, latent in zip(tasks, latents, strict=True):
            (video,) = self._run(
                task.wanted, Stretch(range(0), [_generator(task)]), latent.more.get(CLEAN, latent.x), "np"
            )
            made.append((255 * video[: task.wanted.frames]).round().astype(np.uint8))
        return made

    def _run(
        self, wanted: Wanted, stretch: Stretch, latents: Tensor | None, output: str, each: Sequence[Wanted] = ()
    ) -> Any:
        """One call of the pipeline, for as many branches as the stretch has; what it returns.

        Several branches come with what is wanted of ``each``, which differs from ``wanted`` in its prompts at most.
        """
        pipe, count = self._pipe, len(stretch.generators)
        pipe.scheduler, pipe.stretch = self._new_scheduler(), stretch
        arguments = self._arguments(wanted)
        if wanted.image is not None:
            arguments["image"] = Image.fromarray(read_picture(wanted.image, (wanted.height, wanted.width)))
        if count > 1:
            arguments["prompt"] = [one.prompt for one in each]
            if "negative_prompt" in arguments:
                arguments["negative_prompt"] = [self._negative(one) for one in each]
        try:
            made = pipe(
                **arguments,
                latents=latents if latents is None else latents.to(pipe._execution_device),
                generator=stretch.generators if count > 1 else stretch.generators[0],
                callback_on_step_end=stretch.stepped,
                output_type=output,
            )
        finally:
            pipe.maybe_free_model_hooks()  # after a call that was given up, too
        stretch.check(len(pipe.scheduler.timesteps))
        return made.frames

    def _arguments(self, wanted: Wanted) -> dict[str, Any]:
        """What the pipeline is called with, but for what belongs to a branch."""
        options, asked = self.options, wanted.sampling
        temporal = _temporal(self._pipe or self.outline.pipe)
        given = {
            "prompt": wanted.prompt,
            "negative_prompt": self._negative(wanted),
            "height": wanted.height,
            "width": wanted.width,
            "num_frames": 1 - (1 - wanted.frames) // temporal * temporal,  # as few as the VAE can make, but all wanted
            "num_inference_steps": self.steps(wanted),
            "guidance_scale": options.guidance_scale if asked.guidance is None else asked.guidance,
            "max_sequence_length": options.max_sequence_length,
            "frame_rate": options.fps,
            **options.call,
        }
        return {name: it for name, it in given.items() if it is not None and name in self._taken}

    def _negative(self, wanted: Wanted) -> str:
        asked = wanted.sampling.negative
        return self.options.negative_prompt if asked is None else asked

    def _latent(self, stretch: Stretch, number: int, stage: int) -> StageLatent:
        """One branch of the batch that a stretch was done for."""
        assert stretch.latents is not None
        # A copy: a part of the batch would take all of that along, wherever it goes.
        latent = stretch.latents[number : number + 1].cpu().clone()
        if stage + 1 == self.options.stages:
            return StageLatent(stage, latent)
        state = stretch.state(self._pipe, number)
        return StageLatent(stage, latent, {**state, CLEAN: self._whole(state[CLEAN], latent)})

    def _noise(self, task: Task) -> Tensor:
        """What a branch begins with, of the shape and type that the pipeline would draw itself."""
        wanted = task.wanted
        key = wanted.height, wanted.width, wanted.frames
        if key in self._shapes:
            return self._hashed(task, *self._shapes[key])
        drawn = self._run(wanted, Stretch(range(0), [torch.Generator()]), None, "latent").cpu()
        noise = self._hashed(task, tuple(drawn.shape), drawn.dtype)
        if self._name != _PACKS_PICTURE:
            self._shapes[key] = tuple(drawn.shape), drawn.dtype
            return noise
        frames = (self._arguments(wanted)["num_frames"] - 1) // _temporal(self._pipe) + 1
        first = drawn.shape[1] // frames
        noise[:, :first] = drawn[:, :first]
        return noise

    def _hashed(self, task: Task, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return HashNoise().initial(task.wanted.seed, task.path, shape[1:])[None].to(dtype)

    def _whole(self, clean: Tensor, latent: Tensor) -> Tensor:
        """A predicted video in the form of the latent, whose picture, which is not predicted, it begins with."""
        if self._name == _PACKS_PICTURE:
            pipe = self._pipe
            packed = pipe._pack_latents(
                clean, pipe.transformer_spatial_patch_size, pipe.transformer_temporal_patch_size
            )
            clean = torch.cat([latent[:, : latent.shape[1] - packed.shape[1]], packed.to(latent.dtype)], 1)
        return clean.to(latent.dtype)

    def _batches(self, tasks: Sequence[Task]) -> list[list[Task]]:
        """Tasks that are denoised together, in the order in which they came."""
        return [list(tasks[at : at + self.together]) for at in range(0, len(tasks), self.together)]

    def _encoders(self) -> dict[str, int]:
        """Weights of the encoders of prompts and pictures."""
        import transformers

        parts = {name: part for name, part in self._index.items() if isinstance(part, list)}
        found = {}
        for name, (library, kind) in parts.items():
            if library == "transformers" and "_encoder" in name:
                config = dict(self._place.json(f"{name}/config.json"))
                with torch.device("meta"):
                    model = getattr(transformers, kind)(getattr(transformers, kind).config_class.from_dict(config))
                found[name] = sum(weight.numel() for weight in model.parameters())
        return found

    def _read_scheduler(self) -> tuple[Any, dict[str, Any]]:
        """The class and the configuration of the scheduler."""
        options = self.options
        name = options.scheduler or self._index["scheduler"][1]
        own = self._place.json("scheduler/scheduler_config.json")
        config = {key: it for key, it in own.items() if not key.startswith("_")} | options.scheduler_config
        check_scheduler(name, config)
        kind = _class(name)
        unknown = options.scheduler_config.keys() - inspect.signature(kind.__init__).parameters.keys()
        if unknown:
            raise ConfigError(f"scheduler_config: {name} has no {', '.join(sorted(unknown))}, leave that out")
        return keeping(kind), config

    def _new_scheduler(self) -> Any:
        """One for each call: what a scheduler keeps of another call could pass for the state of this one."""
        return self._scheduler.from_config(self._schedule)

    def _default(self, argument: str) -> Any:
        return self._taken[argument].default

    @property
    def _takes_image(self) -> bool:
        return "image" in self._taken


def _pipeline_name(place: Place, options: DiffusionOptions, index: Mapping[str, Any]) -> str:
    name = options.pipeline or str(index.get("_class_name"))
    if name not in PIPELINES:
        raise UserError(
            f"{place.called} is a {name} of diffusers, which cannot be searched along its schedule: choose a model of "
            f"{', '.join(PIPELINES)}"
        )
    return name


def _class(name: str) -> Any:
    """A class of diffusers. Raises UserError where there is none, or no diffusers."""
    try:
        import diffusers
    except ImportError:
        raise UserError(
            "diffusers is not installed, which models of that kind need: pip install framegrove[diffusers]"
        ) from None
    try:
        return getattr(diffusers, name)
    except AttributeError:
        raise UserError(
            f"diffusers {diffusers.__version__} has no {name}: install another version, or use another class"
        ) from None


def _be_quiet() -> None:
    """Draw no progress bars: an actor's output is a log."""
    from diffusers.utils import logging
    from transformers.utils import logging as encoders

    logging.disable_progress_bar()
    encoders.disable_progress_bar()


def _generator(task: Task) -> torch.Generator:
    """What a scheduler that draws noise takes it from."""
    return generator_for(task.wanted.seed, unmutated(task.path), "steps")


def _spatial(pipe: Any) -> int:
    """Pixels of a latent's side."""
    return _first(pipe, "vae_scale_factor_spatial", "vae_spatial_compression_ratio", "vae_spatial_scale_factor")


def _temporal(pipe: Any) -> int:
    """Frames of a latent, after the first."""
    return _first(pipe, "vae_scale_factor_temporal", "vae_temporal_compression_ratio", "vae_temporal_scale_factor")


def _first(pipe: Any, *names: str) -> int:
    return int(next(getattr(pipe, name) for name in names if hasattr(pipe, name)))
