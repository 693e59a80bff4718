"""Training the causal video VAE on the digits world: one plain loop, resumable, a pure function of its configuration.

What made the difference for this world (mostly empty frames): most steps train on crops around a digit, pixels near
a digit weigh more, and whole frames come last, so that group norm meets the statistics it will see in use.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from framegrove.config.vae import VaeTrainingConfig
from framegrove.digits import world as digits
from framegrove.errors import UserError
from framegrove.models.vae import CausalVideoVae, Moments
from framegrove.models.vae_files import LatentNorm, save_vae
from framegrove.training.loop import TrainingDiverged
from framegrove.training.muon import Muon

_FRESH = 3  # clips of the pool replaced at every step
_FOREGROUND_LEVEL = 40  # uint8; the background is at most 14


@dataclass(frozen=True)
class Record:
    """One log line. PSNRs (dB, mean over held-out clips, of the averaged weights) only where they were measured."""

    step: int
    seconds: float
    loss: float
    reconstruction: float
    kl: float
    learning_rate: float
    psnr_single: float | None = None
    psnr_pair: float | None = None

    def values(self) -> dict[str, float | int]:
        return {key: value for key, value in asdict(self).items() if value is not None}


def train(config: VaeTrainingConfig, out: Path, on_record: Callable[[Record], None]) -> Record:
    """Train, or resume from ``out/checkpoint.pt``; leaves the finished model in ``out/causal_video_vae``.

    Returns the last record, with PSNRs over ``config.final_clips`` held-out clips of each kind, measured on the
    weights as saved. Raises UserError when the checkpoint belongs to another configuration, TrainingDiverged when
    the loss is not finite.
    """
    out.mkdir(parents=True, exist_ok=True)
    run = _Run.start(config, out / "checkpoint.pt")
    pool = _Pool(config, run.step)
    saved = time.monotonic()
    record: Record | None = None
    while run.step < config.steps:
        record = run.advance(pool)
        if record.step % config.evaluate_every == 0 or record.step == config.steps:
            record = run.evaluated(record, config.evaluate_clips)
        if record.step % config.log_every == 0 or record.psnr_single is not None:
            on_record(record)
        if time.monotonic() - saved > config.checkpoint_seconds or run.step == config.steps:
            run.save(out / "checkpoint.pt")
            saved = time.monotonic()
    return _finish(run, out, record)


def psnr(vae: CausalVideoVae, clips: int, count: int, seed: int = 1) -> float:
    """Mean over ``clips`` held-out clips showing ``count`` digits of each clip's PSNR in dB, frames in [0, 1]."""
    values = []
    for video in _videos(seed, range(clips), "heldout", count):
        with torch.no_grad():
            decoded = vae.decode(vae.encode(video).mean)
        error = (decoded.float().clamp(-1, 1) - video).square().mean(dim=(1, 2, 3, 4)) / 4
        values.append(-10 * torch.log10(error))
    return float(torch.cat(values).mean())


def measure_latent_norm(vae: CausalVideoVae, clips: int, seed: int = 2) -> LatentNorm:
    """Per-channel means and one scale per unit kind, over the means of training clips of both kinds."""
    units: list[Tensor] = []
    with torch.no_grad():
        for count in (1, 2):
            units += [vae.encode(video).mean.double() for video in _videos(seed, range(clips // 2), "train", count)]
    latents = torch.cat(units)
    return LatentNorm.measured(image=latents[:, :, :1], video=latents[:, :, 1:])


def _finish(run: _Run, out: Path, last: Record | None) -> Record:
    """Save the averaged weights in half precision, then measure what was saved."""
    vae = run.averaged
    for parameter in vae.parameters():
        parameter.data = parameter.data.half().float()
    save_vae(out / "causal_video_vae", vae, measure_latent_norm(vae, run.config.norm_clips), dtype=torch.float16)
    last = last or Record(run.step, run.seconds, math.nan, math.nan, math.nan, 0.0)  # resumed after the last step
    return run.evaluated(last, run.config.final_clips)


class _Run:
    """Weights, their average, the optimizer, and how far they have come."""

    def __init__(self, config: VaeTrainingConfig) -> None:
        torch.manual_seed(config.seed)
        self.config, self.step, self.seconds = config, 0, 0.0
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.vae = CausalVideoVae(config.model).to(self.device)
        _quieten(self.vae)
        self.averaged = CausalVideoVae(config.model).to(self.device)
        self.averaged.load_state_dict(self.vae.state_dict())
        self.averaged.requires_grad_(False)
        self.optimizers = _optimizers(self.vae, config)

    @classmethod
    def start(cls, config: VaeTrainingConfig, checkpoint: Path) -> _Run:
        run = cls(config)
        if checkpoint.exists():
            held: dict[str, Any] = torch.load(checkpoint, map_location=run.device, weights_only=True)
            if held["config"] != config.model_dump_json():
                raise UserError(f"{checkpoint} is of another configuration: give another --out, or remove it")
            run.vae.load_state_dict(held["vae"])
            run.averaged.load_state_dict(held["averaged"])
            for optimizer, state in zip(run.optimizers, held["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            run.step, run.seconds = held["step"], held["seconds"]
        return run

    def save(self, path: Path) -> None:
        partial = path.with_suffix(".partial")
        torch.save(
            {
                "config": self.config.model_dump_json(),
                "vae": self.vae.state_dict(),
                "averaged": self.averaged.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "step": self.step,
                "seconds": self.seconds,
            },
            partial,
        )
        os.replace(partial, path)

    def advance(self, pool: _Pool) -> Record:
        """One optimizer step."""
        began = time.monotonic()
        config = self.config
        share = _schedule(config, self.step)
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        video, weight = (x.to(self.device) for x in pool.batch(self.step))
        loss, reconstruction, kl = self._loss(video, weight, generator)
        if not math.isfinite(loss.item()):
            raise TrainingDiverged(f"the loss is {loss.item()} at step {self.step}: lower the learning rates")
        self.vae.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.vae.parameters(), config.gradient_clip)
        for optimizer, peak in zip(self.optimizers, (config.learning_rate, config.matrix_learning_rate), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * share
            optimizer.step()
        self.step += 1
        self._average()
        self.seconds += time.monotonic() - began
        return Record(
            self.step, self.seconds, loss.item(), reconstruction.item(), kl.item(), share * config.learning_rate
        )

    def _loss(self, video: Tensor, weight: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        config = self.config
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.bfloat16):
            half = self.vae.encode(video)
            moments = Moments(half.mean.float(), half.logvar.float())
            decoded = self.vae.decode(moments.sample(generator))
        error = decoded.float() - video
        reconstruction = (weight * (config.l1 * error.abs() + config.mse * error.square())).mean()
        kl = moments.kl().mean()
        return reconstruction + config.kl * kl, reconstruction, kl

    def _average(self) -> None:
        """Exponential average, shorter in the first steps, when old weights are worth nothing."""
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.parameters()), list(self.vae.parameters()), 1 - decay)

    def evaluated(self, record: Record, clips: int) -> Record:
        values = record.values() | {
            "psnr_single": psnr(self.averaged, clips, 1),
            "psnr_pair": psnr(self.averaged, clips, 2),
        }
        return Record(**values)  # type: ignore[arg-type]


def _quieten(vae: CausalVideoVae) -> None:
    """Start with a narrow posterior: at deviation 1 the decoder would see noise alone and learn to ignore it."""
    logvar = slice(vae.config.encoder_out_channels, None)
    bias = vae.quant_conv.conv.bias
    assert bias is not None
    with torch.no_grad():
        vae.quant_conv.conv.weight[logvar] = 0.0
        bias[logvar] = -6.0


def _optimizers(vae: CausalVideoVae, config: VaeTrainingConfig) -> tuple[torch.optim.Optimizer, ...]:
    """AdamW for what enters and leaves the network and for vectors, Muon for the weights in between."""
    outer = ("encoder.conv_in.", "decoder.conv_out.")
    matrices = [p for name, p in vae.named_parameters() if p.ndim > 1 and not name.startswith(outer)]
    known = {id(p) for p in matrices}
    others = [p for p in vae.parameters() if id(p) not in known]
    adamw = torch.optim.AdamW(others, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    return adamw, Muon(matrices)


def _schedule(config: VaeTrainingConfig, step: int) -> float:
    """Share of the peak learning rates: linear warm-up, then half a cosine down to a fiftieth."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


class _Pool:
    """A window over the endless sequence of clips; it moves on at every step, on which alone its content depends."""

    def __init__(self, config: VaeTrainingConfig, step: int) -> None:
        self.config = config
        first = _FRESH * step
        self.clips = {index % config.pool: self._render(index) for index in range(first, first + config.pool)}

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Video BCTHW in [-1, 1] and the weight B1THW of each pixel; moves the window on to the next step."""
        config = self.config
        rng = np.random.default_rng([config.seed, step])
        whole = step >= config.full_from * config.steps or rng.random() < config.full_share
        count, side = (config.full_batch, digits.SIZE) if whole else (config.batch, config.crop)
        chosen = [self.clips[int(slot)] for slot in rng.choice(config.pool, count, replace=False)]
        frames = torch.from_numpy(np.stack([_crop(clip, side, rng) for clip in chosen]))
        newest = config.pool + _FRESH * step
        for index in range(newest, newest + _FRESH):
            self.clips[index % config.pool] = self._render(index)
        return _video(frames), self._weight(frames)

    def _render(self, index: int) -> npt.NDArray[np.uint8]:
        pair = (index * 0.618034) % 1.0 < self.config.two_digit_share  # evenly interleaved
        return digits.clip(self.config.seed, index, digits=2 if pair else 1).frames

    def _weight(self, frames: Tensor) -> Tensor:
        ink = (frames.amax(dim=-1) > _FOREGROUND_LEVEL).float()
        near = F.max_pool2d(ink, 5, stride=1, padding=2)
        weight = 1 + (self.config.foreground - 1) * near
        weight[:, 0] *= self.config.image
        return weight[:, None]


def _crop(clip: npt.NDArray[np.uint8], side: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """A square of all frames around some inked pixel of some frame, or the whole picture."""
    if side >= digits.SIZE:
        return clip
    rows, columns = np.nonzero(clip[int(rng.integers(len(clip)))].max(axis=-1) > _FOREGROUND_LEVEL)
    pick = int(rng.integers(len(rows)))
    top = int(np.clip(rows[pick] - side // 2, 0, digits.SIZE - side))
    left = int(np.clip(columns[pick] - side // 2, 0, digits.SIZE - side))
    return clip[:, top : top + side, left : left + side]


def _video(frames_BTHWC: Tensor) -> Tensor:
    """uint8 frames as BCTHW in [-1, 1]."""
    return frames_BTHWC.movedim(-1, 1).float() / 127.5 - 1


def _videos(seed: int, indices: range, split: digits.Split, count: int, batch: int = 8) -> Iterator[Tensor]:
    for first in indices[::batch]:
        clips = [
            digits.clip(seed, index, split=split, digits=count).frames
            for index in range(first, min(first + batch, indices.stop))
        ]
        yield _video(torch.from_numpy(np.stack(clips)))
