"""A stretch of a pipeline's own denoising loop, without a copy of the loop.

Every pipeline that can be interrupted begins a step with ``if self.interrupt: continue``. A class made here answers
that question for each step of the schedule: those before and after the stretch are passed over, so that inside of it
the index of the step, its timestep, the length of the schedule, guidance that depends on any of them, and a change of
transformers halfway are what they are in an uninterrupted call. When the loop begins, the scheduler and the random
numbers are put into the state in which an earlier stretch has left them; the latent comes in by the argument that
pipelines have for it. A stretch of no steps decodes a latent.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from framegrove.errors import UserError
from framegrove.flow.sampler import CancelledSampling
from framegrove.generators.protocol import OnStep, ShouldStop
from framegrove.generators.schedules import begun, restore, state_of

GENERATOR = "generator"  # of a state: the random numbers still to come
_PROMPTS = 4  # embeddings of so many prompts are kept: each stretch of a video is a call that needs them again


def _never() -> bool:
    return False


def _nothing() -> None:
    return None


@dataclass(eq=False)
class Stretch:
    """One call of a pipeline, which does ``steps`` of its schedule alone, for a batch of branches.

    ``starts`` are their states after earlier steps, empty before the first. ``latents`` are there after a step.
    """

    steps: range
    generators: list[torch.Generator]
    starts: Sequence[Mapping[str, Tensor]] = ()
    should_stop: ShouldStop = _never
    on_step: OnStep = _nothing
    latents: Tensor | None = None
    _seen: int = 0
    _beginning: dict[str, Any] = field(default_factory=dict)

    def passes_over(self, pipe: Any) -> bool:
        """Whether the loop, at the head of its next step, leaves that out. Raises CancelledSampling."""
        if self._seen == 0:
            self._begin(pipe)
        step, self._seen = self._seen, self._seen + 1
        if step not in self.steps:
            return True
        if self.should_stop():
            raise CancelledSampling(step - self.steps.start)
        return False

    def stepped(self, pipe: Any, step: int, timestep: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Called at the end of a step (callback_on_step_end); changes nothing."""
        self.latents = tensors["latents"]
        self.on_step()
        return {}

    def state(self, pipe: Any, branch: int) -> dict[str, Tensor]:
        """What a branch of the batch needs to go on from where the stretch ends, beside its latent."""
        made = state_of(pipe.scheduler, self._beginning, branch)
        return {**made, GENERATOR: self.generators[branch].get_state()}

    def check(self, steps: int) -> None:
        """Raise RuntimeError unless the loop asked before each of its steps: what is passed over would be wrong."""
        if self._seen != steps:
            raise RuntimeError(f"the pipeline asked {self._seen} times whether it is interrupted, in {steps} steps")

    def _begin(self, pipe: Any) -> None:
        self._beginning = begun(pipe.scheduler)
        if self.starts:
            restore(pipe.scheduler, list(self.starts), pipe._execution_device)
            for generator, start in zip(self.generators, self.starts, strict=True):
                generator.set_state(start[GENERATOR])


@functools.cache
def stepwise(pipeline: type) -> type:
    """The class of a pipeline that does ``self.stretch`` of its schedule, and keeps the embeddings of prompts.

    Raises UserError for a pipeline that cannot be interrupted, or takes no latents.
    """
    called: Any = pipeline.__call__
    body, taken = inspect.getsource(inspect.unwrap(called)), inspect.signature(called).parameters
    if body.count("self.interrupt") != 1 or not {"latents", "callback_on_step_end"} <= taken.keys():
        raise UserError(f"{pipeline.__name__} cannot be searched along its schedule: its loop cannot be interrupted")
    plain = pipeline.encode_prompt  # type: ignore[attr-defined]

    @functools.wraps(plain)
    def encode_prompt(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            key = json.dumps([args, kwargs], default=_named)
        except TypeError:  # of a picture, or of embeddings
            return plain(self, *args, **kwargs)
        kept = vars(self).setdefault("prompts", {})
        if key not in kept:
            while len(kept) >= _PROMPTS:
                kept.pop(next(iter(kept)))
            kept[key] = plain(self, *args, **kwargs)
        return kept[key]

    def interrupt(self: Any) -> bool:
        return bool(self.stretch.passes_over(self))

    made = {"interrupt": property(interrupt), "encode_prompt": encode_prompt, "__module__": pipeline.__module__}
    return type(pipeline.__name__, (pipeline,), made)


def _named(value: Any) -> str:
    if isinstance(value, torch.device | torch.dtype):
        return str(value)
    raise TypeError
