"""Model folders: everything a video is made with, in the layout of public checkpoints.

    DIR/diffusion_transformer/{config.json, diffusion_pytorch_model.safetensors}
    DIR/causal_video_vae/...     DIR/text_encoder/...     DIR/tokenizer/...
    DIR/framegrove.json          the recipe: pyramid, guidance, steps, native size

Weights are read from safetensors alone; no pickle is opened.
"""

from __future__ import annotations

import difflib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from framegrove.config.model import Recipe, TransformerConfig
from framegrove.models.mmdit import MMDiT
from framegrove.models.text import TextEncoder
from framegrove.models.vae import CausalVideoVae
from framegrove.models.vae_files import LatentNorm, load_vae, save_vae

TRANSFORMER, VAE, RECIPE = "diffusion_transformer", "causal_video_vae", "framegrove.json"
_CONFIG, _WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True, eq=False)
class Pipeline:
    """A whole generator: prompts to latents to pixels, and the recipe it is sampled with."""

    transformer: MMDiT
    vae: CausalVideoVae
    latent_norm: LatentNorm
    text: TextEncoder
    recipe: Recipe

    def to(self, device: torch.device | str) -> Pipeline:
        """Move all weights, in place."""
        for module in (self.transformer, self.vae, self.text):
            module.to(device)
        return self


def embedded_model() -> Path:
    """The folder of the model of the digits world that is shipped with the package."""
    return Path(str(resources.files("framegrove") / "assets" / "digits"))


def load_pipeline(folder: str | Path | None = None, dtype: torch.dtype = torch.float32) -> Pipeline:
    """Read a model folder (absent: the embedded model), in evaluation mode, the transformer's weights in ``dtype``.

    Raises ValueError, in one line, for what is missing or does not fit.
    """
    folder = embedded_model() if folder is None else Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no model folder at {folder}: give a folder that holds {TRANSFORMER}/, {VAE}/ and {RECIPE}")
    for name in (RECIPE, f"{TRANSFORMER}/{_CONFIG}", f"{TRANSFORMER}/{_WEIGHTS}"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is not a whole model: {name} is missing")
    recipe = _read_recipe(folder / RECIPE)
    vae, norm = load_vae(folder / VAE)
    text = TextEncoder.load(folder).eval().requires_grad_(False)
    transformer = load_transformer(folder / TRANSFORMER, dtype)
    return Pipeline(transformer.eval().requires_grad_(False), vae, norm, text, recipe)


def load_transformer(folder: str | Path, dtype: torch.dtype = torch.float32) -> MMDiT:
    """The transformer of a folder with config.json and weights. Raises ValueError for keys that do not fit."""
    folder = Path(folder)
    try:
        config = TransformerConfig.from_public(_json(folder / _CONFIG))
    except ValidationError as error:
        raise ValueError(f"{folder / _CONFIG}: {_first_problem(error)}") from None
    with torch.device("meta"):
        transformer = MMDiT(config)
    weights = {name: tensor.to(dtype) for name, tensor in _tensors(folder / _WEIGHTS).items()}
    check_keys(transformer, weights, str(folder / _WEIGHTS))
    transformer.load_state_dict(weights, assign=True)
    for parameter in transformer.parameters():
        parameter.requires_grad_(True)
    return transformer


def save_pipeline(pipeline: Pipeline, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a model folder that `load_pipeline` reads, weights of transformer and VAE rounded to ``dtype``.

    It is written beside its final name and then renamed, so that a folder under that name is always whole; a folder
    already there is replaced.
    """
    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_transformer(pipeline.transformer, partial / TRANSFORMER, dtype)
    save_vae(partial / VAE, pipeline.vae, pipeline.latent_norm, dtype)
    pipeline.text.save(partial)
    _write_json(partial / RECIPE, pipeline.recipe.model_dump(mode="json"))
    replaced = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    partial.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def save_transformer(transformer: MMDiT, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write config.json and weights of one transformer."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: t.detach().to("cpu", dtype).contiguous() for name, t in transformer.state_dict().items()}
    save_file(state, folder / _WEIGHTS)
    _write_json(
        folder / _CONFIG, {"_class_name": "PyramidDiffusionMMDiT", **transformer.config.model_dump(mode="json")}
    )


def check_keys(module: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Raise ValueError, in one line, when names or shapes differ from what the module needs."""
    needed = module.state_dict()
    missing = [name for name in needed if name not in weights]
    unexpected = [name for name in weights if name not in needed]
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing keys: {_named(missing, unexpected)}")
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected keys: {_named(unexpected, missing)}")
    for name, tensor in weights.items():
        if name in needed and tensor.shape != needed[name].shape:
            problems.append(f"{name} has shape {tuple(tensor.shape)}, config.json asks for {tuple(needed[name].shape)}")
            break
    if problems:
        raise ValueError(f"{where} does not fit its config.json: {'; '.join(problems)}")


def _named(names: Sequence[str], others: Sequence[str], shown: int = 4) -> str:
    """A few names, each with the nearest one on the other side."""
    parts = []
    for name in names[:shown]:
        near = difflib.get_close_matches(name, others, n=1)
        parts.append(f"{name} (nearest: {near[0]})" if near else name)
    return ", ".join(parts) + (", ..." if len(names) > shown else "")


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}): download or write it again") from None


def _read_recipe(path: Path) -> Recipe:
    try:
        return Recipe.model_validate(_json(path))
    except ValidationError as error:
        raise ValueError(f"{path}: {_first_problem(error)}") from None


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(map(str, problem["loc"]))
    return f"{where + ': ' if where else ''}{problem['msg'].removeprefix('Value error, ')}"


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(data).__name__}")
    return data


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
