"""The block mask that is built a few rows at a time is the one that FlexAttention would have built."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from framegrove.models.attention_flex import block_mask
from framegrove.models.attention_layout import mask_rule

CPU = torch.device("cpu")


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("total", [90, 1280, 2000])
def test_it_is_that_of_torch(total: int, causal: bool) -> None:
    generator = torch.Generator().manual_seed(total)
    sequence = torch.arange(total) // 700
    time = torch.arange(total) // 150
    member = torch.randint(0, 2, (total // 50 + 1,), generator=generator).repeat_interleave(50)[:total]
    rule = mask_rule(sequence, member, time, causal)
    ours, theirs = block_mask(rule, total, CPU), create_block_mask(rule, None, None, total, total, device="cpu")
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    for counts, places in (("kv_num_blocks", "kv_indices"), ("full_kv_num_blocks", "full_kv_indices")):
        for row, count in enumerate(getattr(theirs, counts)[0, 0].tolist()):
            mine, other = (getattr(mask, places)[0, 0, row, :count] for mask in (ours, theirs))
            assert torch.equal(mine, other)
    assert ours.seq_lengths == theirs.seq_lengths
