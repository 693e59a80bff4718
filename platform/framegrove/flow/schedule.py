"""The pyramid's noise schedule: where each stage starts and ends, its timesteps, and the jump between stages.

Sigma is the weight of the noise (1 at the start, 0 for clean data); PFM writes t = 1 - sigma. Stage 0 is the coarsest
and runs first. The numerics follow the released code: public checkpoints see the timesteps they were trained on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from framegrove.config.flow import PyramidConfig

GRID = 1000  # training timesteps of the whole noise axis, and again of every single stage


@dataclass(frozen=True)
class PyramidSchedule:
    """Sigmas, timesteps and jumps of a pyramid with any number of stages (PFM section 3.2, eqs. 9-15 and 25).

    ``boundaries`` are stages + 1 fractions of the noise axis from 0 to 1, uniform when absent; ``shift`` bends the
    axis; ``gamma`` <= 0 is the correlation, inside 2x2 blocks, of the noise added at a jump (below -1/3 there is a
    schedule, but no such noise). Raises ValueError.
    """

    stages: int = 3
    shift: float = 1.0
    gamma: float = -1 / 3
    boundaries: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.stages < 1:
            raise ValueError(f"a pyramid needs at least 1 stage, not {self.stages}")
        if self.shift <= 0:
            raise ValueError(f"the shift of a schedule must be positive, not {self.shift}")
        if self.gamma > 0:
            raise ValueError(f"gamma must not be positive, {self.gamma} is")
        cuts = [int(cut * GRID) for cut in self._cuts]
        if len(cuts) != self.stages + 1 or cuts[0] != 0 or cuts[-1] != GRID or min(np.diff(cuts)) < 1:
            raise ValueError(
                f"boundaries of {self.stages} stages must be {self.stages + 1} numbers rising from 0 to 1 "
                f"by at least {1 / GRID} each, not {list(self._cuts)}"
            )

    @classmethod
    def of(cls, config: PyramidConfig) -> PyramidSchedule:
        """The schedule that a configuration describes."""
        return cls(config.stages, config.shift, config.gamma, config.boundaries)

    def start_sigma(self, stage: int) -> float:
        """Noise weight at the start of ``stage``. Beyond stage 0 it is higher than the end of the stage before:
        the jump adds noise to decorrelate the pixels that nearest-neighbour upsampling made equal (PFM eq. 25)."""
        return 1 - self._signal_after_jump(stage) if stage > 0 else self._nominal_start(stage)

    def end_sigma(self, stage: int) -> float:
        """Noise weight at the end of ``stage``; 0 for the last."""
        self._check(stage)
        return self._nominal_start(stage + 1) if stage + 1 < self.stages else 0.0

    def training_timesteps(self, stage: int) -> np.ndarray:
        """The 1000 timesteps of ``stage``, falling, float64; the model receives them (0 to 1000) as they are."""
        return self._timesteps[stage]

    @staticmethod
    def training_ratios() -> np.ndarray:
        """The 1000 interpolation ratios of any stage, 1 (its start) falling to 0.001, float64."""
        return np.linspace(1, 0, GRID + 1)[:-1]

    def timesteps(self, stage: int, steps: int) -> tuple[float, ...]:
        """The timesteps at which a sampler of ``steps`` steps evaluates the model in ``stage``."""
        grid = self.training_timesteps(stage)
        return tuple(np.linspace(grid[0], grid[-1], _positive(steps)).tolist())

    def ratios(self, stage: int, steps: int) -> tuple[float, ...]:
        """The steps + 1 interpolation ratios between which that sampler moves, ending at 0; equal for all stages."""
        self._check(stage)
        grid = self.training_ratios()
        return (*np.linspace(grid[0], grid[-1], _positive(steps)).tolist(), 0.0)

    def jump(self, stage: int) -> tuple[float, float]:
        """(alpha, beta) of the jump into ``stage`` > 0: x = alpha * nearest_up(x) + beta * block noise (PFM eq. 15).

        Mean and covariance then equal those of the training start, (1 - s) Up(Down(x1)) + s n with s = start_sigma.
        """
        self._check(stage)
        if stage == 0:
            raise ValueError("stage 0 starts from noise, there is no jump into it")
        nominal = self._nominal_start(stage)
        # Closed form with sqrt(g) multiplied through, so that gamma = 0 (all noise, no signal survives) needs no case.
        alpha = self._signal_after_jump(stage) / (1 - nominal)
        return alpha, nominal / self._jump_divisor(stage)

    @property
    def _cuts(self) -> Sequence[float]:
        if self.boundaries is not None:
            return self.boundaries
        return [stage / self.stages for stage in range(self.stages + 1)]

    def _check(self, stage: int) -> None:
        if not 0 <= stage < self.stages:
            raise ValueError(f"there is no stage {stage}: a pyramid of {self.stages} has stages 0 to {self.stages - 1}")

    @cached_property
    def axis(self) -> np.ndarray:
        """Sigma over the whole axis in float32, as released: rounding decides which grid point a stage begins at."""
        sigma = np.arange(GRID, 0, -1, dtype=np.float32) / np.float32(GRID)
        shift = np.float32(self.shift)
        return shift * sigma / (np.float32(1) + np.float32(self.shift - 1) * sigma)

    def _nominal_start(self, stage: int) -> float:
        """Sigma where the stage begins on the axis, before the jump's correction: the end of the stage before."""
        self._check(stage)
        return float(self.axis[int(self._cuts[stage] * GRID)])

    def _jump_divisor(self, stage: int) -> float:
        nominal, g = self._nominal_start(stage), max(-self.gamma, 0.0)
        return math.sqrt(1 + g) * nominal + math.sqrt(g) * (1 - nominal)

    def _signal_after_jump(self, stage: int) -> float:
        return math.sqrt(max(-self.gamma, 0.0)) * (1 - self._nominal_start(stage)) / self._jump_divisor(stage)

    @cached_property
    def _timesteps(self) -> tuple[np.ndarray, ...]:
        """Each stage gets a share of the axis from 1000 to 1 in proportion to the noise it removes, as released."""
        lengths = [self.start_sigma(stage) - self.end_sigma(stage) for stage in range(self.stages)]
        axis = self.axis * np.float32(GRID)
        total = sum(lengths)
        shares = [*(sum(lengths[:stage]) / total for stage in range(self.stages)), 1.0]
        ends = [float(axis[min(int(share * GRID), GRID - 1)]) for share in shares]
        return tuple(np.linspace(ends[stage], ends[stage + 1], GRID + 1)[:-1] for stage in range(self.stages))


def _positive(steps: int) -> int:
    if steps < 1:
        raise ValueError(f"a stage needs at least 1 step, not {steps}")
    return steps
