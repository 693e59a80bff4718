"""Either transformer, by its configuration: everything else treats both alike."""

from __future__ import annotations

from framegrove.config.model import AnyTransformerConfig, FluxConfig
from framegrove.models.flux import Flux
from framegrove.models.mmdit import MMDiT

Transformer = MMDiT | Flux


def build_transformer(config: AnyTransformerConfig) -> Transformer:
    """The transformer of this shape, with weights that are to be loaded."""
    return Flux(config) if isinstance(config, FluxConfig) else MMDiT(config)
