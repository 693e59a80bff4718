"""Speed and memory beside plain implementations: what ``jobs.bench`` runs.

The implementations of one thing take turns (A B A B ..), so that changes in the machine's speed affect them alike, and
the figure of each is the median of its turns. On a CPU the time is the process's CPU time over all threads, to which
other processes add little; on a GPU it is the time between two CUDA events. The VAE's benches are in bench_vae.py.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from framegrove.config.flow import GuidanceConfig, StepsConfig
from framegrove.config.model import TransformerConfig
from framegrove.flow.history import history_clips
from framegrove.flow.noise import HashNoise, block_noise, double
from framegrove.flow.sampler import Sampler, UnitTask
from framegrove.flow.schedule import PyramidSchedule
from framegrove.models.attention import AttentionPlan
from framegrove.models.packed import Packed, Prefix, Sample, TextEmbedding
from framegrove.models.transformers import Transformer, fresh_transformer

_STAGES = 3
_LATENT = (48, 80)  # a 384p unit
_LARGE = (96, 160)  # a 768p unit
_TURN = 0.05  # s that a turn lasts at least
_TEXT = 128  # tokens
_HISTORY = 8  # units


@dataclass(frozen=True)
class Finding:
    """A figure in ``unit``, beside that of a plain implementation where there is one.

    ``ours_range`` and ``plain_range`` are the least and the largest of several measurements, where there were several;
    ``met`` says whether the aim is reached, where there is one.
    """

    what: str
    ours: float
    unit: str
    plain: float | None = None
    aim: str = ""
    met: bool | None = None
    ours_range: tuple[float, float] | None = None
    plain_range: tuple[float, float] | None = None

    @classmethod
    def timed(cls, what: str, ours: Times, plain: Times, aim: str, met: bool, unit: str = "s") -> Finding:
        """Two implementations' times, shown in ``unit``: s or ms."""
        factor = {"s": 1, "ms": 1000}[unit]
        ours, plain = ours.scaled(factor), plain.scaled(factor)
        return cls(what, ours.median, unit, plain.median, aim, met, ours.range, plain.range)

    def shown(self, value: float, span: tuple[float, float] | None = None) -> str:
        """A value with its range and unit."""
        digits = 0 if value >= 1000 else 2
        between = "" if span is None else f" ({span[0]:,.{digits}f}-{span[1]:,.{digits}f})"
        return f"{value:,.{digits}f}{between} {self.unit}".rstrip()


@dataclass(frozen=True)
class Times:
    """Seconds that one piece of work took in each of its turns."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def range(self) -> tuple[float, float]:
        return min(self.seconds), max(self.seconds)

    def scaled(self, factor: float) -> Times:
        """The same times in another unit."""
        return Times(tuple(factor * each for each in self.seconds))


def jump(device: torch.device, repeats: int) -> list[Finding]:
    """The jump to a 768p stage: doubling and block noise, beside a loop that fills the blocks one by one."""
    schedule = PyramidSchedule(_STAGES)
    alpha, beta = schedule.jump(_STAGES - 1)
    height, width = _LARGE
    before = torch.randn(16, 1, height // 2, width // 2)
    generator = torch.Generator().manual_seed(0)

    def ours() -> Tensor:
        noise = block_noise((16, 1, height, width), generator, schedule.gamma)
        return double(before).mul_(alpha).add_(noise, alpha=beta)  # as the sampler does

    def plain() -> Tensor:
        # The released construction draws from the block covariance, which has to be kept off its singular point.
        gamma = schedule.gamma + 1e-6
        block = torch.distributions.MultivariateNormal(torch.zeros(4), torch.eye(4) * (1 - gamma) + gamma)
        draws = block.sample((16, height // 2, width // 2))
        noise = torch.empty(16, 1, height, width)
        for channel, row, column in itertools.product(*map(range, draws.shape[:3])):
            cell = draws[channel, row, column].view(2, 2)
            noise[channel, 0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = cell
        return alpha * F.interpolate(before, scale_factor=2.0, mode="nearest") + beta * noise

    cpu = torch.device("cpu")  # noise is drawn there, on any machine
    quick, slow = in_turns([ours, plain], repeats, cpu)
    what = f"jump to 1x16x1x{height}x{width} (plain: block by block)"
    return [Finding.timed(what, quick, slow, "<= plain / 100", quick.median <= slow.median / 100, "ms")]


@torch.no_grad()
def transformer(device: torch.device, repeats: int) -> list[Finding]:
    """An MM-DiT forward per stage, two guided samples at 384p with 8 units of history, beside a dense mask."""
    model = _model(device)
    findings = []
    for stage in range(_STAGES):
        packed = model.pack(_guided(stage, (_TEXT, _TEXT), device))
        masked = replace(packed, attention=dense(packed, device))
        ours, plain = in_turns([partial(model, packed), partial(model, masked)], repeats, device)
        tokens = len(packed.attention.tokens.joint) // 2
        what = f"MM-DiT forward, stage {stage}, batch 2, {tokens:,} tokens each (plain: dense mask)"
        findings.append(Finding.timed(what, ours, plain, "<= plain", ours.median <= plain.median))
    return findings


@torch.no_grad()
def prefixes(device: torch.device, repeats: int) -> list[Finding]:
    """What guidance and siblings cost: tokens and time, beside a padded batch that shares nothing."""
    model = _model(device)
    stage = _STAGES - 1
    short = model.pack(_guided(stage, (8, _TEXT), device))
    padded = model.pack(_guided(stage, (_TEXT, _TEXT), device))
    shared = model.pack(_siblings(stage, 5, device, together=True))
    alone = model.pack(_siblings(stage, 5, device, together=False))
    findings = []
    for what, left, right in (
        ("guidance, an 8-token negative prompt", short, padded),
        ("5 siblings that share their past", shared, alone),
    ):
        tokens = [len(packed.attention.tokens.joint) for packed in (left, right)]
        ours, plain = in_turns([partial(model, left), partial(model, right)], repeats, device)
        findings.append(Finding(f"{what}: tokens", tokens[0], "", tokens[1], "< plain", tokens[0] < tokens[1]))
        findings.append(Finding.timed(f"{what}: forward", ours, plain, "< plain", ours.median < plain.median))
    return findings


def pairs(device: torch.device, repeats: int) -> list[Finding]:
    """What learning from a pair of siblings costs where both share their history, beside two passes of their own."""
    model = _model(device).requires_grad_(True)
    stage = _STAGES - 1

    def learn(packed: Packed) -> None:
        torch.stack([velocity.square().mean() for velocity in model(packed)]).sum().backward()
        model.zero_grad(set_to_none=True)

    shared, alone = (model.pack(_siblings(stage, 2, device, together=together)) for together in (True, False))
    tokens = [len(packed.attention.tokens.joint) for packed in (shared, alone)]
    ours, plain = in_turns([partial(learn, shared), partial(learn, alone)], repeats, device)
    what = "a pair of siblings that share their past"
    return [
        Finding(f"{what}: tokens", tokens[0], "", tokens[1], "< plain", tokens[0] < tokens[1]),
        Finding.timed(f"{what}: forward and backward", ours, plain, "< plain", ours.median < plain.median),
    ]


@torch.no_grad()
def sampling(device: torch.device, repeats: int) -> list[Finding]:
    """The share of a unit's sampling time that is spent in the transformer."""
    model = _model(device)
    spent: list[Stopwatch] = []

    def before(*_: object) -> None:
        spent.append(Stopwatch(device))

    def after(*_: object) -> None:
        spent[-1].stop()

    hooks = (model.register_forward_pre_hook(before), model.register_forward_hook(after))
    steps = StepsConfig(first=(2,) * _STAGES, others=(2,) * _STAGES)
    sampler = Sampler(model, PyramidSchedule(_STAGES), GuidanceConfig(), steps, HashNoise())
    task = UnitTask(_text(_TEXT, device), _text(8, device), _history(device), (1, *_LATENT), seed=0, path=(0,) * 9)
    shares = []
    for turn in range(repeats + 1):
        spent.clear()
        whole = Stopwatch(device)
        sampler.sample([task])
        whole.stop()
        if turn > 0:  # the first warms up
            shares.append(100 * sum(watch.seconds() for watch in spent) / whole.seconds())
    for hook in hooks:
        hook.remove()
    share = statistics.median(shares)
    what = "sampling a guided 384p unit: time in the transformer"
    between = (min(shares), max(shares))
    return [Finding(what, share, "%", None, ">= 95 %", share >= 95, between)]


@dataclass(frozen=True, eq=False)
class _Dense:
    """All sequences, padded to the longest, under a dense mask, as a plain implementation would have it."""

    count: int
    length: int
    mask_N1LL: Tensor

    def __call__(self, query_NHLD: Tensor, key_NHLD: Tensor, value_NHLD: Tensor, current_only: bool) -> Tensor:
        return F.scaled_dot_product_attention(query_NHLD, key_NHLD, value_NHLD, attn_mask=self.mask_N1LL)


def dense(packed: Packed, device: torch.device, hidden: Sequence[range] = ()) -> AttentionPlan:
    """Who attends to whom in ``packed``, as a dense mask; ``hidden`` are columns of each sequence that nobody sees."""
    tokens = packed.attention.tokens
    count, length = len(tokens.lengths), int(tokens.lengths.max())
    mask = torch.eye(length, dtype=torch.bool).repeat(count, 1, 1)
    sequence, column, time_index = (torch.from_numpy(x) for x in (tokens.sequence, tokens.column, tokens.time))
    for number in range(count):
        own = sequence == number
        columns, times = column[own], time_index[own]
        mask[number, columns[:, None], columns[None]] = times[None] <= times[:, None]
    for number, unseen in enumerate(hidden):  # but by themselves: a row that sees nothing has no softmax
        mask[number, :, unseen.start : unseen.stop] = False
        mask[number].fill_diagonal_(fill_value=True)
    place = torch.empty(len(sequence), dtype=torch.long)
    place[torch.from_numpy(tokens.joint)] = sequence * length + column
    taken = torch.zeros(count * length, dtype=torch.bool).index_fill_(0, place, True)
    padding = (~taken).nonzero().flatten()
    table = _Dense(count, length, mask[:, None].to(device))
    return AttentionPlan(place.to(device), padding.to(device), count * length, tokens, (table,))


def _model(device: torch.device) -> Transformer:
    config = TransformerConfig(
        num_layers=6,
        num_attention_heads=8,
        attention_head_dim=64,
        caption_projection_dim=512,
        joint_attention_dim=512,
        pooled_projection_dim=512,
    )
    return fresh_transformer(config).to(device).eval()


def _text(tokens: int, device: torch.device) -> TextEmbedding:
    generator = torch.Generator().manual_seed(tokens)
    return TextEmbedding(
        torch.randn(tokens, 512, generator=generator).to(device), torch.randn(512, generator=generator).to(device)
    )


def _history(device: torch.device) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(16, 1, *_LATENT, generator=generator).to(device) for _ in range(_HISTORY))


def _current(stage: int, device: torch.device) -> Tensor:
    factor = 2 ** (_STAGES - 1 - stage)
    return torch.randn(16, 1, _LATENT[0] // factor, _LATENT[1] // factor, device=device)


def _guided(stage: int, texts: Sequence[int], device: torch.device) -> list[Sample]:
    """One sample per text, all with the same history."""
    clips, current = history_clips(_history(device), stage, _STAGES), _current(stage, device)
    return [Sample(Prefix(_text(tokens, device), clips), current, 500.0) for tokens in texts]


def _siblings(stage: int, count: int, device: torch.device, *, together: bool) -> list[Sample]:
    clips, text = history_clips(_history(device), stage, _STAGES), _text(_TEXT, device)
    one = Prefix(text, clips)
    prefixes = [one if together else Prefix(text, clips) for _ in range(count)]
    return [Sample(prefix, _current(stage, device), 500.0) for prefix in prefixes]


def in_turns(works: Sequence[Callable[[], object]], repeats: int, device: torch.device) -> list[Times]:
    """The times of each work in ``repeats`` turns.

    Two more turns come first: one warms up, the next finds how often a quick work must be repeated to fill a turn.
    """
    seconds: list[list[float]] = [[] for _ in works]
    calls = [1] * len(works)
    for turn in range(repeats + 2):
        for index, work in enumerate(works):
            watch = Stopwatch(device)
            for _ in range(calls[index]):
                work()
            watch.stop()
            each = watch.seconds() / calls[index]
            if turn == 1:
                calls[index] = max(1, round(_TURN / max(each, 1e-6)))
            elif turn > 1:
                seconds[index].append(each)
    return [Times(tuple(times)) for times in seconds]


class Stopwatch:
    """Runs from its construction to ``stop``: CPU time of all threads, or time between two CUDA events on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._began = self._now()
        self._ended = self._began

    def stop(self) -> None:
        self._ended = self._now()

    def seconds(self) -> float:
        """How long it ran; on a GPU this waits until that work is done."""
        if not self._on_gpu:
            return float(self._ended - self._began)
        self._ended.synchronize()
        return float(self._began.elapsed_time(self._ended)) / 1000

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.process_time()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
