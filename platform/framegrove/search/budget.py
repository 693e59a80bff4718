"""How wide a search may be for its budget.

A budget of 4x pays for four times the FLOPs of one unsearched sample, the branch ``(0,) * units`` sampled alone and
decoded. It is held to all that a search needs: sampling, decoding and judging, in the *worst case of certain work*:
however the scores fall, the works that a policy asks for cost no more. A budget is a cap: policies that stop early
spend less. Bets that speculation loses are not in it; they are counted apart (see dispatcher.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from framegrove.errors import UserError
from framegrove.search.prices import Prices
from framegrove.search.rounds import Branching, TreeShape, cuts_of, filled, rounds_of, worst_case
from framegrove.search.tree import Layout
from framegrove.types import Assessment


class BudgetError(UserError):
    """A budget that cannot pay for what is asked; the message is one sentence for the user."""


@dataclass(frozen=True)
class Allotment:
    """What a budget was turned into, in FLOPs: ``allowed`` are those of works, and ``worst_case`` is held to it."""

    one_sample: int
    allowed: int
    worst_case: int

    @property
    def utilisation(self) -> float:
        """The share of the budget that the worst case uses."""
        return self.worst_case / self.allowed


def amounts(multiple: float, layout: Layout, prices: Prices) -> tuple[int, int]:
    """FLOPs of one unsearched sample, and of the works that the budget pays for. Raises BudgetError below 1x.

    What a winner costs after all works is set aside.
    """
    if multiple < 1:
        raise BudgetError(f"a budget of {multiple:g}x cannot pay for a single video, the smallest is 1x")
    one = prices.one_sample(layout)
    whole = int(one * Fraction(str(multiple)))  # a float product would lose FLOPs of large models
    return one, whole - prices.finishing


def allot_linear(multiple: float, layout: Layout, prices: Prices, roots: int | None = None) -> tuple[int, Allotment]:
    """The number of whole videos that the budget pays for, or the ``roots`` asked for if it does.

    Each costs its sampling and its judgement; a lone one is not judged. Raises BudgetError when it does not.
    """
    one, allowed = amounts(multiple, layout, prices)
    alone = prices.unjudged(layout, layout.given)
    each = alone + prices.judge(layout.units - 1, Assessment.FINAL)
    count = max(1, allowed // each) if roots is None else roots
    total = count * each if count > 1 else alone
    if total > allowed:
        raise BudgetError(
            f"{count} videos and their judgement cost {total / one:.4g}x and the budget is {multiple:g}x: raise it or "
            "lower roots"
        )
    return count, Allotment(one, allowed, total)


def allot_tof(
    multiple: float,
    layout: Layout,
    prices: Prices,
    *,
    roots_per_work: int,
    branching: Branching = "prompts",
    roots: int | None = None,
    widths: tuple[int, ...] | None = None,
) -> tuple[TreeShape, Allotment]:
    """The widest tree whose worst case the budget pays for; ``roots`` and ``widths`` fix parts of it.

    Raises BudgetError when even the smallest tree with those parts costs more, or when ``widths`` has the wrong length.
    """
    one, allowed = amounts(multiple, layout, prices)
    if widths is not None and len(widths) != cuts_of(layout):
        raise BudgetError(
            f"widths has {len(widths)} numbers, a video of {layout.units} units with "
            f"{'drafts' if layout.draft_stage is not None else 'no drafts'} is cut {cuts_of(layout)} times"
        )

    def price(shape: TreeShape) -> int:
        return worst_case(rounds_of(layout, shape, roots_per_work), shape.roots, prices)

    shape = TreeShape(
        roots=roots or 1,
        children=(1,) * (layout.units - layout.given - 1),
        widths=widths or (1,) * cuts_of(layout),
    )
    if price(shape) > allowed:
        raise BudgetError(
            f"the smallest tree with these roots and widths costs {price(shape) / one:.2f}x and the budget is "
            f"{multiple:g}x: raise it, or lower roots or widths"
        )
    growing = True
    while growing:
        candidates = _wider(shape, layout, branching, fixed_roots=roots is not None, fixed_widths=widths is not None)
        wider = next((candidate for candidate in candidates if price(candidate) <= allowed), None)
        shape, growing = wider or shape, wider is not None
    return shape, Allotment(one, allowed, price(shape))


def _wider(
    shape: TreeShape, layout: Layout, branching: Branching, *, fixed_roots: bool, fixed_widths: bool
) -> Iterator[TreeShape]:
    """Trees one step wider, the step worth most first.

    First the branchings, for a fault of a later unit can only be mended by choosing among its own children. Then
    the widths, deepest cut first, each up to half of its cohort: more would seldom be used, since about half of
    a cohort lies below its average. What deeper cuts cannot use buys more roots, the cheapest thing to have more of. So
    the tree halves from cut to cut, as in successive halving, and the cohorts grow together.
    """
    for index, depth in enumerate(range(layout.given + 1, layout.units)):
        switches = branching == "prompts" and depth in (1, layout.units - 1)
        if (branching == "units" or switches) and shape.children[index] < 2:
            yield replace(shape, children=(*shape.children[:index], 2, *shape.children[index + 1 :]))
    cohorts = _cohorts(shape, layout)
    if not fixed_widths:
        for index in reversed(range(len(shape.widths))):
            if shape.widths[index] < -(-cohorts[index] // 2):
                grown = (*shape.widths[:index], shape.widths[index] + 1, *shape.widths[index + 1 :])
                yield replace(shape, widths=grown)
    if not fixed_roots:
        yield replace(shape, roots=shape.roots + 1)


def _cohorts(shape: TreeShape, layout: Layout) -> list[int]:
    """How many branches each round judges at most."""
    rounds = rounds_of(layout, shape, roots_per_work=1)
    return [step.size(entrants) for step, entrants in filled(rounds, shape.roots)]
