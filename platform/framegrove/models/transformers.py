"""Either transformer, by its configuration: everything else treats both alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from framegrove.config.model import AnyTransformerConfig, FluxConfig
from framegrove.models.flux import Flux
from framegrove.models.layers import HeadNorm, Modulation
from framegrove.models.mmdit import MMDiT, PatchEmbedding

Transformer = MMDiT | Flux

# What is done with each piece of a transformer as soon as it has its weights.
Take = Callable[[nn.Module], None]


def keep(piece: nn.Module) -> None:
    """Leave a piece as it is."""


def drop(piece: nn.Module) -> None:
    """Keep nothing of a piece but its shape."""
    piece.to("meta")


def build_transformer(config: AnyTransformerConfig) -> Transformer:
    """The transformer of this shape, with weights that are to be loaded."""
    return Flux(config) if isinstance(config, FluxConfig) else MMDiT(config)


def pieces(transformer: Transformer) -> Iterator[tuple[str, nn.Module]]:
    """A transformer's blocks and the layers around them, with their names: together they hold all of its weights."""
    for name, child in transformer.named_children():
        if isinstance(child, nn.ModuleList):
            yield from ((f"{name}.{number}", block) for number, block in enumerate(child))
        else:
            yield name, child


def fresh_transformer(config: AnyTransformerConfig, seed: int = 0, take: Take = keep) -> Transformer:
    """An untrained transformer of this shape, seeded: blocks start as the identity, the output as zero (adaLN-zero).

    ``take`` is given one piece after the other, and may leave only a part of it in memory.
    """
    with torch.device("meta"):
        model = build_transformer(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, piece in pieces(model):
            piece.to_empty(device="cpu")
            for module in piece.modules():
                _initialise(module, name)
            for modulation in (m for m in piece.modules() if isinstance(m, Modulation)):
                nn.init.zeros_(modulation.linear.weight)
            take(piece)
    return model


@torch.no_grad()
def _initialise(module: nn.Module, piece: str) -> None:
    """The weights that a module has itself, apart from the modules in it."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        if piece == "time_text_embed":
            nn.init.normal_(module.weight, std=0.02)
        elif piece == "proj_out":
            nn.init.zeros_(module.weight)
        else:
            nn.init.xavier_uniform_(module.weight.flatten(1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, HeadNorm):
        nn.init.ones_(module.weight)
    elif isinstance(module, PatchEmbedding):
        module.fill_table()
