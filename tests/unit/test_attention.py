"""Every way of attending against a dense mask that is built here, token by token, from the rule itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from framegrove.models import attention
from framegrove.models.attention import AttentionPlan, Piece, mask_rule

CPU = torch.device("cpu")
HEADS, SIZE = 2, 8


def _sequence(start: int, text: int, past: list[int], samples: list[list[int]]) -> list[Piece]:
    """A sequence whose tokens begin at ``start``: text, one piece per past unit, then each sample's units."""
    several = len(samples) > 1
    lengths = [(text, 0, 0, False)] + [(length, time, 0, False) for time, length in enumerate(past)]
    for number, units in enumerate(samples):
        lengths += [(length, len(past) + at, number + 1 if several else 0, True) for at, length in enumerate(units)]
    pieces = []
    for length, time, member, current in lengths:
        pieces.append(Piece(start, length, time, member, current))
        start += length
    return pieces


def _batch(*shapes: tuple[int, list[int], list[list[int]]]) -> list[list[Piece]]:
    sequences: list[list[Piece]] = []
    start = 0
    for text, past, samples in shapes:
        sequences.append(_sequence(start, text, past, samples))
        start = sequences[-1][-1].start + sequences[-1][-1].length
    return sequences


def _dense_mask(sequences: list[list[Piece]], causal: bool) -> Tensor:
    """(tokens, tokens): a token sees its sequence's prefix and its own sample, no later time."""
    total = sum(piece.length for pieces in sequences for piece in pieces)
    mask = torch.zeros(total, total, dtype=torch.bool)
    for pieces in sequences:
        for query in pieces:
            for key in pieces:
                if key.member in (0, query.member) and (key.time <= query.time or not causal):
                    rows, columns = (slice(piece.start, piece.start + piece.length) for piece in (query, key))
                    mask[rows, columns] = True
    return mask


def _dense(qkv: Tensor, mask: Tensor) -> Tensor:
    query, key, value = qkv.transpose(0, 2).unbind(1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(0, 1)


def _table(plan: AttentionPlan, qkv: Tensor) -> Tensor:
    return plan.empty_table(qkv, qkv.dtype).index_copy(0, plan.place_L, qkv)


CAUSAL = _batch(
    (5, [], [[4]]),
    (5, [], [[4, 4, 4]]),
    (9, [1, 2, 4], [[4]]),
    (9, [1, 2, 4], [[4]]),
    (3, [2, 2, 4], [[4], [4], [4]]),
    (3, [2], [[4, 4], [4, 4]]),
    (17, [20, 20, 20], [[40]]),
)
BIDIRECTIONAL = _batch((5, [], [[4]]), (9, [1, 2, 4], [[4, 4]]), (30, [20, 20, 20], [[40]]))


@pytest.mark.parametrize("short", [0, 48, 10_000])
@pytest.mark.parametrize(("sequences", "causal"), [(CAUSAL, True), (BIDIRECTIONAL, False)])
def test_cpu_attention_equals_a_dense_mask(
    monkeypatch: pytest.MonkeyPatch, sequences: list[list[Piece]], causal: bool, short: int
) -> None:
    """Run by run (0), whole under small masks (10,000) and mixed, outputs and gradients."""
    monkeypatch.setattr(attention, "_SHORT", short)
    plan = AttentionPlan.build(sequences, causal, CPU)
    torch.manual_seed(0)
    mask = _dense_mask(sequences, causal)
    qkv = torch.randn(len(mask), 3, HEADS, SIZE, requires_grad=True)
    weight = torch.randn(len(mask), HEADS, SIZE)
    expected, result = _dense(qkv, mask), plan(_table(plan, qkv))
    torch.testing.assert_close(result, expected, atol=2e-6, rtol=1e-5)
    gradients = [torch.autograd.grad((out * weight).sum(), qkv)[0] for out in (expected, result)]
    torch.testing.assert_close(gradients[1], gradients[0], atol=5e-6, rtol=1e-5)

    current = torch.cat([torch.arange(p.start, p.start + p.length) for s in sequences for p in s if p.current])
    chosen = plan(_table(plan, qkv), plan.place_L[current])
    torch.testing.assert_close(chosen, expected[current], atol=2e-6, rtol=1e-5)
    partly = torch.autograd.grad((chosen * weight[current]).sum(), qkv)[0]
    wanted = torch.autograd.grad((_dense(qkv, mask)[current] * weight[current]).sum(), qkv)[0]
    torch.testing.assert_close(partly, wanted, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize(("sequences", "causal"), [(CAUSAL, True), (BIDIRECTIONAL, False)])
def test_the_flex_rule_is_the_dense_mask(sequences: list[list[Piece]], causal: bool) -> None:
    tokens = attention.Tokens.of(sequences)
    rule = mask_rule(*map(torch.from_numpy, (tokens.sequence, tokens.member, tokens.time)), causal)
    at = torch.arange(len(tokens.joint))
    joint = torch.from_numpy(tokens.joint)
    expected = _dense_mask(sequences, causal)[joint[:, None], joint[None]]
    assert torch.equal(rule(at[:0], at[:0], at[:, None], at[None]), expected)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_equals_a_dense_mask() -> None:
    """The GPU's way, run uncompiled on the CPU."""
    tokens = attention.Tokens.of(CAUSAL)
    tables, _ = attention._flex_tables(tokens, True, CPU)
    torch.manual_seed(0)
    joint = torch.from_numpy(tokens.joint)
    qkv = torch.randn(len(joint), 3, 1, 16)
    query, key, value = qkv[joint].transpose(0, 2).unbind(1)
    with torch.no_grad():
        result = tables[0](query[None], key[None], value[None], False)[0]
    expected = _dense(qkv, _dense_mask(CAUSAL, True))[joint].transpose(0, 1)
    torch.testing.assert_close(result, expected, atol=2e-6, rtol=1e-5)


def test_a_token_of_another_sequence_changes_nothing() -> None:
    plan = AttentionPlan.build(CAUSAL, True, CPU)
    total = len(plan.place_L)
    qkv = torch.randn(total, 3, HEADS, SIZE)
    before = plan(_table(plan, qkv))
    changed = qkv.clone()
    changed[: CAUSAL[0][-1].start + CAUSAL[0][-1].length] = 7.0
    rest = slice(CAUSAL[1][0].start, total)
    assert torch.equal(plan(_table(plan, changed))[rest], before[rest])
