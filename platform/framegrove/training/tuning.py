"""What of a model a run trains: all of it, an adapter, or the parameters whose names match some patterns."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from framegrove.config.model import AnyTransformerConfig
from framegrove.config.tune import TEXT, TuneConfig
from framegrove.errors import UserError
from framegrove.models import lora
from framegrove.models.transformers import build_transformer
from framegrove.training.step import Trainable

TRANSFORMER = "transformer."


def check(tune: TuneConfig, shape: AnyTransformerConfig) -> None:
    """Raise UserError for a pattern that matches nothing of a transformer, before any weights are read."""
    if tune.all:
        return
    with torch.device("meta"):
        transformer = build_transformer(shape)
    if tune.lora is not None:
        lora.targets(transformer, tune.lora.targets)
    names = [TRANSFORMER + name for name, _ in transformer.named_parameters()]
    _check_parts([pattern for pattern in tune.parts if not pattern.startswith(TEXT)], names)


def weights(tune: TuneConfig, shape: AnyTransformerConfig) -> tuple[int, int]:
    """How many weights an adapter adds to a transformer of this shape, and how many of its own stay as they are."""
    if tune.all:
        return 0, 0
    with torch.device("meta"):
        transformer = build_transformer(shape)
    if tune.lora is not None:
        names = lora.targets(transformer, tune.lora.targets)
        layers = [transformer.get_submodule(name).get_parameter("weight") for name in names]
        return sum(tune.lora.rank * sum(weight.shape) for weight in layers), sum(
            parameter.numel() for parameter in transformer.parameters()
        )
    counts = {TRANSFORMER + name: parameter.numel() for name, parameter in transformer.named_parameters()}
    return 0, sum(counts.values()) - sum(counts[name] for name in lora.matching(counts, tune.parts))


def restrict(module: Trainable, tune: TuneConfig, seed: int) -> Trainable:
    """Let ``module`` train only what is asked for, in place: the rest stays as it is, without gradients.

    Raises UserError for a pattern that matches nothing.
    """
    if tune.lora is not None:
        lora.attach(module.transformer, tune.lora, seed)
        module.dropout = tune.lora.dropout > 0
    elif tune.parts:
        names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        _check_parts(tune.parts, names)
        chosen = set(lora.matching(names, tune.parts))
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in chosen)
    return module


def _check_parts(patterns: Iterable[str], names: list[str]) -> None:
    for pattern in patterns:
        if not lora.matching(names, [pattern]):
            raise UserError(
                f"model.tune.parts: {pattern!r} matches no parameter; there are {', '.join(lora.kinds(names))}"
            )
