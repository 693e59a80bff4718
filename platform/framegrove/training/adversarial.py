"""The adversarial term of the VAE's loss: a discriminator that judges patches of a video, in space and time.

Its outputs are scores of overlapping patches (Isola et al. 2017, "Image-to-Image Translation with Conditional
Adversarial Networks", section 3.2), in three dimensions. It learns by the hinge loss (Lim and Ye 2017, "Geometric
GAN"), and what it thinks is weighed against the reconstruction (Esser et al. 2021, "Taming Transformers", eq. 7).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SLOPE = 0.2  # of the leaky ReLUs, as in Isola et al.
_GROUP = 4  # channels that are normalised together
_DELTA, _MOST = 1e-4, 1e4  # as released by Esser et al.


class PatchDiscriminator(nn.Module):
    """Scores of a video's patches: high where they look real. Three halvings in space, two in time."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        kernel, padding = (3, 4, 4), 1
        self.layers = nn.Sequential(
            nn.Conv3d(channels, width, kernel, (1, 2, 2), padding),
            nn.LeakyReLU(_SLOPE),
            nn.Conv3d(width, 2 * width, kernel, 2, padding),
            nn.GroupNorm(2 * width // _GROUP, 2 * width),
            nn.LeakyReLU(_SLOPE),
            nn.Conv3d(2 * width, 4 * width, kernel, 2, padding),
            nn.GroupNorm(4 * width // _GROUP, 4 * width),
            nn.LeakyReLU(_SLOPE),
            nn.Conv3d(4 * width, 1, 3, padding=1),
        )

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """(B, 1, t, h, w) scores of a video in [-1, 1]."""
        scores: Tensor = self.layers(video_BCTHW)
        return scores


class Discriminator:
    """A discriminator and the optimizer that it learns by."""

    def __init__(self, channels: int, width: int, learning_rate: float, device: torch.device) -> None:
        self.network = PatchDiscriminator(channels, width).to(device)
        self.adamw = torch.optim.AdamW(self.network.parameters(), learning_rate, betas=(0.5, 0.9), weight_decay=0.0)

    def verdict(self, made_BCTHW: Tensor) -> Tensor:
        """The generator's loss for what it made; gradients go through the network."""
        return generator_loss(self.network(made_BCTHW).float())

    def learn(self, real_BCTHW: Tensor, made_BCTHW: Tensor) -> Tensor:
        """One step on real videos and on those that were made, without gradients for whoever made them; its loss."""
        loss = discriminator_loss(self.network(real_BCTHW).float(), self.network(made_BCTHW.detach()).float())
        self.network.zero_grad(set_to_none=True)  # of what `verdict` left
        loss.backward()
        self.adamw.step()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """All that it takes to go on bit for bit."""
        return {"network": self.network.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.network.load_state_dict(state["network"])
        self.adamw.load_state_dict(state["adamw"])


def discriminator_loss(real: Tensor, made: Tensor) -> Tensor:
    """E max(0, 1 - D(x)) + E max(0, 1 + D(G(x))): scores beyond 1 and -1 are good enough."""
    return F.relu(1 - real).mean() + F.relu(1 + made).mean()


def generator_loss(made: Tensor) -> Tensor:
    """-E D(G(x))."""
    return -made.mean()


def balance(reconstruction: Tensor, adversarial: Tensor, last: Tensor) -> Tensor:
    """How much the adversarial term must count to move the decoder's ``last`` weights as the reconstruction does.

    |gradient of the reconstruction| / (|gradient of the adversarial term| + 1e-4), at most 1e4 (eq. 7).
    """
    (wanted,), (given,) = (torch.autograd.grad(term, last, retain_graph=True) for term in (reconstruction, adversarial))
    return (wanted.norm() / (given.norm() + _DELTA)).clamp(max=_MOST).detach()
