"""The FLUX-style transformer where it differs from the MM-DiT; that its numbers are right is shown in tests/parity."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from framegrove.config.model import FluxConfig
from framegrove.models.flux import Flux
from framegrove.models.packed import Prefix, Sample, TextEmbedding

CONFIG = FluxConfig(
    in_channels=4,
    num_layers=1,
    num_single_layers=2,
    num_attention_heads=2,
    attention_head_dim=12,
    axes_dims_rope=(4, 2, 6),
    joint_attention_dim=10,
    pooled_projection_dim=6,
)


@pytest.fixture
def model() -> Flux:
    """Random everywhere, so that nothing is hidden behind a zero gate."""
    transformer = Flux(CONFIG)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.25)
    return transformer


def _text(length: int = 5) -> TextEmbedding:
    return TextEmbedding(torch.randn(length, CONFIG.joint_attention_dim), torch.randn(CONFIG.pooled_projection_dim))


def _history() -> tuple[Tensor, ...]:
    return (torch.randn(4, 2, 2, 2), torch.randn(4, 1, 4, 4), torch.randn(4, 1, 8, 8))


def test_siblings_get_what_they_would_get_alone(model: Flux) -> None:
    torch.manual_seed(0)
    prefixes = [Prefix(_text(5), _history()), Prefix(_text(3), _history()), Prefix(_text(4))]
    samples = [Sample(prefix, torch.randn(4, 1, 8, 8), 417.5) for prefix in prefixes for _ in range(2)]
    with torch.no_grad():
        together = model(model.pack(samples))
        alone = [model(model.pack([sample]))[0] for sample in samples]
    assert len(model.pack(samples).timesteps_S) == 1 + 1 + 2
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_every_parameter_is_trained(model: Flux) -> None:
    torch.manual_seed(0)
    samples = [Sample(Prefix(_text(), _history()), torch.randn(4, 1, 8, 8), 100.0)]
    sum(out.square().mean() for out in model(model.pack(samples))).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_weights_in_bfloat16_run(model: Flux) -> None:
    torch.manual_seed(0)
    sample = Sample(Prefix(_text(), _history()), torch.randn(4, 1, 8, 8), 100.0)
    with torch.no_grad():
        exact = model(model.pack([sample]))[0]
        out = model.to(torch.bfloat16)(model.pack([sample]))[0]
    assert out.dtype is torch.bfloat16
    assert (out.float() - exact).norm() < 0.1 * exact.norm()


def test_timesteps_are_told_apart_finer_than_bfloat16_can() -> None:
    """Raw timesteps of 0 to 1000 stay float32 up to their sinusoids: in bfloat16 these two would be one."""
    embed = Flux(CONFIG).to(torch.bfloat16).time_text_embed
    assert torch.tensor(744.256, dtype=torch.bfloat16) == 744
    first, second = embed(torch.tensor([744.256, 744.0]), torch.zeros(2, CONFIG.pooled_projection_dim))
    assert not torch.equal(first, second)
