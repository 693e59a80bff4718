"""One small file per policy, and the choice between them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from framegrove.config.search import SearchConfig
from framegrove.search.budget import Allotment, BudgetError, allot_linear, allot_tof
from framegrove.search.policies.linear import Linear
from framegrove.search.policies.tof import TreeOfFrames
from framegrove.search.rounds import CostTable
from framegrove.search.tree import Layout, Policy


def make_policy(
    config: SearchConfig, units: int, stages: int, cost: CostTable, *, given: int = 0
) -> tuple[Policy, Allotment]:
    """The configured policy, as wide as its budget allows, and what the budget was turned into.

    ``units`` and ``stages`` are those of the video and of the pyramid, ``given`` counts units that are there already
    (1 for image-to-video). Raises BudgetError, in one sentence, for a budget that cannot pay for what is asked.
    """
    if not 0 <= given < units:
        raise BudgetError(f"{given} units are given and the video has {units}: nothing is left to search for")
    if config.policy == "linear":
        layout = Layout(units, stages, given=given)
        roots, allotment = allot_linear(config.multiple, layout, cost, config.roots)
        return Linear(layout, roots, config.weights), allotment
    layout = Layout(units, stages, _draft_stage(config, stages, given), given)
    if config.draft_stages is None and config.widths is None:
        with suppress(BudgetError):
            tree, allotment = _tree(config, layout, cost)
            if tree.shape.roots > 1:
                return tree, allotment
        layout = replace(layout, draft_stage=None)  # a lone root is not worth a preview
    return _tree(config, layout, cost)


def _tree(config: SearchConfig, layout: Layout, cost: CostTable) -> tuple[TreeOfFrames, Allotment]:
    shape, allotment = allot_tof(
        config.multiple,
        layout,
        cost,
        roots_per_work=config.roots_per_work,
        branching=config.branching,
        roots=config.roots,
        widths=config.widths,
    )
    return TreeOfFrames(layout, shape, config.roots_per_work, config.weights, config.path_score), allotment


def _draft_stage(config: SearchConfig, stages: int, given: int) -> int | None:
    """Drafts are previews of unit 0: none where that is given, or where there is no coarse stage to draft at."""
    count = stages - 1 if config.draft_stages is None else config.draft_stages
    if count >= stages:
        raise BudgetError(f"draft_stages is {count} and the pyramid has {stages} stages: allowed are 0 to {stages - 1}")
    return count - 1 if count and not given else None


__all__ = ["Allotment", "BudgetError", "Linear", "TreeOfFrames", "make_policy"]
