"""A chunk-wise causal generator in small, with random weights: what stands behind adapters of kind causal in tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from framegrove.config.generator import Form
from framegrove.generators.causal import Noise, Past
from framegrove.generators.protocol import UnitPrice, Wanted
from framegrove.types import Sampling

LATENTS, WIDTH, LAYERS, HEADS = 2, 16, 2, 2  # latent frames of a chunk; channels of a token
TIMES = (1.0, 0.6, 0.3)  # of the denoising steps; a last evaluation makes the keys and values of the clean chunk
PATCH = 8  # pixels

Cache = Mapping[str, Tensor]


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """(B, N, C) after attending to (P, C) of the past and to itself; and its own keys and values."""
        q, k, v = self.qkv(F.layer_norm(x, (WIDTH,))).chunk(3, -1)
        past = [each.expand(len(x), -1, -1) for each in (keys, values)]
        heads = [each.unflatten(-1, (HEADS, -1)).transpose(1, 2) for each in (q, torch.cat([past[0], k], 1),
                 torch.cat([past[1], v], 1))]  # fmt: skip
        x = x + self.out(F.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2).flatten(2))
        return x + self.down(F.silu(self.up(F.layer_norm(x, (WIDTH,))))), k, v


class TinyCausal(nn.Module):
    """Two layers over two latent frames a chunk; its decoder moves from the latent frame before to each new one."""

    form = Form(
        fps=8, height=32, width=32, units=3, most_units=12, stages=1, first_frames=5, later_frames=8, multiple=PATCH
    )

    def __init__(self, where: str, *, weights: int = 0) -> None:
        super().__init__()
        self.weights = weights

    def identity(self) -> Any:
        return {"weights": self.weights}

    def price(self, wanted: Wanted, attended: Sequence[int]) -> list[UnitPrice]:
        tokens = LATENTS * wanted.height * wanted.width // PATCH**2
        linear = 2 * tokens * LAYERS * 8 * WIDTH**2
        steps = len(TIMES) + 1
        return [
            UnitPrice((steps,), (linear + 4 * LAYERS * WIDTH * tokens * tokens * (1 + chunks),)) for chunks in attended
        ]

    def load(self, device: str) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.weights)
            self.words = nn.Embedding(256, WIDTH)
            self.time, self.place = nn.Parameter(torch.randn(WIDTH)), nn.Parameter(torch.randn(WIDTH))
            self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
            self.rgb = nn.Linear(WIDTH, 3)
        self.to(device).eval().requires_grad_(False)

    def encode(self, prompt: str, sampling: Sampling) -> Tensor:
        return self.words(torch.tensor(list(prompt.encode()))).mean(0)

    def embedded(self, x: Tensor, times: Tensor | float, index: Tensor | int, text: Tensor) -> Tensor:
        """Tokens (B, N, C) at these times, of chunks of these numbers."""
        times, index = torch.as_tensor(times), torch.as_tensor(index)
        places = torch.arange(x.shape[1])
        return x + text + times[..., None] * self.time + torch.sin((0.3 * index + 0.1 * places)[..., None] * self.place)

    def evaluated(self, x: Tensor, time: float, index: int, text: Tensor, past: Cache) -> tuple[Tensor, Cache]:
        h, own = self.embedded(x, time, index, text), {}
        for number, layer in enumerate(self.layers):
            empty = h.new_empty(0, WIDTH)
            h, k, v = layer(h, past.get(f"k{number}", empty), past.get(f"v{number}", empty))
            own |= {f"k{number}": k, f"v{number}": v}
        return h, own

    def chunk(
        self, noises: Sequence[Noise], text: Tensor, past: Past, index: int, wanted: Wanted, step: Callable[[], None]
    ) -> tuple[Tensor, Cache]:
        shape = LATENTS * wanted.height * wanted.width // PATCH**2, WIDTH
        x = torch.stack([noise.normal(shape) for noise in noises])
        for number, time in enumerate(TIMES):
            clean, _ = self.evaluated(x, time, index, text, past.keys_values)
            step()
            later = TIMES[number + 1] if number + 1 < len(TIMES) else 0.0
            fresh = torch.stack([noise.normal(shape, number + 1) for noise in noises])
            x = (1 - later) * clean + later * fresh
        _, own = self.evaluated(x, 0.0, index, text, past.keys_values)
        step()
        return x, own

    def decode(self, latent: Tensor, index: int, state: Cache) -> tuple[Tensor, Cache]:
        side = self.form.height // PATCH
        frames, before = [], state.get("latest")
        for now in latent.unflatten(0, (LATENTS, -1)):
            shares = torch.linspace(0.25, 1, 4) if before is not None else torch.ones(1)
            frames += [self.rgb(now if before is None else before.lerp(now, float(share))) for share in shares]
            before = now
        pictures = torch.sigmoid(torch.stack(frames)).unflatten(1, (side, -1))
        large = pictures.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)
        assert before is not None
        return (255 * large).to(torch.uint8), {"latest": before}
