"""Model folders: everything a video is made with, in the layout of public checkpoints.

    DIR/diffusion_transformer/{config.json, diffusion_pytorch_model.safetensors}
    DIR/causal_video_vae/...     DIR/text_encoder/...     DIR/tokenizer/...
    DIR/framegrove.json          the recipe: pyramid, guidance, steps, native size

Public checkpoints hold their transformers as diffusion_transformer_768p and the like, two or three text encoders, and
no recipe (see public.py). Weights are read from safetensors; a pickle is opened only where the caller allows it.
A model may also be an adapter, a run, or SD3 Medium (see sources.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError

from framegrove.config.base import describe
from framegrove.config.model import AnyTransformerConfig, FluxConfig, ModelSource, Recipe, read_transformer_config
from framegrove.errors import UserError
from framegrove.files import replacing
from framegrove.models import lora, sd3
from framegrove.models.files import (
    CONFIG_FILE,
    check_keys,
    opened_weights,
    read_json,
    save_weights,
    write_json,
)
from framegrove.models.mmdit import MMDiT
from framegrove.models.public import RELEASED, RELEASED_NORMS, VARIANTS, transformer_folder
from framegrove.models.public import TRANSFORMER as TRANSFORMER
from framegrove.models.sources import RECIPE, Place, find_model
from framegrove.models.sources import VAE as VAE
from framegrove.models.sources import embedded_model as embedded_model
from framegrove.models.text import TextEncoder
from framegrove.models.text_public import PublicTextEncoder
from framegrove.models.transformers import Take, Transformer, build_transformer, keep, pieces
from framegrove.models.vae import CausalVideoVae
from framegrove.models.vae_files import LatentNorm, load_vae, save_vae


@dataclass(frozen=True, eq=False)
class Pipeline:
    """A whole generator: prompts to latents to pixels, and the recipe it is sampled with.

    ``variant`` is the name of the transformer's folder.
    """

    transformer: Transformer
    vae: CausalVideoVae
    latent_norm: LatentNorm
    text: TextEncoder | PublicTextEncoder
    recipe: Recipe
    variant: str = TRANSFORMER

    def to(self, device: torch.device | str) -> Pipeline:
        """Move all weights, in place."""
        for module in (self.transformer, self.vae, self.text):
            module.to(device)
        return self


def load_pipeline(
    model: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    variant: str | None = None,
    allow_pickle: bool = False,
    text_dtype: torch.dtype | None = None,
    take: Take = keep,
) -> Pipeline:
    """Read a model (absent: the embedded one), in evaluation mode; all but a small text encoder in ``dtype``.

    ``model`` is a folder or a hub id, ours or a public checkpoint, or what else `find_model` knows; ``variant`` chooses
    among a public one's transformers ("384p"; absent: the highest resolution). ``allow_pickle`` has .bin files read
    where there are no safetensors; ``text_dtype`` is that of public text encoders where it differs; ``take`` is given
    the transformer piece by piece while it is read. Raises UserError, in one line, for what is missing or does not fit.
    """
    given = str(model.absolute()) if isinstance(model, Path) else model  # a path is never taken for a hub id
    source = ModelSource(name=given, variant=variant, allow_pickle=allow_pickle)
    return _load(source, dtype, text_dtype, take)


def load_source(
    source: ModelSource, text_dtype: torch.dtype | None = None, take: Take = keep, *, with_text: bool = True
) -> Pipeline:
    """The model that a job was told to use; ``text_dtype``, ``take`` and errors as those of `load_pipeline`.

    Without its text encoders, unless ``with_text``, it takes embeddings alone.
    """
    return _load(source, getattr(torch, source.dtype), text_dtype, take, with_text)


def _load(
    source: ModelSource, dtype: torch.dtype, text_dtype: torch.dtype | None, take: Take, with_text: bool = True
) -> Pipeline:
    place, pickles = find_model(source), source.allow_pickle
    name, _, recipe = read_outline(place)
    vae, norm = load_vae_of(place, dtype, allow_pickle=pickles)
    text = load_text(place.text, text_dtype or dtype, allow_pickle=pickles) if with_text else PublicTextEncoder.absent()
    transformer = transformer_at(place, dtype, allow_pickle=pickles, take=take)
    return Pipeline(transformer.eval().requires_grad_(False), vae, norm, text, recipe, name)


def load_vae_of(
    place: Place, dtype: torch.dtype = torch.float32, *, allow_pickle: bool = False
) -> tuple[CausalVideoVae, LatentNorm]:
    """The VAE of a model, in evaluation mode, and how the model normalises its latents. Raises UserError."""
    name, config, _ = read_outline(place)
    norm = RELEASED_NORMS["flux" if isinstance(config, FluxConfig) else "mmdit"]
    own = name == TRANSFORMER and not place.is_sd3  # a folder of ours has a normalisation of its own
    return load_vae(place.vae, None if own else norm, dtype, allow_pickle=allow_pickle)


def load_text(folder: Path, dtype: torch.dtype, *, allow_pickle: bool = False) -> TextEncoder | PublicTextEncoder:
    """The text encoders of a model folder, frozen; public ones in ``dtype``. Raises UserError."""
    if (folder / "text_encoder_2").is_dir():
        return PublicTextEncoder.load(folder, dtype, allow_pickle=allow_pickle)
    return TextEncoder.load(folder).eval().requires_grad_(False)


def copy_text(source: Path, folder: Path, *, allow_pickle: bool = False) -> None:
    """Give a model folder the text encoders of another, file by file, so that both are known to have the same ones.

    Pickled ones are read and written as safetensors. Raises UserError where there are none.
    """
    encoders = sorted(source.glob("text_encoder*"))
    if not encoders:
        raise UserError(f"{source} has no text_encoder*/ any more: put the model back there")
    if not all(any(encoder.glob("*.safetensors")) for encoder in encoders):
        load_text(source, torch.float32, allow_pickle=allow_pickle).save(folder)
        return
    for path in (path for part in (*encoders, *source.glob("tokenizer*")) for path in part.rglob("*")):
        if path.is_file():
            copy = folder / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)  # without its mode: the source may be read-only


def transformer_at(
    place: Place, dtype: torch.dtype = torch.float32, *, allow_pickle: bool = False, take: Take = keep
) -> Transformer:
    """The transformer of a model, converted where it is SD3's, with its adapters merged into its weights.

    Where nothing has to be done to it, it is read piece by piece; ``take`` is given each in any case.
    """
    if not place.is_sd3 and not place.adapters:
        return load_transformer(place.transformer, dtype, allow_pickle=allow_pickle, take=take)
    if place.is_sd3:
        config = sd3.load_config(place.transformer)
        with torch.device("meta"):
            transformer: Transformer = MMDiT(config)
        transformer.load_state_dict(sd3.load_weights(place.transformer, config, dtype), assign=True)
    else:
        transformer = load_transformer(place.transformer, dtype, allow_pickle=allow_pickle)
    for adapter in place.adapters:
        transformer = lora.merged(transformer, adapter)
    for _, piece in pieces(transformer):
        take(piece)
    return transformer


def load_transformer(
    folder: str | Path, dtype: torch.dtype = torch.float32, *, allow_pickle: bool = False, take: Take = keep
) -> Transformer:
    """The transformer of a folder with config.json and weights. Raises UserError for keys that do not fit.

    It is read piece by piece; ``take`` is given each, and may leave only a part of it in memory.
    """
    folder = Path(folder)
    with torch.device("meta"):
        transformer = build_transformer(_read_config(folder, f"{folder} holds no transformer: no {CONFIG_FILE}"))
    with opened_weights(folder, allow_pickle=allow_pickle) as weights:
        check_keys(transformer, weights, str(folder))
        for name, piece in pieces(transformer):
            of_piece = {inside: weights[f"{name}.{inside}"].read().to(dtype) for inside in piece.state_dict()}
            piece.load_state_dict(of_piece, assign=True)
            piece.requires_grad_(True)
            del of_piece
            take(piece)
    return transformer


def save_pipeline(
    pipeline: Pipeline,
    folder: str | Path,
    dtype: torch.dtype | None = None,
    save_text: Callable[[Path], None] | None = None,
) -> None:
    """Write a model folder that `load_pipeline` reads, weights of transformer and VAE as they are or in ``dtype``.

    ``save_text`` writes the text encoders where it is given, in place of those of the pipeline.

    The VAE is not rounded to bfloat16: its fingerprint, which encoded clips carry, would be another one.

    A folder under that name is always whole; one that is already there is replaced.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as partial:
        partial.mkdir()
        save_transformer(pipeline.transformer, partial / pipeline.variant, dtype)
        save_vae(partial / VAE, pipeline.vae, pipeline.latent_norm, None if dtype is torch.bfloat16 else dtype)
        (save_text or pipeline.text.save)(partial)
        write_json(partial / RECIPE, pipeline.recipe.model_dump(mode="json"))


def save_transformer(transformer: Transformer, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write config.json and weights of one transformer."""
    save_weights(transformer, folder, dtype)
    write_json(Path(folder) / CONFIG_FILE, transformer.config.to_public())


def _read_config(folder: Path, absent: str) -> AnyTransformerConfig:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(absent)
    try:
        return read_transformer_config(read_json(path))
    except ValidationError as error:
        raise UserError(f"{path}: {describe(error)}") from None


def read_outline(place: Place) -> tuple[str, AnyTransformerConfig, Recipe]:
    """As `read_shape`, of any model."""
    if place.is_sd3:
        return TRANSFORMER, sd3.load_config(place.transformer), RELEASED
    return read_shape(place.folder, place.transformer.name)


def read_shape(folder: Path, variant: str | None = None) -> tuple[str, AnyTransformerConfig, Recipe]:
    """Name and shape of a folder's transformer, and the recipe for it. Raises UserError for what is not whole."""
    name = transformer_folder(folder, variant)
    config = _read_config(folder / name, f"{folder} is not a whole model: {name}/{CONFIG_FILE} is missing")
    return name, config, _read_recipe(folder, name)


def _read_recipe(folder: Path, name: str) -> Recipe:
    """A folder's own recipe, or that of the public variant whose transformer has this name."""
    path = folder / RECIPE
    if not path.is_file():
        if name not in VARIANTS:
            raise UserError(f"{folder} is not a whole model: {RECIPE} is missing")
        return VARIANTS[name]
    try:
        return Recipe.model_validate(read_json(path))
    except ValidationError as error:
        raise UserError(f"{path}: {describe(error, Recipe)}") from None
