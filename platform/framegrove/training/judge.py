"""Training of the latent judge (models/latent_judge.py) on what searches have left (jobs.collect).

From pairs of siblings it learns to order them as the panel did, by the logistic loss of the difference of its log-odds
(Bradley and Terry, 1952), whose target is the panel's own probability that the one is better; and, with a small weight,
the panel's log-odds themselves, so that a verdict is a probability. From winners it learns to read the prompt: a
winner is better after its own prompt than after another one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from framegrove.config.verifier import log_odds
from framegrove.data.ingest import DataError, open_catalog
from framegrove.data.reading import ClipReader
from framegrove.data.schema import LatentClip, shard_paths
from framegrove.models.latent_judge import JudgeShape, LatentJudge, LatentSpace, sight_of
from framegrove.models.text import TextEncoder

_ODDS_WEIGHT = 0.1  # of the regression to the panel's log-odds, beside the order of siblings
_PROMPT_WEIGHT = 0.25  # of winners after the prompts of others
_CACHE = 2**28  # bytes of row groups
_READ_AT_A_TIME = 64
_WARMUP = 0.05  # of all steps
_SURE = 6.0  # log-odds: of what is surer than 400 to 1 no difference is learned
_JUDGED_AT_A_TIME = 256

Size = tuple[int, int]
Half = npt.NDArray[np.float16]


@dataclass(frozen=True, eq=False)
class Siblings:
    """Two siblings as the judge sees them, float16 (4 C + 1, h, w), the better one first, and the panel's ``chances``.

    ``family`` tells the branch that they are children of.
    """

    prompt: str
    family: str
    sights: tuple[Half, Half]
    chances: tuple[float, float]


@dataclass(eq=False)
class Harvested:
    """What is learned from: ``pairs``, and ``winners`` as the judge sees them with their prompts."""

    pairs: list[Siblings] = field(default_factory=list)
    winners: list[tuple[str, Half]] = field(default_factory=list)

    @property
    def prompts(self) -> list[str]:
        """All prompts, each once."""
        return sorted({pair.prompt for pair in self.pairs} | {prompt for prompt, _ in self.winners})


def read_harvest(
    folders: Sequence[Path],
    space: LatentSpace,
    held_out: float,
    on_pair: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Harvested, Harvested]:
    """What the folders of jobs.collect hold: what is learned from, and what of a share ``held_out`` of the prompts.

    Which prompts are held out follows from their words. Raises DataError for folders without pairs, and for latents of
    another VAE than that of ``space``.
    """
    kept, apart = Harvested(), Harvested()
    where = [folder / "pairs" if (folder / "pairs").is_dir() else folder for folder in folders]
    for clip, done, total in _clips(where, space):
        if clip.rival is None:
            raise DataError(f"{', '.join(map(str, where))} hold clips that are no pairs: give folders of jobs.collect")
        (apart if is_held_out(clip.caption, held_out) else kept).pairs.append(_siblings(clip, space))
        on_pair(done, total)
    winners = [each for folder in folders if (each := folder / "examples").is_dir() and shard_paths(each)]
    for clip, _, _ in _clips(winners, space) if winners else ():
        if not is_held_out(clip.caption, held_out):
            kept.winners.append((clip.caption, _seen(clip.latents, space)))
    return kept, apart


def is_held_out(prompt: str, share: float) -> bool:
    """Whether a prompt belongs to the share that is held out."""
    drawn = int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=8).digest(), "big")
    return drawn < share * 2**64


def _clips(folders: Sequence[Path], space: LatentSpace) -> Iterator[tuple[LatentClip, int, int]]:
    """All clips of some folders, each with how many have been read and how many there are."""
    catalog = open_catalog(folders)
    for shard in catalog.shards:
        if shard.vae != space.vae:
            raise DataError(
                f"{shard.path} holds latents of the VAE {shard.vae}, and the model has the VAE {space.vae}: give the "
                "model that the searches were made with as --model"
            )
    reader = ClipReader(catalog, _CACHE)
    for start in range(0, len(catalog), _READ_AT_A_TIME):
        for place, clip in enumerate(reader.read(range(start, min(start + _READ_AT_A_TIME, len(catalog))))):
            yield clip, start + place + 1, len(catalog)


def _siblings(clip: LatentClip, space: LatentSpace) -> Siblings:
    assert clip.rival is not None
    before = clip.latents[:, :-1]
    other = np.concatenate([before, clip.rival.latents], axis=1)
    digest = hashlib.blake2b(np.ascontiguousarray(before).tobytes(), digest_size=8).hexdigest()
    family = f"{clip.source} {clip.units} {digest}"
    return Siblings(clip.caption, family, (_seen(clip.latents, space), _seen(other, space)), clip.rival.chances)


def _seen(latents: Half, space: LatentSpace) -> Half:
    """What the judge sees of stored latents (C, units, h, w), which are not normalised."""
    normalised = space.norm.normalise(torch.from_numpy(latents.astype(np.float32)))
    seen: Half = sight_of(normalised.split(1, dim=1)).numpy().astype(np.float16)
    return seen


def train_judge(
    data: Harvested,
    shape: JudgeShape,
    text: TextEncoder,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    device: str = "cpu",
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> LatentJudge:
    """A judge trained for so many steps of ``batch`` pairs each; ``text`` is trained with it.

    ``on_step`` is told each step and its loss. Raises DataError where there is nothing to learn from.
    """
    if not data.pairs:
        raise DataError("there are no pairs to learn from: collect more prompts, or hold out a smaller share of them")
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        judge = LatentJudge(shape, text).to(device).train().requires_grad_(True)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=learning_rate, weight_decay=0.01)
    pairs, winners = _by_size([pair.sights[0] for pair in data.pairs]), _by_size([seen for _, seen in data.winners])
    prompts = data.prompts
    share = np.array([len(places) for places in pairs.values()]) / len(data.pairs)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate * _schedule(step, steps)
        size = list(pairs)[rng.choice(len(share), p=share)]
        loss = _pairs_loss(judge, [data.pairs[at] for at in rng.choice(pairs[size], batch)], device)
        if size in winners and len(prompts) > 1:
            chosen = [data.winners[at] for at in rng.choice(winners[size], max(1, batch // 4))]
            loss = loss + _PROMPT_WEIGHT * _prompts_loss(judge, chosen, prompts, rng, device)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step()
        on_step(step + 1, float(loss.detach()))
    return judge.eval().requires_grad_(False)


def _schedule(step: int, steps: int) -> float:
    """A short linear warm-up, then half a cosine."""
    warm = max(1, round(_WARMUP * steps))
    return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _by_size(sights: Sequence[Half]) -> dict[Size, list[int]]:
    places: dict[Size, list[int]] = {}
    for at, sight in enumerate(sights):
        places.setdefault((sight.shape[-2], sight.shape[-1]), []).append(at)
    return places


def pair_loss(odds_2N: Tensor, panel_2N: Tensor) -> Tensor:
    """The loss of pairs, a scalar: ``odds_2N`` are the judge's log-odds of either sibling, ``panel_2N`` the panel's."""
    order = F.binary_cross_entropy_with_logits(odds_2N[0] - odds_2N[1], torch.sigmoid(panel_2N[0] - panel_2N[1]))
    return order + _ODDS_WEIGHT * F.smooth_l1_loss(odds_2N, panel_2N.clamp(-_SURE, _SURE))


def _pairs_loss(judge: LatentJudge, chosen: Sequence[Siblings], device: str) -> Tensor:
    sights = _stacked([pair.sights[which] for which in (0, 1) for pair in chosen], device)
    panel = torch.tensor([[log_odds(pair.chances[which]) for pair in chosen] for which in (0, 1)], device=device)
    odds = judge(sights, [pair.prompt for pair in chosen] * 2)
    return pair_loss(odds.view(2, -1), panel)


def _prompts_loss(
    judge: LatentJudge,
    chosen: Sequence[tuple[str, Half]],
    prompts: Sequence[str],
    rng: np.random.Generator,
    device: str,
) -> Tensor:
    """The same pictures after their own prompt and after another one."""
    own = [prompt for prompt, _ in chosen]
    drawn = rng.integers(len(prompts) - 1, size=len(own))
    others = [prompts[at] if prompts[at] != mine else prompts[-1] for at, mine in zip(drawn, own, strict=True)]
    odds = judge(_stacked([seen for _, seen in chosen] * 2, device), own + others).view(2, -1)
    return F.softplus(odds[1] - odds[0]).mean()


@torch.inference_mode()
def judged(judge: LatentJudge, pairs: Sequence[Siblings]) -> npt.NDArray[np.float64]:
    """The judge's log-odds of the siblings of some pairs, (N, 2)."""
    device = str(judge.enter.weight.device)
    odds = np.empty((len(pairs), 2))
    for places in _by_size([pair.sights[0] for pair in pairs]).values():
        for start in range(0, len(places), _JUDGED_AT_A_TIME):
            chosen = places[start : start + _JUDGED_AT_A_TIME]
            for which in (0, 1):
                sights = _stacked([pairs[at].sights[which] for at in chosen], device)
                odds[chosen, which] = judge(sights, [pairs[at].prompt for at in chosen]).double().cpu().numpy()
    return odds


def _stacked(sights: Sequence[Half], device: str) -> Tensor:
    return torch.from_numpy(np.stack(sights)).to(device).float()
