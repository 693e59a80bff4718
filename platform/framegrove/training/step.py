"""The module that is trained: stage-samples with their prompts go in, one loss per stage-sample comes out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from framegrove.errors import UserError
from framegrove.flow.objective import StageSample, sample_losses
from framegrove.models.packed import Prefix, Sample, TextEmbedding
from framegrove.models.text import TextEncoder
from framegrove.models.text_public import PublicTextEncoder
from framegrove.models.transformers import Transformer


class Trainable(nn.Module):
    """Transformer and text encoder, trained jointly; or the transformer alone, beside a frozen text encoder.

    A frozen one is no submodule: every worker needs it whole, so ZeRO must not cut it up. It moves with the module.
    """

    text: TextEncoder | PublicTextEncoder

    def __init__(self, transformer: Transformer, text: TextEncoder | PublicTextEncoder, train_text: bool) -> None:
        super().__init__()
        if train_text and not isinstance(text, TextEncoder):
            raise UserError("the text encoders of public checkpoints stay frozen: set model.train_text to false")
        self.transformer = transformer.requires_grad_(True)
        self.train_text = train_text
        self.dropout = False  # whether an adapter drops inputs
        text.requires_grad_(train_text)
        if train_text:
            self.text = text
        else:
            vars(self)["text"] = text

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if not self.train_text:
            self.text._apply(fn)
        return super()._apply(fn, recurse)

    def forward(self, samples: Sequence[StageSample]) -> Tensor:
        """The flow matching loss of each stage-sample, (N,), from one packed forward pass (PFM eq. 11)."""
        device = next(self.transformer.parameters()).device
        if self.dropout:  # drawn from the samples themselves, so that a resumed run draws the same
            noise = samples[0].noisy.detach().float().cpu().numpy().tobytes()
            torch.manual_seed(int.from_bytes(hashlib.blake2b(noise, digest_size=7).digest()))
        texts = self._texts(samples, device)
        packed = self.transformer.pack(
            [
                Sample(
                    Prefix(text, tuple(clip.to(device) for clip in sample.history)),
                    sample.noisy.to(device),
                    sample.timestep,
                )
                for text, sample in zip(texts, samples, strict=True)
            ]
        )
        # Not by calling it: ZeRO 3 would trace that module once for every shape in the pack, and workers whose packs
        # differ in that would sooner or later wait for each other for ever.
        velocities = self.transformer.forward(packed)
        return sample_losses(velocities, [sample.target.to(device) for sample in samples])

    def _texts(self, samples: Sequence[StageSample], device: torch.device) -> list[TextEmbedding]:
        """The embeddings of the samples' prompts: those that are stored, or made now."""
        stored = [sample.text for sample in samples if sample.text is not None]
        if len(stored) == len(samples):
            return [TextEmbedding(text.tokens_LD.to(device), text.pooled_P.to(device)) for text in stored]
        with torch.set_grad_enabled(self.train_text and torch.is_grad_enabled()):
            return self.text.encode([sample.prompt for sample in samples])

    def matrices(self) -> list[nn.Parameter]:
        """The trained weight matrices inside the blocks: without embeddings and the first and last projections."""
        blocks = [m for name, m in self.transformer.named_children() if name.endswith("transformer_blocks")]
        if self.train_text and isinstance(self.text, TextEncoder):
            blocks += [m for name, m in self.text.model.named_modules() if name.endswith("layers")]
        return [p for block in blocks for p in block.parameters() if p.dim() == 2]
