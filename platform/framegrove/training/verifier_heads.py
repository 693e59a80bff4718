"""What the verifier's eyes are taught by before anybody asks questions: names of windows, contents of cells."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers import Idefics3ForConditionalGeneration

from framegrove.data.digits import COLOURS, DIGITS, MOTIONS
from framegrove.training.verifier_batches import NO_DIGIT, FrameBatch, Tracks, WindowBatch


class WindowHeads(nn.Module):
    """Digit (or that it is none) and colour of a window, from the mean over its patches."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head_digit = nn.Linear(width, len(DIGITS) + 1)
        self.head_colour = nn.Linear(width, len(COLOURS))


class CellHeads(nn.Module):
    """Whether a cell holds the centre of something, what, in which colour, where; and whether the frame is clear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head_there = nn.Linear(width, 1)
        self.head_digit = nn.Linear(width, len(DIGITS) + 1)
        self.head_colour = nn.Linear(width, len(COLOURS))
        self.head_place = nn.Linear(width, 2)
        self.head_clear = nn.Linear(width, 1)


class TrackHeads(nn.Module):
    """What became of a digit since the frame before, from the text model's state half way up, at the digit's cell."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head_step = nn.Linear(width, 2)
        self.head_motion = nn.Linear(width, len(MOTIONS) + 1)
        self.head_same = nn.Linear(width, 1)


def window_loss(
    model: Idefics3ForConditionalGeneration, heads: WindowHeads, batch: WindowBatch
) -> tuple[torch.Tensor, dict[str, float]]:
    """Cross-entropy of digit and colour, and the share of digits read rightly."""
    eyes = model.model.vision_model
    pixels = ((batch.pixels_N3HW - 0.5) / 0.5).to(model.dtype)
    patches = eyes.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
    hidden = patches + eyes.embeddings.position_embedding(batch.places_NP)
    for layer in eyes.encoder.layers:
        hidden = layer(hidden, None)
    pooled = eyes.post_layernorm(hidden).float().mean(1)
    digit_logits = heads.head_digit(pooled)
    loss = functional.cross_entropy(digit_logits, batch.digits_N)
    loss = loss + 0.5 * functional.cross_entropy(heads.head_colour(pooled), batch.colours_N)
    real = batch.digits_N != NO_DIGIT
    right = (digit_logits.argmax(-1) == batch.digits_N)[real].float().mean()
    return loss, {"digit": float(right)}


def frame_loss(cells_NMD: torch.Tensor, heads: CellHeads, batch: FrameBatch) -> tuple[torch.Tensor, dict[str, float]]:
    """Everything that CellHeads says against the truth; and the share of digits read rightly."""
    cells_NMD = cells_NMD.float()
    there = heads.head_there(cells_NMD)[..., 0]
    loss = functional.binary_cross_entropy_with_logits(there, batch.there_NM.float())
    held = cells_NMD[batch.there_NM]
    digits, colours = batch.digits_NM[batch.there_NM], batch.colours_NM[batch.there_NM]
    digit_logits = heads.head_digit(held)
    loss = loss + functional.cross_entropy(digit_logits, digits)
    loss = loss + 0.5 * functional.cross_entropy(heads.head_colour(held), colours)
    loss = loss + functional.mse_loss(heads.head_place(held), batch.places_NM2[batch.there_NM])
    clear = heads.head_clear(cells_NMD.mean(1))[:, 0]
    known = batch.clear_N >= 0
    loss = loss + 0.3 * functional.binary_cross_entropy_with_logits(clear[known], batch.clear_N[known])
    real = digits != NO_DIGIT
    right = (digit_logits.argmax(-1) == digits)[real].float().mean()
    return loss, {"digit": float(right)}


def track_loss(middle_MD: torch.Tensor, heads: TrackHeads, tracks: Tracks) -> tuple[torch.Tensor, dict[str, float]]:
    """What TrackHeads says against the truth, from the states at all cells; and the share of motions named rightly."""
    held = functional.layer_norm(middle_MD[tracks.at_S].float(), middle_MD.shape[-1:])
    motions = heads.head_motion(held)
    loss = functional.cross_entropy(motions, tracks.motions_S)
    loss = loss + functional.mse_loss(heads.head_step(held), tracks.steps_S2)
    loss = loss + functional.binary_cross_entropy_with_logits(heads.head_same(held)[:, 0], tracks.same_S)
    return loss, {"tracked": float((motions.argmax(-1) == tracks.motions_S).float().mean())}
