"""What stands in a model folder beside the weights: enough to check a request and to price it without any actor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from framegrove.config.flow import latent_size
from framegrove.config.model import AnyTransformerConfig, ModelSource, Recipe
from framegrove.config.request import check_prompt
from framegrove.config.vae import VaeConfig
from framegrove.errors import UserError
from framegrove.files import fingerprint
from framegrove.models.pretrained import VAE, model_folder, read_shape
from framegrove.models.vae_files import read_vae_config
from framegrove.types import GenerationRequest


@dataclass(frozen=True)
class ModelFiles:
    """A model's configuration, and where it came from."""

    source: ModelSource
    folder: Path
    recipe: Recipe
    transformer: AnyTransformerConfig
    vae: VaeConfig

    @classmethod
    def read(cls, source: ModelSource) -> Self:
        """Read a model's configuration; a hub model is downloaded first.

        Raises UserError, in one sentence, for a folder that is missing or not whole.
        """
        folder = model_folder(source)
        if source.name is not None and Path(source.name).is_dir():  # no hub id; actors stand in other folders
            source = source.model_copy(update={"name": str(folder.absolute())})
        _, transformer, recipe = read_shape(folder, source.variant)
        return cls(source, folder, recipe, transformer, read_vae_config(folder / VAE))

    @property
    def name(self) -> str:
        """What it is called where its place does not matter."""
        return Path(self.source.name or self.folder).name

    def check(self, request: GenerationRequest) -> tuple[int, int]:
        """The (height, width) of the latents of what is asked for. Raises UserError if this model cannot make it."""
        check_prompt(request.prompt)
        most = self.transformer.max_num_frames
        if not 1 <= request.units <= most:
            raise UserError(f"a video of {request.units} units cannot be made: this model makes 1 to {most}")
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
        return fingerprint(self.folder, self.source.variant, self.source.dtype)
