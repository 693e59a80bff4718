"""Training of the teacher's network, on the held-out scans: sound digits, and strokes that are none.

Every step draws its digits anew from the scans, bent, blurred, faint and noisy as generated ones are. Two in five are
spoilt: two digits blended, joined or drawn over one another, a part rubbed out, strokes bent out of shape, a blob.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from framegrove.digits import world
from framegrove.digits.teacher import MALFORMED, Teacher, TeacherNetwork, normalised
from framegrove.files import replacing

BATCH = 192
_CANVAS = 40  # px; room for a digit of 28 px that is turned and scaled
_LEARNING_RATE = 2e-3
_SPOILT = 0.38
OnStep = Callable[[int, int, float], None]  # step, steps, loss


def taught(kept_in: Path, *, seed: int = 7, steps: int = 900, on_step: OnStep = lambda *_: None) -> Teacher:
    """The teacher, from the file ``kept_in`` if it is there; else trained, in about four minutes, and kept there."""
    network = TeacherNetwork()
    if not kept_in.exists():
        network = train_teacher(seed, steps, on_step=on_step)
        with replacing(kept_in) as partial:
            save_file(network.state_dict(), partial)
    network.load_state_dict(load_file(kept_in))
    return Teacher(network)


def train_teacher(seed: int, steps: int, batch: int = BATCH, on_step: OnStep = lambda *_: None) -> TeacherNetwork:
    """A network trained for ``steps`` steps of ``batch`` digits; a pure function of its arguments."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = TeacherNetwork()
    random = torch.Generator().manual_seed(seed)
    digits_NHW, labels_N = _digits()
    optimizer = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=2e-2)
    for step in range(steps):
        warm = min(1.0, (step + 1) / 50)
        optimizer.param_groups[0]["lr"] = _LEARNING_RATE * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        images, targets = drawn(digits_NHW, labels_N, batch, random)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(images)
        loss = functional.cross_entropy(logits.float(), targets, label_smoothing=0.03)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        on_step(step + 1, steps, float(loss.detach()))
    return network.eval()


def drawn(digits_NHW: Tensor, labels_N: Tensor, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """``count`` normalised crops (.., 24, 24) and their classes."""
    chosen = torch.randint(len(digits_NHW), (count,), generator=random)
    others = torch.randint(len(digits_NHW), (count,), generator=random)
    sound, labels = _bent(digits_NHW[chosen], 0.035, random), labels_N[chosen]
    other = _bent(digits_NHW[others], 0.035, random)
    spoil = torch.rand(count, generator=random) < _SPOILT
    spoilt, is_none = _spoilt(sound, other, labels, labels_N[others], random)
    images = torch.where(spoil[:, None, None], spoilt, sound)
    labels = torch.where(spoil & is_none, torch.full_like(labels, MALFORMED), labels)
    return normalised(_weathered(images, random)), labels


def _digits() -> tuple[Tensor, Tensor]:
    """Every held-out scan in the sizes of the world, on a canvas (N, 40, 40), and its digit."""
    images, labels = [], []
    for digit in world.DIGITS:
        for scan in world.scans_of(digit, "heldout"):
            for side in (world.SINGLE_SIDE, world.PAIR_SIDE, world.PAIR_SIDE):
                canvas = np.zeros((_CANVAS, _CANVAS), np.float32)
                at = (_CANVAS - side) // 2
                canvas[at : at + side, at : at + side] = world.sprite(scan, side)
                images.append(canvas)
                labels.append(digit)
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


def _bent(images: Tensor, elastic: float, random: torch.Generator) -> Tensor:
    """Each image turned, sheared, stretched, shifted and bent at random."""
    count = len(images)

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=random)

    angle, shear, wide, high = between(-0.25, 0.25), between(-0.25, 0.25), between(0.8, 1.25), between(0.8, 1.25)
    rows = [
        torch.stack([angle.cos() * wide, shear - angle.sin() * high, between(-0.1, 0.1)], -1),
        torch.stack([angle.sin() * wide, angle.cos() * high, between(-0.1, 0.1)], -1),
    ]
    grid = functional.affine_grid(torch.stack(rows, 1), [count, 1, _CANVAS, _CANVAS], align_corners=False)
    waves = elastic * torch.randn(count, 2, 5, 5, generator=random)
    bend = functional.interpolate(waves, _CANVAS, mode="bicubic").permute(0, 2, 3, 1)
    moved: Tensor = functional.grid_sample(images[:, None], grid + bend, align_corners=False)[:, 0]
    return moved


def _spoilt(
    own: Tensor, other: Tensor, labels: Tensor, other_labels: Tensor, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Each digit spoilt in one of seven ways, and whether what is left is no digit."""
    count = len(own)

    def each(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, generator=random)

    differ = labels != other_labels
    at = torch.arange(_CANVAS, dtype=torch.float32)
    cut = _CANVAS * each(0.42, 0.58)
    slope = each(-0.4, 0.4)
    flat, upright = at[None, :, None], at[None, None, :]
    above = (flat + slope * (upright - _CANVAS / 2)) < cut
    left = (upright + slope * (flat - _CANVAS / 2)) < cut
    share = each(0.38, 0.62)
    ways = [
        (((share * own + (1 - share) * other) * 1.5 - 0.15).clamp(0, 1), differ),  # neither of two
        (torch.where(above, own, other), differ),
        (torch.where(left, own, other), differ),
        (torch.maximum(own, other), differ),  # both at once
        _rubbed_out(own, labels, random),
        (_bent(own, 0.16, random), torch.ones_like(differ)),
        (_blob(own), torch.ones_like(differ)),
    ]
    odds = torch.tensor([0.28, 0.13, 0.13, 0.1, 0.2, 0.12, 0.04])
    way = torch.multinomial(odds, count, replacement=True, generator=random)
    images = torch.stack([image for image, _ in ways])[way, torch.arange(count)]
    none = torch.stack([is_none for _, is_none in ways])[way, torch.arange(count)]
    return images, none


def _rubbed_out(own: Tensor, labels: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """A round part rubbed out, and whether enough is gone: of a one, what is left is a one."""
    count = len(own)
    middle = 11 + 18 * torch.rand(count, 2, generator=random)
    radius = 5 + 4 * torch.rand(count, 1, 1, generator=random)
    at = torch.arange(_CANVAS, dtype=torch.float32)
    away = (at[None, :, None] - middle[:, :1, None]) ** 2 + (at[None, None, :] - middle[:, 1:, None]) ** 2
    left = own * (away > radius**2)
    gone = 1 - left.sum((1, 2)) / own.sum((1, 2)).clamp_min(1e-3)
    return torch.where((gone > 0.28)[:, None, None], left, own), (gone > 0.28) & (labels != 1)


def _blob(images: Tensor) -> Tensor:
    soft = _blurred(images, 3.0)
    return (soft / soft.amax((1, 2), keepdim=True).clamp_min(1e-3) * 1.6 - 0.4).clamp(0, 1)


def _weathered(images: Tensor, random: torch.Generator) -> Tensor:
    """Soft, faint and mottled as a decoder leaves them; what is too dark to be seen as ink is gone."""
    count = len(images)
    third = count // 3
    soft = _blurred(images[:third], 0.4 + 0.9 * float(torch.rand((), generator=random)))
    images = torch.cat([soft, images[third:]])
    gain = 0.7 + 0.4 * torch.rand(count, 1, 1, generator=random)
    grain = functional.interpolate(torch.randn(count, 1, 10, 10, generator=random), _CANVAS, mode="bilinear")[:, 0]
    mottled = images * (1 + 0.25 * torch.rand(count, 1, 1, generator=random) * grain)
    noisy = mottled + 0.05 * torch.rand(count, 1, 1, generator=random) * torch.randn(images.shape, generator=random)
    seen = (noisy * gain).clamp(0, 1)
    return torch.where(seen >= 0.25, seen, 0.0)


def _blurred(images: Tensor, sigma: float) -> Tensor:
    at = torch.arange(_CANVAS, dtype=torch.float32)
    weights = torch.exp(-0.5 * ((at[:, None] - at[None]) / sigma) ** 2)
    weights = torch.where(weights > 1e-5, weights, 0.0)
    weights = weights / weights.sum(1, keepdim=True)
    return weights @ images @ weights.T
