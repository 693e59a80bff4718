"""Where the tokens of a packed batch stand, and which of them see each other.

A *sequence* is one prefix followed by the samples that share it. Each of its tokens has a *time* (text 0, and otherwise
the index of its unit) and a *member* (0 for the prefix, 1, 2, .. for the samples). A query sees a key if

- both are in the same sequence, and
- the key belongs to the prefix or to the query's own sample, and
- in a causal model, the key's time is not later than the query's.

For example, two text tokens ``t``, a history of two units ``0`` and ``1``, and two samples ``a`` and ``b`` of unit 2,
with two tokens each (``x``: seen):

                       key
                       t t 0 0 1 1 a a b b
    query  t  time 0   x x x x . . . . . .     text sees unit 0, which has its time, and nothing later
           0  time 0   x x x x . . . . . .
           1  time 1   x x x x x x . . . .
           a  time 2   x x x x x x x x . .     a and b do not see each other,
           b  time 2   x x x x x x . . x x     and no row above them depends on either: the prefix is computed once

A sequence with a single sample counts all of it as prefix (member 0); otherwise, for unit 0, text could not see it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Piece:
    """A run of consecutive tokens of the joint stream with the same time and member."""

    start: int  # index of its first token in the joint stream: all text, then all visual tokens
    length: int
    time: int
    member: int
    current: bool  # whether it belongs to a unit that is being denoised


@dataclass(frozen=True, eq=False)
class Tokens:
    """Every token of a batch in sequence order, as parallel arrays; ``lengths`` alone has one entry per sequence."""

    joint: Ints  # index in the joint stream
    sequence: Ints  # number of its sequence
    column: Ints  # index within its sequence
    member: Ints  # 0 for the prefix, otherwise the number of its sample
    time: Ints
    lengths: Ints

    @classmethod
    def of(cls, sequences: Sequence[Sequence[Piece]]) -> Tokens:
        """List the tokens of sequences given as pieces in time order."""
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


class Table(Protocol):
    """Sequences that are attended in one call, as rows of equal length."""

    @property
    def count(self) -> int:
        """Number of rows."""
        ...

    @property
    def length(self) -> int:
        """Tokens per row, padding included."""
        ...

    def __call__(self, query_NHLD: Tensor, key_NHLD: Tensor, value_NHLD: Tensor, current_only: bool) -> Tensor:
        """Attend within each row. With ``current_only``, the values of tokens that are not current do not matter."""
        ...


def mask_rule(sequence: Tensor, member: Tensor, time: Tensor, causal: bool) -> Callable[..., Tensor]:
    """Who sees whom, as a FlexAttention ``mask_mod``; the tensors have one entry per token, in sequence order."""

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (sequence[query] == sequence[key]) & ((member[key] == 0) | (member[key] == member[query]))
        return own & (time[key] <= time[query]) if causal else own

    return sees
