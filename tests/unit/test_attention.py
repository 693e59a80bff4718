"""Every way of attending against a dense mask that is built here, token by token, from the rule itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from framegrove.models import attention, attention_cpu, attention_flex
from framegrove.models.attention import AttentionPlan
from framegrove.models.attention_layout import Piece, Tokens, mask_rule

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
    monkeypatch.setattr(attention_cpu, "_SHORT", short)
    _compare_with_a_dense_mask(AttentionPlan.build(sequences, causal, CPU), sequences, causal, SIZE)


def _compare_with_a_dense_mask(plan: AttentionPlan, sequences: list[list[Piece]], causal: bool, size: int) -> None:
    """Outputs and gradients, of all tokens and of the current ones alone."""
    torch.manual_seed(0)
    mask = _dense_mask(sequences, causal)
    qkv = torch.randn(len(mask), 3, HEADS, size, requires_grad=True)
    weight = torch.randn(len(mask), HEADS, size)
    expected, result = _dense(qkv, mask), plan(_table(plan, qkv))
    torch.testing.assert_close(result, expected, atol=2e-6, rtol=1e-5)
    gradients = [torch.autograd.grad((out * weight).sum(), qkv)[0] for out in (expected, result)]
    torch.testing.assert_close(gradients[1], gradients[0], atol=5e-6, rtol=1e-5)

    current = _current(sequences)
    chosen = plan(_table(plan, qkv), plan.place_L[current])
    torch.testing.assert_close(chosen, expected[current], atol=2e-6, rtol=1e-5)
    partly = torch.autograd.grad((chosen * weight[current]).sum(), qkv)[0]
    wanted = torch.autograd.grad((_dense(qkv, mask)[current] * weight[current]).sum(), qkv)[0]
    torch.testing.assert_close(partly, wanted, atol=5e-6, rtol=1e-5)


def _current(sequences: list[list[Piece]]) -> Tensor:
    return torch.cat([torch.arange(p.start, p.start + p.length) for s in sequences for p in s if p.current])


@pytest.mark.parametrize(("sequences", "causal"), [(CAUSAL, True), (BIDIRECTIONAL, False)])
def test_the_flex_rule_is_the_dense_mask(sequences: list[list[Piece]], causal: bool) -> None:
    tokens = Tokens.of(sequences)
    rule = mask_rule(*map(torch.from_numpy, (tokens.sequence, tokens.member, tokens.time)), causal)
    at = torch.arange(len(tokens.joint))
    joint = torch.from_numpy(tokens.joint)
    expected = _dense_mask(sequences, causal)[joint[:, None], joint[None]]
    assert torch.equal(rule(at[:0], at[:0], at[:, None], at[None]), expected)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("sequences", "causal"), [(CAUSAL, True), (BIDIRECTIONAL, False)])
def test_flex_attention_equals_a_dense_mask(
    monkeypatch: pytest.MonkeyPatch, sequences: list[list[Piece]], causal: bool
) -> None:
    """The GPU's way, run uncompiled on the CPU, outputs and gradients."""
    monkeypatch.setattr(
        attention, "cpu_tables", lambda tokens, sequences, causal: attention_flex.flex_tables(tokens, causal, CPU)
    )
    # PyTorch has no compiled backward pass for a CPU and therefore refuses the uncompiled one, too, which it has.
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda query, key, value: None)
    plan = AttentionPlan.build(sequences, causal, CPU)
    assert [type(table) for table in plan.tables] == [attention_flex.Flex]
    _compare_with_a_dense_mask(plan, sequences, causal, 16)


def test_on_a_gpu_flex_attention_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uncompiled it would give the same, with every score in memory at once. Seen without a GPU, on shapes alone."""
    assert attention_flex._compiled_flex()._torchdynamo_orig_callable is attention_flex.flex_attention  # type: ignore[attr-defined]
    monkeypatch.setattr(attention_flex, "_compiled_flex", lambda: lambda query, key, value, block_mask: value)
    (table,), _ = attention_flex.flex_tables(Tokens.of(CAUSAL[:1]), True, CPU)
    with FakeTensorMode():
        query, key, value = (torch.empty(1, HEADS, table.length, SIZE, device="cuda") for _ in range(3))
    assert table(query, key, value, False) is value


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention is compiled on a GPU, and there is none")


@cuda
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize(("sequences", "causal"), [(CAUSAL, True), (BIDIRECTIONAL, False)])
def test_a_gpu_attends_like_a_cpu(
    sequences: list[list[Piece]], causal: bool, dtype: torch.dtype, tolerance: float
) -> None:
    """Outputs and gradients, of all tokens and of the current ones alone; the CPU computes in float32."""
    torch.manual_seed(0)
    total = sum(piece.length for pieces in sequences for piece in pieces)
    qkv, weight = torch.randn(total, 3, HEADS, 32).to(dtype), torch.randn(total, HEADS, 32).to(dtype)
    current = _current(sequences)
    answers = []
    for device, type_ in ((CPU, torch.float32), (torch.device("cuda"), dtype)):
        plan = AttentionPlan.build(sequences, causal, device)
        given = qkv.to(device, type_).requires_grad_()
        for tokens in (torch.arange(total), current):
            wanted = None if tokens is not current else plan.place_L[current.to(device)]
            out = plan(_table(plan, given), wanted)
            assert out.dtype is type_
            (gradient,) = torch.autograd.grad((out * weight[tokens].to(device, type_)).sum(), given)
            answers.append((out.float().cpu(), gradient.float().cpu()))
    for expected, result in zip(answers[:2], answers[2:], strict=True):
        torch.testing.assert_close(result, expected, atol=tolerance, rtol=tolerance)


@cuda
def test_a_gpu_never_holds_all_scores_at_once() -> None:
    """Compiled, FlexAttention keeps no more than a block of them; left uncompiled it would hold every one."""
    total, device = 8192, torch.device("cuda")
    plan = AttentionPlan.build(_batch((64, [64], [[total - 128]])), True, device)
    qkv = torch.randn(total, 3, HEADS, 32, device=device, dtype=torch.bfloat16, requires_grad=True)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    plan(_table(plan, qkv)).float().sum().backward()
    assert torch.cuda.max_memory_allocated() - before < HEADS * total**2 * 2  # bytes of the scores in bfloat16


def test_a_token_of_another_sequence_changes_nothing() -> None:
    plan = AttentionPlan.build(CAUSAL, True, CPU)
    total = len(plan.place_L)
    qkv = torch.randn(total, 3, HEADS, SIZE)
    before = plan(_table(plan, qkv))
    changed = qkv.clone()
    changed[: CAUSAL[0][-1].start + CAUSAL[0][-1].length] = 7.0
    rest = slice(CAUSAL[1][0].start, total)
    assert torch.equal(plan(_table(plan, changed))[rest], before[rest])
