"""A stand-in of NOVA's published interface (diffnext's NOVAPipeline), small and with random weights, for tests."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

CHANNELS, SIDE = 4, 8  # of a latent frame of 64 pixels
PATCHES = (SIDE // 2) ** 2


class Transformer(nn.Module):
    """Frames after each other over a cache of what was seen; inside a frame, patches in a drawn order."""

    config = SimpleNamespace(image_size=(64, 64), image_base_size=(SIDE // 2, SIDE // 2))

    def __init__(self) -> None:
        super().__init__()
        self.see, self.tell = nn.Linear(CHANNELS, 8), nn.Linear(8 + 8 + CHANNELS, CHANNELS)
        self.generated = 0

    def progress_bar(self, iterable: Iterable[Any], enable: bool = True) -> Iterable[Any]:
        return iterable

    @torch.inference_mode()
    def generate_frame(self, states: dict[str, Any], inputs: dict[str, Any]) -> None:
        self.generated += 1
        generator, x = inputs["generator"], states["x"].zero_()
        order, at = torch.rand(PATCHES, generator=generator).argsort(), 0
        for count in self.progress_bar([n for n in inputs["num_preds"] if n > 0], inputs["tqdm2"]):
            ids, at = order[at : at + count], at + count
            states["noise"].normal_(generator=generator)
            seen = self.see(x.mean((2, 3)))[0].expand(PATCHES, -1)
            noise = states["noise"][0].unfold(1, 2, 2).unfold(2, 2, 2).mean((3, 4)).flatten(1).T
            told = self.tell(torch.cat([states["c"].expand(PATCHES, -1), seen, noise], -1)).T.unflatten(1, (4, 4))
            chosen = torch.zeros(PATCHES).scatter(0, ids, 1.0).view(4, 4)
            x.add_((told * chosen).repeat_interleave(2, 1).repeat_interleave(2, 2)[None])

    @torch.inference_mode()
    def generate_video(self, inputs: dict[str, Any]) -> list[Tensor]:
        states: dict[str, Any] = {"x": inputs["x"], "noise": inputs["x"].clone()}
        latents, cache = [], [inputs["prompt"]]
        for states["t"] in self.progress_bar(range(inputs["max_latent_length"]), inputs["tqdm1"]):
            seen = self.see(states["x"].mean((0, 2, 3)) if states["t"] else torch.ones(CHANNELS))
            cache.append(seen + states["t"] / inputs["max_latent_length"])
            states["c"] = torch.stack(cache).mean(0)
            self.generate_frame(states, inputs)
            latents.append(states["x"].clone())
        return latents


class Pipeline:
    """NOVAPipeline, as far as the adapter knows it."""

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.transformer = Transformer().eval().requires_grad_(False)
            self.vae = nn.Linear(CHANNELS, 3).requires_grad_(False)
        self.image_processor = SimpleNamespace(decode_latents=_decoded)

    @classmethod
    def from_pretrained(cls, where: str, torch_dtype: torch.dtype, trust_remote_code: bool) -> Pipeline:
        return cls()

    def to(self, device: str) -> Pipeline:
        return self

    @torch.no_grad()
    def __call__(
        self,
        prompt: str,
        num_inference_steps: int,
        num_diffusion_steps: int,
        max_latent_length: int,
        guidance_scale: float,
        motion_flow: float,
        negative_prompt: str | None,
        generator: torch.Generator,
        disable_progress_bar: bool,
        output_type: str,
    ) -> SimpleNamespace:
        masked = np.round(np.cos(0.5 * np.pi * np.arange(num_inference_steps + 1) / num_inference_steps) * PATCHES)
        inputs = {
            "x": torch.empty(1, CHANNELS, SIDE, SIDE),
            "prompt": torch.tensor([float(ord(letter)) for letter in prompt[:8].ljust(8)]) / 128,
            "num_preds": (masked[:-1] - masked[1:]).astype("int64"),
            "generator": generator,
            "max_latent_length": max_latent_length,
            "tqdm1": not disable_progress_bar,
            "tqdm2": not disable_progress_bar,
        }
        return SimpleNamespace(frames=torch.stack(self.transformer.generate_video(inputs), 2))


def _decoded(vae: nn.Module, latents: Tensor) -> Tensor:
    """(B, C, T, h, w) to (B, 3, 1 + 4 (T - 1), H, W) in [-1, 1]; each frame depends on those before it."""
    colours = torch.tanh(vae(latents.movedim(1, -1).cumsum(1))).movedim(-1, 1)
    times = [0, *(time for time in range(1, latents.shape[2]) for _ in range(4))]
    return colours[:, :, times].repeat_interleave(8, 3).repeat_interleave(8, 4)
