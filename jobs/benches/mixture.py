"""A training step on the published mixture of units and stages: packed passes beside one padded batch.

The samples are those that packs.py plans for the phase of 5 s clips at 384p, at half of its height and width and with a
quarter of its text, so that a CPU can do it: everything has a quarter of its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from jobs.benches.packs import plans_of

if TYPE_CHECKING:
    import torch

    from framegrove.evaluation.benches import Finding
    from framegrove.models.packed import Packed, Sample
    from framegrove.models.transformers import Transformer
    from framegrove.training.curriculum import StepPlan

_PHASE = "low-resolution-5s"
_LATENT = (24, 40)  # a unit of 384x640 pixels at half the side
_TEXT = 32  # tokens
_SAMPLES = 32
_STAGES, _CHANNELS, _WIDTH = 3, 16, 256


def mixture(device: torch.device, repeats: int) -> list[Finding]:
    """Forward and backward of some samples, in passes as a worker makes them, and padded to the longest of them."""
    from framegrove.evaluation.benches import Finding, in_turns

    plan = plans_of(_PHASE, 1, samples=_SAMPLES, shrunk=2, text_tokens=_TEXT)[0]
    model = _model(device)
    ours = [model.pack([_sample(plan, i, _TEXT, device) for i in members]) for members in plan.share_out(1)[0]]
    plain = [padded(model, plan, device)]
    quick, slow = in_turns([lambda: _train(model, ours), lambda: _train(model, plain)], repeats, device)
    tokens = [sum(len(packed.attention.tokens.joint) for packed in packs) for packs in (ours, plain)]
    what = f"training step on {_SAMPLES} samples of the published mixture"
    return [
        Finding(f"{what}: tokens (plain: padded)", tokens[0], "", tokens[1]),
        Finding.timed(f"{what} (plain: padded)", quick, slow, "<= plain / 2", quick.median <= slow.median / 2),
    ]


def padded(model: Transformer, plan: StepPlan, device: torch.device) -> Packed:
    """All samples of a plan as one batch of equally long sequences, filled up with text that nobody attends to."""
    from framegrove.evaluation.benches import dense

    texts = [_TEXT + max(plan.tokens) - tokens for tokens in plan.tokens]
    packed = model.pack([_sample(plan, i, text, device) for i, text in enumerate(texts)])
    return replace(packed, attention=dense(packed, device, [range(_TEXT, text) for text in texts]))


def _sample(plan: StepPlan, index: int, text: int, device: torch.device) -> Sample:
    """A sample of a plan, of random numbers, with so many tokens of ``text``."""
    import torch

    from framegrove.flow.history import history_clips, stage_shape
    from framegrove.models.packed import Prefix, Sample, TextEmbedding

    unit, stage = plan.choices.cells[index]
    random = torch.Generator().manual_seed(index)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random).to(device)

    past = [drawn(_CHANNELS, 1, *_LATENT) for _ in range(unit)]
    noisy, pooled = drawn(_CHANNELS, *stage_shape((1, *_LATENT), stage, _STAGES)), drawn(_WIDTH)
    prefix = Prefix(TextEmbedding(drawn(text, _WIDTH), pooled), history_clips(past, stage, _STAGES))
    return Sample(prefix, noisy, 500.0)


def _model(device: torch.device) -> Transformer:
    from framegrove.config.model import TransformerConfig
    from framegrove.models.transformers import fresh_transformer

    config = TransformerConfig(
        num_layers=2,
        num_attention_heads=4,
        attention_head_dim=_WIDTH // 4,
        caption_projection_dim=_WIDTH,
        joint_attention_dim=_WIDTH,
        pooled_projection_dim=_WIDTH,
    )
    return fresh_transformer(config).to(device)


def _train(model: Transformer, passes: Sequence[Packed]) -> None:
    import torch

    model.zero_grad()
    for packed in passes:
        torch.stack([velocity.square().sum() for velocity in model(packed)]).sum().backward()
