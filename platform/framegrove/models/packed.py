"""The packed sequence: tokens of many samples side by side, and prefixes that siblings carry once.

A *sample* is one current clip (the unit being denoised) that hangs on a *prefix*: its text and its history. Attention
is causal over units, so when there is history nothing in the prefix depends on the current clip, and all samples with
the same prefix and timestep share it exactly. Without history the text attends to the current clip, so each sample
carries its own text.

Two streams of tokens, no padding in either:

- text: sequence by sequence, each as long as its prompt;
- visual: *blocks* of clips of equal shape, all history blocks first, then all current ones. Clips of a block lie one
  after the other, each unit by unit, row by row; so per-clip work is a view, and the tokens that are predicted are the
  tail of the stream.

A *sequence* is one prefix with the samples that hang on it; what attends to what is worked out in attention.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from framegrove.models.attention import AttentionPlan, Piece


@dataclass(frozen=True, eq=False)
class TextEmbedding:
    """An encoded prompt: ``tokens_LD`` (valid tokens only, never padding) and ``pooled_P``."""

    tokens_LD: Tensor
    pooled_P: Tensor


@dataclass(frozen=True, eq=False)
class Prefix:
    """What samples are conditioned on: a text, and clean earlier clips (C, t, h, w), oldest first, each at its own size."""

    text: TextEmbedding
    history: tuple[Tensor, ...] = ()


@dataclass(frozen=True, eq=False)
class Sample:
    """A noisy clip (C, t, h, w) at a timestep (0 to 1000), hanging on a prefix."""

    prefix: Prefix
    current: Tensor
    timestep: float


@dataclass(frozen=True, eq=False)
class ClipBlock:
    """Clips of one shape in the visual stream: ``count`` clips of ``units`` x ``height`` x ``width`` tokens.

    ``base`` is the (height, width) in tokens of the current clip they belong to: positions are counted on that grid.
    ``owners_N`` holds the sequence of each clip, ``start`` the first token.
    """

    start: int
    count: int
    units: int
    height: int
    width: int
    base: tuple[int, int]
    owners_N: Tensor

    @property
    def tokens_per_clip(self) -> int:
        return self.units * self.height * self.width

    @property
    def stop(self) -> int:
        return self.start + self.count * self.tokens_per_clip


@dataclass(frozen=True, eq=False)
class Packed:
    """A packed batch; see the module docstring. ``patches_LP`` holds (channel, row, column) of each patch."""

    text_LD: Tensor
    pooled_SP: Tensor
    timesteps_S: Tensor
    patches_LP: Tensor
    text_owners_L: Tensor  # sequence of each text token
    times_L: Tensor  # time index of each visual token
    blocks: tuple[ClipBlock, ...]
    current_start: int  # visual tokens from here on belong to current clips
    attention: AttentionPlan
    shapes: tuple[torch.Size, ...]  # of the samples' current clips, in the order given
    places: tuple[int, ...]  # first visual token of each sample's current clip
    patch: int

    def unpatchify(self, current_LP: Tensor) -> list[Tensor]:
        """Predicted patches (row, column, channel) of all current tokens -> a (C, t, h, w) tensor per sample."""
        clips: list[Tensor | None] = [None] * len(self.shapes)
        by_place = {place: index for index, place in enumerate(self.places)}
        for block in self.blocks:
            if block.start < self.current_start:
                continue
            span = current_LP[block.start - self.current_start : block.stop - self.current_start]
            grid = span.view(block.count, block.units, block.height, block.width, self.patch, self.patch, -1)
            pixels = grid.permute(0, 6, 1, 2, 4, 3, 5)
            pixels = pixels.reshape(block.count, -1, block.units, block.height * self.patch, block.width * self.patch)
            for number, clip in enumerate(pixels.unbind(0)):
                clips[by_place[block.start + number * block.tokens_per_clip]] = clip
        return [clip for clip in clips if clip is not None]


def pack(samples: Sequence[Sample], patch: int, causal: bool = True) -> Packed:
    """Lay samples out as one packed sequence for a transformer with this patch size.

    Samples whose prefix is the same object, with history, at the same timestep and size, share it. Raises ValueError
    for an empty batch or a clip that the patch size does not divide.
    """
    if not samples:
        raise ValueError("nothing to pack: at least one sample is needed")
    sequences = _sequences(samples, causal)
    heads = [samples[members[0]] for members in sequences]
    placed, blocks, patches, current_start = _lay_out(samples, sequences, patch)
    device = patches.device
    text_lengths = [head.prefix.text.tokens_LD.shape[0] for head in heads]
    pieces = _pieces(sequences, text_lengths, placed)
    times = torch.empty(patches.shape[0], dtype=torch.int64)
    for clips in placed:
        for clip in clips:
            for unit in range(clip.units):
                first = clip.start + unit * clip.tokens_per_unit
                times[first : first + clip.tokens_per_unit] = clip.time + unit
    shapes = tuple(sample.current.shape for sample in samples)
    places = {clip.sample: clip.start for clips in placed for clip in clips if clip.sample is not None}
    return Packed(
        text_LD=torch.cat([head.prefix.text.tokens_LD for head in heads]),
        pooled_SP=torch.stack([head.prefix.text.pooled_P for head in heads]),
        timesteps_S=torch.tensor([head.timestep for head in heads], dtype=torch.float32, device=device),
        patches_LP=patches,
        text_owners_L=torch.repeat_interleave(torch.tensor(text_lengths)).to(device),
        times_L=times.to(device),
        blocks=blocks,
        current_start=current_start,
        attention=AttentionPlan.build(pieces, causal, device),
        shapes=shapes,
        places=tuple(places[index] for index in range(len(samples))),
        patch=patch,
    )


@dataclass
class _Clip:
    """A clip on its way into the visual stream."""

    latent: Tensor
    sequence: int
    time: int
    base: tuple[int, int]
    sample: int | None  # None: history
    units: int
    tokens_per_unit: int
    start: int = 0


def _sequences(samples: Sequence[Sample], causal: bool) -> list[list[int]]:
    """Which samples share a prefix, as lists of sample indices, in order of first appearance."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, sample in enumerate(samples):
        key: tuple[object, ...] = (index,)
        if sample.prefix.history and causal:
            key = (id(sample.prefix), sample.timestep, sample.current.shape[-2:])
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def _lay_out(
    samples: Sequence[Sample], sequences: list[list[int]], patch: int
) -> tuple[list[list[_Clip]], tuple[ClipBlock, ...], Tensor, int]:
    """Sort all clips into blocks of equal shape, history first; per sequence its clips in time order, with places."""
    clips_of: list[list[_Clip]] = []
    classes: dict[tuple[object, ...], list[_Clip]] = {}
    for number, members in enumerate(sequences):
        prefix = samples[members[0]].prefix
        base = _grid(samples[members[0]].current, patch)
        latents = [(latent, None) for latent in prefix.history] + [(samples[m].current, m) for m in members]
        time, clips = 0, []
        for latent, member in latents:
            height, width = _grid(latent, patch)
            clips.append(_Clip(latent, number, time, base, member, latent.shape[1], height * width))
            if member is None:
                time += latent.shape[1]
            classes.setdefault((member is not None, latent.shape, base), []).append(clips[-1])
        clips_of.append(clips)
    start, blocks, patches, current_start = 0, [], [], None
    for (is_current, shape, base), clips in sorted(classes.items(), key=lambda item: item[0][0] is True):
        if is_current and current_start is None:
            current_start = start
        stacked = torch.stack([clip.latent for clip in clips])
        owners = torch.tensor([clip.sequence for clip in clips], device=stacked.device)
        height, width = _grid(clips[0].latent, patch)
        block = ClipBlock(start, len(clips), clips[0].units, height, width, clips[0].base, owners)
        for place, clip in enumerate(clips):
            clip.start = start + place * block.tokens_per_clip
        blocks.append(block)
        patches.append(_patchify(stacked, patch))
        start = block.stop
    assert current_start is not None
    return clips_of, tuple(blocks), torch.cat(patches), current_start


def _grid(latent: Tensor, patch: int) -> tuple[int, int]:
    height, width = latent.shape[-2:]
    if latent.dim() != 4 or height % patch or width % patch or not latent.numel():
        raise ValueError(
            f"a latent clip is (channels, units, height, width) with sides divisible by the patch size {patch}, "
            f"not {tuple(latent.shape)}"
        )
    return height // patch, width // patch


def _patchify(clips_NCTHW: Tensor, patch: int) -> Tensor:
    count, channels, units, height, width = clips_NCTHW.shape
    grid = clips_NCTHW.view(count, channels, units, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 3, 5, 1, 4, 6).reshape(-1, channels * patch * patch)


def _pieces(sequences: list[list[int]], text_lengths: list[int], placed: list[list[_Clip]]) -> list[list[Piece]]:
    """Per sequence its runs of tokens in time order, indexed in the joint stream (text first, then visual)."""
    offset, text_start, result = sum(text_lengths), 0, []
    for length, clips in zip(text_lengths, placed, strict=True):
        pieces = [Piece(text_start, length, 0, 0)]
        text_start += length
        siblings = sum(clip.sample is not None for clip in clips) > 1
        member = 0  # an only sample counts as part of the prefix: text sees it when there is no history
        for clip in clips:
            member += siblings and clip.sample is not None
            for unit in range(clip.units):
                first = offset + clip.start + unit * clip.tokens_per_unit
                pieces.append(Piece(first, clip.tokens_per_unit, clip.time + unit, member))
        result.append(pieces)
    return result
