"""The next unit of many branches of several prompts, sampled and decoded in one process: how populations grow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from framegrove.config.flow import latent_size
from framegrove.flow.generation import Pixels, sampler_of, to_pixels
from framegrove.flow.sampler import UnitTask
from framegrove.models.packed import TextEmbedding
from framegrove.models.pretrained import Pipeline
from framegrove.models.vae_tiling import decode_unit
from framegrove.types import Path


class Branch(Protocol):
    """A branch that is to be sampled: ``path`` names its newest unit, ``latents`` are those of the units before."""

    @property
    def prompt(self) -> int:
        """Its prompt's place among the grower's."""
        ...

    @property
    def path(self) -> Path: ...

    @property
    def latents(self) -> tuple[Tensor, ...]: ...


class Grower:
    """Samples and decodes units at the recipe's size; the same branches as every search with these prompts and seeds.

    The recipe's suffix is appended to prompts, and its negative prompt is used.
    """

    def __init__(self, pipeline: Pipeline, prompts: Sequence[str], seeds: Sequence[int]) -> None:
        recipe = pipeline.recipe
        self._pipeline, self._seeds, self._sampler = pipeline, seeds, sampler_of(pipeline)
        *texts, negative = pipeline.text.encode([*(p + recipe.prompt_suffix for p in prompts), recipe.negative_prompt])
        self._texts: list[TextEmbedding] = texts
        self._negative: TextEmbedding = negative
        size = latent_size(
            recipe.height,
            recipe.width,
            stages=recipe.pyramid.stages,
            patch=pipeline.transformer.config.patch_size,
            factor=pipeline.vae.config.spatial_factor,
        )
        self._shape = (1, *size)

    def grow(self, branches: Sequence[Branch], state: list[Tensor] | None) -> tuple[list[Tensor], Pixels, list[Tensor]]:
        """The newest unit of branches that are equally long: latents, frames (B, T, H, W, 3), the decoder's state.

        ``state`` is the decoder's after the units before, branch by branch; None for first units.
        """
        tasks = [
            UnitTask(self._texts[b.prompt], self._negative, b.latents, self._shape, self._seeds[b.prompt], b.path)
            for b in branches
        ]
        latents = [latent.x for latent in self._sampler.sample(tasks)]
        raw = self._pipeline.latent_norm.denormalise(torch.stack(latents), len(branches[0].latents))
        decoded, after = decode_unit(self._pipeline.vae, raw, state)
        return latents, to_pixels(decoded), after
