"""The perceptual term of the VAE's loss: a distance between features of a frozen network.

Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (LPIPS), eq. 1:

    d(x, y) = sum over layers l of the mean over places p of sum over channels c of w_lc (u_lpc(x) - u_lpc(y))^2

where u are features of unit length along the channels, and w is 1 unless the weights that LPIPS learned are given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from framegrove.errors import UserError
from framegrove.models.vae import CausalVideoVae, fold_patches
from framegrove.models.vae_files import read_vae

_EPS = 1e-10
# VGG16 as torchvision numbers its convolutions; LPIPS reads the last of each group, and halves between them.
_GROUPS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # LPIPS', of pixels in [-1, 1]

# Features of a video BCTHW in [-1, 1], layer by layer, channels on the second axis.
Features = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True, eq=False)
class Perception:
    """The distance by the features of one network; ``weights`` of a layer's channels, or None where all count alike."""

    features: Features
    weights: tuple[Tensor, ...] | None = None

    def __call__(self, video_BCTHW: Tensor, other_BCTHW: Tensor) -> Tensor:
        """The mean distance between two videos, differentiable with respect to the first."""
        with torch.no_grad():
            fixed = self.features(other_BCTHW)
        return distance(self.features(video_BCTHW), fixed, self.weights)


def distance(mine: Sequence[Tensor], theirs: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> Tensor:
    """The sum over layers of the mean over places of the weighed squared differences of unit vectors (eq. 1)."""
    total = torch.zeros((), device=mine[0].device)
    for layer, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        square = (_unit(a.float()) - _unit(b.float())).square()
        if weights is not None:
            square = square * weights[layer].view(1, -1, *[1] * (square.ndim - 2))
        total = total + square.sum(dim=1).mean()
    return total


def load_perception(path: str, device: torch.device, *, allow_pickle: bool = False) -> Perception:
    """The distance by a VAE's encoder (its folder) or by VGG16 (a safetensors file). Raises UserError."""
    place = Path(path)
    if place.is_dir():
        return Perception(encoder_features(read_vae(place, allow_pickle=allow_pickle).to(device)))
    try:
        weights = {name: value.float().to(device) for name, value in load_file(place).items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"features: {path} is neither a VAE's folder nor a safetensors file ({error})") from None
    names = [f"features.{index}.{kind}" for group in _GROUPS for index in group for kind in ("weight", "bias")]
    missing = [name for name in names if name not in weights]
    if missing:
        raise UserError(f"features: {path} does not hold VGG16, as torchvision names it: {missing[0]} is missing")
    learned = [f"lin{layer}.model.1.weight" for layer in range(len(_GROUPS))]
    given = tuple(weights[name].flatten() for name in learned if name in weights)
    if given and len(given) < len(learned):
        raise UserError(f"features: {path} holds some of LPIPS' weights, but not all of {', '.join(learned)}")
    return Perception(vgg_features(weights), given or None)


def encoder_features(vae: CausalVideoVae) -> Features:
    """Features of a VAE's frozen encoder: what each of its blocks gives, from fine to coarse."""
    encoder = vae.requires_grad_(False).encoder

    def features(video_BCTHW: Tensor) -> list[Tensor]:
        x = encoder.conv_in(fold_patches(video_BCTHW, encoder.patch), None)
        found = []
        for block in encoder.down_blocks:
            x = block(x, None)
            found.append(x)
        return found

    return features


def vgg_features(weights: dict[str, Tensor]) -> Features:
    """Features of VGG16 (Simonyan and Zisserman 2014, configuration D), frame by frame."""

    def features(video_BCTHW: Tensor) -> list[Tensor]:
        x = video_BCTHW.transpose(1, 2).flatten(0, 1)
        shift, scale = (x.new_tensor(values).view(1, 3, 1, 1) for values in (_SHIFT, _SCALE))
        x = (x - shift) / scale
        found = []
        for number, group in enumerate(_GROUPS):
            x = F.max_pool2d(x, 2) if number else x
            for index in group:
                x = F.relu(
                    F.conv2d(x, weights[f"features.{index}.weight"], weights[f"features.{index}.bias"], padding=1)
                )
            found.append(x)
        return found

    return features


def _unit(x: Tensor) -> Tensor:
    """Of unit length along the channels, where it is not zero."""
    return x / (x.square().sum(dim=1, keepdim=True) + _EPS).sqrt()
