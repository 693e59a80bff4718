"""What a training of the VAE shows of itself: strips of held-out clips and their reconstructions, and its curve."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from framegrove.files import replacing
from framegrove.media.frames import Frames
from framegrove.media.writing import contact_sheet, write_png
from framegrove.models.vae import CausalVideoVae
from framegrove.models.vae_files import from_uint8, to_uint8
from framegrove.training.curve import two_panels
from framegrove.training.vae_clips import ClipSource

STRIPS, PICTURE = "strips", "loss.png"
_COLUMNS, _CLIPS = 6, 2  # frames of a clip, and clips of each kind
_SIDE = 128  # pixels at least


@torch.no_grad()
def strip(vae: CausalVideoVae, source: ClipSource) -> Frames:
    """Held-out clips, each as a row of frames above the row of their reconstructions: one picture, (H, W, 3)."""
    rows = []
    device = next(vae.parameters()).device
    for kind in source.kinds:
        for index in range(_CLIPS):
            frames = source.heldout(kind, index)
            video = from_uint8(torch.from_numpy(frames)[None]).to(device)
            decoded = to_uint8(vae.decode(vae.encode(video).mean))[0].cpu().numpy()
            shown = np.linspace(0, len(frames) - 1, min(_COLUMNS, len(frames))).round().astype(int)
            rows += [frames[shown], decoded[shown]]
    return contact_sheet(np.concatenate(rows), columns=len(shown), scale=max(1, _SIDE // rows[0].shape[1]))


def save_strip(vae: CausalVideoVae, source: ClipSource, out: Path, step: int) -> Path:
    """Write the strip of a step to ``out``/strips."""
    (out / STRIPS).mkdir(exist_ok=True)
    path = out / STRIPS / f"step-{step:07d}.png"
    with replacing(path) as partial:
        write_png(strip(vae, source), partial)
    return path


def draw_curve(log: Path, path: Path) -> None:
    """Write a picture of a log.jsonl: the terms of the loss, and the held-out clips' PSNR, over steps."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    names = list(dict.fromkeys(name for line in lines for name in line))
    figure, (terms, quality) = two_panels(top=0.96)
    for name in names:
        points = [(line["step"], line[name]) for line in lines if name in line]
        if name.startswith("psnr_"):
            quality.plot(*zip(*points, strict=True), label=name.removeprefix("psnr_"), marker=".", linewidth=1)
        elif name not in ("step", "seconds", "learning_rate"):
            terms.plot(*zip(*points, strict=True), label=name, linewidth=1)
    terms.set(xlabel="step", ylabel="terms of the loss", yscale="symlog")
    quality.set(xlabel="step", ylabel="PSNR of held-out clips, dB")
    for panel in (terms, quality):
        if panel.lines:
            panel.legend()
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)
