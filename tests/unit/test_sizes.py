"""What a transformer takes up: parameters exactly, activations within a tenth of what autograd is seen to keep."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from framegrove.config.model import AnyTransformerConfig, FluxConfig, TransformerConfig
from framegrove.models.packed import Prefix, Sample, TextEmbedding
from framegrove.models.sizes import PURE_FP32, Precision, activation_bytes, parameter_count
from framegrove.models.transformers import Transformer, build_transformer

MMDIT = TransformerConfig(
    num_layers=5, num_attention_heads=4, attention_head_dim=32, caption_projection_dim=128, pooled_projection_dim=16,
    joint_attention_dim=32, in_channels=4, sample_size=64, pos_embed_max_size=64,
)  # fmt: skip
FLUX = FluxConfig(
    in_channels=4, num_layers=2, num_single_layers=4, num_attention_heads=4, attention_head_dim=32,
    axes_dims_rope=(8, 12, 12), joint_attention_dim=32, pooled_projection_dim=16,
)  # fmt: skip


class Kept:
    """Counts the bytes of the different storages that autograd keeps at a time, and the most there ever were."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.holders: Counter[int] = Counter()
        self.bytes = self.most = 0

    def pack(self, tensor: Tensor) -> Any:
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        holder = _Holder(tensor)
        if place not in self.weights:
            self.holders[place] += 1
            if self.holders[place] == 1:
                self.bytes += size
                self.most = max(self.most, self.bytes)
            weakref.finalize(holder, self._release, place, size)
        return holder

    def _release(self, place: int, size: int) -> None:
        self.holders[place] -= 1
        if not self.holders[place]:
            self.bytes -= size


class _Holder:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@pytest.mark.parametrize("config", [TransformerConfig(), FluxConfig(), MMDIT, FLUX])
def test_parameters_are_counted_exactly(config: AnyTransformerConfig) -> None:
    with torch.device("meta"):
        model = build_transformer(config)
    assert parameter_count(config) == sum(p.numel() for p in model.parameters())


def most_kept(model: Transformer, dtype: torch.dtype = torch.float32) -> tuple[int, int]:
    """Tokens of a pack with history, and the most bytes that autograd keeps while it is trained on."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    text = TextEmbedding(normal(30, 32).to(dtype), normal(16).to(dtype))
    history = (normal(4, 2, 8, 16), normal(4, 1, 16, 32), normal(4, 1, 32, 64))
    packed = model.pack([Sample(Prefix(text, history), normal(4, 1, 32, 64), 500.0)])
    kept = Kept(model)
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda holder: holder.tensor):
        loss = sum((out.float().square().mean() for out in model(packed)), torch.zeros(()))
        loss.backward()
    return len(packed.text_LD) + len(packed.patches_LP), kept.most


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [MMDIT, FLUX])
def test_activations_are_what_autograd_keeps(config: AnyTransformerConfig, dtype: torch.dtype, recompute: bool) -> None:
    model = build_transformer(config).to(dtype)
    model.recompute = recompute
    tokens, most = most_kept(model, dtype)
    # A CPU attends in float32.
    precision = PURE_FP32 if dtype is torch.float32 else Precision(residual=2, product=2, attention=4)
    assert activation_bytes(config, tokens, precision, recompute=recompute) == pytest.approx(most, rel=0.1)
