"""What a model makes of fixed prompts, and what its VAE makes of the data: strips of frames, a PNG each."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from framegrove.config.base import imported
from framegrove.config.train import PhaseConfig
from framegrove.config.watch import SamplesConfig
from framegrove.data.schema import LatentClip
from framegrove.files import replacing, write_json
from framegrove.flow.generation import generate, to_pixels
from framegrove.media.frames import Frames
from framegrove.media.writing import contact_sheet, write_png
from framegrove.models.pretrained import Pipeline
from framegrove.models.vae import CausalVideoVae
from framegrove.models.vae_tiling import decode_unit

SAMPLES, RECONSTRUCTIONS, INDEX = "samples", "reconstructions", "samples.json"
_COLUMNS = 9  # frames of a strip at most
_SIDE = 96  # pixels at least, of a frame in a strip
_SHOWN_UNITS = 4  # of a reconstruction: a strip shows no more of a long clip

Scorer = Callable[[str, Frames], float]  # of a prompt and a video's frames (T, H, W, 3)


@dataclass(frozen=True, eq=False)
class Shown:
    """A strip of frames, uint8 (H, W, 3), of a video for a prompt or caption; its score, where it was judged."""

    text: str
    strip: Frames
    score: float | None = None


def scorer_of(config: SamplesConfig) -> Scorer | None:
    """The function that scores samples. Raises ConfigError where there is none of that name."""
    if config.scorer is None:
        return None
    scorer: Scorer = imported(config.scorer, "samples.scorer", "function")
    return scorer


def sample(pipeline: Pipeline, phase: PhaseConfig, config: SamplesConfig, scorer: Scorer | None) -> list[Shown]:
    """A video for every prompt, as long as the phase's and of its last size."""
    units = min(config.units or phase.units, phase.units)
    size = phase.sizes[-1] if phase.sizes else None
    seeds = range(config.seed, config.seed + len(config.prompts))
    shown = []
    # One after the other: they may be large, and the weights of training stay where they are.
    for prompt, seed in zip(config.prompts, seeds, strict=True):
        frames = generate(pipeline, [prompt], [seed], units=units, size=size)[0].frames
        shown.append(Shown(prompt, strip(frames), None if scorer is None else float(scorer(prompt, frames))))
    return shown


@torch.no_grad()
def reconstruct(vae: CausalVideoVae, clips: Sequence[LatentClip]) -> list[Shown]:
    """What the VAE decodes the latents of some clips to, the first units of each: no model can do better."""
    device = next(vae.parameters()).device
    shown = []
    for clip in clips:
        latents = torch.from_numpy(clip.latents[:, :_SHOWN_UNITS].astype("float32"))[None].to(device)
        frames, state = [], None
        for unit in latents.split(1, dim=2):
            pixels, state = decode_unit(vae, unit, state)
            frames.append(to_pixels(pixels)[0])
        shown.append(Shown(clip.caption, strip(np.concatenate(frames))))
    return shown


def strip(frames_THWC: Frames) -> Frames:
    """Frames from all over a video side by side, the first and the last among them: one picture, (H, W, 3)."""
    chosen = np.linspace(0, len(frames_THWC) - 1, min(_COLUMNS, len(frames_THWC))).round().astype(int)
    return contact_sheet(frames_THWC[chosen], columns=_COLUMNS, scale=-(-_SIDE // frames_THWC.shape[1]))


def write(shown: Sequence[Shown], folder: Path) -> None:
    """Write the strips as PNGs, and what they are as samples.json, in place of what was there."""
    folder.parent.mkdir(exist_ok=True)
    entries: list[dict[str, Any]] = []
    with replacing(folder) as partial:
        partial.mkdir()
        for number, each in enumerate(shown):
            words = re.sub(r"[^a-z0-9]+", "-", each.text.lower()).strip("-")[:48]
            entries.append({"picture": f"{number:02d}-{words}.png", "text": each.text, "score": each.score})
            write_png(each.strip, partial / entries[-1]["picture"])
        write_json(partial / INDEX, entries)


@contextlib.contextmanager
def placed(modules: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Have modules on a device for a while, and back where they were in any case."""
    homes = [next(module.parameters()).device for module in modules]
    try:
        for module in modules:
            module.to(device)
        yield
    finally:
        for module, home in zip(modules, homes, strict=True):
            module.to(home)
        if device.type == "cuda":
            torch.cuda.empty_cache()
