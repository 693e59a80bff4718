"""Configuration of the pyramid, of sampling and of the training objective: numbers only, no torch."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, Self

from pydantic import Field, model_validator

from framegrove.config.base import Config
from framegrove.errors import UserError


def latent_size(height: int, width: int, *, stages: int, patch: int, factor: int) -> tuple[int, int]:
    """(height, width) of the latents of a video of that many pixels.

    ``factor`` is what the VAE divides by, ``patch`` the side of the transformer's patches. Raises UserError for a
    size that the VAE, the patches and all stages of the pyramid cannot divide.
    """
    step = factor * patch * 2 ** (stages - 1)
    if height < step or width < step or height % step or width % step:
        near = [max(step, round(side / step) * step) for side in (height, width)]
        raise UserError(
            f"a video of {width}x{height} does not fit this model: width and height must be multiples of {step}, "
            f"for example {near[1]}x{near[0]}"
        )
    return height // factor, width // factor


class PyramidConfig(Config):
    """The spatial pyramid of a model (PFM section 3.2). It is part of a checkpoint: a model knows one pyramid only.

    ``stages`` resolutions, each half the next; ``boundaries`` cut the noise axis between them (uniform when absent);
    ``shift`` bends that axis towards noise; ``gamma`` is the correlation inside the 2x2 blocks of the noise added
    at a jump between stages.
    """

    stages: int = Field(default=3, ge=1, le=6)
    shift: float = Field(default=1.0, gt=0)
    gamma: float = Field(default=-1 / 3, ge=-1 / 3, le=0)
    boundaries: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _boundaries_rise_from_0_to_1(self) -> Self:
        given = self.boundaries
        if given is None:
            return self
        if len(given) != self.stages + 1 or given[0] != 0 or given[-1] != 1 or any(a >= b for a, b in pairwise(given)):
            raise ValueError(
                f"boundaries of {self.stages} stages must be {self.stages + 1} numbers rising from 0 to 1, "
                f"not {list(given)}"
            )
        return self


class GuidanceConfig(Config):
    """Classifier-free guidance scales: 0 is the negative prompt alone, 1 the prompt alone, more leads further.

    ``first`` is that of the first unit; where it is 0, nothing is guided. ``others`` is that of the later units,
    ``others_from_image`` (absent: ``others``) where the first unit is a given image. ``decay`` lowers the first unit's
    scale by that much with every unit, down to ``floor``, instead (the released code calls it linear guidance).
    """

    first: float = Field(default=7.0, ge=0)
    others: float = Field(default=5.0, ge=0)
    others_from_image: float | None = Field(default=None, ge=0)
    decay: float | None = Field(default=None, ge=0)
    floor: float = Field(default=2.0, ge=0)

    def scale(self, unit: int, from_image: bool = False) -> float | None:
        """The guidance scale of a unit, None where guidance is off."""
        if not self.first:
            return None
        if self.decay is not None:
            return max(self.first - self.decay * unit, self.floor)
        if unit == 0:
            return self.first
        return self.others_from_image if from_image and self.others_from_image is not None else self.others


class StepsConfig(Config):
    """Denoising steps per stage, coarsest first, for the first unit and for the others (released: 20 and 10 each).

    ``preview`` steps a stage finish a draft of the first unit in a hurry, to be judged before it is refined.
    """

    first: tuple[int, ...] = (20, 20, 20)
    others: tuple[int, ...] = (10, 10, 10)
    preview: int = Field(default=3, ge=1)  # the last of n steps is tiny (flow/schedule.py), so two that count

    @model_validator(mode="after")
    def _positive_and_as_many(self) -> Self:
        if len(self.first) != len(self.others):
            raise ValueError(
                f"steps must name as many stages for the first unit as for the others, "
                f"not {len(self.first)} and {len(self.others)}"
            )
        if not self.first or min(*self.first, *self.others) < 1:
            raise ValueError(f"every stage needs at least one step, not {list(self.first)} and {list(self.others)}")
        return self

    def of(self, unit: int) -> tuple[int, ...]:
        """Steps per stage of a unit."""
        return self.first if unit == 0 else self.others


class PreferenceConfig(Config):
    """How pairs of siblings are learned from: see flow/preference.py.

    ``prefer`` is DPO for flow matching, with a ``beta`` of some tens to thousands: with 1000 pairs are satisfied before
    samples of the digits world change, with 100 they do. ``contrast`` is DiffusionNFT's loss, with one of 0.1 to 1.
    """

    kind: Literal["prefer", "contrast"] = "prefer"
    beta: float = Field(gt=0, description="prefer: 50 to 5000; contrast: 0.1 to 1")


class ObjectiveConfig(Config):
    """What a training sample is drawn from: weights per stage and per unit, text dropout, history corruption.

    ``stage_weights`` has one entry per stage, coarsest first (released 1:2:1). ``unit_weights`` has one entry per unit
    of a clip; (1,) trains the first unit only (the image phase), absent means every unit alike. ``preference`` says how
    pairs are learned from, where the data has any; their prompts are never dropped.
    """

    stage_weights: tuple[float, ...] | None = None
    unit_weights: tuple[float, ...] | None = None
    text_dropout: float = Field(default=0.1, ge=0, le=1)
    corruption: float = Field(default=1 / 3, ge=0, le=1)
    preference: PreferenceConfig | None = None

    @model_validator(mode="after")
    def _weights_are_usable(self) -> Self:
        for name, weights in (("stage_weights", self.stage_weights), ("unit_weights", self.unit_weights)):
            if weights is not None and (not weights or min(weights) < 0 or sum(weights) <= 0):
                raise ValueError(f"{name} must be non-negative numbers that do not all vanish, not {list(weights)}")
        return self
