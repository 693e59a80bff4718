"""A scheduler whose state can be put down after any step and taken up elsewhere, and the clean video it predicts.

Schedulers of diffusers keep what they need of earlier steps (outputs of a multistep method, the index of the step) in
attributes; all that a scheduler has changed since its loop began is its state.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from framegrove.errors import UserError

CLEAN = "clean"  # of the state: the video that the last step has predicted
_OUTLINE = "outline"  # of the state: what is no tensor, and where the tensors stand, as JSON
# Those of which it is known how they predict, and that all they draw comes from the generator that they are given.
SCHEDULERS = (
    "CogVideoXDDIMScheduler",
    "CogVideoXDPMScheduler",
    "DPMSolverMultistepScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "UniPCMultistepScheduler",
)


def check_scheduler(name: str, config: Mapping[str, Any]) -> None:
    """Raise UserError for a scheduler that cannot be stopped, or shows no preview."""
    reason = ""
    if name not in SCHEDULERS:
        reason = f"use one of {', '.join(SCHEDULERS)}"
    elif config.get("stochastic_sampling") or str(config.get("algorithm_type", "")).startswith("sde"):
        reason = "its noise cannot be drawn again: leave stochastic_sampling, or the sde- in algorithm_type, out"
    elif not config.get("predict_x0", True) or config.get("algorithm_type", "dpmsolver++") != "dpmsolver++":
        reason = "it does not predict the clean video: set predict_x0: true, or algorithm_type: dpmsolver++"
    if reason:
        raise UserError(f"the scheduler {name} cannot be searched along: {reason}")


@functools.cache
def keeping(scheduler: type) -> type:
    """The class of a scheduler that does the same and keeps the clean video that each step predicts."""
    plain = scheduler.step  # type: ignore[attr-defined]
    signature = inspect.signature(plain)

    @functools.wraps(plain)  # pipelines look at its signature
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs)
        # CogVideoX's pipelines hold the last prediction of the DPM solver in a variable, which is empty after a stop.
        if given.arguments.get("old_pred_original_sample", self) is None:
            given.arguments["old_pred_original_sample"] = self.clean
        stepped = plain(*given.args, **given.kwargs)
        self.clean = _clean(self, given.arguments, stepped)
        return stepped

    return type(scheduler.__name__, (scheduler,), {"step": step, "clean": None, "__module__": scheduler.__module__})


def _clean(scheduler: Any, given: Mapping[str, Any], stepped: tuple[Tensor, ...]) -> Tensor:
    """The clean video by the scheduler's own formula, right after its step."""
    if len(stepped) > 1:
        return stepped[1]
    if hasattr(scheduler, "model_outputs"):  # multistep methods keep predictions of it
        return scheduler.model_outputs[-1]
    # Flow matching: along the velocity to where the schedule ends, which is at 0, or at 1 where it is inverted.
    left = scheduler.sigmas[-1] - scheduler.sigmas[scheduler.step_index - 1]
    return given["sample"].float() + left * given["model_output"]


def begun(scheduler: Any) -> dict[str, Any]:
    """What a scheduler's attributes are at the beginning of a loop; lists are changed in place, and copied."""
    return {name: list(it) if isinstance(it, list) else it for name, it in vars(scheduler).items()}


def state_of(scheduler: Any, beginning: Mapping[str, Any], branch: int) -> dict[str, Tensor]:
    """What has changed since, for one ``branch`` of a batch, as tensors on the CPU."""
    tensors: dict[str, Tensor] = {}

    def outlined(value: Any) -> Any:
        if isinstance(value, list):
            return [outlined(each) for each in value]
        if not isinstance(value, Tensor):
            return value
        name = f"tensor{len(tensors)}"
        tensors[name] = (value[branch : branch + 1] if value.ndim else value).detach().cpu().clone()
        return {"name": name, "cpu": value.device.type == "cpu"}

    changed = {name: it for name, it in vars(scheduler).items() if not _same(it, beginning.get(name, ...))}
    clean = changed.pop(CLEAN)
    outline = {name: outlined(it) for name, it in changed.items()}
    text = json.dumps(outline, sort_keys=True).encode()
    return {
        **tensors,
        _OUTLINE: torch.tensor(list(text), dtype=torch.uint8),
        CLEAN: clean[branch : branch + 1].detach().cpu().clone(),
    }


def restore(scheduler: Any, branches: list[Mapping[str, Tensor]], device: torch.device) -> None:
    """Put the states of the branches of a batch, all equally far, into a scheduler whose loop begins."""

    def filled(value: Any) -> Any:
        if isinstance(value, list):
            return [filled(each) for each in value]
        if not isinstance(value, dict):
            return value
        stored = [branch[value["name"]] for branch in branches]
        whole = torch.cat(stored) if stored[0].ndim else stored[0]
        return whole if value["cpu"] else whole.to(device)

    outline = json.loads(bytes(branches[0][_OUTLINE].tolist()))
    vars(scheduler).update({name: filled(value) for name, value in outline.items()})
    scheduler.clean = torch.cat([branch[CLEAN] for branch in branches]).to(device)


def _same(ours: Any, theirs: Any) -> bool:
    if ours is theirs:
        return True
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    if isinstance(ours, Tensor) or isinstance(theirs, Tensor):
        return False
    return bool(ours == theirs)
