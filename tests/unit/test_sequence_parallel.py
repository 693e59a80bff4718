"""Sequence parallelism: workers that share a packed batch get the losses and gradients of one that has all of it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from framegrove.config.model import AnyTransformerConfig, FluxConfig, TransformerConfig
from framegrove.models.modulation import Rows
from framegrove.models.packed import Prefix, Sample, TextEmbedding
from framegrove.models.sequence_parallel import SequenceGroup
from framegrove.models.sizes import PURE_FP32, activation_bytes
from framegrove.models.transformers import Transformer, build_transformer
from tests.unit.test_sizes import FLUX, MMDIT, most_kept
from tests.workers import together

TEXT, POOLED, CHANNELS = 10, 6, 4
CONFIGS: dict[str, AnyTransformerConfig] = {
    "mmdit": TransformerConfig(
        num_layers=3, num_attention_heads=6, attention_head_dim=8, caption_projection_dim=48,
        pooled_projection_dim=POOLED, joint_attention_dim=TEXT, in_channels=CHANNELS, sample_size=32,
        pos_embed_max_size=32,
    ),
    "flux": FluxConfig(
        in_channels=CHANNELS, num_layers=1, num_single_layers=2, num_attention_heads=6, attention_head_dim=12,
        axes_dims_rope=(4, 2, 6), joint_attention_dim=TEXT, pooled_projection_dim=POOLED,
    ),
}  # fmt: skip
LARGER: dict[str, AnyTransformerConfig] = {"mmdit": MMDIT, "flux": FLUX}
BATCHES = ("siblings", "long", "tiny")


def model_of(kind: str, recompute: bool) -> Transformer:
    """Random everywhere, so that nothing is hidden behind a zero gate."""
    transformer = build_transformer(CONFIGS[kind])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.25)
    transformer.recompute = recompute
    return transformer


def samples_of(batch: str) -> list[Sample]:
    """Shared prefixes and texts of odd lengths; a sequence too long to be attended whole; fewer tokens than workers."""
    torch.manual_seed(0)

    def text(length: int) -> TextEmbedding:
        return TextEmbedding(torch.randn(length, TEXT), torch.randn(POOLED))

    def clip(units: int, height: int, width: int) -> Tensor:
        return torch.randn(CHANNELS, units, height, width)

    if batch == "tiny":
        return [Sample(Prefix(text(1)), clip(1, 2, 2), 300.0)]
    if batch == "long":
        prefix = Prefix(text(7), (clip(3, 4, 6), clip(1, 8, 12), clip(1, 16, 24)))
        return [Sample(prefix, clip(1, 16, 24), 417.5), Sample(Prefix(text(3)), clip(1, 8, 12), 10.0)]
    prefixes = [Prefix(text(5), (clip(2, 2, 2), clip(1, 4, 4), clip(1, 6, 10))) for _ in range(2)]
    return [
        *(Sample(prefixes[0], clip(1, 6, 10), 417.5) for _ in range(3)),
        *(Sample(prefixes[1], clip(1, 6, 10), 3.25) for _ in range(2)),
        Sample(Prefix(text(4)), clip(1, 6, 10), 900.0),
        Sample(Prefix(text(1), (clip(1, 2, 2),)), clip(1, 2, 2), 20.0),
    ]


def loss_and_gradients(transformer: Transformer, batch: str) -> tuple[Tensor, list[Tensor]]:
    outs = transformer(transformer.pack(samples_of(batch)))
    # A loss that is no mean over tokens: every element weighs something else.
    loss = sum((((1 + index) * out + out.square()).mean() for index, out in enumerate(outs)), torch.zeros(()))
    loss.backward()
    return loss.detach(), [torch.zeros_like(p) if p.grad is None else p.grad for p in transformer.parameters()]


def cases() -> list[tuple[str, bool, str]]:
    return [(kind, recompute, batch) for kind in CONFIGS for recompute in (False, True) for batch in BATCHES]


def work(rank: int, workers: int, folder: Path) -> None:
    """One of the workers: leaves its losses, and its part of the gradients, which add up over the group."""
    group = SequenceGroup.of_neighbours(workers)
    found: dict[Any, Any] = {}
    for case in cases():
        kind, recompute, batch = case
        transformer = model_of(kind, recompute)
        transformer.sequence_group = group
        found[case] = loss_and_gradients(transformer, batch)
    for kind, config in LARGER.items() if workers == 2 else ():
        transformer = build_transformer(config)
        transformer.sequence_group = group
        found[kind] = most_kept(transformer)
    torch.save(found, folder / f"{rank}.pt")


@pytest.mark.parametrize("workers", [2, 3])
def test_loss_and_gradients_are_those_of_one_worker(workers: int, tmp_path: Path) -> None:
    together(work, (workers, tmp_path), workers)()
    left = [torch.load(tmp_path / f"{rank}.pt") for rank in range(workers)]
    for kind, recompute, batch in cases():
        transformer = model_of(kind, recompute=False)
        loss, gradients = loss_and_gradients(transformer, batch)
        results = [of_rank[kind, recompute, batch] for of_rank in left]
        for found, _ in results:
            assert float(found) == pytest.approx(float(loss), rel=1e-5)
        for number, (name, _) in enumerate(transformer.named_parameters()):
            summed = sum(parts[number] for _, parts in results)
            whole = gradients[number]
            assert (summed - whole).norm() <= 1e-5 * whole.norm(), (kind, recompute, batch, name)
    for kind, (tokens, most) in ((kind, of_rank[kind]) for of_rank in left for kind in LARGER if kind in of_rank):
        estimated = activation_bytes(LARGER[kind], tokens, PURE_FP32, workers=workers)
        assert estimated == pytest.approx(most, rel=0.1)
        assert most < 0.6 * activation_bytes(LARGER[kind], tokens, PURE_FP32)


@given(count=st.integers(0, 40), size=st.integers(1, 8), start=st.integers(0, 5))
def test_shares_are_even_and_leave_nothing_out(count: int, size: int, start: int) -> None:
    group = SequenceGroup(SimpleNamespace(), rank=0, size=size)  # type: ignore[arg-type]  # nothing is sent
    bounds = group.bounds(slice(start, start + count))
    assert (bounds[0], bounds[-1], len(bounds)) == (start, start + count, size + 1)
    shares = [stop - begin for begin, stop in pairwise(bounds)]
    assert max(shares) - min(shares) <= 1


@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=8), data=st.data())
def test_a_slice_of_rows_gives_each_token_its_owner(lengths: list[int], data: st.DataObject) -> None:
    rows = Rows.of(lengths, torch.arange(len(lengths)) * 10)
    start = data.draw(st.integers(0, sum(lengths)))
    stop = data.draw(st.integers(start, sum(lengths)))
    assert owners(rows.cut(slice(start, stop))) == owners(rows)[start:stop]
    assert owners(rows.cut(slice(0, start)).followed_by(rows.cut(slice(start, sum(lengths))))) == owners(rows)


def owners(rows: Rows) -> list[int]:
    """Of each token."""
    found: dict[int, int] = {}
    for span in rows.spans:
        for row in range(span.count):
            first = span.token + row * span.length
            found |= dict.fromkeys(range(first, first + span.length), int(rows.owners_N[span.row + row]))
    assert list(found) == list(range(len(found)))
    return list(found.values())
