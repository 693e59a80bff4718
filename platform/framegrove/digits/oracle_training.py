"""Training of the oracle's digit network, on crops that the oracle's own segmentation cuts out of training clips."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from framegrove.digits import world
from framegrove.digits.oracle import CROP, REJECT, DigitNetwork, DigitsOracle, centroids, crops, segment

CLIPS = 5000
BATCH = 128
_LEARNING_RATE = 3e-3


def train_oracle(
    seed: int,
    steps: int,
    on_clips: Callable[[int], None] = lambda _: None,
    on_step: Callable[[int, float], None] = lambda _step, _loss: None,
) -> DigitNetwork:
    """A new network, trained for ``steps`` optimizer steps of BATCH crops each; a pure function of seed and steps.

    ``on_clips(done)`` is called after each of CLIPS clips is cut into crops, ``on_step(step, loss)`` after each step.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    images, labels = _training_crops(seed, on_clips)
    network = DigitNetwork()
    optimizer = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=1e-2)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = _LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
        chosen = torch.randint(len(images), (BATCH,), generator=generator)
        inputs, targets = _augment(images[chosen], labels[chosen], generator)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(inputs)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=0.02)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        on_step(step + 1, float(loss.detach()))
    return network.eval()


def accuracy(oracle: DigitsOracle, *, seed: int, clips: int, digits_shown: int) -> dict[str, float]:
    """What the oracle reads correctly in ``clips`` true clips of held-out scans, as shares.

    Of all objects, their ``digit``, ``colour`` and ``motion``; of all clips, those in which ``all`` is right.
    """
    right = {"digit": 0, "colour": 0, "motion": 0, "all": 0}
    objects = 0
    for index in range(clips):
        clip = world.clip(seed, index, split="heldout", digits=digits_shown)
        verdict = oracle.judge(clip.frames, clip.objects)
        seen = {reading.colour: reading for reading in verdict.readings}
        right["all"] += verdict.fully_right
        for asked in clip.objects:
            objects += 1
            reading = seen.get(asked.colour)
            right["colour"] += reading is not None
            right["digit"] += reading is not None and reading.digit == asked.digit
            right["motion"] += reading is not None and reading.motion == asked.motion
    return {name: count / (clips if name == "all" else objects) for name, count in right.items()}


def _training_crops(seed: int, on_clips: Callable[[int], None]) -> tuple[Tensor, Tensor]:
    """Ink crops (N, 28, 28) in [0, 1], of every fourth frame of CLIPS clips, and their digits."""
    images: list[np.ndarray] = []
    labels: list[int] = []
    for index in range(CLIPS):
        # Two small digits are harder to read than a large one: three clips in four show two.
        clip = world.clip(seed, index, units=2, digits=1 if index % 4 == 0 else 2)
        found = segment(clip.frames)
        for shown in clip.objects:
            if shown.colour in found:
                ink = found[shown.colour][::4]
                cut = crops(ink, centroids(ink))
                images.extend(cut)
                labels.extend([shown.digit] * len(cut))
        on_clips(index + 1)
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


def _augment(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Small warps, blur and noise for all crops; a sixth is also blended with others, mostly into the reject class."""
    count = len(images)
    spoil = torch.rand(count, generator=generator) < 0.17
    blended, is_blend = _blend(images, labels, generator)
    images = torch.where(spoil[:, None, None], blended, images)
    labels = torch.where(spoil & is_blend, torch.full_like(labels, REJECT), labels)
    images = _warp(images, generator)
    images = _blur(images, generator)
    noise = torch.randn(images.shape, generator=generator) * (0.08 * torch.rand(count, 1, 1, generator=generator))
    gain = 0.75 + 0.35 * torch.rand(count, 1, 1, generator=generator)
    return (images * gain + noise).clamp(0, 1), labels


def _blend(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each crop joined or averaged with another one, and a mask of the results that are of two different digits."""
    order = torch.randperm(len(images), generator=generator)
    other = images[order]
    kind = torch.rand(len(images), 1, 1, generator=generator)
    cut = (CROP * (0.4 + 0.2 * torch.rand(len(images), 1, 1, generator=generator))).long()
    grid = torch.arange(CROP)
    top_bottom = torch.where(grid[None, :, None] < cut, images, other)
    left_right = torch.where(grid[None, None, :] < cut, images, other)
    share = 0.4 + 0.2 * torch.rand(len(images), 1, 1, generator=generator)
    average = (share * images + (1 - share) * other) * 1.3
    blended = torch.where(kind < 0.35, top_bottom, torch.where(kind < 0.6, left_right, average)).clamp(0, 1)
    return blended, labels != labels[order]


def _warp(images: Tensor, generator: torch.Generator) -> Tensor:
    """A small random rotation, scaling, shear, shift and elastic deformation of each crop."""
    count = len(images)

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    angle, scale, shear = draw(-0.15, 0.15), draw(0.88, 1.15), draw(-0.1, 0.1)
    matrix = torch.stack(
        [
            torch.stack([angle.cos() * scale, -angle.sin() * scale + shear, draw(-0.14, 0.14)], -1),
            torch.stack([angle.sin() * scale, angle.cos() * scale, draw(-0.14, 0.14)], -1),
        ],
        dim=1,
    )
    grid = F.affine_grid(matrix, [count, 1, CROP, CROP], align_corners=False)
    bend = F.interpolate(0.04 * torch.randn(count, 2, 4, 4, generator=generator), CROP, mode="bicubic")
    return F.grid_sample(images[:, None], grid + bend.permute(0, 2, 3, 1), align_corners=False)[:, 0]


def _blur(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur one half of a batch by a Gaussian of up to 1.2 px, as the VAE's decoder blurs, and leave the other half."""
    sigma = 0.05 + 1.15 * float(torch.rand((), generator=generator))
    reach = torch.arange(-3, 4, dtype=torch.float32)
    kernel = torch.exp(-(reach**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    half = len(images) // 2
    soft = F.conv2d(images[:half, None], kernel.view(1, 1, 1, 7), padding=(0, 3))
    soft = F.conv2d(soft, kernel.view(1, 1, 7, 1), padding=(3, 0))[:, 0]
    return torch.cat([soft, images[half:]])
