"""Training the causal video VAE: one plain loop, resumable, a pure function of its configuration and its clips.

The loss is reconstruction + kl x KL divergence (+ perceptual x distance of features, perceptual.py) (+ adversarial x
balance x a discriminator's verdict, adversarial.py).

On small bright objects on an empty ground a plain loss learns the ground and little else. Three things help: most steps
train on crops around an object, pixels near one weigh more, and whole frames come last, so that group norm meets the
statistics it will see in use.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from framegrove.config.vae import VaeTrainingConfig
from framegrove.files import append_line, identity, whole_lines, write_lines
from framegrove.models.trainer_state import (
    check_same_run,
    read_checkpoint,
    save_checkpoint,
    update_average,
)
from framegrove.models.vae import CausalVideoVae, Moments
from framegrove.models.vae_files import LatentNorm, from_uint8, read_vae, save_vae
from framegrove.training.adversarial import Discriminator, balance
from framegrove.training.muon import KernelMuon
from framegrove.training.perceptual import load_perception
from framegrove.training.skips import TrainingDiverged
from framegrove.training.vae_clips import ClipSource, ClipWindow, Frames
from framegrove.training.vae_pictures import PICTURE, draw_curve, save_strip

CHECKPOINT, LOG, MODEL = "checkpoint.pt", "log.jsonl", "causal_video_vae"
_MEASURED = 8  # clips that are encoded together where something is measured


@dataclass(frozen=True)
class VaeStep:
    """What an optimizer step found.

    ``psnr`` has the mean peak signal-to-noise ratio in dB of held-out clips, by kind, under the averaged weights; it is
    empty at steps without an evaluation. ``seconds`` counts the time of all training steps so far.
    """

    step: int
    seconds: float
    loss: float
    reconstruction: float
    kl: float
    learning_rate: float
    psnr: dict[str, float] = field(default_factory=dict)
    terms: dict[str, float] = field(default_factory=dict)  # further terms of the loss, where there are any

    def figures(self) -> dict[str, float]:
        """For the log: rounded, and flat."""
        found = {
            "step": self.step,
            "seconds": self.seconds,
            "loss": self.loss,
            "reconstruction": self.reconstruction,
            "kl": self.kl,
            "learning_rate": self.learning_rate,
        }
        found |= self.terms
        found |= {f"psnr_{kind}": decibels for kind, decibels in self.psnr.items()}
        return {name: round(value, 6) for name, value in found.items()}


def train(
    config: VaeTrainingConfig, source: ClipSource, out: Path, on_step: Callable[[VaeStep], None] = lambda _: None
) -> VaeStep:
    """Train on the clips of ``source``, or resume from ``out/checkpoint.pt``; the model goes to out/causal_video_vae.

    Returns the last step, with the PSNR over ``config.final_clips`` held-out clips of each kind, measured on the
    weights as saved. Raises UserError when the checkpoint belongs to another configuration, TrainingDiverged when the
    loss is not finite.
    """
    out.mkdir(parents=True, exist_ok=True)
    run = _Run(config, source)
    run.resume(out / CHECKPOINT)
    # Later steps are run again.
    write_lines(out / LOG, [line for line in whole_lines(out / LOG) if line["step"] <= run.step])
    window = ClipWindow(config, source, run.step)
    saved = time.monotonic()
    done: VaeStep | None = None
    while run.step < config.steps:
        done = run.advance(window)
        last = run.step == config.steps
        if last or run.step % config.evaluate_every == 0:
            done = replace(done, psnr=run.psnr(config.evaluate_clips))
        if done.psnr or run.step % config.log_every == 0:
            append_line(out / LOG, done.figures())
        if done.psnr:
            draw_curve(out / LOG, out / PICTURE)
        if last or run.step % config.strip_every == 0:
            save_strip(run.averaged, source, out, run.step)
        on_step(done)
        if last or time.monotonic() - saved > config.checkpoint_seconds:
            run.save(out / CHECKPOINT)
            saved = time.monotonic()
    quality = run.finish(out / MODEL)
    if done is None:  # resumed after its last step, whose figures stand in the log
        return VaeStep(run.step, run.seconds, math.nan, math.nan, math.nan, 0.0, psnr=quality)
    finished = replace(done, psnr=quality)
    append_line(out / LOG, finished.figures())
    return finished


@torch.no_grad()
def psnr(vae: CausalVideoVae, source: ClipSource, kind: str, clips: int) -> float:
    """Mean over ``clips`` held-out clips of a kind of each clip's PSNR in dB, pixels in [0, 1]."""
    values = []
    for video in _videos(vae, clips, lambda index: source.heldout(kind, index)):
        decoded = vae.decode(vae.encode(video).mean)
        error = (decoded.float().clamp(-1, 1) - video).square().mean(dim=(1, 2, 3, 4)) / 4
        values.append(-10 * torch.log10(error))
    return float(torch.cat(values).mean())


@torch.no_grad()
def measure_latent_norm(vae: CausalVideoVae, source: ClipSource, clips: int) -> LatentNorm:
    """A mean per channel and a scale for first and for later units, over ``clips`` clips, as many of each kind."""
    units: list[Tensor] = []
    for kind in source.kinds:
        drawn = _videos(vae, clips // len(source.kinds), functools.partial(source.statistics, kind))
        units += [vae.encode(video).mean.double() for video in drawn]
    latents_BCTHW = torch.cat(units)
    return LatentNorm.measured(image=latents_BCTHW[:, :, :1], video=latents_BCTHW[:, :, 1:])


@dataclass
class _Made:
    """What a forward pass gives; ``terms`` are those of the loss that are asked for beside the first two."""

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor
    decoded: Tensor
    terms: dict[str, Tensor]


class _Run:
    """Weights, their average, the optimizers, and how far they have come."""

    def __init__(self, config: VaeTrainingConfig, source: ClipSource) -> None:
        torch.manual_seed(config.seed)
        self.config, self.source = config, source
        self.step, self.seconds = 0, 0.0
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if config.start is not None:
            self.vae = read_vae(config.start, allow_pickle=config.allow_pickle).to(self.device).train()
            self.vae.requires_grad_(True)
        else:
            self.vae = CausalVideoVae(config.model).to(self.device)
            _narrow_posterior(self.vae)
        self.averaged = CausalVideoVae(self.vae.config).to(self.device)
        self.averaged.load_state_dict(self.vae.state_dict())
        self.averaged.requires_grad_(False)
        self.adamw, self.muon = _optimizers(self.vae, config)
        self.perception = (
            load_perception(config.features, self.device, allow_pickle=config.allow_pickle) if config.features else None
        )
        channels, width = self.vae.config.decoder_out_channels, config.discriminator_width
        rate = config.discriminator_learning_rate
        self.judge = Discriminator(channels, width, rate, self.device) if config.adversarial else None

    def advance(self, window: ClipWindow) -> VaeStep:
        """One optimizer step."""
        began = time.monotonic()
        config = self.config
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        video, weight = (tensor.to(self.device) for tensor in window.batch(self.step))
        made = self._forward(video, weight, generator)
        if not math.isfinite(made.loss.item()):
            raise TrainingDiverged(f"the loss is {made.loss.item()} at step {self.step}: lower the learning rates")
        self.vae.zero_grad(set_to_none=True)
        made.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.vae.parameters(), config.gradient_clip)
        scale = _learning_rate_scale(config, self.step)
        self.adamw.param_groups[0]["lr"] = scale * config.learning_rate
        self.muon.param_groups[0]["lr"] = scale * config.matrix_learning_rate
        self.adamw.step()
        self.muon.step()
        if self.judge and self._judging:
            with self._autocast():
                made.terms["discriminator"] = self.judge.learn(video, made.decoded)
        self.step += 1
        update_average(list(self.averaged.parameters()), list(self.vae.parameters()), config.ema, updates=self.step)
        self.seconds += time.monotonic() - began
        return VaeStep(
            self.step,
            self.seconds,
            made.loss.item(),
            made.reconstruction.item(),
            made.kl.item(),
            scale * config.learning_rate,
            terms={name: value.item() for name, value in made.terms.items()},
        )

    @property
    def _judging(self) -> bool:
        return self.step >= self.config.adversarial_from

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bfloat16)

    def _forward(self, video: Tensor, weight: Tensor, generator: torch.Generator) -> _Made:
        """The loss and its terms: reconstruction error, Kullback-Leibler divergence, and what else is asked for."""
        config, terms = self.config, dict[str, Tensor]()
        with self._autocast():
            half = self.vae.encode(video)
            moments = Moments(half.mean.float(), half.logvar.float())
            decoded = self.vae.decode(moments.sample(generator)).float()
            if self.perception:
                terms["perceptual"] = self.perception(decoded, video)
            if self.judge and self._judging:
                terms["adversarial"] = self.judge.verdict(decoded)
        error = decoded - video
        reconstruction = (weight * (config.l1 * error.abs() + config.mse * error.square())).mean()
        kl = moments.kl().mean()
        loss = reconstruction + config.kl * kl
        if "perceptual" in terms:
            loss = loss + config.perceptual * terms["perceptual"]
        if "adversarial" in terms:
            terms["balance"] = balance(loss, terms["adversarial"], self.vae.decoder.conv_out.conv.weight)
            loss = loss + config.adversarial * terms["balance"] * terms["adversarial"]
        return _Made(loss, reconstruction, kl, decoded, terms)

    def psnr(self, clips: int) -> dict[str, float]:
        """Of the averaged weights, by kind of clip."""
        return {kind: psnr(self.averaged, self.source, kind, clips) for kind in self.source.kinds}

    def finish(self, folder: Path) -> dict[str, float]:
        """Save the averaged weights in half precision, then measure what was saved."""
        for parameter in self.averaged.parameters():
            parameter.data = parameter.data.half().float()
        norm = measure_latent_norm(self.averaged, self.source, self.config.norm_clips)
        save_vae(folder, self.averaged, norm, dtype=torch.float16)
        return self.psnr(self.config.final_clips)

    def save(self, path: Path) -> None:
        """Write all that ``resume`` needs to go on bit for bit."""
        state = {
            "run": self._identity(),
            "vae": self.vae.state_dict(),
            "averaged": self.averaged.state_dict(),
            "adamw": self.adamw.state_dict(),
            "muon": self.muon.state_dict(),
            "judge": self.judge.state_dict() if self.judge else None,
            "step": self.step,
            "seconds": self.seconds,
        }
        save_checkpoint(path, state)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint, where there is one. Raises UserError when it is of another configuration."""
        held = read_checkpoint(path, self.device)
        if held is None:
            return
        check_same_run(path, held["run"], self._identity())
        self.vae.load_state_dict(held["vae"])
        self.averaged.load_state_dict(held["averaged"])
        self.adamw.load_state_dict(held["adamw"])
        self.muon.load_state_dict(held["muon"])
        if self.judge:
            self.judge.load_state_dict(held["judge"])
        self.step, self.seconds = held["step"], held["seconds"]

    def _identity(self) -> dict[str, Any]:
        return identity(self.config.model_dump(mode="json"))


def _narrow_posterior(vae: CausalVideoVae) -> None:
    """Start with a narrow posterior: at a deviation of 1 the decoder would see noise alone and learn to ignore it."""
    logvar = slice(vae.config.encoder_out_channels, None)
    bias = vae.quant_conv.conv.bias
    assert bias is not None
    with torch.no_grad():
        vae.quant_conv.conv.weight[logvar] = 0.0
        bias[logvar] = -6.0


def _optimizers(vae: CausalVideoVae, config: VaeTrainingConfig) -> tuple[torch.optim.AdamW, KernelMuon]:
    """AdamW for vectors and for the layers at which pixels enter and leave, Muon for the weights in between."""
    outer = ("encoder.conv_in.", "decoder.conv_out.")
    kernels: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, weight in vae.named_parameters():
        (kernels if weight.ndim > 1 and not name.startswith(outer) else others).append(weight)
    adamw = torch.optim.AdamW(others, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    return adamw, KernelMuon(kernels)


def _learning_rate_scale(config: VaeTrainingConfig, step: int) -> float:
    """Share of the peak learning rates: linear warm-up, then half a cosine down to a fiftieth."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def _videos(vae: CausalVideoVae, clips: int, clip: Callable[[int], Frames]) -> Iterator[Tensor]:
    """``clips`` clips as videos BCTHW in [-1, 1], a few together, where the VAE is."""
    device = next(vae.parameters()).device
    for first in range(0, clips, _MEASURED):
        frames = np.stack([clip(index) for index in range(first, min(first + _MEASURED, clips))])
        yield from_uint8(torch.from_numpy(frames)).to(device)
