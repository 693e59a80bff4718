"""The module that is trained: stage-samples with their prompts go in, one loss per stage-sample comes out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from framegrove.config.flow import PreferenceConfig
from framegrove.errors import UserError
from framegrove.flow.objective import StageSample, sample_losses
from framegrove.flow.preference import contrast, prefer
from framegrove.models import lora
from framegrove.models.packed import Prefix, Sample, TextEmbedding
from framegrove.models.text import TextEncoder
from framegrove.models.text_public import PublicTextEncoder
from framegrove.models.transformers import Transformer

Encoder = TextEncoder | PublicTextEncoder


class Reference(Protocol):
    """The model at the beginning of a run, which pairs are judged by."""

    def as_it_was(self) -> AbstractContextManager[tuple[Transformer, Encoder]]:
        """Transformer and text encoder as they were, inside the block."""
        ...

    def _apply(self, fn: Callable[[Tensor], Tensor]) -> object: ...


@dataclass(frozen=True, eq=False)
class Copied:
    """A frozen copy: needed where weights themselves are trained. Every worker holds it whole."""

    transformer: Transformer
    text: Encoder

    @contextmanager
    def as_it_was(self) -> Iterator[tuple[Transformer, Encoder]]:
        """The copy."""
        yield self.transformer, self.text

    def _apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        self.transformer._apply(fn)
        self.text._apply(fn)


@dataclass(frozen=True, eq=False)
class WithoutAdapter:
    """The trained transformer with its adapter switched off: no second copy of anything."""

    transformer: Transformer
    text: Encoder

    @contextmanager
    def as_it_was(self) -> Iterator[tuple[Transformer, Encoder]]:
        """The model that the adapter is for."""
        with lora.switched_off(self.transformer):
            yield self.transformer, self.text

    def _apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """It moves with the module."""


class Trainable(nn.Module):
    """Transformer and text encoder, trained jointly; or the transformer alone, beside a frozen text encoder.

    A frozen one is no submodule: every worker needs it whole, so ZeRO must not cut it up. It moves with the module, and
    so does the ``reference``, which is there if pairs are learned from.
    """

    reference: Reference | None

    text: Encoder

    def __init__(self, transformer: Transformer, text: Encoder, train_text: bool) -> None:
        super().__init__()
        if train_text and not isinstance(text, TextEncoder):
            raise UserError("the text encoders of public checkpoints stay frozen: set model.train_text to false")
        self.transformer = transformer.requires_grad_(True)
        self.train_text = train_text
        self.dropout = False  # whether an adapter drops inputs
        self.preference: PreferenceConfig | None = None  # of the phase; how pairs are learned from
        vars(self)["reference"] = None
        text.requires_grad_(train_text)
        if train_text:
            self.text = text
        else:
            vars(self)["text"] = text

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if not self.train_text:
            self.text._apply(fn)
        if self.reference is not None:
            self.reference._apply(fn)
        return super()._apply(fn, recurse)

    def forward(self, samples: Sequence[StageSample]) -> Tensor:
        """The loss of each stage-sample, (N,), from one packed forward pass, and one of the reference for pairs.

        It is that of flow matching (PFM eq. 11), and for pairs that of the phase's ``preference``.
        """
        device = next(self.transformer.parameters()).device
        if self.dropout:  # drawn from the samples themselves, so that a resumed run draws the same
            noise = samples[0].noisy.detach().float().cpu().numpy().tobytes()
            torch.manual_seed(int.from_bytes(hashlib.blake2b(noise, digest_size=7).digest()))
        velocities = _velocities(self.transformer, samples, self._texts(samples, device), device)
        own = [mine for mine, *_ in velocities]
        losses = sample_losses(own, [sample.target.to(device) for sample in samples])
        if self.preference is None:
            return losses
        pairs = [index for index, sample in enumerate(samples) if sample.rival is not None]
        # Every worker makes this pass, even one whose pack has no pair: ZeRO 3 gathers weights in it, which takes all.
        compared = [samples[index] for index in pairs] or samples[:1]
        references = self._referred(compared, device)
        if not pairs:
            return losses
        learned = _learned(self.preference, compared, [velocities[index] for index in pairs], references, device)
        return losses.index_copy(0, torch.tensor(pairs, device=device), learned)

    def _texts(self, samples: Sequence[StageSample], device: torch.device) -> list[TextEmbedding]:
        """The embeddings of the samples' prompts: those that are stored, or made now."""
        with torch.set_grad_enabled(self.train_text and torch.is_grad_enabled()):
            return _texts(self.text, samples, device)

    @torch.no_grad()
    def _referred(self, samples: Sequence[StageSample], device: torch.device) -> list[list[Tensor]]:
        """What the reference says of some samples and their rivals."""
        assert self.reference is not None
        with self.reference.as_it_was() as (transformer, text):
            return _velocities(transformer, samples, _texts(text, samples, device), device)

    def matrices(self) -> list[nn.Parameter]:
        """The trained weight matrices inside the blocks: without embeddings and the first and last projections."""
        blocks = [m for name, m in self.transformer.named_children() if name.endswith("transformer_blocks")]
        if self.train_text and isinstance(self.text, TextEncoder):
            blocks += [m for name, m in self.text.model.named_modules() if name.endswith("layers")]
        return [p for block in blocks for p in block.parameters() if p.dim() == 2]


def _texts(text: Encoder, samples: Sequence[StageSample], device: torch.device) -> list[TextEmbedding]:
    stored = [sample.text for sample in samples if sample.text is not None]
    if len(stored) == len(samples):
        return [TextEmbedding(held.tokens_LD.to(device), held.pooled_P.to(device)) for held in stored]
    return text.encode([sample.prompt for sample in samples])


def _velocities(
    transformer: Transformer, samples: Sequence[StageSample], texts: Sequence[TextEmbedding], device: torch.device
) -> list[list[Tensor]]:
    """The predicted velocity of each sample, then that of its rival if it has one. A pair is packed with one prefix."""
    currents: list[Sample] = []
    for text, sample in zip(texts, samples, strict=True):
        prefix = Prefix(text, tuple(clip.to(device) for clip in sample.history))
        currents += [Sample(prefix, noisy.to(device), sample.timestep) for noisy, _ in _siblings(sample)]
    # Not by calling it: ZeRO 3 would trace that module once for every shape in the pack, and workers whose packs
    # differ in that would sooner or later wait for each other for ever.
    velocities = iter(transformer.forward(transformer.pack(currents)))
    return [[next(velocities) for _ in _siblings(sample)] for sample in samples]


def _siblings(sample: StageSample) -> list[tuple[Tensor, Tensor]]:
    """Noisy units and their velocities: the sample's, and its rival's."""
    rival = [] if sample.rival is None else [(sample.rival.noisy, sample.rival.target)]
    return [(sample.noisy, sample.target), *rival]


def _learned(
    config: PreferenceConfig,
    pairs: Sequence[StageSample],
    velocities: Sequence[Sequence[Tensor]],
    references: Sequence[Sequence[Tensor]],
    device: torch.device,
) -> Tensor:
    """The losses of pairs, (N,)."""
    targets = [target.to(device) for pair in pairs for _, target in _siblings(pair)]
    said, before = [v for pair in velocities for v in pair], [v for pair in references for v in pair]
    if config.kind == "contrast":
        chances = torch.tensor([chance for pair in pairs if pair.rival for chance in pair.rival.chances], device=device)
        return contrast(said, before, targets, chances, config.beta).view(-1, 2).mean(dim=1)
    own, rival = sample_losses(said, targets).view(-1, 2).unbind(dim=1)
    own_before, rival_before = sample_losses(before, targets).view(-1, 2).unbind(dim=1)
    return prefer(own, own_before, rival, rival_before, config.beta)
