"""Either transformer, by its configuration: everything else treats both alike."""

from __future__ import annotations

import torch

from framegrove.config.model import AnyTransformerConfig, FluxConfig
from framegrove.models.flux import Flux
from framegrove.models.layers import initialise
from framegrove.models.mmdit import MMDiT

Transformer = MMDiT | Flux


def build_transformer(config: AnyTransformerConfig) -> Transformer:
    """The transformer of this shape, with weights that are to be loaded."""
    return Flux(config) if isinstance(config, FluxConfig) else MMDiT(config)


def fresh_transformer(config: AnyTransformerConfig, seed: int = 0) -> Transformer:
    """An untrained transformer of this shape, seeded; see `initialise`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_transformer(config)
        initialise(model)
    return model
