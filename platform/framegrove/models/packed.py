"""The packed sequence: tokens of many samples side by side, and prefixes that siblings carry once.

A *sample* is one current clip (the unit being denoised) and its *prefix*: text and history. Attention is causal over
units, so where there is history nothing in the prefix depends on the current clip, and samples with the same prefix
and timestep share it exactly. Without history, text attends to the current clip, so each sample carries its own text.
A *sequence* is one prefix with all samples that share it.

There are two streams of tokens, neither with padding:

- text: sequence by sequence, each as long as its prompt;
- visual: *blocks* of clips of equal shape, all history blocks first, then all current ones. The clips of a block follow
  each other, each unit by unit, row by row. So work per clip needs only a view, and the tokens whose velocity is
  predicted are the tail of the stream.

For example, sequence 1 has text ``t``, one unit of history ``0`` and the samples ``a`` and ``b``; sequence 2, at the
same size, has text ``T``, history ``O`` and the sample ``A``:

    text     t t T T T
    visual   0 0 0 0 O O O O | a a a a b b b b A A A A
             history block     current block, from ``current_start`` on

What attends to what, with a picture of the mask, is in attention_layout.py.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from framegrove.models.attention import Attention, AttentionPlan
from framegrove.models.attention_layout import Piece
from framegrove.models.modulation import Rows


@dataclass(frozen=True, eq=False)
class TextEmbedding:
    """An encoded prompt: ``tokens_LD`` (no padding tokens) and the pooled vector ``pooled_P``."""

    tokens_LD: Tensor
    pooled_P: Tensor


@dataclass(frozen=True, eq=False)
class Prefix:
    """What samples are conditioned on: text, and clean earlier clips (C, t, h, w), oldest first, of any sizes."""

    text: TextEmbedding
    history: tuple[Tensor, ...] = ()


@dataclass(frozen=True, eq=False)
class Sample:
    """A noisy clip (C, t, h, w) at a timestep (0 to 1000), conditioned on a prefix."""

    prefix: Prefix
    current: Tensor
    timestep: float


@dataclass(frozen=True)
class ClipBlock:
    """``count`` clips of ``units`` x ``height`` x ``width`` tokens each in the visual stream, from token ``start`` on.

    ``base`` is the (height, width) in tokens of the current clips in their sequences: history at a lower resolution
    gets its positions on that grid.
    """

    start: int
    count: int
    units: int
    height: int
    width: int
    base: tuple[int, int]
    current: bool

    @property
    def tokens_per_clip(self) -> int:
        return self.units * self.height * self.width

    @property
    def stop(self) -> int:
        return self.start + self.count * self.tokens_per_clip


@dataclass(frozen=True, eq=False)
class Packed:
    """A packed batch; see the module docstring. S counts sequences, L tokens of a stream."""

    text_LD: Tensor
    pooled_SP: Tensor
    timesteps_S: Tensor
    patches_LP: Tensor  # channel, row, column of each patch
    times_L: Tensor  # time index of each visual token
    blocks: tuple[ClipBlock, ...]
    current_start: int  # visual tokens from here on belong to current clips
    text_rows: Rows  # one row per sequence
    visual_rows: Rows  # one row per clip
    current_rows: Rows  # one row per current clip, counted from current_start
    attention: Attention
    sample_clips: tuple[int, ...]  # for each current clip in stream order, the index of its sample
    patch: int

    def unpatchify(self, current_LP: Tensor) -> list[Tensor]:
        """Predicted patches of all current tokens, each (row, column, channel) -> a (C, t, h, w) tensor per sample."""
        patch, clips = self.patch, []
        blocks = [block for block in self.blocks if block.current]
        parts = current_LP.split([block.stop - block.start for block in blocks])
        for block, part in zip(blocks, parts, strict=True):
            grid = part.view(block.count, block.units, block.height, block.width, patch, patch, -1)
            pixels = grid.permute(0, 6, 1, 2, 4, 3, 5)
            shape = (block.count, -1, block.units, block.height * patch, block.width * patch)
            clips += pixels.reshape(shape).unbind(0)
        by_sample = dict(zip(self.sample_clips, clips, strict=True))
        return [by_sample[index] for index in range(len(by_sample))]


def pack(samples: Sequence[Sample], patch: int, causal: bool = True) -> Packed:
    """Lay samples out as one packed sequence for a transformer with this patch size.

    Samples share a prefix if it is the same object, has history, and their timesteps and sizes agree. Raises ValueError
    for an empty batch or a clip whose sides the patch size does not divide.
    """
    if not samples:
        raise ValueError("nothing to pack: at least one sample is needed")
    sequences = _sequences(samples, causal)
    stream = _lay_out(samples, sequences, patch)
    heads = [samples[members[0]] for members in sequences]
    texts = [head.prefix.text for head in heads]
    lengths = [text.tokens_LD.shape[0] for text in texts]
    device = stream.patches_LP.device
    current = [clip for clip in stream.clips if clip.sample is not None]
    return Packed(
        text_LD=torch.cat([text.tokens_LD for text in texts]),
        pooled_SP=torch.stack([text.pooled_P for text in texts]),
        timesteps_S=torch.tensor([head.timestep for head in heads], dtype=torch.float32, device=device),
        patches_LP=stream.patches_LP,
        times_L=stream.times_L.to(device),
        blocks=stream.blocks,
        current_start=next(block.start for block in stream.blocks if block.current),
        text_rows=_rows(lengths, range(len(sequences)), device),
        visual_rows=_clip_rows(stream.clips, device),
        current_rows=_clip_rows(current, device),
        attention=AttentionPlan.build(_pieces(stream.clips, lengths), causal, device),
        sample_clips=tuple(clip.sample for clip in current if clip.sample is not None),
        patch=patch,
    )


@dataclass
class _Clip:
    """A clip that is being laid out in the visual stream; ``sample`` is None for history."""

    latent: Tensor
    sequence: int
    time: int
    sample: int | None
    grid: tuple[int, int, int]  # units, height, width in tokens
    base: tuple[int, int]
    start: int = 0

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]


@dataclass(frozen=True, eq=False)
class _Stream:
    clips: list[_Clip]  # in stream order
    blocks: tuple[ClipBlock, ...]
    patches_LP: Tensor
    times_L: Tensor


def _sequences(samples: Sequence[Sample], causal: bool) -> list[list[int]]:
    """Which samples share a prefix, as lists of sample indices, ordered by length of text.

    Neighbours with equally long text then form one span of rows (see modulation.py).
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, sample in enumerate(samples):
        key: tuple[object, ...] = (index,)
        if sample.prefix.history and causal:
            key = (id(sample.prefix), sample.timestep, sample.current.shape[-2:])
        groups.setdefault(key, []).append(index)
    return sorted(groups.values(), key=lambda members: samples[members[0]].prefix.text.tokens_LD.shape[0])


def _lay_out(samples: Sequence[Sample], sequences: list[list[int]], patch: int) -> _Stream:
    """Sort all clips into blocks of equal shape, history first, and cut them into patches."""
    classes: dict[tuple[object, ...], list[_Clip]] = {}
    for number, members in enumerate(sequences):
        prefix = samples[members[0]].prefix
        base = _grid(samples[members[0]].current, patch)[1:]
        time = 0
        for latent in prefix.history:
            clip = _Clip(latent, number, time, None, _grid(latent, patch), base)
            classes.setdefault((False, clip.grid, base), []).append(clip)
            time += clip.grid[0]
        for member in members:
            latent = samples[member].current
            clip = _Clip(latent, number, time, member, _grid(latent, patch), base)
            classes.setdefault((True, clip.grid, base), []).append(clip)
    # History before current; then by length, because neighbouring blocks of equally long clips form one span of rows.
    ordered = sorted(classes.values(), key=lambda clips: (clips[0].sample is not None, clips[0].tokens))
    blocks: list[ClipBlock] = []
    patches, times = [], []
    start = 0
    for clips in ordered:
        units, height, width = clips[0].grid
        blocks.append(ClipBlock(start, len(clips), units, height, width, clips[0].base, clips[0].sample is not None))
        for clip in clips:
            clip.start, start = start, start + clip.tokens
        patches.append(_patchify(torch.stack([clip.latent for clip in clips]), patch))
        first = torch.tensor([clip.time for clip in clips])
        unit_times = first[:, None] + torch.arange(units)
        times.append(unit_times.flatten().repeat_interleave(height * width))
    return _Stream([c for clips in ordered for c in clips], tuple(blocks), torch.cat(patches), torch.cat(times))


def _grid(latent: Tensor, patch: int) -> tuple[int, int, int]:
    height, width = latent.shape[-2:]
    if latent.dim() != 4 or height % patch or width % patch or not latent.numel():
        raise ValueError(
            f"a latent clip is (channels, units, height, width) with sides divisible by the patch size {patch}, "
            f"not {tuple(latent.shape)}"
        )
    return latent.shape[1], height // patch, width // patch


def _patchify(clips_NCTHW: Tensor, patch: int) -> Tensor:
    count, channels, units, height, width = clips_NCTHW.shape
    grid = clips_NCTHW.view(count, channels, units, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 3, 5, 1, 4, 6).reshape(-1, channels * patch * patch)


def _clip_rows(clips: Sequence[_Clip], device: torch.device) -> Rows:
    return _rows([clip.tokens for clip in clips], [clip.sequence for clip in clips], device)


def _rows(lengths: Sequence[int], owners: Sequence[int], device: torch.device) -> Rows:
    return Rows.of(lengths, torch.tensor(list(owners), device=device))


def _pieces(clips: Sequence[_Clip], text_lengths: Sequence[int]) -> list[list[Piece]]:
    """For each sequence its runs of tokens in time order, indexed in the joint stream (text first, then visual)."""
    offset = sum(text_lengths)
    starts = itertools.accumulate(text_lengths, initial=0)
    pieces = [[Piece(start, length, 0, 0, False)] for start, length in zip(starts, text_lengths, strict=False)]
    siblings = Counter(clip.sequence for clip in clips if clip.sample is not None)
    member: Counter[int] = Counter()
    for clip in sorted(clips, key=lambda clip: clip.time):
        if clip.sample is not None and siblings[clip.sequence] > 1:
            member[clip.sequence] += 1  # a single sample stays part of the prefix: for unit 0, text sees it
        units, height, width = clip.grid
        for unit in range(units):
            first = offset + clip.start + unit * height * width
            piece = Piece(first, height * width, clip.time + unit, member[clip.sequence], clip.sample is not None)
            pieces[clip.sequence].append(piece)
    return pieces
