"""Losses that teach the verifier without questions: names of windows, codes of cells, the motion of digits."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers import Idefics3ForConditionalGeneration

from framegrove.digits.verifier_batches import FrameBatch, Tracks, WindowBatch
from framegrove.digits.verifier_codes import CLEAR, COLOUR, DIGIT, NO_DIGIT, PLACE, THERE, WAVES, Codes
from framegrove.digits.world import COLOURS, MOTIONS, SIZE

_SURE = 8.0  # logit of a class that a code states with certainty; those of the others are 0


class WindowHeads(nn.Module):
    """Classifiers of a window's digit (or that it is none) and colour, from the mean over its patches."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head_digit = nn.Linear(width, NO_DIGIT + 1)
        self.head_colour = nn.Linear(width, len(COLOURS))


class TrackHeads(nn.Module):
    """Predictions about moving digits, from states of the text model.

    At a digit's cell, half way up the layers: its step since the frame before, its motion, and whether digit and colour
    have stayed the same. Where a question has just named a digit, before the last layer: the motion of that digit.

    The classifier of motions starts from the embeddings ``motion_words_4D`` of one word per motion, so that a question
    that contains the word finds the motion.
    """

    def __init__(self, motion_words_4D: torch.Tensor) -> None:
        super().__init__()
        width = motion_words_4D.shape[-1]
        self.head_step = nn.Linear(width, 2)
        self.head_motion = nn.Linear(width, len(MOTIONS) + 1)
        self.head_same = nn.Linear(width, 1)
        self.head_named = nn.Linear(width, len(MOTIONS) + 1)
        with torch.no_grad():
            self.head_motion.weight[: len(MOTIONS)] = 0.6 * functional.normalize(motion_words_4D, dim=-1)


def window_loss(
    model: Idefics3ForConditionalGeneration, heads: WindowHeads, batch: WindowBatch
) -> tuple[torch.Tensor, dict[str, float]]:
    """Cross-entropy of digit and colour; the figure ``digit`` is the share of digits that are read correctly."""
    tower = model.model.vision_model
    pixels = ((batch.pixels_N3HW - 0.5) / 0.5).to(model.dtype)
    patches = tower.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
    hidden = patches + tower.embeddings.position_embedding(batch.places_NP)
    for layer in tower.encoder.layers:
        hidden = layer(hidden, None)
    pooled = tower.post_layernorm(hidden).float().mean(1)
    digit_logits = heads.head_digit(pooled)
    loss = functional.cross_entropy(digit_logits, batch.digits_N)
    loss = loss + 0.5 * functional.cross_entropy(heads.head_colour(pooled), batch.colours_N)
    real = batch.digits_N != NO_DIGIT
    right = (digit_logits.argmax(-1) == batch.digits_N)[real].float().mean()
    return loss, {"digit": float(right)}


def frame_loss(cells_NMD: torch.Tensor, codes: Codes, batch: FrameBatch) -> tuple[torch.Tensor, dict[str, float]]:
    """Distance of cells from their codes, and cross-entropy of the digits and colours that are read back from them.

    Of the figures, for pictures that are not blurred, ``digit`` is the share of digits that are read correctly and
    ``off`` the mean error of their places in px.
    """
    said, wanted = codes.read(cells_NMD), batch.codes_NMF
    unasked = batch.codes_NMF.new_zeros(wanted.shape)
    unasked[~batch.asked_N, :, CLEAR] = 1.0
    unasked[~batch.placed_N, :, PLACE.start : WAVES.stop] = 1.0
    wanted = torch.where(unasked > 0, said.detach(), wanted)
    held = (wanted[..., THERE] + 1) / 2
    away = (cells_NMD.float() - codes.embed(wanted)).pow(2).sum(-1)
    loss = (away * (1 + 5 * held)).mean() / 16  # weighted so that places are learned beside the classes
    there = held > 0.5
    digits = wanted[..., DIGIT][there].argmax(-1)
    # Squared error alone is slow to teach classes: its gradient vanishes where a wrong class is stated with certainty.
    loss = loss + functional.cross_entropy(_SURE * said[..., DIGIT][there], digits)
    colours = wanted[..., COLOUR][there].argmax(-1)
    loss = loss + 0.5 * functional.cross_entropy(_SURE * said[..., COLOUR][there], colours)
    real = (digits != NO_DIGIT) & (batch.sharp_N & batch.placed_N)[:, None].expand_as(there)[there]
    if not real.any():
        return loss, {}
    right = (said[..., DIGIT][there].argmax(-1) == digits)[real].float().mean()
    off = (said - wanted)[..., PLACE][there][real].detach().abs().mean() * SIZE / 2
    return loss, {"digit": float(right), "off": float(off)}


def track_loss(
    middle_MD: torch.Tensor, late_LD: torch.Tensor, heads: TrackHeads, tracks: Tracks
) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss of the predictions of TrackHeads, from the states at all cells (M) and at all tokens (L).

    The figures ``tracked`` and ``named`` are the shares of motions that are right, at cells and at names.
    """
    held = functional.layer_norm(middle_MD[tracks.at_S].float(), middle_MD.shape[-1:])
    motions = heads.head_motion(held)
    loss = functional.cross_entropy(motions, tracks.motions_S)
    loss = loss + functional.mse_loss(heads.head_step(held), tracks.steps_S2)
    loss = loss + functional.binary_cross_entropy_with_logits(heads.head_same(held)[:, 0], tracks.same_S)
    figures = {"tracked": float((motions.argmax(-1) == tracks.motions_S).float().mean())}
    if len(tracks.named_Q):
        named = heads.head_named(functional.layer_norm(late_LD[tracks.named_Q].float(), late_LD.shape[-1:]))
        loss = loss + functional.cross_entropy(named, tracks.named_motions_Q)
        figures["named"] = float((named.argmax(-1) == tracks.named_motions_Q).float().mean())
    return loss, figures
