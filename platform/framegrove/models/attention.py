"""Block-causal attention over a packed batch, planned once per batch and used by every layer.

The rule of who sees whom, with a picture, is in attention_layout.py. It is carried out by scaled-dot-product attention
on a CPU (attention_cpu.py) and by FlexAttention on a GPU (attention_flex.py); both equal a dense mask over the whole
batch.

Tokens exist in two orders. The transformer works on the *joint stream*: all text tokens, then all visual tokens, so
that each linear layer is a single matrix product. Attention needs each sequence in one run: it works on *tables*, whose
rows are sequences, padded at the end where they are shorter than the table. For two sequences, one of text ``t``,
history ``0`` and samples ``a`` and ``b``, the other of text ``T``, history ``O`` and sample ``A``:

    joint stream   t t T T T 0 0 O O a a b b A A
    table, row 1   t t 0 0 a a b b
           row 2   T T T O O A A -                 (-: padding)

``AttentionPlan.place_L`` leads from the first order to the second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from framegrove.models.attention_cpu import cpu_tables
from framegrove.models.attention_flex import flex_tables
from framegrove.models.attention_layout import Piece, Table, Tokens


class Attention(Protocol):
    """What blocks need of attention, on one worker or shared by several (sequence_parallel.py)."""

    @property
    def tokens(self) -> Tokens:
        """Every token of the batch."""
        ...

    @property
    def place_L(self) -> Tensor:
        """For each token of the joint stream, its row in the table."""
        ...

    def empty_table(self, like_L3HD: Tensor, dtype: torch.dtype) -> Tensor:
        """A table of queries, keys and values; the caller fills the rows at ``place_L``."""
        ...

    def __call__(self, table_M3HD: Tensor, wanted_L: Tensor | None = None) -> Tensor:
        """The results of all tokens, or with ``wanted_L``, the places of the current tokens, of those."""
        ...


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """Who attends to whom in one packed batch. Call it with queries, keys and values in table order (see the module).

    A *place* is an index into all tables laid one after the other, row by row.
    """

    place_L: Tensor  # for each token of the joint stream, its place
    padding_M: Tensor  # the places that hold no token
    places: int  # number of places
    tokens: Tokens
    tables: tuple[Table, ...]

    @classmethod
    def build(cls, sequences: Sequence[Sequence[Piece]], causal: bool, device: torch.device) -> AttentionPlan:
        """The plan for sequences given as pieces: the prefix's in time order, then each sample's in time order."""
        tokens = Tokens.of(sequences)
        tables: tuple[Table, ...]
        if device.type == "cuda":
            tables, base = flex_tables(tokens, causal, device)
        else:
            tables, base = cpu_tables(tokens, sequences, causal)
        place = base[tokens.sequence] + tokens.column
        by_token = np.empty_like(place)
        by_token[tokens.joint] = place
        places = sum(table.count * table.length for table in tables)
        padding = np.setdiff1d(np.arange(places), place) if places > len(place) else place[:0]
        return cls(torch.from_numpy(by_token).to(device), torch.from_numpy(padding).to(device), places, tokens, tables)

    def empty_table(self, like_L3HD: Tensor, dtype: torch.dtype) -> Tensor:
        """An uninitialised (places, 3, heads, head size) table; the caller fills the rows at ``place_L``.

        The third axis holds query, key and value; padding is zero, since NaN would spread through the mask.
        """
        table = like_L3HD.new_empty(self.places, *like_L3HD.shape[1:], dtype=dtype)
        return table.index_fill_(0, self.padding_M, 0) if len(self.padding_M) else table

    def __call__(self, table_M3HD: Tensor, wanted_L: Tensor | None = None) -> Tensor:
        """Attend: a table of queries, keys and values -> (tokens, heads, head size), in the order of the joint stream.

        With ``wanted_L``, the places of some current tokens, only those tokens' results are returned, in that order.
        """
        places = self.place_L if wanted_L is None else wanted_L
        result: Tensor = _Attend.apply(table_M3HD, places, self.tables, wanted_L is not None)
        return result


class _Attend(torch.autograd.Function):
    """Attend table by table, then gather the joint stream.

    Slicing and concatenating tables under autograd would copy whole tables of gradients. Here each table keeps a graph
    of its own, and the backward pass writes its gradients directly into one tensor.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor, tables: tuple[Table, ...], current_only: bool) -> Tensor:
        out = rows.new_empty(rows.shape[0], *rows.shape[2:])
        graphs = []
        with torch.autocast(rows.device.type, enabled=False):  # the caller has chosen the type
            for table, part, to in _by_table(tables, rows, out):
                with torch.set_grad_enabled(ctx.needs_input_grad[0]):
                    inputs = tuple(x.detach().requires_grad_(ctx.needs_input_grad[0]) for x in part.unbind(2))
                    result = table(*(x.transpose(1, 2) for x in inputs), current_only).transpose(1, 2)
                to.copy_(result.detach())
                graphs.append((inputs, result))
        ctx.save_for_backward(places)
        ctx.tables, ctx.graphs = tables, graphs
        return out.index_select(0, places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (places,) = ctx.saved_tensors
        total = sum(table.count * table.length for table in ctx.tables)
        whole = grad.new_zeros(total, *grad.shape[1:]).index_copy_(0, places, grad)
        grad_rows = grad.new_empty(total, 3, *grad.shape[1:])
        views = _by_table(ctx.tables, whole, grad_rows)
        for (_, part, to), (inputs, result) in zip(views, ctx.graphs, strict=True):
            for number, back in enumerate(torch.autograd.grad(result, inputs, part)):
                to[:, :, number] = back
        ctx.graphs = ()  # unlike saved tensors, they would live on as long as anyone holds the loss
        return grad_rows, None, None, None


def _by_table(tables: tuple[Table, ...], *rows: Tensor) -> Iterator[tuple[Any, ...]]:
    """Each table with its part of every tensor in ``rows``, viewed as (count, length, ...)."""
    start = 0
    for table in tables:
        stop = start + table.count * table.length
        yield table, *(x[start:stop].view(table.count, table.length, *x.shape[1:]) for x in rows)
        start = stop
