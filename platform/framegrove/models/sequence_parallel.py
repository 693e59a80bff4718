"""Sequence parallelism: several workers compute one packed batch together (DeepSpeed-Ulysses, arXiv 2309.14509).

Everything in a transformer but attention treats tokens one by one, so each of P workers takes a share of them: a P-th
of the text, of the history and of the current clips, which keeps the last layer even, too. Attention treats heads one
by one. Before it, an all-to-all turns a share of the tokens with all heads into all tokens with a P-th of the heads;
after it, another one turns the results back:

    worker 0   tokens 0 1 2, heads a b      ->   tokens 0 1 2 3 4, head a     ->   tokens 0 1 2, heads a b
    worker 1   tokens 3 4,   heads a b      ->   tokens 0 1 2 3 4, head b     ->   tokens 3 4,   heads a b

Shares differ by a token where P does not divide a stream, and may be empty; there is no padding. All workers of a group
must be given the same batch. Each then returns the same velocities, but only gradients of its own tokens: a weight's
gradient is the sum over the group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from framegrove.models.attention import AttentionPlan
from framegrove.models.attention_layout import Tokens
from framegrove.models.packed import Packed


@dataclass(frozen=True, eq=False)
class SequenceGroup:
    """The workers that compute one packed batch together, and which of them this one is."""

    group: dist.ProcessGroup
    rank: int
    size: int

    @classmethod
    def of_neighbours(cls, size: int) -> SequenceGroup:
        """This worker's group, where ranks 0 to ``size`` - 1 form the first and so on; all workers call it at once."""
        group, _ = dist.new_subgroups(size)
        return cls(group, dist.get_rank(group), size)

    def bounds(self, tokens: slice) -> list[int]:
        """Where each worker's share of some consecutive tokens begins, and where the last one ends."""
        count = tokens.stop - tokens.start
        return [tokens.start + count * rank // self.size for rank in range(self.size + 1)]


@dataclass(frozen=True, eq=False)
class Share:
    """What one worker computes of a packed batch: ``packed`` holds its tokens, laid out like the whole.

    Only ``packed.blocks`` and ``packed.sample_clips`` still describe the whole batch.
    """

    packed: Packed
    visual: tuple[slice, ...]  # its tokens in the visual stream
    workers: SequenceGroup | None
    current: tuple[int, ...]  # each worker's number of current tokens

    @classmethod
    def of(cls, whole: Packed, workers: SequenceGroup | None) -> Share:
        """This worker's share of a batch; without a group, all of it."""
        total = len(whole.patches_LP)
        if workers is None:
            return cls(whole, (slice(0, total),), None, (total - whole.current_start,))
        texts = len(whole.text_LD)
        streams = (slice(0, texts), slice(0, whole.current_start), slice(whole.current_start, total))
        bounds = [workers.bounds(stream) for stream in streams]
        text, history, current = (slice(*of[workers.rank : workers.rank + 2]) for of in bounds)
        assert isinstance(whole.attention, AttentionPlan)
        joint = [bounds[0], *([texts + at for at in of] for of in bounds[1:])]
        part = replace(
            whole,
            text_LD=whole.text_LD[text],
            patches_LP=_joined(whole.patches_LP, (history, current)),
            times_L=_joined(whole.times_L, (history, current)),
            current_start=history.stop - history.start,
            text_rows=whole.text_rows.cut(text),
            visual_rows=whole.visual_rows.cut(history).followed_by(whole.visual_rows.cut(current)),
            current_rows=whole.visual_rows.cut(current),
            attention=SplitAttention.of(whole.attention, workers, joint),
        )
        return cls(part, (history, current), workers, _counts(bounds[2]))

    def of_visual(self, whole_L: Tensor) -> Tensor:
        """What of the whole visual stream's values belongs to this share's tokens."""
        return whole_L if self.workers is None else _joined(whole_L, self.visual)

    def gather(self, current_LP: Tensor) -> Tensor:
        """The whole batch's current tokens from each worker's own; the gradient is that of the worker's own alone."""
        if self.workers is None:
            return current_LP
        result: Tensor = _Gather.apply(current_LP, self.current, self.workers)
        return result


def _joined(x: Tensor, parts: Sequence[slice]) -> Tensor:
    return torch.cat([x[part] for part in parts])


@dataclass(frozen=True, eq=False)
class SplitAttention:
    """Attention of all workers' tokens, in which this worker computes its share of the heads.

    Its table holds the queries, keys and values of this worker's tokens, one after the other: text, history, current.
    """

    everybody: AttentionPlan  # of all tokens in the order in which they arrive: worker by worker
    workers: SequenceGroup
    place_L: Tensor  # of this worker's tokens, in its own table
    current_places_L: Tensor  # of everybody's current tokens, in everybody's tables
    counts: tuple[int, ...]  # each worker's number of tokens
    current_counts: tuple[int, ...]

    @classmethod
    def of(cls, plan: AttentionPlan, workers: SequenceGroup, bounds: Sequence[Sequence[int]]) -> SplitAttention:
        """For shares that begin at these ``bounds`` in the joint stream: of text, of history and of current tokens."""
        parts = [[slice(*of[rank : rank + 2]) for of in bounds] for rank in range(workers.size)]
        counts = tuple(sum(part.stop - part.start for part in of_rank) for of_rank in parts)
        return cls(
            replace(plan, place_L=torch.cat([_joined(plan.place_L, of_rank) for of_rank in parts])),
            workers,
            torch.arange(counts[workers.rank], device=plan.place_L.device),
            plan.place_L[bounds[2][0] :],
            counts,
            _counts(bounds[2]),
        )

    @property
    def tokens(self) -> Tokens:
        """Every token of the batch, this worker's and the others'."""
        return self.everybody.tokens

    def empty_table(self, like_L3HD: Tensor, dtype: torch.dtype) -> Tensor:
        """An uninitialised table with a place for each of this worker's tokens."""
        return like_L3HD.new_empty(self.counts[self.workers.rank], *like_L3HD.shape[1:], dtype=dtype)

    def __call__(self, table_M3HD: Tensor, wanted_L: Tensor | None = None) -> Tensor:
        """The results of this worker's tokens, or with ``wanted_L``, their places, of its current tokens alone."""
        received: Tensor = _ToHeads.apply(table_M3HD, self.counts, self.workers)
        table = self.everybody.empty_table(received, received.dtype)
        table.index_copy_(0, self.everybody.place_L, received)
        wanted, counts = (None, self.counts) if wanted_L is None else (self.current_places_L, self.current_counts)
        result: Tensor = _ToTokens.apply(self.everybody(table, wanted), counts, self.workers)
        return result


def _counts(bounds: Sequence[int]) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in pairwise(bounds))


class _ToHeads(torch.autograd.Function):
    """(own tokens, .., heads, head size) -> (all tokens, .., own heads, head size), the tokens worker by worker."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: Sequence[int], workers: SequenceGroup) -> Tensor:
        ctx.counts, ctx.workers = counts, workers
        return _to_heads(x, counts, workers)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _to_tokens(grad, ctx.counts, ctx.workers), None, None


class _ToTokens(torch.autograd.Function):
    """The way back: (all tokens, .., own heads, head size) -> (own tokens, .., heads, head size)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: Sequence[int], workers: SequenceGroup) -> Tensor:
        ctx.counts, ctx.workers = counts, workers
        return _to_tokens(x, counts, workers)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _to_heads(grad, ctx.counts, ctx.workers), None, None


class _Gather(torch.autograd.Function):
    """Every worker's rows, one after the other, on every worker.

    All workers compute the same loss from them. Were its gradient summed over the workers, it would count P times.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: Sequence[int], workers: SequenceGroup) -> Tensor:
        ctx.start = sum(counts[: workers.rank])
        ctx.count = len(x)
        return _exchange(torch.cat([x] * workers.size), [len(x)] * workers.size, counts, workers)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad[ctx.start : ctx.start + ctx.count], None, None


def _to_heads(x: Tensor, counts: Sequence[int], workers: SequenceGroup) -> Tensor:
    """Worker p gets the p-th part of this worker's heads."""
    by_worker = torch.cat(x.tensor_split(workers.size, dim=-2))
    return _exchange(by_worker, [len(x)] * workers.size, counts, workers)


def _to_tokens(x: Tensor, counts: Sequence[int], workers: SequenceGroup) -> Tensor:
    """Worker p gets the results of its own tokens."""
    own = counts[workers.rank]
    received = _exchange(x.contiguous(), counts, [own] * workers.size, workers)
    return torch.cat(received.split([own] * workers.size), dim=-2)


def _exchange(x: Tensor, sent: Sequence[int], received: Sequence[int], workers: SequenceGroup) -> Tensor:
    """Send and receive so many rows to and from each worker."""
    out = x.new_empty(sum(received), *x.shape[1:])
    dist.all_to_all_single(out, x, list(received), list(sent), group=workers.group)
    return out
