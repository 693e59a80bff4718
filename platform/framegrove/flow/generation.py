"""Videos without a search: unit by unit, many prompts side by side, in one process.

Such a video is the baseline that a search improves on, and its cost is one unit of budget: the video of seed s is
branch (0, 0, ..) of every search with seed s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from framegrove.config.flow import latent_size
from framegrove.flow.noise import NoiseSource
from framegrove.flow.sampler import Sampler, ShouldStop, UnitTask
from framegrove.flow.schedule import PyramidSchedule
from framegrove.models.pretrained import Pipeline
from framegrove.models.vae_files import to_uint8
from framegrove.models.vae_tiling import decode_unit, encode_frames, encode_unit

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Generated:
    """One video: its units' latents (C, 1, h, w), normalised, and its frames uint8 (T, H, W, 3)."""

    latents: tuple[Tensor, ...]
    frames: Pixels


def sampler_of(pipeline: Pipeline, noise: NoiseSource | None = None) -> Sampler:
    """The sampler that a model's recipe describes, by its own noise unless another is given."""
    recipe = pipeline.recipe
    return Sampler(pipeline.transformer, PyramidSchedule.of(recipe.pyramid), recipe.guidance, recipe.steps, noise)


@torch.no_grad()
def generate(
    pipeline: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    units: int | None = None,
    size: tuple[int, int] | None = None,
    negative: str | None = None,
    images: Sequence[Pixels] | None = None,
    batch: int = 32,
    noise: NoiseSource | None = None,
    should_stop: ShouldStop | None = None,
    on_unit: Callable[[int, int], None] | None = None,
) -> list[Generated]:
    """One video per prompt and seed, of ``units`` units at ``size`` (height, width) pixels, by default the recipe's.

    The recipe's suffix is appended to prompts; without ``negative``, the recipe's negative prompt is used. ``noise``
    takes the place of that of the recipe's pyramid.

    With ``images``, uint8 (H, W, 3), each video starts from its image. At most ``batch`` videos share a forward pass;
    ``on_unit(done, total)`` is called after every unit. Raises ValueError for sizes or counts that do not fit
    together, and CancelledSampling when ``should_stop`` returns true between two steps.
    """
    recipe = pipeline.recipe
    against = recipe.negative_prompt if negative is None else negative
    units = recipe.units if units is None else units
    height, width = size or (recipe.height, recipe.width)
    most = pipeline.transformer.config.max_num_frames
    if not 1 <= units <= most:
        raise ValueError(f"a video of this model has 1 to {most} units, not {units}")
    for name, given in (("seeds", seeds), ("images", images)):
        if given is not None and len(given) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many {name}, not {len(given)}")
    sampler, config = sampler_of(pipeline, noise), pipeline.transformer.config
    factor = pipeline.vae.config.spatial_factor
    stages = recipe.pyramid.stages
    shape = (1, *latent_size(height, width, stages=stages, patch=config.patch_size, factor=factor))
    videos: list[Generated] = []
    for first in range(0, len(prompts), batch):
        chunk = slice(first, first + batch)
        *texts, empty = pipeline.text.encode([*(p + recipe.prompt_suffix for p in prompts[chunk]), against])
        histories: list[tuple[Tensor, ...]] = [() for _ in texts]
        frames: list[list[Pixels]] = [[] for _ in texts]
        state = None
        for unit in range(units):
            if unit == 0 and images is not None:
                column = [encode_image(pipeline, image, height, width) for image in images[chunk]]
            else:
                path = (0,) * (unit + 1)
                tasks = [
                    UnitTask(text, empty, history, shape, seed, path, from_image=images is not None)
                    for text, history, seed in zip(texts, histories, seeds[chunk], strict=True)
                ]
                column = [latent.x for latent in sampler.sample(tasks, should_stop=should_stop)]
            histories = [(*history, latent) for history, latent in zip(histories, column, strict=True)]
            pixels, state = decode_unit(
                pipeline.vae, pipeline.latent_norm.denormalise(torch.stack(column), unit), state
            )
            for video, clip in zip(frames, to_pixels(pixels), strict=True):
                video.append(clip)
            if on_unit is not None:
                on_unit(first * units + (unit + 1) * len(texts), len(prompts) * units)
        videos += [Generated(history, np.concatenate(video)) for history, video in zip(histories, frames, strict=True)]
    return videos


@torch.no_grad()
def encode_image(pipeline: Pipeline, image: Pixels, height: int, width: int) -> Tensor:
    """The normalised latent (C, 1, h, w) of an image uint8 (height, width, 3), the mean of the VAE's distribution."""
    if image.dtype != np.uint8 or image.shape != (height, width, 3):
        raise ValueError(
            f"a first frame must be uint8 of shape ({height}, {width}, 3), not {image.dtype} of {image.shape}: "
            "resize or crop it to the video's size"
        )
    device = next(pipeline.vae.parameters()).device
    video = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None, :, None].to(device) / 127.5 - 1
    moments, _ = encode_unit(pipeline.vae, video)
    return pipeline.latent_norm.normalise(moments.mean)[0]


@torch.no_grad()
def encode_clip(pipeline: Pipeline, frames: Pixels, height: int, width: int) -> list[Tensor]:
    """The normalised latents (C, 1, h, w) of a clip's units, of frames uint8 (1 + 8 n, height, width, 3)."""
    if frames.dtype != np.uint8 or frames.shape[1:] != (height, width, 3):
        raise ValueError(f"a clip must be uint8 (T, {height}, {width}, 3), not {frames.dtype} {frames.shape}")
    return list(pipeline.latent_norm.normalise(encode_frames(pipeline.vae, frames)).split(1, dim=1))


def to_pixels(video_BCTHW: Tensor) -> Pixels:
    """A decoded video in [-1, 1] as uint8 frames (B, T, H, W, 3)."""
    pixels: Pixels = to_uint8(video_BCTHW).cpu().numpy()
    return pixels
