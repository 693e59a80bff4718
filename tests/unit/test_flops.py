"""FLOPs from shapes against what a real forward of the packed transformer does."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from framegrove.config.model import AnyTransformerConfig, FluxConfig, TransformerConfig
from framegrove.models.attention_layout import mask_rule
from framegrove.models.flops import Shape, layout_flops, layout_tokens
from framegrove.models.packed import Prefix, Sample, TextEmbedding
from framegrove.models.transformers import build_transformer
from tests.tiny import digits_transformer_config

SMALL = digits_transformer_config().model_copy(update={"num_layers": 3})
FLUX = FluxConfig(
    num_layers=2,
    num_single_layers=3,
    num_attention_heads=4,
    attention_head_dim=16,
    axes_dims_rope=(4, 6, 6),
    joint_attention_dim=24,
    pooled_projection_dim=20,
)
BIDIRECTIONAL = SMALL.model_copy(update={"use_temporal_causal": False})


def _samples(config: AnyTransformerConfig, text: int, history: list[Shape], current: Shape, count: int) -> list[Sample]:
    embedding = TextEmbedding(torch.randn(text, config.joint_attention_dim), torch.randn(config.pooled_projection_dim))
    prefix = Prefix(embedding, tuple(torch.randn(16, *shape) for shape in history))
    return [Sample(prefix, torch.randn(16, *current), 500.0) for _ in range(count)]


LAYOUTS: list[tuple[AnyTransformerConfig, int, list[Shape], Shape, int]] = [
    (SMALL, 7, [], (1, 4, 4), 1),
    (SMALL, 7, [], (1, 8, 8), 3),
    (SMALL, 5, [], (3, 4, 4), 1),
    (SMALL, 12, [(2, 2, 2), (1, 4, 4), (1, 8, 8)], (1, 8, 8), 1),
    (SMALL, 12, [(1, 2, 2), (1, 4, 4)], (1, 4, 4), 4),
    (BIDIRECTIONAL, 12, [(1, 2, 2), (1, 4, 4)], (1, 4, 4), 2),
    (FLUX, 7, [], (1, 8, 8), 3),
    (FLUX, 12, [(2, 2, 2), (1, 4, 4), (1, 8, 8)], (1, 8, 8), 2),
]


@pytest.mark.parametrize(("config", "text", "history", "current", "siblings"), LAYOUTS)
def test_flops_and_tokens_are_those_of_a_forward(
    config: AnyTransformerConfig, text: int, history: list[Shape], current: Shape, siblings: int
) -> None:
    transformer = build_transformer(config)
    samples = _samples(config, text, history, current, siblings)
    packed = transformer.pack(samples)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        transformer(packed)
    attention = sum(f for op, f in counter.get_flop_counts()["Global"].items() if "scaled_dot_product" in str(op))
    linear = counter.get_total_flops() - attention

    tokens = packed.attention.tokens
    rule = mask_rule(*map(torch.from_numpy, (tokens.sequence, tokens.member, tokens.time)), config.use_temporal_causal)
    at = torch.arange(len(tokens.joint))
    seen = rule(None, None, at[:, None], at[None])
    current_tokens = seen[torch.from_numpy(tokens.joint) >= len(packed.text_LD) + packed.current_start]
    pairs = (config.attention_layers - 1) * int(seen.sum()) + int(current_tokens.sum())

    assert layout_tokens(config, text, history, current, siblings) == len(tokens.joint)
    assert layout_flops(config, text, history, current, siblings) == linear + 4 * config.width * pairs


def test_siblings_share_their_past_in_768p() -> None:
    """Five siblings of unit 8 at 768p, coarsest stage: 3,248 tokens instead of 11,440 (text of 128 tokens)."""
    history: list[Shape] = [(8, 24, 40)]
    config = TransformerConfig()
    assert layout_tokens(config, 128, history, (1, 24, 40), siblings=5) == 3248
    assert 5 * layout_tokens(config, 128, history, (1, 24, 40)) == 11440


def test_the_papers_last_unit_of_ten_seconds() -> None:
    """PFM section 3.3: 15,360 tokens of history, against 119,040 for full-sequence diffusion at 768p."""
    config = TransformerConfig()
    history: list[Shape] = [(28, 24, 40), (1, 48, 80), (1, 96, 160)]
    assert layout_tokens(config, 0, history, (1, 96, 160)) == 28 * 240 + 960 + 3840 + 3840 == 15360
    assert layout_tokens(config, 0, [], (31, 96, 160)) == 119040
