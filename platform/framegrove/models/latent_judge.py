"""The latent judge: a small network that tells from clean latents how probably a branch's newest unit is right.

It looks at the newest unit beside what is pooled of its history, and reads the prompt:

    newest, last before it, mean and first of the history  ->  convolutions, scaled by the pooled prompt
      ->  every place attends to the words of the prompt   ->  convolutions, pooled over space  ->  log-odds

so that a verdict costs the same however long the video is, and nothing has to be decoded. Its folder:

    judge.json         shape, the latents that it reads (the VAE's digest, their normalisation), how well it judges
    judge.safetensors  the network
    text_encoder/ tokenizer/   the small text encoder that it reads prompts with (text.py)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from framegrove.errors import UserError
from framegrove.files import write_json
from framegrove.models.counting import counted_flops
from framegrove.models.files import check_keys
from framegrove.models.text import TextEncoder
from framegrove.models.vae_files import LatentNorm

FACTS, WEIGHTS = "judge.json", "judge.safetensors"
_VERSION = 1
_HEADS, _GROUPS = 4, 8


@dataclass(frozen=True)
class LatentSpace:
    """Whose latents they are: digest of the VAE, how its latents are normalised, pixels along a latent's side."""

    vae: str
    norm: LatentNorm
    factor: int


@dataclass(frozen=True)
class JudgeShape:
    """``channels`` of the latents, ``width`` of the network (a multiple of 8), ``blocks`` before and after pooling."""

    channels: int
    width: int = 64
    blocks: int = 2


class LatentJudge(nn.Module):
    """The network with its text encoder. Takes sights (`sight_of`) of any size, of one prompt each."""

    def __init__(self, shape: JudgeShape, text: TextEncoder) -> None:
        super().__init__()
        self.shape, self.text = shape, text
        words, width = int(text.model.config.hidden_size), shape.width
        self.enter = nn.Conv2d(4 * shape.channels + 1, width, 3, padding=1)
        self.fine = nn.ModuleList(_Block(width, words) for _ in range(shape.blocks))
        self.norm = nn.LayerNorm(width)
        self.attend = nn.MultiheadAttention(width, _HEADS, kdim=words, vdim=words, batch_first=True)
        self.coarse = nn.ModuleList(_Block(width, words) for _ in range(shape.blocks))
        self.leave = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, sights_NFHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Log-odds (N,) that each newest unit is right. Prompts are cut to what the text encoder reads."""
        encoded = self.text.encode([self.text.readable(prompt) for prompt in prompts])
        pooled_NP = torch.stack([each.pooled_P for each in encoded])
        words_NLD = pad_sequence([each.tokens_LD for each in encoded], batch_first=True)
        lengths = torch.tensor([len(each.tokens_LD) for each in encoded], device=words_NLD.device)
        absent_NL = torch.arange(words_NLD.shape[1], device=words_NLD.device) >= lengths[:, None]
        x = self.enter(sights_NFHW)
        for block in self.fine:
            x = block(x, pooled_NP)
        places_NSW = self.norm(x.flatten(2).transpose(1, 2))
        read, _ = self.attend(places_NSW, words_NLD, words_NLD, key_padding_mask=absent_NL, need_weights=False)
        x = x + read.transpose(1, 2).unflatten(2, x.shape[2:])
        x = F.avg_pool2d(x, 2, ceil_mode=True)
        for block in self.coarse:
            x = block(x, pooled_NP)
        return self.leave(torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1))[:, 0]

    def flops(self, prompt: str, height: int, width: int) -> int:
        """FLOPs of judging one branch whose latents have this size."""
        device = self.enter.weight.device
        sight = torch.zeros(1, 4 * self.shape.channels + 1, height, width, device=device)
        with torch.inference_mode():
            return counted_flops(lambda: self(sight, [prompt]))


class _Block(nn.Module):
    """Two convolutions beside the identity; the prompt scales and shifts what goes in (FiLM, arXiv 1709.07871)."""

    def __init__(self, width: int, words: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(_GROUPS, width) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.scale = nn.Linear(words, 2 * width)

    def forward(self, x: Tensor, pooled_NP: Tensor) -> Tensor:
        scale, shift = self.scale(pooled_NP)[:, :, None, None].chunk(2, dim=1)
        inside = self.convolutions[0](F.silu(self.norms[0](x) * (1 + scale) + shift))
        return x + self.convolutions[1](F.silu(self.norms[1](inside)))


def sight_of(units: Sequence[Tensor]) -> Tensor:
    """What the judge sees of a branch: (4 C + 1, h, w) of its units' normalised latents (C, 1, h, w), oldest first.

    The newest unit, the one before it, mean and first one of all before it, and a plane of ones; without a history
    all but the newest are zeros.
    """
    *history, newest = (unit[:, 0].float() for unit in units)
    there = torch.full_like(newest[:1], float(bool(history)))
    if not history:
        return torch.cat([newest, *[torch.zeros_like(newest)] * 3, there])
    return torch.cat([newest, history[-1], torch.stack(history).mean(0), history[0], there])


def save_judge(judge: LatentJudge, space: LatentSpace, folder: Path, measured: Mapping[str, Any]) -> None:
    """Write the folder; ``measured``, JSON values, says how well it judges."""
    folder.mkdir(parents=True, exist_ok=True)
    judge.text.save(folder)
    save_file({name: value.detach().cpu().contiguous() for name, value in _network(judge).items()}, folder / WEIGHTS)
    latents = {"vae": space.vae, "factor": space.factor, "norm": space.norm.to_json()}
    write_json(
        folder / FACTS,
        {"version": _VERSION, "shape": asdict(judge.shape), "latents": latents, "measured": dict(measured)},
    )


def read_space(folder: Path) -> LatentSpace:
    """The latents that the judge of a folder reads. Raises UserError where there is none."""
    return _space(folder, _facts(folder))


def load_judge(folder: Path) -> tuple[LatentJudge, LatentSpace]:
    """The judge of a folder, in evaluation mode, and the latents that it reads. Raises UserError, in one sentence."""
    facts = _facts(folder)
    space = _space(folder, facts)
    judge = LatentJudge(JudgeShape(**facts["shape"]), TextEncoder.load(folder))
    try:
        weights = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS} cannot be read ({error}): train the judge again") from None
    whole = {**{f"text.{name}": value for name, value in judge.text.state_dict().items()}, **weights}
    check_keys(judge, whole, str(folder / WEIGHTS))
    judge.load_state_dict(whole)
    return judge.eval().requires_grad_(False), space


def _network(judge: LatentJudge) -> dict[str, Tensor]:
    """The weights besides the text encoder's, which has files of its own."""
    return {name: value for name, value in judge.state_dict().items() if not name.startswith("text.")}


def _facts(folder: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} holds no latent judge ({getattr(error, 'strerror', None) or error}): train one with "
            "python -m jobs.train_judge"
        ) from None
    if facts.get("version") != _VERSION:
        raise UserError(
            f"the latent judge in {folder} is of version {facts.get('version')}, and this release reads {_VERSION}: "
            "train it again"
        )
    return facts


def _space(folder: Path, facts: Mapping[str, Any]) -> LatentSpace:
    try:
        held = facts["latents"]
        return LatentSpace(held["vae"], LatentNorm.from_json(held["norm"]), held["factor"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / FACTS} does not say whose latents it is for ({error}): train it again") from None
