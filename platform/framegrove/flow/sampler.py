"""Sampling units of video: stage by stage up the pyramid, many branches in one packed forward pass per step.

A task is one unit of one branch. Its result is a function of the task alone: its noise comes from (seed, path), its
state is float32, and the tasks that share its forward passes affect it by rounding at most.

How a unit is made (PFM section 3.2):

1. Before the coarsest stage, draw noise at full resolution and average it down to that stage's size.
2. Build the conditioning: the history at this stage's resolutions, behind the prompt and the negative prompt.
3. For each timestep of the stage: predict velocities in one packed forward pass, combine the guided pairs, and take
   one Euler step.
4. Jump to the next stage: double height and width, rescale, and add block noise, which makes the distribution equal to
   the one that the next stage was trained to start from (PFM eq. 15). Go on with 2.

The state after the last stage is the finished unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from framegrove.config.flow import GuidanceConfig, StepsConfig
from framegrove.flow.history import history_clips
from framegrove.flow.noise import HashNoise, NoiseSource, double, noise_pyramid
from framegrove.flow.schedule import PyramidSchedule
from framegrove.models.packed import Prefix, Sample, TextEmbedding
from framegrove.models.transformers import Transformer
from framegrove.types import Path

ShouldStop = Callable[[], bool]
OnStep = Callable[[int, int], None]  # forward passes done, forward passes in total


class CancelledSampling(Exception):
    """Sampling stopped between two steps because its result is no longer wanted, after ``steps`` forward passes."""

    def __init__(self, steps: int) -> None:
        super().__init__(f"sampling was cancelled after {steps} steps")
        self.steps = steps


@dataclass(frozen=True, eq=False)
class StageLatent:
    """A unit at the end of ``stage``: the state ``x``, (C, t, h, w) at the stage's resolution, float32, normalised.

    At the last stage it is the finished unit; at an earlier one, the next stage starts from it. An adapted system
    (framegrove.generators) has a form of its own for ``x``, and may need ``more`` tensors to go on.
    """

    stage: int
    x: Tensor
    more: Mapping[str, Tensor] = field(default_factory=dict)


def packed(units: Sequence[StageLatent]) -> bytes:
    """Finished units of a video, oldest first, as a safetensors file."""
    return save({f"unit{number}": unit.x.contiguous() for number, unit in enumerate(units)})


def unpacked(file: bytes, last_stage: int) -> list[StageLatent]:
    """The units in a file that ``packed`` has made. Raises ValueError for any other file."""
    try:
        found = load(file)
        return [StageLatent(last_stage, found[f"unit{number}"]) for number in range(len(found))]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"these are no units of a video: {error}") from error


@dataclass(frozen=True, eq=False)
class UnitTask:
    """The newest unit of branch ``path``, to be sampled for prompt ``text``, guided away from ``negative``.

    ``history`` holds all earlier units (C, t, h, w), clean, normalised, at full resolution, oldest first; ``shape`` is
    (t, h, w) of the unit itself. Tasks that hold the same text and history objects share them in the forward pass.
    ``start``, if given, is the state to continue from; ``from_image`` says that unit 0 was given, not sampled.
    """

    text: TextEmbedding
    negative: TextEmbedding
    history: tuple[Tensor, ...]
    shape: tuple[int, int, int]
    seed: int
    path: Path
    start: StageLatent | None = None
    from_image: bool = False

    @property
    def unit(self) -> int:
        """Index of the unit in its video."""
        return len(self.history)


class Sampler:
    """Integrates the flow by guided Euler steps, as the released sampler does, from noise or from an earlier stage."""

    def __init__(
        self,
        transformer: Transformer,
        schedule: PyramidSchedule,
        guidance: GuidanceConfig,
        steps: StepsConfig,
        noise: NoiseSource | None = None,
    ) -> None:
        if len(steps.first) != schedule.stages:
            raise ValueError(f"steps name {len(steps.first)} stages, the pyramid has {schedule.stages}")
        self.transformer = transformer
        self.schedule = schedule
        self.guidance = guidance
        self.steps = steps
        self.noise: NoiseSource = noise or HashNoise(schedule.gamma)

    @torch.no_grad()
    def sample(
        self,
        tasks: Sequence[UnitTask],
        stages: range | None = None,
        should_stop: ShouldStop | None = None,
        on_step: OnStep | None = None,
    ) -> list[StageLatent]:
        """Take all tasks through ``stages`` (absent: all stages) side by side; results are in the order of the tasks.

        Raises CancelledSampling when ``should_stop`` returns true between two steps, and ValueError for a task whose
        ``start`` is not the end of the stage before ``stages``.
        """
        stages = stages if stages is not None else range(self.schedule.stages)
        _check(tasks, stages, self.schedule)
        if not tasks:
            return []
        total = sum(max(self.steps.of(task.unit)[stage] for task in tasks) for stage in stages)
        done = 0

        def before_step() -> None:
            if should_stop is not None and should_stop():
                raise CancelledSampling(done)

        def after_step() -> None:
            nonlocal done
            done += 1
            if on_step is not None:
                on_step(done, total)

        latents = [task.start for task in tasks]
        for stage in stages:
            runs = self._enter(tasks, latents, stage)  # steps 1 or 4, and 2, of the module docstring
            for step in range(max(len(run.timesteps) for run in runs)):
                before_step()
                # A first unit may take more steps than later ones; tasks that are through with the stage drop out.
                self._step([run for run in runs if step < len(run.timesteps)], step)  # step 3
                after_step()
            latents = [StageLatent(stage, run.x) for run in runs]
        return [latent for latent in latents if latent is not None]

    def preview(
        self, tasks: Sequence[UnitTask], should_stop: ShouldStop | None = None, on_step: OnStep | None = None
    ) -> list[StageLatent]:
        """Roughly what drafts will become: each is finished from its ``start`` in ``steps.preview`` steps per stage.

        The drafts are left as they are, so that refining them later continues from ``start``. Raises as `sample` does.
        """
        stages = self.schedule.stages
        few = StepsConfig(first=(self.steps.preview,) * stages, others=(self.steps.preview,) * stages)
        hurried = Sampler(self.transformer, self.schedule, self.guidance, few, self.noise)
        begun = {task.start.stage for task in tasks if task.start is not None}
        return hurried.sample(tasks, range(min(begun, default=-1) + 1, stages), should_stop, on_step)

    @property
    def device(self) -> torch.device:
        """The transformer's device, where states are kept too."""
        return next(self.transformer.parameters()).device

    def _enter(self, tasks: Sequence[UnitTask], latents: Sequence[StageLatent | None], stage: int) -> list[_Run]:
        """Set up every task at the start of ``stage``: state, conditioning and steps."""
        runs = []
        prefixes = self._prefixes(tasks, stage)
        for task, latent, (negative, positive) in zip(tasks, latents, prefixes, strict=True):
            steps = self.steps.of(task.unit)[stage]
            timesteps, ratios = self.schedule.timesteps(stage, steps), self.schedule.ratios(stage, steps)
            x = self._state(task, stage, latent)
            runs.append(_Run(negative, positive, self.guidance.scale(task.unit, task.from_image), timesteps, ratios, x))
        return runs

    def _state(self, task: UnitTask, stage: int, before: StageLatent | None) -> Tensor:
        """The state at the start of ``stage``: noise (1), or the jump from the stage ``before`` (4)."""
        if before is None:
            shape = (self.transformer.config.in_channels, *task.shape)
            noise = self.noise.initial(task.seed, task.path, shape).float()
            return noise_pyramid(noise, self.schedule.stages)[0].to(self.device)
        alpha, beta = self.schedule.jump(stage)
        larger = double(before.x.to(self.device))
        noise = self.noise.jump(task.seed, task.path, stage, tuple(larger.shape))
        return larger.mul_(alpha).add_(noise.to(larger), alpha=beta)

    def _prefixes(self, tasks: Sequence[UnitTask], stage: int) -> list[tuple[Prefix, Prefix]]:
        """The (negative, positive) prefixes of each task (2).

        Tasks with the same text and history objects get the same prefix objects, by which `pack` knows what to share.
        """
        histories: dict[tuple[int, ...], tuple[Tensor, ...]] = {}
        prefixes: dict[tuple[int, tuple[int, ...]], Prefix] = {}

        def prefix(text: TextEmbedding, task: UnitTask) -> Prefix:
            key = tuple(map(id, task.history))
            if key not in histories:
                units = [unit.to(self.device) for unit in task.history]
                histories[key] = history_clips(units, stage, self.schedule.stages)
            return prefixes.setdefault((id(text), key), Prefix(text, histories[key]))

        return [(prefix(task.negative, task), prefix(task.text, task)) for task in tasks]

    def _step(self, runs: Sequence[_Run], step: int) -> None:
        """One packed forward pass for all runs and one Euler step of each (3)."""
        samples = []
        # A guided run needs two velocities, negative before positive; both are in the same forward pass.
        for run in runs:
            prefixes = (run.positive,) if run.scale is None else (run.negative, run.positive)
            samples += [Sample(prefix, run.x, run.timesteps[step]) for prefix in prefixes]
        answers = iter(self.transformer(self.transformer.pack(samples)))
        for run in runs:
            velocity = next(answers).float()
            if run.scale is not None:
                velocity = velocity + run.scale * (next(answers).float() - velocity)
            # The velocity is the stage's start minus its end, and ratios fall from 1 to 0: the step is towards the end.
            run.x = run.x + (run.ratios[step + 1] - run.ratios[step]) * velocity


@dataclass
class _Run:
    """A task during one stage."""

    negative: Prefix
    positive: Prefix
    scale: float | None  # of guidance; None: not guided
    timesteps: tuple[float, ...]  # where the model is evaluated
    ratios: tuple[float, ...]  # one more than timesteps: the interpolation ratios between which each step moves
    x: Tensor


def _check(tasks: Sequence[UnitTask], stages: range, schedule: PyramidSchedule) -> None:
    if not stages or stages.step != 1 or stages.start < 0 or stages.stop > schedule.stages:
        raise ValueError(f"stages must be a rising range inside 0 to {schedule.stages - 1}, not {stages}")
    for task in tasks:
        stage = -1 if task.start is None else task.start.stage
        if stage != stages.start - 1:
            stands = "has not been started" if task.start is None else f"is at the end of stage {stage}"
            raise ValueError(f"branch {task.path} {stands}, so it cannot continue at stage {stages.start}")
        if min(task.shape[1:]) < 1 or any(side % 2 ** (schedule.stages - 1) for side in task.shape[1:]):
            raise ValueError(
                f"a latent of {task.shape[1]}x{task.shape[2]} does not fit a pyramid of {schedule.stages} stages: "
                f"height and width must be multiples of {2 ** (schedule.stages - 1)}"
            )
