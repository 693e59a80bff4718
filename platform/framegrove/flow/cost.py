"""The cost of sampling, computed from shapes alone; search budgets are counted in it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from framegrove.config.model import AnyTransformerConfig, Recipe
from framegrove.flow.decoding import NOTHING_LEFT, LeftAsLatents
from framegrove.flow.history import Shape, history_shapes, stage_shape
from framegrove.models.flops import layout_flops
from framegrove.types import Cost


@dataclass(frozen=True)
class SamplingCosts:
    """Costs of sampling one prompt at one size: ``size`` is (height, width) of the latents, texts count their tokens.

    ``nfe`` counts denoising steps of branches, as VT1 does; ``flops`` includes both evaluations of a guided step.
    ``decoding`` are the FLOPs of decoding a first unit and a later one (models.vae_tiling.decode_flops). What is
    ``left`` is not decoded when it is sampled.
    """

    transformer: AnyTransformerConfig
    recipe: Recipe
    size: tuple[int, int]
    text_tokens: int
    negative_tokens: int
    decoding: tuple[int, int] = (0, 0)
    left: LeftAsLatents = NOTHING_LEFT
    _known: dict[tuple[int, int, int], int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def unit(self, unit: int, stages: range | None = None, siblings: int = 1, most_steps: int | None = None) -> Cost:
        """The newest unit of ``siblings`` children of one branch, denoised in step through ``stages`` (absent: all).

        If ``stages`` end before the last, the results are drafts, and the cost includes their previews. With
        ``most_steps``, sampling is cancelled after that many steps, and unless it was complete nothing is decoded.
        What is decoded is so after its history: where that was left as latents, the cost includes it, once.
        """
        steps = self.recipe.steps
        last = self.recipe.pyramid.stages - 1
        stages = range(last + 1) if stages is None else stages
        rest = range(stages.stop, last + 1)
        plan = [(stage, steps.of(unit)[stage]) for stage in stages] + [(stage, steps.preview) for stage in rest]
        total, left = Cost(), sum(count for _, count in plan) if most_steps is None else most_steps
        for stage, count in plan:
            taken = min(left, count)
            left -= taken
            if taken:
                total += Cost(nfe=taken * siblings, flops=taken * self._step_flops(unit, stage, siblings))
        whole = total.nfe == siblings * sum(count for _, count in plan)
        if not whole or self.left.has(unit, stages.stop - 1):
            return total
        return total + Cost(decoding=siblings * self.decoding[min(unit, 1)] + self.left_over(unit))

    def unsearched(self, units: int, given: int = 0) -> Cost:
        """One whole video of ``units`` units sampled without a search, the first ``given`` of which already exist."""
        decoded = replace(self, left=NOTHING_LEFT)
        return sum((decoded.unit(unit) for unit in range(given, units)), Cost())

    def left_over(self, units: int) -> int:
        """FLOPs of decoding those of so many units that were left as latents at the end."""
        return sum(self.decoding[min(unit, 1)] for unit in self.left.before(units))

    def table(self, depth: int, first_stage: int, last_stage: int, siblings: int) -> int:
        """FLOPs of one sample work, both stages included, and of decoding what it makes: its price in a budget."""
        cost = self.unit(depth, range(first_stage, last_stage + 1), siblings)
        return cost.flops + cost.decoding

    def nfe_table(self, depth: int, first_stage: int, last_stage: int, siblings: int) -> int:
        """Transformer evaluations of one sample work, previews included."""
        return self.unit(depth, range(first_stage, last_stage + 1), siblings).nfe

    def _step_flops(self, unit: int, stage: int, siblings: int) -> int:
        key = (unit, stage, siblings)
        if key not in self._known:  # a search asks for few of them, thousands of times
            self._known[key] = self._counted(*key)
        return self._known[key]

    def _counted(self, unit: int, stage: int, siblings: int) -> int:
        stages = self.recipe.pyramid.stages
        whole: Shape = (1, *self.size)
        history = history_shapes([whole] * unit, stage, stages)
        current = stage_shape(whole, stage, stages)
        texts = [self.text_tokens]
        if self.recipe.guidance.scale(unit) is not None:
            texts.append(self.negative_tokens)
        return sum(layout_flops(self.transformer, text, history, current, siblings) for text in texts)
