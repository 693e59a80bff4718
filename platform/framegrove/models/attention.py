"""Block-causal attention over a packed sequence, planned once per batch and used by every layer.

Inside a sequence a token sees the prefix and its own sample, up to and including its own time index (PFM section
3.4); text has time index 0, so it sees unit 0 and nothing later. Tokens of different sequences never meet.

Three ways, all equal to a dense mask over the whole batch:

- long sequences on a CPU: unit by unit, each a call without a mask over the keys it sees, a prefix of the sequence;
- short ones on a CPU, where calls cost more than arithmetic: whole, in tables of about equal length, under a mask;
- on a GPU: all at once by FlexAttention, whose block mask is made from the same rule.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention.flex_attention import BlockMask, flex_attention

_SHORT = 128  # tokens up to which a sequence is attended whole
_STEP = 8  # lengths of short sequences are rounded up to a multiple, so that few tables remain
_BLOCK, _ROWS = 128, 8  # tokens of a block of FlexAttention; blocks whose rule is worked out at a time

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Piece:
    """A run of tokens with one time index: where it starts in the joint stream, and whose it is (0: the prefix's)."""

    start: int
    length: int
    time: int
    member: int
    current: bool


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """Who attends to whom in one packed batch; call it with queries, keys and values in its tables' order.

    In the tables tokens stand in sequence order, with some padding behind short sequences; the joint stream (all text,
    then all visual tokens) comes back.
    """

    place_L: Tensor  # the place of each token of the joint stream in the tables, one table after the other
    padding_M: Tensor  # the places left over
    places: int  # of all tables
    tokens: Tokens
    tables: tuple[_Short | _Long | _Flex, ...]

    @classmethod
    def build(cls, sequences: Sequence[Sequence[Piece]], causal: bool, device: torch.device) -> AttentionPlan:
        """Plan for sequences of pieces in time order, prefix first, then each sample's own."""
        tokens = Tokens.of(sequences)
        tables: tuple[_Short | _Long | _Flex, ...]
        if device.type == "cuda":
            tables, base = _flex_tables(tokens, causal, device)
        else:
            tables, base = _cpu_tables(tokens, sequences, causal)
        place = base[tokens.sequence] + tokens.column
        by_token = np.empty_like(place)
        by_token[tokens.joint] = place
        places = sum(table.count * table.length for table in tables)
        padding = np.setdiff1d(np.arange(places), place) if places > len(place) else place[:0]
        return cls(torch.from_numpy(by_token).to(device), torch.from_numpy(padding).to(device), places, tokens, tables)

    def empty_table(self, like_L3HD: Tensor, dtype: torch.dtype) -> Tensor:
        """(places, 3, heads, head size) for queries, keys and values to be written into at ``place_L``."""
        table = like_L3HD.new_empty(self.places, *like_L3HD.shape[1:], dtype=dtype)
        return table.index_fill_(0, self.padding_M, 0) if len(self.padding_M) else table

    def __call__(self, table_M3HD: Tensor, wanted_L: Tensor | None = None) -> Tensor:
        """A table of queries, keys and values -> (tokens, heads, head size), in the order of the joint stream.

        With ``wanted_L``, places of current tokens (a part of ``place_L``), only theirs, in that order.
        """
        places = self.place_L if wanted_L is None else wanted_L
        result: Tensor = _Attend.apply(table_M3HD, places, self.tables, wanted_L is not None)
        return result


@dataclass(frozen=True, eq=False)
class Tokens:
    """Every token of a batch in sequence order: its joint index, sequence, column in it, owner, time index."""

    joint: Ints
    sequence: Ints
    column: Ints
    member: Ints
    time: Ints
    lengths: Ints  # of each sequence

    @classmethod
    def of(cls, sequences: Sequence[Sequence[Piece]]) -> Tokens:
        flat = np.array(
            [
                (piece.start, piece.length, piece.time, piece.member, number)
                for number, pieces in enumerate(sequences)
                for piece in pieces
            ],
            dtype=np.int64,
        )
        start, length, time, member, number = flat.T
        lengths = np.bincount(number, weights=length, minlength=len(sequences)).astype(np.int64)
        total = int(length.sum())
        sequence = np.repeat(number, length)
        within_piece = np.arange(total) - np.repeat(np.cumsum(length) - length, length)
        column = np.arange(total) - (np.cumsum(lengths) - lengths)[sequence]
        return cls(
            np.repeat(start, length) + within_piece,
            sequence,
            column,
            np.repeat(member, length),
            np.repeat(time, length),
            lengths,
        )


def mask_rule(sequence: Tensor, member: Tensor, time: Tensor, causal: bool) -> Callable[..., Tensor]:
    """The rule of the module docstring as a FlexAttention ``mask_mod`` over token positions."""

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (sequence[query] == sequence[key]) & ((member[key] == 0) | (member[key] == member[query]))
        return own & (time[key] <= time[query]) if causal else own

    return sees


@dataclass(frozen=True, eq=False)
class _Short:
    """Sequences of about equal length, whole, under a mask (0 or -inf, added to the scores)."""

    count: int
    length: int
    bias_N1LL: Tensor

    def __call__(self, query_NHLD: Tensor, key_NHLD: Tensor, value_NHLD: Tensor, current_only: bool) -> Tensor:
        bias = self.bias_N1LL.to(query_NHLD.dtype)
        return F.scaled_dot_product_attention(query_NHLD, key_NHLD, value_NHLD, attn_mask=bias)


@dataclass(frozen=True)
class _Run:
    """Queries from ``start`` to ``stop`` that see the columns in ``keys``."""

    start: int
    stop: int
    keys: tuple[slice, ...]
    current: bool


@dataclass(frozen=True, eq=False)
class _Long:
    """Sequences of one and the same layout, run by run, without a mask."""

    count: int
    length: int
    runs: tuple[_Run, ...]

    def __call__(self, query_NHLD: Tensor, key_NHLD: Tensor, value_NHLD: Tensor, current_only: bool) -> Tensor:
        parts = []
        for run in self.runs:
            asked = query_NHLD[:, :, run.start : run.stop]
            if current_only and not run.current:
                parts.append(torch.zeros_like(asked))  # nobody reads them
                continue
            keys, values = (_columns(x, run.keys) for x in (key_NHLD, value_NHLD))
            parts.append(F.scaled_dot_product_attention(asked, keys, values))
        return torch.cat(parts, dim=2)


@dataclass(frozen=True, eq=False)
class _Flex:
    """All sequences one after the other, as one batch row."""

    count: int
    length: int
    block_mask: BlockMask

    def __call__(self, query_NHLD: Tensor, key_NHLD: Tensor, value_NHLD: Tensor, current_only: bool) -> Tensor:
        # On a CPU, where tests alone come by here, PyTorch has no compiled backward pass and refuses gradients.
        attend: Any = _compiled_flex() if query_NHLD.is_cuda else flex_attention
        out: Tensor = attend(query_NHLD, key_NHLD, value_NHLD, block_mask=self.block_mask)
        return out


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=True)
    return compiled


def _columns(x_NHLD: Tensor, spans: tuple[slice, ...]) -> Tensor:
    parts = [x_NHLD[:, :, span] for span in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _cpu_tables(
    tokens: Tokens, sequences: Sequence[Sequence[Piece]], causal: bool
) -> tuple[tuple[_Short | _Long, ...], Ints]:
    """The tables, and where each sequence begins in them."""
    classes: dict[object, list[int]] = {}
    for number, length in enumerate(tokens.lengths.tolist()):
        if length <= _SHORT:
            classes.setdefault(-(-length // _STEP) * _STEP, []).append(number)
        else:
            layout = tuple((piece.length, piece.time, piece.member) for piece in sequences[number])
            classes.setdefault(layout, []).append(number)
    tables: list[_Short | _Long] = []
    base = np.empty(len(sequences), np.int64)
    row = np.empty(len(sequences), np.int64)
    start = 0
    for key, numbers in classes.items():
        length = key if isinstance(key, int) else int(tokens.lengths[numbers[0]])
        base[numbers] = start + length * np.arange(len(numbers))
        row[numbers] = np.arange(len(numbers))
        if isinstance(key, int):
            inside = np.isin(tokens.sequence, numbers)
            tables.append(_Short(len(numbers), length, _bias(tokens, inside, row, len(numbers), length, causal)))
        else:
            tables.append(_Long(len(numbers), length, _runs(sequences[numbers[0]], causal)))
        start += length * len(numbers)
    return tuple(tables), base


def _bias(tokens: Tokens, inside: npt.NDArray[np.bool_], row: Ints, count: int, length: int, causal: bool) -> Tensor:
    """What each token of a table may see, (count, 1, length, length); padding sees padding, so that no row is empty."""
    at = (row[tokens.sequence[inside]], tokens.column[inside])
    member = np.full((count, length), -1, np.int64)
    time = np.zeros((count, length), np.int64)
    member[at], time[at] = tokens.member[inside], tokens.time[inside]
    key, query = member[:, None, :], member[:, :, None]
    sees = (key == query) | ((key == 0) & (query > 0))
    if causal:
        sees &= time[:, None, :] <= time[:, :, None]
    return torch.from_numpy(np.where(sees, np.float32(0), np.float32(-np.inf)))[:, None]


def _runs(pieces: Sequence[Piece], causal: bool) -> tuple[_Run, ...]:
    """Queries of one time and member together; they see the prefix so far, and their sample's tokens so far."""
    total = sum(piece.length for piece in pieces)
    if not causal:
        return (_Run(0, total, (slice(0, total),), True),)
    prefix = sum(piece.length for piece in pieces if piece.member == 0)
    runs: list[_Run] = []
    start, own_start, previous = 0, 0, None
    for piece in pieces:
        stop = start + piece.length
        if previous is None or piece.member != previous.member:
            own_start = start
        own_keys = (slice(0, stop),) if piece.member == 0 else (slice(0, prefix), slice(own_start, stop))
        if piece.member == 1:
            own_keys = (slice(0, stop),)
        if previous is not None and (piece.time, piece.member) == (previous.time, previous.member):
            last = runs.pop()
            runs.append(_Run(last.start, stop, own_keys, last.current or piece.current))
        else:
            runs.append(_Run(start, stop, own_keys, piece.current))
        start, previous = stop, piece
    return tuple(runs)


def _flex_tables(tokens: Tokens, causal: bool, device: torch.device) -> tuple[tuple[_Flex, ...], Ints]:
    sequence, member, time = (
        torch.from_numpy(part).to(device) for part in (tokens.sequence, tokens.member, tokens.time)
    )
    total = len(tokens.joint)
    mask = block_mask(mask_rule(sequence, member, time, causal), total, device)
    return (_Flex(1, total, mask),), np.cumsum(tokens.lengths) - tokens.lengths


def block_mask(rule: Callable[..., Tensor], total: int, device: torch.device) -> BlockMask:
    """What ``create_block_mask`` gives for one sequence of ``total`` tokens, a few rows of blocks at a time.

    That one holds the rule of all pairs of tokens at once, some 10 GB for 32,768.
    """
    blocks = -(-total // _BLOCK)
    tokens = torch.arange(blocks * _BLOCK, device=device)
    there, nothing = tokens < total, tokens.new_zeros(())
    tokens = tokens.clamp(max=total - 1)
    some, every = [], []
    for queries, real in zip(tokens.split(_ROWS * _BLOCK), there.split(_ROWS * _BLOCK), strict=True):
        seen = rule(nothing, nothing, queries[:, None], tokens) & real[:, None] & there
        pairs = seen.view(-1, _BLOCK, blocks, _BLOCK)
        some.append(pairs.any(3).any(1))
        every.append(pairs.all(3).all(1))
    whole = torch.cat(every)
    part = torch.cat(some) & ~whole
    return BlockMask.from_kv_blocks(
        *_counts_and_places(part),
        *_counts_and_places(whole),
        BLOCK_SIZE=_BLOCK,
        mask_mod=rule,
        seq_lengths=(total, total),
    )


def _counts_and_places(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """How many key blocks each block of queries has, and which: those come first."""
    places = chosen.int().argsort(dim=1, descending=True, stable=True)
    return chosen.sum(1).int()[None, None], places.int()[None, None]


class _Attend(torch.autograd.Function):
    """Table by table into one output, then back to the joint stream; gradients return by the same ways, uncopied."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, places: Tensor, tables: tuple[_Short | _Long | _Flex, ...], current_only: bool
    ) -> Tensor:
        out = rows.new_empty(rows.shape[0], *rows.shape[2:])
        graphs = []
        with torch.autocast(rows.device.type, enabled=False):  # the caller has chosen the type
            for table, part, to in _by_table(tables, rows, out):
                with torch.set_grad_enabled(ctx.needs_input_grad[0]):
                    inputs = tuple(x.detach().requires_grad_(ctx.needs_input_grad[0]) for x in part.unbind(2))
                    result = table(*(x.transpose(1, 2) for x in inputs), current_only).transpose(1, 2)
                to.copy_(result.detach())
                graphs.append((inputs, result))
        ctx.save_for_backward(places)
        ctx.tables, ctx.graphs = tables, graphs
        return out.index_select(0, places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (places,) = ctx.saved_tensors
        total = sum(table.count * table.length for table in ctx.tables)
        whole = grad.new_zeros(total, *grad.shape[1:]).index_copy_(0, places, grad)
        grad_rows = grad.new_empty(total, 3, *grad.shape[1:])
        views = _by_table(ctx.tables, whole, grad_rows)
        for (_, part, to), (inputs, result) in zip(views, ctx.graphs, strict=True):
            for number, back in enumerate(torch.autograd.grad(result, inputs, part)):
                to[:, :, number] = back
        return grad_rows, None, None, None


def _by_table(tables: tuple[_Short | _Long | _Flex, ...], *rows: Tensor) -> Iterator[tuple[Any, ...]]:
    """Each table with its part of every tensor, as (count, length, ...)."""
    start = 0
    for table in tables:
        stop = start + table.count * table.length
        yield table, *(x[start:stop].view(table.count, table.length, *x.shape[1:]) for x in rows)
        start = stop
