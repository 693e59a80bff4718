"""Either transformer from scratch."""

from __future__ import annotations

import pytest
import torch

from framegrove.config.model import AnyTransformerConfig
from framegrove.models.packed import Prefix, Sample, TextEmbedding
from framegrove.models.transformers import fresh_transformer
from tests.public_folder import FLUX, MMDIT


@pytest.mark.parametrize("config", [MMDIT, FLUX])
def test_fresh_weights_are_seeded_and_start_at_zero(config: AnyTransformerConfig) -> None:
    first, again, other = (fresh_transformer(config, seed) for seed in (3, 3, 4))
    pairs = zip(first.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.context_embedder.weight, other.context_embedder.weight)
    text = TextEmbedding(torch.randn(5, config.joint_attention_dim), torch.randn(config.pooled_projection_dim))
    with torch.no_grad():
        out = first(first.pack([Sample(Prefix(text), torch.randn(16, 1, 8, 8), 100.0)]))[0]
    assert not out.any()
