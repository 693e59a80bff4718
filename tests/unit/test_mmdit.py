"""The MM-DiT beyond parity: shared prefixes, hand-written gradients, reduced precision, fresh weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from framegrove.config.model import TransformerConfig
from framegrove.models.fused import norm_rotate
from framegrove.models.mmdit import MMDiT
from framegrove.models.modulation import NORM_EPS, Rows, TokenSpan, gated_add, modulate
from framegrove.models.packed import Prefix, Sample, TextEmbedding

CONFIG = TransformerConfig(
    num_layers=3,
    num_attention_heads=2,
    attention_head_dim=8,
    caption_projection_dim=16,
    pooled_projection_dim=6,
    joint_attention_dim=10,
    in_channels=4,
    sample_size=16,
    pos_embed_max_size=12,
)
ROWS = Rows(torch.tensor([1, 0, 1, 2, 2]), (TokenSpan(0, 0, 2, 3), TokenSpan(6, 2, 1, 5), TokenSpan(11, 3, 2, 1)))
TOKENS = 13


@pytest.fixture
def model() -> MMDiT:
    """Random everywhere, so that nothing is hidden behind a zero gate."""
    transformer = MMDiT(CONFIG)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.25)
    return transformer


def _text(length: int = 5) -> TextEmbedding:
    return TextEmbedding(torch.randn(length, CONFIG.joint_attention_dim), torch.randn(CONFIG.pooled_projection_dim))


def _history() -> tuple[Tensor, ...]:
    return (torch.randn(4, 2, 2, 2), torch.randn(4, 1, 4, 4), torch.randn(4, 1, 8, 8))


def test_siblings_get_what_they_would_get_alone(model: MMDiT) -> None:
    torch.manual_seed(0)
    prefixes = [Prefix(_text(5), _history()), Prefix(_text(3), _history()), Prefix(_text(4))]
    samples = [Sample(prefix, torch.randn(4, 1, 8, 8), 417.5) for prefix in prefixes for _ in range(3)]
    with torch.no_grad():
        together = model(model.pack(samples))
        alone = [model(model.pack([sample]))[0] for sample in samples]
    assert len(model.pack(samples).timesteps_S) == 1 + 1 + 3
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_the_future_does_not_reach_the_past(model: MMDiT) -> None:
    """With a current clip of several units, an earlier unit's prediction ignores the later ones."""
    torch.manual_seed(0)
    prefix, clip = Prefix(_text(), _history()), torch.randn(4, 3, 8, 8)
    later = torch.cat([clip[:, :1], torch.randn(4, 2, 8, 8)], dim=1)
    with torch.no_grad():
        first, second = (model(model.pack([Sample(prefix, c, 300.0)]))[0] for c in (clip, later))
    torch.testing.assert_close(first[:, :1], second[:, :1], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(first[:, 1:], second[:, 1:])


def test_modulate_and_gated_add_have_right_gradients() -> None:
    torch.manual_seed(0)
    x, y = (torch.randn(TOKENS, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    shift, scale, gate = (torch.randn(5, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    of_token = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 3, 4])
    plain = F.layer_norm(x, (8,), eps=NORM_EPS) * (1 + scale[of_token]) + shift[of_token]
    torch.testing.assert_close(modulate(x, shift, scale, ROWS), plain)
    torch.testing.assert_close(gated_add(x, y, gate, ROWS), x + y * gate[of_token])
    assert torch.autograd.gradcheck(lambda *args: modulate(*args, ROWS), (x, shift, scale))
    assert torch.autograd.gradcheck(lambda *args: gated_add(*args, ROWS), (x, y, gate))


@pytest.mark.parametrize("turned", [True, False])
def test_norm_rotate_has_right_gradients(turned: bool) -> None:
    """Against plain autograd in float32, many slices' worth of tokens written into a larger table."""
    torch.manual_seed(0)
    tokens, heads, size = 700, 2, 8
    qkv = torch.randn(tokens, 3, heads, size, requires_grad=True)
    weight = torch.randn(2, size, requires_grad=True)
    angle = torch.randn(tokens, size // 2)
    rotation = torch.polar(torch.ones_like(angle), angle) if turned else None
    place = torch.randperm(tokens + 5)[:tokens]

    query_key = F.rms_norm(qkv[:, :2], (size,), eps=1e-5) * weight[:, None]
    if rotation is not None:
        pairs = torch.view_as_complex(query_key.unflatten(-1, (-1, 2))) * rotation[:, None, None]
        query_key = torch.view_as_real(pairs).flatten(-2)
    empty = torch.zeros(tokens + 5, 3, heads, size)
    expected = empty.index_copy(0, place, torch.cat([query_key, qkv[:, 2:]], dim=1))
    result = norm_rotate(qkv, weight, rotation, empty.clone(), place, 1e-5)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)

    along = torch.randn_like(expected)
    for got, wanted in zip(
        *(torch.autograd.grad((t * along).sum(), (qkv, weight)) for t in (result, expected)), strict=True
    ):
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_autocast_stays_near_float32(model: MMDiT) -> None:
    torch.manual_seed(0)
    packed = model.pack([Sample(Prefix(_text(), _history()), torch.randn(4, 1, 8, 8), 100.0)])
    exact = model(packed)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(packed)[0]
    rounded.float().square().mean().backward()
    assert (rounded.float() - exact).abs().max() < 0.05 * exact.abs().max()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_weights_in_bfloat16_run(model: MMDiT) -> None:
    sample = Sample(Prefix(_text(), _history()), torch.randn(4, 1, 8, 8), 100.0)
    with torch.no_grad():
        out = model.to(torch.bfloat16)(model.pack([sample]))[0]
    assert out.dtype is torch.bfloat16
    assert out.isfinite().all()


def test_every_parameter_is_trained(model: MMDiT) -> None:
    """Every gradient exists, so that sharded optimisers meet no gap; only the last block's text queries see none."""
    torch.manual_seed(0)
    samples = [Sample(Prefix(_text(), _history()), torch.randn(4, 1, 8, 8), 100.0)]
    sum(out.square().mean() for out in model(model.pack(samples))).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    last = f"transformer_blocks.{CONFIG.num_layers - 1}.attn"
    assert all(p.grad is not None for p in model.parameters())
    assert sorted(idle) == [f"{last}.add_q_proj.bias", f"{last}.add_q_proj.weight", f"{last}.norm_add_q.weight"]


def test_a_clip_beyond_the_position_table() -> None:
    model = MMDiT(CONFIG)
    with pytest.raises(ValueError, match="13 x 2 tokens is beyond this model's position table of 12 x 12"):
        model(model.pack([Sample(Prefix(_text()), torch.randn(4, 1, 26, 4), 100.0)]))
