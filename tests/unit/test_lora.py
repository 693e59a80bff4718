"""Adapters: a fresh one changes nothing, every target learns, and an adapter is what its equation says."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from framegrove.config.model import AnyTransformerConfig
from framegrove.config.tune import LoraConfig
from framegrove.errors import UserError
from framegrove.models import lora
from framegrove.models.packed import Prefix, Sample, TextEmbedding
from framegrove.models.transformers import Transformer, build_transformer
from tests.public_folder import FLUX, MMDIT

SHAPES = {"mmdit": MMDIT, "flux": FLUX}
ALL = LoraConfig(rank=4, alpha=8, targets=("*",))  # every linear layer there is


def transformer(kind: str) -> Transformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = build_transformer(SHAPES[kind])
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.15)
    return made


def samples(config: AnyTransformerConfig) -> list[Sample]:
    """One first unit, and two later ones that share their history."""
    generator = torch.Generator().manual_seed(3)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    text = TextEmbedding(noise(5, config.joint_attention_dim), noise(config.pooled_projection_dim))
    later = Prefix(text, (noise(16, 1, 2, 2), noise(16, 1, 4, 4)))
    clips = [(Prefix(text), noise(16, 1, 4, 4)), (later, noise(16, 1, 4, 4)), (later, noise(16, 1, 4, 4))]
    return [Sample(prefix, clip, 400.0) for prefix, clip in clips]


def velocities(model: Any) -> Tensor:
    return torch.cat([clip.flatten() for clip in model(model.pack(samples(model.config)))])


@pytest.mark.parametrize("kind", SHAPES)
def test_a_fresh_adapter_changes_nothing_and_leaves_the_weights_alone(kind: str) -> None:
    model = transformer(kind)
    before, weights = velocities(model), copy.deepcopy(model.state_dict())
    lora.attach(model, ALL, seed=0)
    assert torch.equal(velocities(model), before)
    held = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}
    assert all(torch.equal(held[name], value) for name, value in weights.items())
    assert all(parameter.requires_grad == (".lora_" in name) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", SHAPES)
def test_every_layer_that_may_be_a_target_learns(kind: str, recompute: bool) -> None:
    """Attention reads its layers' weights without calling them: their adapters must count all the same."""
    model = transformer(kind)
    names = lora.targets(model, ALL.targets)
    assert len(names) == {"mmdit": 31, "flux": 34}[kind]
    lora.attach(model, ALL, seed=0)
    model.recompute = recompute
    velocities(model).square().sum().backward()
    first = {name: model.get_submodule(name).lora_B["default"].weight.grad for name in names}
    idle = [name for name, gradient in first.items() if gradient is None or not gradient.abs().max() > 1e-6]
    assert not idle, idle
    with torch.no_grad():
        for name in names:
            nn.init.normal_(model.get_submodule(name).lora_B["default"].weight, std=0.1)
    velocities(model).square().sum().backward()
    second = {name: model.get_submodule(name).lora_A["default"].weight.grad for name in names}
    assert not [name for name, gradient in second.items() if gradient is None or not gradient.abs().max() > 1e-6]


@pytest.mark.parametrize("kind", SHAPES)
def test_an_adapter_is_what_its_equation_says(kind: str) -> None:
    """The velocities of a model whose weights are W + (alpha / rank) B A, computed without peft."""
    model, plain = transformer(kind), transformer(kind)
    names = lora.targets(model, ALL.targets)
    lora.attach(model, ALL, seed=0)
    with torch.no_grad():
        for name in names:
            layer = model.get_submodule(name)
            nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
            product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            plain.get_submodule(name).weight += 8 / 4 * product
        torch.testing.assert_close(velocities(model), velocities(plain), rtol=1e-4, atol=1e-4)


def test_targets_are_named_by_patterns() -> None:
    model = transformer("mmdit")
    default = lora.targets(model, LoraConfig().targets)
    assert len(default) == 14  # eight layers of a block; of the last one six
    assert all(".attn." in name for name in default)
    ends = ["transformer_blocks.1.ff.net.0.proj", "transformer_blocks.1.ff.net.2"]
    assert lora.targets(model, ("*.1.ff.net.*",)) == ends
    with pytest.raises(UserError, match=r"'\*\.mlp' matches no linear layer of the transformer, which has time_text_"):
        lora.attach(model, LoraConfig(targets=("*.attn.*", "*.mlp")), seed=0)
