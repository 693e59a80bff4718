"""Either transformer, by its configuration: everything else treats both alike."""

from __future__ import annotations

from framegrove.config.model import AnyTransformerConfig, FluxConfig
from framegrove.models.flux import Flux, fresh_flux
from framegrove.models.mmdit import MMDiT, fresh_mmdit

Transformer = MMDiT | Flux


def build_transformer(config: AnyTransformerConfig) -> Transformer:
    """The transformer of this shape, with weights that are to be loaded."""
    return Flux(config) if isinstance(config, FluxConfig) else MMDiT(config)


def fresh_transformer(config: AnyTransformerConfig, seed: int = 0) -> Transformer:
    """An untrained transformer of this shape, seeded."""
    return fresh_flux(config, seed) if isinstance(config, FluxConfig) else fresh_mmdit(config, seed)
