"""What stands in a model folder beside the weights: enough to check a request and to price it without any actor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from framegrove.config.base import absolute
from framegrove.config.flow import latent_size
from framegrove.config.model import AnyTransformerConfig, ModelSource, Recipe
from framegrove.config.request import check_prompt
from framegrove.config.vae import VaeConfig
from framegrove.errors import UserError
from framegrove.files import fingerprint
from framegrove.models.pretrained import read_outline
from framegrove.models.sources import Place, find_model
from framegrove.models.vae_files import read_vae_config
from framegrove.types import GenerationRequest


@dataclass(frozen=True)
class ModelFiles:
    """A model's configuration, and where it came from."""

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

    def check(self, request: GenerationRequest) -> tuple[int, int]:
        """The (height, width) of the latents of what is asked for. Raises UserError if this model cannot make it."""
        check_prompt(request.prompt)
        most = self.transformer.max_num_frames
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

    def fingerprint(self) -> str:
        """Changes whenever a file of the folder does, or how it is read."""
        folder, *adapters = self.place.files
        return fingerprint(folder, self.source.variant, self.source.dtype, *map(fingerprint, adapters))
