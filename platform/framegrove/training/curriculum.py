"""Where a run is in its phases, and what a step is trained on: pure functions of (seed, phase, step).

A step is planned for all workers at once, from the catalog of clips alone: which clips, which of their units, at which
stages, and who trains what in which forward pass. Every worker makes the same plan and reads the clips of its own share
only. The plan does not depend on the number of workers until it is shared out: any number of them draws the same
samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from framegrove.config.train import PhaseConfig, TrainConfig
from framegrove.data.ingest import Catalog, DataError, Rows
from framegrove.data.packing import fitting, share_out
from framegrove.errors import UserError
from framegrove.flow.history import Shape, sample_tokens
from framegrove.flow.noise import generator_for
from framegrove.flow.objective import Choices, choose, spread
from framegrove.flow.schedule import PyramidSchedule


@dataclass(frozen=True)
class Position:
    """A step of a run: its phase, and the zero-based step within the phase."""

    phase_index: int
    phase: PhaseConfig
    step: int

    @classmethod
    def of(cls, config: TrainConfig, step: int) -> Position:
        """The position of the zero-based ``step`` of the whole run. Raises ValueError beyond the last one."""
        within = step
        for index, phase in enumerate(config.phases):
            if within < phase.steps:
                return cls(index, phase, within)
            within -= phase.steps
        raise ValueError(f"a run of {config.steps} steps has no step {step}")


@dataclass(frozen=True, eq=False)
class Lot:
    """Clips that one kind of sample is drawn from: the rows of each data set, and the data sets' weights."""

    rows: tuple[Rows, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, rows: Rows, catalog: Catalog, weights: Sequence[float | None]) -> Lot:
        """These rows of a catalog by data set; one without a weight counts as many as it has clips."""
        parts = [rows[catalog.folder_N[rows] == number] for number in range(len(weights))]
        counted = (len(part) if weight is None else weight for part, weight in zip(parts, weights, strict=True))
        return cls(tuple(parts), tuple(w if len(part) else 0.0 for part, w in zip(parts, counted, strict=True)))

    def __len__(self) -> int:
        return sum(map(len, self.rows))

    def pick(self, uniform_N: npt.NDArray[np.float64]) -> Rows:
        """The row that each number from [0, 1) selects."""
        bounds = np.cumsum(self.weights) / sum(self.weights)
        parts = np.minimum(np.searchsorted(bounds, uniform_N, side="right"), len(bounds) - 1)
        picked = np.empty(len(uniform_N), dtype=np.int64)
        for number, rows in enumerate(self.rows):
            mine = parts == number
            if mine.any():
                low = bounds[number] - self.weights[number] / sum(self.weights)
                place = (uniform_N[mine] - low) / (bounds[number] - low) * len(rows)
                picked[mine] = rows[np.clip(place.astype(np.int64), 0, len(rows) - 1)]
        return picked


@dataclass(frozen=True, eq=False)
class PhaseClips:
    """The clips of a phase: those whose first units are drawn, and those whose later ones are."""

    first: Lot
    later: Lot

    @classmethod
    def of(cls, phase: PhaseConfig, catalog: Catalog, weights: Sequence[float | None], name: str) -> PhaseClips:
        """The clips of a phase in a catalog of data sets with these weights, called ``name`` in messages.

        A picture has no later unit, and a video that is too short to have one with a weight is not drawn from.
        Raises DataError where a phase has nothing to draw.
        """
        rows = catalog.of_sizes(phase.sizes)
        # A pair is of its newest unit, and of no other.
        rows = rows[~catalog.pair_N[rows] | (catalog.units_N[rows] <= phase.units)]
        if not len(rows):
            raise DataError(
                f"{name} has no clips of {_named(phase.sizes or ())} (height x width), only of "
                f"{_named(catalog.sizes())}: change the sizes of phase {phase.name} or prepare other clips"
            )
        units_N = catalog.units_N[rows]
        if (longest := int(units_N.max())) < phase.units:
            raise DataError(
                f"phase {phase.name} trains {phase.units} units, the longest clip in {name} has {longest}: "
                "lower units or prepare longer clips"
            )
        enough = next((n for n in range(1, phase.units + 1) if any(phase.later_weights(n))), phase.units + 1)
        pair_N = catalog.pair_N[rows]
        videos = rows[np.where(pair_N, units_N > 1, ~catalog.picture_N[rows] & (units_N >= enough))]
        if not len(videos) and phase.first_units < 1:
            raise DataError(
                f"phase {phase.name} trains later units in {1 - phase.first_units:.0%} of its samples, and no video "
                f"in {name} has one with a weight: set images to 1, change unit_weights, or prepare longer videos"
            )
        return cls(Lot.of(rows[~pair_N | (units_N == 1)], catalog, weights), Lot.of(videos, catalog, weights))


@dataclass(frozen=True, eq=False)
class StepPlan:
    """What all workers together are trained on in a step: N samples.

    ``rows_N`` are the catalog's rows of their clips, ``tokens`` what each takes of a forward pass.
    """

    position: Position
    rows_N: Rows
    choices: Choices
    tokens: list[int]

    def share_out(self, workers: int) -> list[list[list[int]]]:
        """For each worker its forward passes, each a list of samples. Raises UserError where they do not fit."""
        return share_out(self.tokens, self.position.phase.pack_tokens, workers)


def plan_step(
    position: Position,
    clips: PhaseClips,
    catalog: Catalog,
    schedule: PyramidSchedule,
    seed: int,
    *,
    factor: int,
    patch: int,
    text_tokens: int,
    empty_tokens: int | None = None,
) -> StepPlan:
    """The plan of a step.

    ``factor`` is how many pixels one latent pixel stands for on each side, ``patch`` the side of a token in latent
    pixels. A prompt is taken to have ``text_tokens``, the most that it can have; where ``empty_tokens`` says how many
    the empty one has, it has as many as the catalog says.
    """
    phase = position.phase

    def drawn(count: int) -> StepPlan:
        generator = generator_for(seed, (position.phase_index, position.step), "training")
        rows_N, unit_weights = _draw_clips(phase, clips, catalog, count, generator)
        choices = choose(unit_weights, schedule, phase.objective, generator)
        pairs = catalog.pair_N[rows_N].tolist()
        dropped = tuple(d and not pair for d, pair in zip(choices.dropped, pairs, strict=True))
        choices = replace(choices, dropped=dropped)
        sizes = zip(catalog.height_N[rows_N].tolist(), catalog.width_N[rows_N].tolist(), strict=True)
        texts = [text_tokens] * count
        if empty_tokens is not None:
            assert catalog.text_N is not None
            stored = catalog.text_N[rows_N].tolist()
            texts = [empty_tokens if d else n for d, n in zip(choices.dropped, stored, strict=True)]
        tokens = []
        for text, (unit, stage), (height, width), pair in zip(texts, choices.cells, sizes, pairs, strict=True):
            side = height // factor, width // factor
            count_ = text + _visual_tokens(unit, stage, *side, schedule.stages, patch)
            if pair:  # the rival; without history it has a text of its own
                count_ += _visual_tokens(0, stage, *side, schedule.stages, patch) + (0 if unit else text)
            tokens.append(count_)
        return StepPlan(position, rows_N, choices, tokens)

    if phase.batch is not None:
        return drawn(phase.batch)
    assert phase.batch_tokens is not None
    assert phase.pack_tokens is not None
    count = 64
    while sum((plan := drawn(count)).tokens) < phase.batch_tokens:
        count *= 2
    fit = fitting(plan.tokens, phase.pack_tokens, phase.batch_tokens // phase.pack_tokens)
    return StepPlan(position, plan.rows_N[:fit], plan.choices.of(range(fit)), plan.tokens[:fit])


def check_sizes(config: TrainConfig, catalog: Catalog, vae_factor: int, patch: int, stages: int) -> None:
    """Raise UserError where a phase's size or stage weights do not fit the model; one without sizes has the catalog's.

    ``vae_factor`` is how many pixels one latent pixel stands for on each side, ``patch`` the side of a token in latent
    pixels; the coarsest of the ``stages`` must still consist of whole patches.
    """
    multiple = vae_factor * patch * 2 ** (stages - 1)
    for phase in config.phases:
        for height, width in phase.sizes or catalog.sizes():
            if height % multiple or width % multiple:
                raise UserError(
                    f"phase {phase.name}: {height}x{width} pixels do not fit, height and width must be multiples of "
                    f"{multiple} (VAE {vae_factor} x patch {patch} x {2 ** (stages - 1)} for {stages} pyramid stages)"
                )
        weights = phase.objective.stage_weights
        if weights is not None and len(weights) != stages:
            raise UserError(
                f"phase {phase.name}: {len(weights)} stage_weights for a pyramid of {stages} stages; give one per "
                "stage, coarsest first"
            )


def _draw_clips(
    phase: PhaseConfig, clips: PhaseClips, catalog: Catalog, count: int, generator: torch.Generator
) -> tuple[Rows, list[tuple[float, ...]]]:
    """The clips that ``count`` samples are of, in random order, and the weights of their units."""
    first_N = spread(count, generator).numpy() < phase.first_units
    rows_N = np.empty(count, dtype=np.int64)
    for lot, mine in ((clips.first, first_N), (clips.later, ~first_N)):
        uniform = spread(int(mine.sum()), generator).numpy()
        if len(uniform):
            rows_N[mine] = lot.pick(uniform)
    drawn = zip(first_N.tolist(), catalog.units_N[rows_N].tolist(), catalog.pair_N[rows_N].tolist(), strict=True)
    weights = [
        (1.0,) if first else ((0.0,) * (units - 1) + (1.0,) if pair else phase.later_weights(units))
        for first, units, pair in drawn
    ]
    return rows_N, weights


@cache
def _visual_tokens(unit: int, stage: int, height: int, width: int, stages: int, patch: int) -> int:
    whole: Shape = (1, height, width)
    return sample_tokens([whole] * (unit + 1), stage, stages, patch)


def _named(sizes: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{height}x{width}" for height, width in sorted(sizes)) or "no size"
