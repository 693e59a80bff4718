"""Block-causal attention over a packed sequence, planned once per batch and used by every layer.

Inside a sequence a token sees the prefix and its own sample, up to and including its own time index (PFM section
3.4); text has time index 0, so it sees unit 0 and nothing later. Tokens of different sequences never meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """A run of tokens with one time index: where it starts in the joint stream, and whose it is (0: the prefix's)."""

    start: int
    length: int
    time: int
    member: int


@dataclass(frozen=True, eq=False)
class _Bucket:
    """Sequences attended together: a (count, length) table of tokens and what each may see, None for everything."""

    count: int
    length: int
    mask_N1LL: Tensor | None


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """Who attends to whom in one packed batch, as index tables; call it with queries, keys and values."""

    gather_M: Tensor  # joint token of every place of every bucket's table; padded places repeat a token
    scatter_L: Tensor  # place of every joint token
    buckets: tuple[_Bucket, ...]

    @classmethod
    def build(cls, sequences: Sequence[Sequence[Piece]], causal: bool, device: torch.device) -> AttentionPlan:
        groups: dict[int, list[Sequence[Piece]]] = {}
        for pieces in sequences:
            groups.setdefault(-(-sum(piece.length for piece in pieces) // 8) * 8, []).append(pieces)
        total = sum(piece.length for pieces in sequences for piece in pieces)
        gather, scatter, buckets = [], torch.empty(total, dtype=torch.int64), []
        base = 0
        for length, members in sorted(groups.items()):
            index = torch.zeros(len(members), length, dtype=torch.int64)
            time = torch.full((len(members), length), -1)
            owner = torch.full((len(members), length), -1)
            for row, pieces in enumerate(members):
                column = 0
                for piece in pieces:
                    span = slice(column, column + piece.length)
                    index[row, span] = torch.arange(piece.start, piece.start + piece.length)
                    time[row, span] = piece.time
                    owner[row, span] = piece.member
                    scatter[piece.start : piece.start + piece.length] = torch.arange(piece.length) + (
                        base + row * length + column
                    )
                    column += piece.length
            mask = (owner[:, None, :] == 0) | (owner[:, None, :] == owner[:, :, None])
            if causal:
                mask &= time[:, None, :] <= time[:, :, None]
            mask |= owner[:, :, None] < 0
            buckets.append(_Bucket(len(members), length, mask[:, None].to(device)))
            gather.append(index.flatten())
            base += index.numel()
        return cls(torch.cat(gather).to(device), scatter.to(device), tuple(buckets))

    def __call__(self, qkv_L3HD: Tensor) -> Tensor:
        """(tokens, 3, heads, head size) of the joint stream -> (tokens, heads, head size)."""
        table = qkv_L3HD[self.gather_M]
        out, start = [], 0
        for bucket in self.buckets:
            stop = start + bucket.count * bucket.length
            part = table[start:stop].view(bucket.count, bucket.length, *qkv_L3HD.shape[1:])
            query, key, value = part.permute(2, 0, 3, 1, 4)
            result = F.scaled_dot_product_attention(query, key, value, attn_mask=bucket.mask_N1LL)
            out.append(result.transpose(1, 2).flatten(0, 1))
            start = stop
        return torch.cat(out)[self.scatter_L]
