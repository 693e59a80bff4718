"""What stands in a model folder beside the weights: enough to check a request and to price it without any actor."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from framegrove.config.flow import latent_size
from framegrove.config.model import Recipe, TransformerConfig
from framegrove.config.request import check_prompt
from framegrove.config.vae import VaeConfig
from framegrove.models.pretrained import RECIPE, TRANSFORMER, VAE, embedded_model
from framegrove.models.vae_files import read_vae_config
from framegrove.types import GenerationRequest


@dataclass(frozen=True)
class ModelFiles:
    """A model folder's configuration."""

    folder: Path
    recipe: Recipe
    transformer: TransformerConfig
    vae: VaeConfig

    @classmethod
    def read(cls, folder: Path | None) -> Self:
        """Read a folder (absent: the embedded model). Raises ValueError, in one sentence, for one that is not whole."""
        folder = embedded_model() if folder is None else folder
        if not folder.is_dir():
            raise ValueError(
                f"no model folder at {folder}: give a folder that holds {TRANSFORMER}/, {VAE}/ and {RECIPE}"
            )
        try:
            recipe = Recipe.model_validate(_json(folder / RECIPE))
            transformer = TransformerConfig.from_public(_json(folder / TRANSFORMER / "config.json"))
            vae = read_vae_config(folder / VAE)
        except FileNotFoundError as error:
            raise ValueError(f"{folder} is not a whole model: {error.filename} is missing") from None
        except (ValidationError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{folder} holds a configuration that cannot be used: {_one_line(error)}") from None
        return cls(folder, recipe, transformer, vae)

    def check(self, request: GenerationRequest) -> tuple[int, int]:
        """The (height, width) of the latents of what is asked for. Raises ValueError if this model cannot make it."""
        check_prompt(request.prompt)
        most = self.transformer.max_num_frames
        if not 1 <= request.units <= most:
            raise ValueError(f"a video of {request.units} units cannot be made: this model makes 1 to {most}")
        if request.image is not None and request.units == 1:
            raise ValueError("a video that starts with an image needs at least 2 units, the image is the first")
        stages, patch = self.recipe.pyramid.stages, self.transformer.patch_size
        size = latent_size(request.height, request.width, stages=stages, patch=patch, factor=self.vae.spatial_factor)
        side = max(size) // patch
        if side > self.transformer.pos_embed_max_size:
            longest = self.transformer.pos_embed_max_size * patch * self.vae.spatial_factor
            raise ValueError(
                f"a video of {request.width}x{request.height} is beyond this model: its sides are {longest} at most"
            )
        return size

    def fingerprint(self) -> str:
        """Changes whenever a file of the folder does."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        facts = [(str(path.relative_to(self.folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        return hashlib.blake2b(repr(facts).encode(), digest_size=12).hexdigest()


def _json(path: Path) -> dict[str, Any]:
    data = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise json.JSONDecodeError(f"{path.name} must hold a JSON object", "", 0)
    return data


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
