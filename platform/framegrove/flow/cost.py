"""What sampling costs, from shapes alone: the unit of every search budget."""

from __future__ import annotations

from dataclasses import dataclass

from framegrove.config.model import AnyTransformerConfig, Recipe
from framegrove.flow.history import Shape, history_shapes, stage_shape
from framegrove.models.flops import layout_flops
from framegrove.types import Cost


@dataclass(frozen=True)
class SamplingCosts:
    """Costs of sampling one prompt at one size: ``size`` is (height, width) of the latents, texts count their tokens.

    ``nfe`` counts denoising steps of branches, as VT1 does; that guidance evaluates each twice shows in ``flops``.
    """

    transformer: AnyTransformerConfig
    recipe: Recipe
    size: tuple[int, int]
    text_tokens: int
    negative_tokens: int

    def unit(self, unit: int, stages: range | None = None, siblings: int = 1) -> Cost:
        """The newest unit of ``siblings`` children of one branch, denoised in step through ``stages`` (absent: all)."""
        pyramid = self.recipe.pyramid.stages
        steps = self.recipe.steps.of(unit)
        total = Cost()
        for stage in stages if stages is not None else range(pyramid):
            flops = self._step_flops(unit, stage, siblings)
            total += Cost(nfe=steps[stage] * siblings, flops=steps[stage] * flops)
        return total

    def unsearched(self, units: int, given: int = 0) -> Cost:
        """One whole video of ``units`` units sampled without a search, of which ``given`` are there already."""
        return sum((self.unit(unit) for unit in range(given, units)), Cost())

    def table(self, depth: int, first_stage: int, last_stage: int, siblings: int) -> int:
        """FLOPs of one sample work, both stages included: what a budget is planned with."""
        return self.unit(depth, range(first_stage, last_stage + 1), siblings).flops

    def _step_flops(self, unit: int, stage: int, siblings: int) -> int:
        stages = self.recipe.pyramid.stages
        whole: Shape = (1, *self.size)
        history = history_shapes([whole] * unit, stage, stages)
        current = stage_shape(whole, stage, stages)
        texts = [self.text_tokens]
        if self.recipe.guidance.scale(unit) > 0:
            texts.append(self.negative_tokens)
        return sum(layout_flops(self.transformer, text, history, current, siblings) for text in texts)
