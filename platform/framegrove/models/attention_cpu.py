"""Block-causal attention on a CPU, by scaled-dot-product attention.

Long sequences are attended run by run: a run's queries all see the same keys, one or two slices of the sequence, so
no mask is needed and nothing invisible is computed. Short sequences, where the number of calls costs more than the
arithmetic, are attended whole: sequences of about equal length form one table, under a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from framegrove.models.attention_layout import Ints, Piece, Tokens

_SHORT = 128  # tokens up to which a sequence is attended whole
_STEP = 8  # lengths of short sequences are rounded up to a multiple of this, so that there are few tables


def cpu_tables(
    tokens: Tokens, sequences: Sequence[Sequence[Piece]], causal: bool
) -> tuple[tuple[Short | Long, ...], Ints]:
    """The tables, and for each sequence its first place (an index into all tables laid one after the other).

    Short sequences share a table when their rounded lengths agree; long ones when their whole layout does, because all
    rows of a table are sliced alike.
    """
    classes: dict[object, list[int]] = {}
    for number, length in enumerate(tokens.lengths.tolist()):
        if length <= _SHORT:
            classes.setdefault(-(-length // _STEP) * _STEP, []).append(number)
        else:
            layout = tuple((piece.length, piece.time, piece.member) for piece in sequences[number])
            classes.setdefault(layout, []).append(number)
    tables: list[Short | Long] = []
    base = np.empty(len(sequences), np.int64)
    row = np.empty(len(sequences), np.int64)
    start = 0
    for key, numbers in classes.items():
        length = key if isinstance(key, int) else int(tokens.lengths[numbers[0]])
        base[numbers] = start + length * np.arange(len(numbers))
        row[numbers] = np.arange(len(numbers))
        if isinstance(key, int):
            inside = np.isin(tokens.sequence, numbers)
            tables.append(Short(len(numbers), length, _bias(tokens, inside, row, len(numbers), length, causal)))
        else:
            tables.append(Long(len(numbers), length, _runs(sequences[numbers[0]], causal)))
        start += length * len(numbers)
    return tuple(tables), base


@dataclass(frozen=True, eq=False)
class Short:
    """Sequences of about equal length, each attended whole; ``bias_N1LL`` (0 or -inf) is added to the scores."""

    count: int
    length: int
    bias_N1LL: Tensor

    def __call__(self, query_NHLD: Tensor, key_NHLD: Tensor, value_NHLD: Tensor, current_only: bool) -> Tensor:
        bias = self.bias_N1LL.to(query_NHLD.dtype)
        return F.scaled_dot_product_attention(query_NHLD, key_NHLD, value_NHLD, attn_mask=bias)


@dataclass(frozen=True)
class _Run:
    """Consecutive queries of a sequence that all see the same keys: columns ``start`` to ``stop`` see ``keys``."""

    start: int
    stop: int
    keys: tuple[slice, ...]
    current: bool


@dataclass(frozen=True, eq=False)
class Long:
    """Sequences of identical layout, attended run by run without a mask."""

    count: int
    length: int
    runs: tuple[_Run, ...]

    def __call__(self, query_NHLD: Tensor, key_NHLD: Tensor, value_NHLD: Tensor, current_only: bool) -> Tensor:
        parts = []
        for run in self.runs:
            asked = query_NHLD[:, :, run.start : run.stop]
            if current_only and not run.current:
                parts.append(torch.zeros_like(asked))  # the last layer reads current tokens only
                continue
            keys, values = (_columns(x, run.keys) for x in (key_NHLD, value_NHLD))
            parts.append(F.scaled_dot_product_attention(asked, keys, values))
        return torch.cat(parts, dim=2)


def _columns(x_NHLD: Tensor, spans: tuple[slice, ...]) -> Tensor:
    parts = [x_NHLD[:, :, span] for span in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _bias(tokens: Tokens, inside: npt.NDArray[np.bool_], row: Ints, count: int, length: int, causal: bool) -> Tensor:
    """What each token of a table may see, as a bias (count, 1, length, length).

    Padding, member -1, sees padding: a row of nothing but -inf would turn into NaN.
    """
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
    """One run per time and member. A run sees the prefix, and of its own sample everything up to the run's end."""
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
        if piece.member in (0, 1):  # the first sample directly follows the prefix, so one slice holds both
            keys: tuple[slice, ...] = (slice(0, stop),)
        else:
            keys = (slice(0, prefix), slice(own_start, stop))
        if previous is not None and (piece.time, piece.member) == (previous.time, previous.member):
            last = runs.pop()
            runs.append(_Run(last.start, stop, keys, last.current or piece.current))
        else:
            runs.append(_Run(start, stop, keys, piece.current))
        start, previous = stop, piece
    return tuple(runs)
