"""What a transformer takes up, from its shape alone: parameters, and bytes of activations. No torch in here.

Activations are what autograd keeps for the backward pass. They are counted for each token of width w; what there is
once a clip or once a sequence (shifts, scales, gates) is left out, and the last layer is counted as if it computed all
tokens, not just those of current clips.
"""

from __future__ import annotations

from dataclasses import dataclass

from framegrove.config.model import AnyTransformerConfig, FluxConfig

_TIME_WAVES = 256


def parameter_count(config: AnyTransformerConfig) -> int:
    """Weights of a transformer, all of which are trained."""
    width, patch = config.width, config.in_channels * config.patch_size**2
    condition = _linear(_TIME_WAVES, width) + _linear(config.pooled_projection_dim, width) + 2 * _linear(width, width)
    ends = _linear(config.joint_attention_dim, width) + _linear(patch, width) + _linear(width, patch)
    total = condition + ends + _linear(width, 2 * width)
    double = 12 * width * (width + 1) + 8 * _linear(width, width) + 4 * config.attention_head_dim + 2 * _feed(width)
    total += config.num_layers * double
    if isinstance(config, FluxConfig):
        single = 3 * _linear(width, width) + 2 * config.attention_head_dim + _linear(5 * width, width)
        single += _linear(width, 3 * width) + _linear(width, 4 * width)
        return total + config.num_single_layers * single
    # The last block has no text to give back: neither four of its six vectors, nor a way out, nor a feed-forward.
    return total - 4 * width * (width + 1) - _linear(width, width) - _feed(width)


def _linear(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


def _feed(width: int) -> int:
    return _linear(width, 4 * width) + _linear(4 * width, width)


@dataclass(frozen=True)
class Precision:
    """Bytes of a number: in the residual stream, in what matrix products read and write, and in attention."""

    residual: int
    product: int
    attention: int


PURE_BF16 = Precision(2, 2, 2)  # weights in bfloat16, on a GPU
PURE_FP32 = Precision(4, 4, 4)
AUTOCAST = Precision(4, 2, 2)  # float32 weights under bfloat16 autocast, on a GPU


def activation_bytes(
    config: AnyTransformerConfig, tokens: int, precision: Precision, *, recompute: bool = False, workers: int = 1
) -> int:
    """The most that autograd keeps at a time of one pass over a pack of ``tokens``, text and all.

    ``workers`` share the pack (sequence parallelism). With ``recompute``, each block keeps its input alone, and one
    block at a time everything.
    """
    own = -(-tokens // workers)
    doubles, singles = config.num_layers, config.num_single_layers if isinstance(config, FluxConfig) else 0
    double, single = _double_block(config, own, precision), _single_block(config, own, precision)
    stream = own * config.width * precision.residual
    if recompute:  # the later blocks' inputs are no longer needed
        in_double = (doubles - 1) * stream + double
        in_single = (doubles + singles - 1) * stream + single if singles else 0
        return _embedded(config, tokens) + max(in_double, in_single)
    ends = stream + own * config.width * precision.product  # the inputs of the last norm and of the last projection
    return _embedded(config, tokens) + doubles * double + singles * single + ends


def working_bytes(config: AnyTransformerConfig, tokens: int, precision: Precision, *, workers: int = 1) -> int:
    """What is needed for a moment in a block's backward pass: gradients of attention's inputs, in float32 once."""
    own = -(-tokens // workers)
    gradients = 2 * precision.residual + 3 * precision.product + 7 * precision.attention
    return own * config.width * (gradients + 5 * 4)


def _double_block(config: AnyTransformerConfig, tokens: int, precision: Precision) -> int:
    """The residual stream before each half of the block, and inputs and results of its matrix products:

    normed, attended, projected; normed, before the activation (4) and after it (4), the feed-forward's result.
    """
    weights = 2 * 3 * config.width**2 * precision.product  # of queries, keys and values, joined
    return (
        _attention(config, tokens, precision)
        + weights
        + tokens * config.width * (2 * precision.residual + 13 * precision.product)
    )


def _single_block(config: AnyTransformerConfig, tokens: int, precision: Precision) -> int:
    """Residual; normed, four before the activation, four after it beside what was attended, the result."""
    weights = 3 * config.width**2 * precision.product
    return (
        _attention(config, tokens, precision)
        + weights
        + tokens * config.width * (precision.residual + 11 * precision.product)
    )


def _attention(config: AnyTransformerConfig, tokens: int, precision: Precision) -> int:
    """Normed queries and keys in float32; queries, keys, values and result; per head two norms and a log-sum-exp."""
    per_width = 2 * 4 + 4 * precision.attention
    return tokens * (config.width * per_width + config.num_attention_heads * 3 * 4)


def _embedded(config: AnyTransformerConfig, tokens: int) -> int:
    """Rotations and patches of all tokens, which every worker holds."""
    return tokens * (8 * config.attention_head_dim // 2 + 4 * config.in_channels * config.patch_size**2)
