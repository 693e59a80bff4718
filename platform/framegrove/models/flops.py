"""What one transformer forward costs, from shapes alone: tokens, and FLOPs of all matrix products.

A multiply-add counts as two. Attention counts the pairs that the block-causal mask lets through, however they are
batched. Norms, activations and sums are left out: they are no matrix products. No torch in here.
"""

from __future__ import annotations

from collections.abc import Sequence

from framegrove.config.model import AnyTransformerConfig

Shape = tuple[int, int, int]  # units, height, width of a latent clip

_TIME_WAVES = 256


def layout_tokens(
    config: AnyTransformerConfig, text_len: int, history: Sequence[Shape], current: Shape, siblings: int = 1
) -> int:
    """Tokens of ``siblings`` samples of one prompt denoised in step; with history they carry their prefix once."""
    prefix = text_len + sum(_tokens(config, shape) for shape in history)
    return prefix * _copies(config, history, siblings) + siblings * _tokens(config, current)


def layout_flops(
    config: AnyTransformerConfig, text_len: int, history: Sequence[Shape], current: Shape, siblings: int = 1
) -> int:
    """FLOPs of one forward of ``siblings`` samples of one prompt, denoised in step, as the packed transformers run it.

    Blocks of two streams and of one cost the same per token: the latter's way out is as wide as a feed-forward.
    """
    width, layers = config.width, config.attention_layers
    patch = config.in_channels * config.patch_size**2
    copies = _copies(config, history, siblings)
    past = copies * sum(_tokens(config, shape) for shape in history)
    text, new = copies * text_len, siblings * _tokens(config, current)
    every = text + past + new
    members = siblings // copies
    pairs, new_pairs = _pairs(config, text_len, history, current, members)
    condition = (_TIME_WAVES + config.pooled_projection_dim + 2 * width) * width
    modulation = config.modulation_vectors * width * width
    embedding = text * config.joint_attention_dim * width + (past + new) * patch * width
    projections = layers * every * 3 * width * width
    # The last layer gives back current tokens alone.
    after_attention = ((layers - 1) * every + new) * (1 + 8) * width * width
    attention = 2 * width * copies * ((layers - 1) * pairs + new_pairs)
    out = new * width * patch
    return 2 * (copies * (condition + modulation) + embedding + projections + after_attention + attention + out)


def _tokens(config: AnyTransformerConfig, shape: Shape) -> int:
    units, height, width = shape
    return units * (height // config.patch_size) * (width // config.patch_size)


def _copies(config: AnyTransformerConfig, history: Sequence[Shape], siblings: int) -> int:
    """How often the prefix is carried: once where nothing in it depends on the samples."""
    return 1 if history and config.use_temporal_causal else siblings


def _pairs(
    config: AnyTransformerConfig, text_len: int, history: Sequence[Shape], current: Shape, members: int
) -> tuple[int, int]:
    """(query, key) pairs of one sequence, and of those the ones whose query is a current token."""
    past = [_tokens(config, (1, h, w)) for units, h, w in history for _ in range(units)]
    new = [_tokens(config, (1, *current[1:]))] * current[0]
    if not config.use_temporal_causal:
        total = text_len + sum(past) + sum(new)
        return total * total, sum(new) * total
    seen, prefix_pairs, new_pairs = text_len, 0, 0
    for unit in past:
        seen += unit
        prefix_pairs += unit * seen
    for unit in new:
        seen += unit
        new_pairs += unit * seen
    first = (past or new)[0]
    text_pairs = text_len * (text_len + first)  # text stands at time 0 and sees unit 0
    return text_pairs + prefix_pairs + members * new_pairs, members * new_pairs
