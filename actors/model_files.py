"""What stands in a model folder beside the weights: enough to check a request and to price it without any actor."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from framegrove.config.base import absolute
from framegrove.config.flow import latent_size
from framegrove.config.generator import AnySource
from framegrove.config.model import AnyTransformerConfig, ModelSource, Native, Recipe
from framegrove.config.request import check_prompt
from framegrove.config.vae import VaeConfig
from framegrove.errors import UserError
from framegrove.files import fingerprint
from framegrove.flow.cost import SamplingCosts
from framegrove.flow.decoding import LeftAsLatents
from framegrove.models.latent_judge import LatentSpace
from framegrove.models.pretrained import load_vae_of, read_outline
from framegrove.models.sources import Place, find_model
from framegrove.models.text_public import count_tokens
from framegrove.models.vae_files import read_vae_config
from framegrove.models.vae_tiling import decode_flops
from framegrove.types import Cost, GenerationRequest

_TOKENS = 64  # of a prompt, where its tokenizer is of a form that is slow to read


class Costs(Protocol):
    """What sampling for a request costs: flow.cost.SamplingCosts, for one."""

    @property
    def left(self) -> LeftAsLatents:
        """What is not decoded, and costs accordingly."""
        ...

    def unit(self, unit: int, stages: range | None = None, siblings: int = 1, most_steps: int | None = None) -> Cost:
        """The newest unit of ``siblings`` children of one branch, sampled through ``stages``, or so many steps."""
        ...

    def unsearched(self, units: int, given: int = 0) -> Cost:
        """One whole video sampled without a search, the first ``given`` units of which already exist."""
        ...

    def table(self, depth: int, first_stage: int, last_stage: int, siblings: int) -> int:
        """FLOPs of one sample work, decoding included."""
        ...


class Card(Protocol):
    """What is known of a model without any actor, whatever it is."""

    @property
    def name(self) -> str:
        """What it is called where its place does not matter."""
        ...

    @property
    def source(self) -> AnySource:
        """What it was read from, as actors read it again."""
        ...

    @property
    def native(self) -> Native:
        """What its videos are like."""
        ...

    @property
    def stages(self) -> int:
        """Stages in which a unit is sampled."""
        ...

    @property
    def most_units(self) -> int:
        """Of the longest video."""
        ...

    @property
    def side(self) -> int:
        """Pixels that widths and heights are multiples of."""
        ...

    def check(self, request: GenerationRequest) -> object:
        """Raise UserError, in one sentence, for what the model cannot make."""
        ...

    def given(self, request: GenerationRequest) -> int:
        """Units of a video that are not searched for."""
        ...

    def costs(self, request: GenerationRequest) -> Costs:
        """What sampling costs."""
        ...

    def fingerprint(self) -> str:
        """Changes whenever the model does."""
        ...


@dataclass(frozen=True)
class ModelFiles:
    """A pyramidal model's configuration, and where it came from (Card)."""

    source: ModelSource
    place: Place
    recipe: Recipe
    transformer: AnyTransformerConfig
    vae: VaeConfig

    @classmethod
    def read(cls, source: ModelSource) -> Self:
        """Read a model's configuration; a hub model is downloaded first.

        Raises UserError, in one sentence, for a folder that is missing or not whole.
        """
        place = find_model(source)
        source = source.model_copy(update={"name": absolute(source.name)})  # actors stand in other folders
        _, transformer, recipe = read_outline(place)
        return cls(source, place, recipe, transformer, read_vae_config(place.vae))

    @property
    def name(self) -> str:
        """What it is called where its place does not matter."""
        return Path(self.source.name or self.place.folder).name

    @property
    def native(self) -> Native:
        """What its videos are like."""
        return self.recipe

    @property
    def stages(self) -> int:
        """Stages in which a unit is sampled."""
        return self.recipe.pyramid.stages

    @property
    def most_units(self) -> int:
        """Of the longest video."""
        return self.transformer.max_num_frames

    @property
    def side(self) -> int:
        """Pixels that widths and heights are multiples of."""
        return self.vae.spatial_factor * self.transformer.patch_size * 2 ** (self.stages - 1)

    def given(self, request: GenerationRequest) -> int:
        """Units of a video that are not searched for."""
        return request.given or int(request.image is not None)

    def costs(self, request: GenerationRequest) -> SamplingCosts:
        """What sampling costs."""
        recipe = self.recipe.sampled(request.sampling)
        tokens, negative = (
            count_tokens(self.place.text, text) or _TOKENS
            for text in (request.prompt + recipe.prompt_suffix, recipe.negative_prompt)
        )
        return costs_of(self, recipe, self.check(request), tokens, negative)

    def check(self, request: GenerationRequest) -> tuple[int, int]:
        """The (height, width) of the latents of what is asked for. Raises UserError if this model cannot make it."""
        check_prompt(request.prompt)
        most = self.most_units
        if not 1 <= request.units <= most:
            raise UserError(f"a video of {request.units} units cannot be made: this model makes 1 to {most}")
        if not request.given < request.units:
            raise UserError(f"{request.given} units are there already and the video has {request.units}: ask for more")
        if request.image is not None and request.units == 1:
            raise UserError("a video that starts with an image needs at least 2 units, the image is the first")
        stages, patch = self.recipe.pyramid.stages, self.transformer.patch_size
        size = latent_size(request.height, request.width, stages=stages, patch=patch, factor=self.vae.spatial_factor)
        side = max(size) // patch
        if side > self.transformer.pos_embed_max_size:
            longest = self.transformer.pos_embed_max_size * patch * self.vae.spatial_factor
            raise UserError(
                f"a video of {request.width}x{request.height} is beyond this model: its sides are {longest} at most"
            )
        return size

    def latents(self) -> LatentSpace:
        """Whose latents this model's units are. Reads the VAE."""
        from framegrove.training.encode import vae_digest

        vae, norm = load_vae_of(self.place, allow_pickle=self.source.allow_pickle)
        return LatentSpace(vae_digest(vae), norm, vae.config.spatial_factor)

    def fingerprint(self) -> str:
        """Changes whenever a file of the folder does, or how it is read."""
        folder, *adapters = self.place.files
        return fingerprint(folder, self.source.variant, self.source.dtype, *map(fingerprint, adapters))


@functools.lru_cache
def costs_of(
    files: ModelFiles, recipe: Recipe, size: tuple[int, int], tokens: int, negative_tokens: int
) -> SamplingCosts:
    """Shared by requests that cost the same: what was counted for one need not be counted for the next."""
    return SamplingCosts(files.transformer, recipe, size, tokens, negative_tokens, decode_flops(files.vae, size))
