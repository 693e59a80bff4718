"""What sampling costs, from shapes alone: the FLOPs of every packed forward that a work takes."""

from __future__ import annotations

from dataclasses import dataclass

from framegrove.config.flow import StepsConfig
from framegrove.config.model import Recipe, TransformerConfig
from framegrove.flow.history import history_shapes, stage_shape
from framegrove.models.flops import layout_flops
from framegrove.search.rounds import CostTable
from framegrove.types import Cost, SampleWork


@dataclass(frozen=True)
class WorkCosts:
    """What sample works cost, whole or given up on the way; ``table`` must add up over stages."""

    table: CostTable
    steps: StepsConfig

    def of(self, work: SampleWork, steps: int, seconds: float) -> Cost:
        """The cost of the first ``steps`` forward passes of a work. Each evaluates every branch of it once."""
        flops, left = 0, steps
        for stage in range(work.first_stage, work.last_stage + 1):
            whole = self.steps.of(work.depth)[stage]
            taken = min(left, whole)
            flops += self.table(work.depth, stage, stage, len(work.paths)) * taken // whole
            left -= taken
        return Cost(nfe=steps * len(work.paths), flops=flops, seconds=seconds)


def cost_table(
    transformer: TransformerConfig, recipe: Recipe, latent: tuple[int, int], text: int, negative: int
) -> CostTable:
    """FLOPs of sample works for one scene: ``latent`` is the (height, width) of a unit, texts are in tokens.

    A guided step evaluates the prompt and the negative prompt. Siblings beyond depth 0 share text and history.
    """
    stages = recipe.pyramid.stages
    unit = (1, *latent)

    def forward(depth: int, stage: int, siblings: int) -> int:
        history = history_shapes([unit] * depth, stage, stages)
        current = stage_shape(unit, stage, stages)
        texts = (text, negative) if recipe.guidance.scale(depth) > 0 else (text,)
        return sum(layout_flops(transformer, length, history, current, siblings) for length in texts)

    def cost(depth: int, first_stage: int, last_stage: int, siblings: int) -> int:
        steps = recipe.steps.of(depth)
        return sum(steps[stage] * forward(depth, stage, siblings) for stage in range(first_stage, last_stage + 1))

    return cost
