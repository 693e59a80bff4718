"""A VAE folder as in public checkpoints, with the normalisation of its latents in one more file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from framegrove.config.base import describe
from framegrove.config.vae import VaeConfig
from framegrove.errors import UserError
from framegrove.models.files import CONFIG_FILE, check_keys, read_json, read_weights, save_weights, write_json
from framegrove.models.vae import CausalVideoVae

NORM_FILE = "latent_norm.json"

# Keys that no public configuration sets otherwise. Another value would mean another network under the same names.
_ONLY = {"encoder_act_fn": "silu", "decoder_act_fn": "silu", "interpolate": False}


@dataclass(frozen=True)
class Affine:
    """x = (z - shift) * scale; ``shift`` has one value, or one for each channel."""

    shift: tuple[float, ...]
    scale: float

    def forward(self, z: Tensor) -> Tensor:
        return (z - self._shift(z)) * self.scale

    def inverse(self, x: Tensor) -> Tensor:
        return x / self.scale + self._shift(x)

    def _shift(self, like: Tensor) -> Tensor:
        return torch.tensor(self.shift, dtype=like.dtype, device=like.device).view(-1, 1, 1, 1)


@dataclass(frozen=True)
class LatentNorm:
    """Turns the VAE's latents into what the transformer sees: unit 0 is scaled as an image, later units as video."""

    image: Affine
    video: Affine

    def normalise(self, latent_CTHW: Tensor, first_unit_index: int = 0) -> Tensor:
        """Latents (a batch dimension in front is fine) whose first unit has this index in its clip, normalised."""
        return self._apply(latent_CTHW, first_unit_index, Affine.forward)

    def denormalise(self, latent_CTHW: Tensor, first_unit_index: int = 0) -> Tensor:
        """The inverse of `normalise`; a new tensor, the argument is left as it is."""
        return self._apply(latent_CTHW, first_unit_index, Affine.inverse)

    def _apply(self, latent: Tensor, first_unit_index: int, direction: Any) -> Tensor:
        if first_unit_index:
            result: Tensor = direction(self.video, latent)
            return result
        first, rest = latent[..., :1, :, :], latent[..., 1:, :, :]
        return torch.cat([direction(self.image, first), direction(self.video, rest)], dim=-3)

    @classmethod
    def measured(cls, image: Tensor, video: Tensor) -> LatentNorm:
        """Mean of each channel, one deviation for all: whitening channels would favour those that do not matter."""
        return cls(_affine_of(image), _affine_of(video))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LatentNorm:
        return cls(*(Affine(tuple(data[kind]["shift"]), data[kind]["scale"]) for kind in ("image", "video")))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _affine_of(latent_BCTHW: Tensor) -> Affine:
    mean = latent_BCTHW.mean(dim=(0, 2, 3, 4))
    deviation = (latent_BCTHW - mean.view(-1, 1, 1, 1)).square().mean().sqrt()
    return Affine(tuple(round(float(m), 6) for m in mean), round(1 / float(deviation), 6))


def to_uint8(video_BCTHW: Tensor) -> Tensor:
    """Frames BTHWC in 0..255 of a decoded video in [-1, 1]; cut off rather than rounded, as released."""
    return video_BCTHW.float().mul(127.5).add(127.5).clamp(0, 255).byte().movedim(1, -1)


def from_uint8(frames_BTHWC: Tensor) -> Tensor:
    """The video BCTHW in [-1, 1] that the VAE encodes, of frames in 0..255."""
    return frames_BTHWC.movedim(-1, 1).float() / 127.5 - 1


def read_vae(folder: str | Path, dtype: torch.dtype = torch.float32, *, allow_pickle: bool = False) -> CausalVideoVae:
    """The VAE of a folder, in ``dtype`` and in evaluation mode. Raises as `load_vae` does."""
    folder = Path(folder)
    _check_there(folder, CONFIG_FILE)
    with torch.device("meta"):  # initial values would be overwritten at once
        vae = CausalVideoVae(read_vae_config(folder))
    weights = read_weights(folder, dtype, allow_pickle=allow_pickle)
    check_keys(vae, weights, str(folder))
    vae.load_state_dict(weights, assign=True)
    return vae.eval().requires_grad_(False)


def load_vae(
    folder: str | Path,
    norm: LatentNorm | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    allow_pickle: bool = False,
) -> tuple[CausalVideoVae, LatentNorm]:
    """The VAE of a folder, in ``dtype`` and in evaluation mode, and its latents' normalisation.

    ``norm`` is used if the folder has none of its own, as public folders do. Raises UserError when a file is missing,
    damaged, or does not fit.
    """
    folder = Path(folder)
    _check_there(folder, CONFIG_FILE)
    if norm is None or (folder / NORM_FILE).is_file():
        _check_there(folder, NORM_FILE)
        norm = _read_norm(folder / NORM_FILE)
    return read_vae(folder, dtype, allow_pickle=allow_pickle), norm


def save_vae(folder: str | Path, vae: CausalVideoVae, norm: LatentNorm, dtype: torch.dtype | None = None) -> None:
    """Write a folder that `load_vae` reads; weights are stored as they are, or rounded to ``dtype`` if it is given."""
    folder = Path(folder)
    save_weights(vae, folder, dtype)
    write_json(folder / CONFIG_FILE, {"_class_name": "CausalVideoVAE", **vae.config.model_dump(mode="json")})
    write_json(folder / NORM_FILE, norm.to_json())


def read_vae_config(folder: str | Path) -> VaeConfig:
    """The architecture described in a folder's ``config.json``; keys that do not affect it are ignored.

    Raises UserError when the file is damaged or describes something this implementation does not support.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        return public_vae_config(read_json(path))
    except ValidationError as error:
        raise UserError(f"{path}: {describe(error, VaeConfig)}") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def public_vae_config(keys: Mapping[str, Any]) -> VaeConfig:
    """The architecture described by a public config.json's keys. Raises UserError for an unsupported value."""
    for key, value in _ONLY.items():
        if keys.get(key, value) != value:
            raise UserError(f"{key} is {keys[key]!r}, only {value!r} is supported")
    return VaeConfig.model_validate({key: value for key, value in keys.items() if key in VaeConfig.model_fields})


def _check_there(folder: Path, name: str) -> None:
    if not (folder / name).is_file():
        raise UserError(f"{folder} is not a VAE folder: {name} is missing")


def _read_norm(path: Path) -> LatentNorm:
    try:
        return LatentNorm.from_json(read_json(path))
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} does not hold shift and scale of image and video ({error})") from None
