"""Block-causal attention on a GPU: all sequences in one FlexAttention call under a block mask.

FlexAttention skips the 128 x 128 blocks in which no query sees any key, and evaluates the mask rule only in blocks
that are partly visible.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from framegrove.models.attention_layout import Ints, Tokens, mask_rule

_BLOCK = 128  # tokens along each side of a block
_ROWS = 8  # rows of blocks whose visibility is worked out at a time


def flex_tables(tokens: Tokens, causal: bool, device: torch.device) -> tuple[tuple[Flex, ...], Ints]:
    """A single table, and for each sequence its first place in it."""
    sequence, member, time = (
        torch.from_numpy(part).to(device) for part in (tokens.sequence, tokens.member, tokens.time)
    )
    total = len(tokens.joint)
    mask = block_mask(mask_rule(sequence, member, time, causal), total, device)
    return (Flex(1, total, mask),), np.cumsum(tokens.lengths) - tokens.lengths


@dataclass(frozen=True, eq=False)
class Flex:
    """All sequences one after the other in a single row; the block mask keeps them apart."""

    count: int
    length: int
    block_mask: BlockMask

    def __call__(self, query_NHLD: Tensor, key_NHLD: Tensor, value_NHLD: Tensor, current_only: bool) -> Tensor:
        # Only tests run this on a CPU, where PyTorch compiles no backward pass and then refuses inputs with gradients.
        attend: Any = _compiled_flex() if query_NHLD.is_cuda else flex_attention
        out: Tensor = attend(query_NHLD, key_NHLD, value_NHLD, block_mask=self.block_mask)
        return out


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=True)
    return compiled


def block_mask(rule: Callable[..., Tensor], total: int, device: torch.device) -> BlockMask:
    """The same mask as PyTorch's ``create_block_mask`` for ``total`` tokens, worked out a few rows of blocks at a time.

    PyTorch's evaluates the rule for all pairs of tokens at once, which takes about 10 GB for 32,768 tokens.
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
    """For each block of queries, the number of chosen key blocks and the indices of all, the chosen ones first."""
    places = chosen.int().argsort(dim=1, descending=True, stable=True)
    return chosen.sum(1).int()[None, None], places.int()[None, None]
