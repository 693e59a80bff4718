"""The packed sequence: who shares a prefix, where tokens stand, and the way back to clips."""

from __future__ import annotations

import pytest
import torch

from framegrove.models.packed import Packed, Prefix, Sample, TextEmbedding, pack

PATCH = 2


def _text(length: int) -> TextEmbedding:
    return TextEmbedding(torch.randn(length, 6), torch.randn(5))


def _clip(units: int = 1, side: int = 4) -> torch.Tensor:
    return torch.randn(3, units, side, side)


def _there_and_back(packed: Packed) -> list[torch.Tensor]:
    """The current clips, out of their own patches put into the order that predictions have."""
    current = packed.patches_LP[packed.current_start :].view(-1, 3, PATCH, PATCH)
    return packed.unpatchify(current.permute(0, 2, 3, 1).flatten(1))


def test_samples_come_back_in_their_order() -> None:
    shared = Prefix(_text(4), (_clip(2, 2), _clip(1, 4)))
    samples = [
        Sample(Prefix(_text(9)), _clip(1, 8), 900.0),
        Sample(shared, _clip(1, 4), 500.0),
        Sample(Prefix(_text(2)), _clip(3, 4), 10.0),
        Sample(shared, _clip(1, 4), 500.0),
        Sample(Prefix(_text(4)), _clip(1, 8), 20.0),
    ]
    back = _there_and_back(pack(samples, PATCH))
    assert all(torch.equal(clip, sample.current) for clip, sample in zip(back, samples, strict=True))


def test_siblings_share_their_prefix() -> None:
    prefix = Prefix(_text(7), (_clip(1, 2), _clip(1, 4)))
    one, five = (pack([Sample(prefix, _clip(), 500.0) for _ in range(n)], PATCH) for n in (1, 5))
    assert len(one.text_LD) == len(five.text_LD) == 7
    assert len(one.patches_LP) == 1 + 4 + 4
    assert len(five.patches_LP) == 1 + 4 + 5 * 4
    assert len(five.timesteps_S) == 1


@pytest.mark.parametrize("how", ["timestep", "prefix", "size", "no history", "bidirectional"])
def test_nothing_else_is_shared(how: str) -> None:
    history = () if how == "no history" else (_clip(1, 2),)
    prefix = Prefix(_text(7), history)
    other = Prefix(prefix.text, prefix.history) if how == "prefix" else prefix
    second = Sample(other, _clip(side=8 if how == "size" else 4), 400.0 if how == "timestep" else 500.0)
    packed = pack([Sample(prefix, _clip(), 500.0), second], PATCH, causal=how != "bidirectional")
    assert len(packed.timesteps_S) == 2
    assert len(packed.text_LD) == 14


def test_times_count_units_of_history() -> None:
    prefix = Prefix(_text(3), (_clip(2, 2), _clip(1, 4)))
    packed = pack([Sample(prefix, _clip(2, 4), 500.0)], PATCH)
    by_token = sorted(packed.times_L.tolist())
    assert by_token == [0, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4]
    assert packed.times_L[packed.current_start :].tolist() == [3] * 4 + [4] * 4


def test_rows_are_runs_of_one_sequence() -> None:
    """Every span's rows cover the stream without a gap, each with its owner."""
    samples = [Sample(Prefix(_text(n), (_clip(1, 2),)), _clip(side=4 * (1 + n % 2)), 100.0 * n) for n in (5, 3, 5, 2)]
    packed = pack(samples, PATCH)
    for rows, tokens in ((packed.text_rows, packed.text_LD), (packed.visual_rows, packed.patches_LP)):
        assert [span.token for span in rows.spans] == [
            sum(s.count * s.length for s in rows.spans[:at]) for at in range(len(rows.spans))
        ]
        assert sum(span.count * span.length for span in rows.spans) == len(tokens)
        assert sum(span.count for span in rows.spans) == len(rows.owners_N)
    assert packed.timesteps_S[packed.text_rows.owners_N].tolist() == [200.0, 300.0, 500.0, 500.0]


def test_gradients_reach_the_text() -> None:
    text = TextEmbedding(torch.randn(3, 6, requires_grad=True), torch.randn(5, requires_grad=True))
    packed = pack([Sample(Prefix(text), _clip(), 1.0)], PATCH)
    (packed.text_LD.sum() + packed.pooled_SP.sum()).backward()
    assert text.tokens_LD.grad is not None
    assert text.pooled_P.grad is not None


def test_nothing_to_pack() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        pack([], PATCH)


@pytest.mark.parametrize("shape", [(3, 1, 3, 4), (3, 1, 4, 5), (3, 4, 4), (3, 0, 4, 4)])
def test_clips_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="divisible by the patch size 2, not"):
        pack([Sample(Prefix(_text(3)), torch.randn(*shape), 1.0)], PATCH)
