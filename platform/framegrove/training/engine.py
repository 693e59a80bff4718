"""Engines, which turn losses into weights: plain torch in one process, or DeepSpeed ZeRO over many workers.

An engine owns the module, the optimizer and the averaged weights. ``update`` is one optimizer step over any number of
forward passes; the rest of training is in loop.py. This is the only file that imports DeepSpeed, and it does so only
when a DeepSpeedEngine is made. What it uses of DeepSpeed beyond the public interface is in zero_internals.py.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from framegrove.config.train import PhaseConfig
from framegrove.flow.objective import StageSample
from framegrove.models.flux import SingleBlock
from framegrove.models.layers import Block
from framegrove.models.mmdit import MMDiT
from framegrove.models.sequence_parallel import SequenceGroup
from framegrove.models.trainer_state import update_average
from framegrove.training.fragments import AVERAGED, MEAN, MOMENTUM, SQUARE, WEIGHTS, Counts, Fragment, Fragments
from framegrove.training.memory import bucket_elements
from framegrove.training.step import Trainable
from framegrove.training.zero_internals import (
    do_without_shared_memory_library,
    master_parameters,
    masters,
    optimizer_state,
    pieces,
    publish_masters,
    set_clip,
)

_WRITING = timedelta(hours=2)  # within which the slowest worker writes its part of a checkpoint


@dataclass(frozen=True, eq=False)
class Update:
    """What an optimizer step returns: the loss of each stage-sample, pass by pass, and the norm of the gradient.

    The norm is that of the whole batch's gradient, over all workers, before it is clipped. Where it is infinite or no
    number, or one of the losses of any worker is, the step was ``skipped`` by all of them: weights, moments and
    averages are what they were.
    """

    losses: list[Tensor]
    gradient_norm: float

    @property
    def skipped(self) -> bool:
        """Whether nothing was changed."""
        return not math.isfinite(self.gradient_norm)


class PlainEngine:
    """One process and float32 weights; forward and backward run under bfloat16 autocast for precision "bf16"."""

    name, rank, world = "plain", 0, 1
    data_rank, data_world = 0, 1

    def __init__(
        self, module: Trainable, precision: Literal["bf16", "fp32"], device: torch.device, with_muon: bool = False
    ) -> None:
        self.module = module.to(device)
        self.device = device
        self.precision = precision
        self.parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.averaged = [p.detach().clone() for p in self.parameters]
        self.updates = 0
        matrices = {id(p) for p in self.module.matrices()} if with_muon else set()
        self.adamw = torch.optim.AdamW([p for p in self.parameters if id(p) not in matrices], fused=True)
        self.muon = (
            torch.optim.Muon([p for p in self.parameters if id(p) in matrices], weight_decay=0.0) if with_muon else None
        )

    def update(
        self, packs: Sequence[Sequence[StageSample]], batch: int, phase: PhaseConfig, learning_rate_scale: float
    ) -> Update:
        """One optimizer step on a batch of ``batch`` stage-samples, one forward pass for each of ``packs``."""
        losses = []
        for samples in packs:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                each = self.module(samples)
            _spoiled(each.sum() / batch, each).backward()
            losses.append(each.detach())
        update = Update(losses, float(torch.nn.utils.clip_grad_norm_(self.parameters, phase.clip)))
        if update.skipped:
            self.module.zero_grad(set_to_none=True)
            return update
        _set_rates(self.adamw, phase, learning_rate_scale)
        self.adamw.step()
        if self.muon is not None:
            for group in self.muon.param_groups:
                group["lr"] = learning_rate_scale * (phase.matrix_learning_rate or 0.0)
            self.muon.step()
        self.module.zero_grad(set_to_none=True)
        self.updates += 1
        update_average(self.averaged, self.parameters, phase.ema, self.updates)
        return update

    @torch.no_grad()
    def losses(self, packs: Sequence[Sequence[StageSample]]) -> list[Tensor]:
        """The loss of each stage-sample, pass by pass, under the averaged weights; nothing is trained."""
        held = [p.data for p in self.parameters]
        self.module.eval()
        try:
            for parameter, average in zip(self.parameters, self.averaged, strict=True):
                parameter.data = average
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                return [self.module(samples) for samples in packs]
        finally:
            for parameter, value in zip(self.parameters, held, strict=True):
                parameter.data = value
            self.module.train()

    def most(self, count: int) -> int:
        """The largest ``count`` of all workers."""
        return count

    def total(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over all workers."""
        return values

    def gathered(self, texts: Sequence[str], aside: bool = False) -> list[str]:
        """The texts of all workers."""
        return list(texts)

    def fragments(self) -> list[Fragment]:
        """The state that is saved; writing to the fragments changes it."""
        found = []
        for name, weight, average in zip(self._names(), self.parameters, self.averaged, strict=True):
            held = {WEIGHTS: weight.detach(), AVERAGED: average, **self._moments(weight)}
            found += [Fragment(kind, name, 0, values.view(-1)) for kind, values in held.items()]
        return found

    def counts(self) -> Counts:
        """What is saved beside the fragments."""
        steps = {
            name: int(self.adamw.state[weight]["step"])
            for name, weight in zip(self._names(), self.parameters, strict=True)
            if "step" in self.adamw.state[weight]
        }
        return Counts(self.updates, steps)

    def restore(self, held: Fragments, counts: Counts) -> None:
        """Continue from a checkpoint of any engine, bit for bit from one of this one."""
        self.updates = counts.updates
        muons = {id(p) for group in self.muon.param_groups for p in group["params"]} if self.muon else set()
        for name, weight in zip(self._names(), self.parameters, strict=True):
            if id(weight) in muons:
                if self.muon is not None and counts.updates:
                    self.muon.state[weight] = {MOMENTUM: torch.zeros_like(weight)}
            elif counts.steps.get(name):
                self.adamw.state[weight] = _fresh_moments(weight.detach(), counts.steps[name], fused=True)
        _read_into(self.fragments(), held)

    def _names(self) -> list[str]:
        return [name for name, p in self.module.named_parameters() if p.requires_grad]

    def _moments(self, weight: nn.Parameter) -> dict[str, Tensor]:
        """What the optimizer of a weight keeps beside it, once it has made a step."""
        optimizers = [each for each in (self.adamw, self.muon) if each is not None and weight in each.state]
        return {
            kind: each.state[weight][kind] for each in optimizers for kind in _MOMENTS if kind in each.state[weight]
        }

    def averaged_weights(self) -> dict[str, Tensor]:
        """The averaged weights by name, of all parameters that are trained."""
        return dict(zip(self._names(), self.averaged, strict=True))


class DeepSpeedEngine:
    """One worker of many: ZeRO stage 1, 2 or 3 over the workers' process group, which must exist already.

    Weights are float32, or a bfloat16 compute copy of float32 masters. ZeRO spreads masters, optimizer state and, in
    stages 2 and 3, gradients and weights over the workers; the averaged weights are spread in the same way. A worker
    saves its own part of all these.

    With ``sequence_parallel`` P, neighbouring workers compute each pack in groups of P (see sequence_parallel.py). The
    members of a group are one reader of data, ``data_rank`` of ``data_world``, and must be given the same samples.
    ``parts`` is what cut the weights up while they were loaded, in stage 3; absent: they are cut up here.
    """

    name = "deepspeed"

    def __init__(
        self,
        module: Trainable,
        precision: Literal["bf16", "fp32"],
        device: torch.device,
        zero: Literal[1, 2, 3],
        sequence_parallel: int = 1,
        parts: Parts | None = None,
    ) -> None:
        deepspeed = _deepspeed(device)
        from deepspeed.utils import safe_set_full_fp32_param, set_z3_leaf_modules

        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.data_rank, self.data_world = self.rank // sequence_parallel, self.world // sequence_parallel
        self.device, self.updates = device, 0
        if sequence_parallel > 1:
            module.transformer.sequence_group = SequenceGroup.of_neighbours(sequence_parallel)
        # Blocks read the weights of layers inside them without calling those, so ZeRO 3 has to gather a block's
        # weights all at once.
        set_z3_leaf_modules(module, [Block, SingleBlock])
        if isinstance(module.transformer, MMDiT):
            for weight in module.transformer.pos_embed.parameters():
                deepspeed.zero.register_external_parameter(module.transformer.pos_embed, weight)
        parameters = [p for p in module.parameters() if p.requires_grad]
        exact = [p.detach().clone() for p in parameters] if precision == "bf16" and zero < 3 else []
        count = sum(getattr(p, "ds_numel", p.numel()) for p in parameters)
        if zero == 3:
            parts = parts or Parts(precision, device)
            parts.take(module)
        self.engine, self.adamw, _, _ = deepspeed.initialize(
            model=module.to(device),
            # torch's AdamW, since DeepSpeed's own would be compiled first.
            optimizer=torch.optim.AdamW(parameters),
            config={
                "train_micro_batch_size_per_gpu": 1,
                "bf16": {"enabled": precision == "bf16"},
                # In bfloat16, a sum over many passes would lose the later ones.
                "data_types": {"grad_accum_dtype": "fp32"},
                "zero_optimization": {"stage": zero, "reduce_bucket_size": bucket_elements(count)},
                "zero_allow_untested_optimizer": True,
                "gradient_clipping": 1.0,  # only switches clipping on; the norm is set with every update
                "steps_per_print": None,
            },
            dist_init_required=False,
        )
        self.module: Trainable = self.engine.module
        if precision == "bf16":
            for buffer in self.module.buffers():
                if buffer.is_floating_point():
                    buffer.data = buffer.bfloat16()
        # DeepSpeed made the masters from weights that were already rounded.
        for parameter, value in zip(parameters, exact, strict=False):
            safe_set_full_fp32_param(parameter, value)
        if parts:
            parts.restore_masters()
        self.averaged = [part.clone() for part in masters(self.adamw)]
        self._pieces = pieces(self.adamw, self.module)
        self._aside = dist.new_group(backend="gloo", timeout=_WRITING)

    def update(
        self, packs: Sequence[Sequence[StageSample]], batch: int, phase: PhaseConfig, learning_rate_scale: float
    ) -> Update:
        """One optimizer step on a batch of ``batch`` stage-samples, of which ``packs`` are this worker's share."""
        losses = []
        _set_rates(self.adamw, phase, learning_rate_scale)
        set_clip(self.adamw, phase.clip)
        for index, samples in enumerate(packs):
            self.engine.set_gradient_accumulation_boundary(index + 1 == len(packs))
            each = self.engine(samples)
            # Gradients are averaged over the workers.
            self.engine.backward(_spoiled(each.sum() * (self.world / batch), each))
            losses.append(each.detach())
        self.engine.step()  # changes nothing where the gradient is infinite or no number
        norm = self.engine.get_global_grad_norm()
        update = Update(losses, 0.0 if norm is None else float(norm))
        if not update.skipped:
            self.updates += 1
            update_average(self.averaged, masters(self.adamw), phase.ema, self.updates)
        return update

    @torch.no_grad()
    def losses(self, packs: Sequence[Sequence[StageSample]]) -> list[Tensor]:
        """The loss of each stage-sample, pass by pass, under the averaged weights; nothing is trained.

        All workers call it together, each with as many passes.
        """
        with self._averages_as_masters():
            publish_masters(self.adamw)
            self.engine.eval()
            found = [self.engine(samples) for samples in packs]
            self.engine.train()
        publish_masters(self.adamw)
        return found

    def most(self, count: int) -> int:
        """The largest ``count`` of all workers."""
        largest = torch.tensor(count, device=self.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def total(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over all readers of data: the members of a sequence group hold the same ones."""
        leads = self.rank % (self.world // self.data_world) == 0
        summed = values.to(self.device) if leads else torch.zeros_like(values, device=self.device)
        dist.all_reduce(summed)
        return summed.cpu()

    def gathered(self, texts: Sequence[str], aside: bool = False) -> list[str]:
        """The texts of all workers, in their order.

        ``aside`` asks over a connection of its own, so that a thread can while training goes on.
        """
        everyone: list[list[str]] = [[]] * self.world
        dist.all_gather_object(everyone, list(texts), group=self._aside if aside else None)
        return [text for each in everyone for text in each]

    def fragments(self) -> list[Fragment]:
        """This worker's part of the state that is saved; writing to the fragments changes it."""
        kinds = {WEIGHTS: masters(self.adamw), AVERAGED: self.averaged}
        moments = [optimizer_state(self.adamw).get(part, {}) for part in master_parameters(self.adamw)]
        if all(moments):
            kinds |= {kind: [state[kind] for state in moments] for kind in (MEAN, SQUARE)}
        return [
            Fragment(kind, piece.name, piece.first, parts[piece.part][piece.start : piece.start + piece.length])
            for piece in self._pieces
            for kind, parts in kinds.items()
        ]

    def counts(self) -> Counts:
        """What is saved beside the fragments."""
        moments = [optimizer_state(self.adamw).get(part, {}) for part in master_parameters(self.adamw)]
        steps = [int(state["step"]) if state else 0 for state in moments]
        return Counts(self.updates, {piece.name: steps[piece.part] for piece in self._pieces if steps[piece.part]})

    def restore(self, held: Fragments, counts: Counts) -> None:
        """Continue from a checkpoint of any engine, stage and number of workers; from one of the same, bit for bit."""
        self.updates = counts.updates
        if counts.steps:
            made = max(counts.steps.values())
            for part in master_parameters(self.adamw):
                optimizer_state(self.adamw)[part] = _fresh_moments(part.detach(), made)
        _read_into(self.fragments(), held)
        publish_masters(self.adamw)

    def averaged_weights(self) -> dict[str, Tensor]:
        """The averaged weights by name, whole, in float32, on the CPU: on worker 0, and nothing on the others.

        Called by all workers, which gather one weight after the other. Only worker 0 ever holds the whole model.
        """
        from deepspeed.utils import safe_get_full_fp32_param

        gathered: dict[str, Tensor] = {}
        with self._averages_as_masters():
            for name, parameter in self.module.named_parameters():
                if parameter.requires_grad:
                    whole = safe_get_full_fp32_param(parameter)
                    if self.rank == 0:
                        gathered[name] = whole.cpu()
        return gathered

    @contextlib.contextmanager
    def _averages_as_masters(self) -> Iterator[None]:
        """Put the averaged weights where DeepSpeed can gather them, and the masters back in any case."""
        self._swap_masters_and_averages()
        try:
            yield
        finally:
            self._swap_masters_and_averages()

    def _swap_masters_and_averages(self) -> None:
        for master, average in zip(masters(self.adamw), self.averaged, strict=True):
            held = master.clone()
            master.copy_(average)
            average.copy_(held)


class Parts:
    """This worker's parts of a model's weights in ZeRO 3, cut up piece by piece while the model is loaded.

    ``take`` is given each piece as soon as its weights are read, and leaves of them what this worker keeps. So no
    worker ever holds more than its own part and one piece.
    """

    def __init__(self, precision: Literal["bf16", "fp32"], device: torch.device) -> None:
        self._deepspeed = _deepspeed(device)
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._exact: list[tuple[torch.nn.Parameter, Tensor]] = []  # float32 parts of what is kept in bfloat16

    def take(self, piece: torch.nn.Module) -> None:
        """Cut up all weights of a piece that are still whole; all workers call it for the same pieces in turn."""
        whole = [p for p in piece.parameters() if not hasattr(p, "ds_id")]
        exact = [p.detach().float() if p.requires_grad and self._dtype is torch.bfloat16 else None for p in whole]
        for parameter in whole:
            parameter.data = parameter.data.to(self._dtype)
        self._deepspeed.zero.Init(module=piece, dtype=self._dtype)
        for parameter, value in zip(whole, exact, strict=True):
            if value is not None:
                count = parameter.ds_tensor.numel()  # type: ignore[attr-defined]  # DeepSpeed adds it
                own = value.flatten()[count * dist.get_rank() : count * (dist.get_rank() + 1)]
                self._exact.append((parameter, torch.nn.functional.pad(own, (0, count - len(own))).clone()))

    def restore_masters(self) -> None:
        """Give the engine's masters the digits that the weights have lost."""
        from deepspeed.utils import safe_set_local_fp32_param

        for parameter, part in self._exact:
            safe_set_local_fp32_param(parameter, part)
        self._exact.clear()


def _deepspeed(device: torch.device) -> Any:
    """DeepSpeed, ready for the process group that exists."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    do_without_shared_memory_library(deepspeed)
    deepspeed.init_distributed(dist.get_backend(), verbose=False)
    return deepspeed


def _spoiled(loss: Tensor, each: Tensor) -> Tensor:
    """The loss that is differentiated; one that makes the whole gradient NaN where that of any sample is not finite.

    So that the norm of the gradient, which all workers know, tells all of them that a worker's loss was no number.
    """
    return loss * torch.where(each.detach().isfinite().all(), 1.0, torch.nan)


# AdamW's and Muon's.
_MOMENTS = (MEAN, SQUARE, MOMENTUM)


def _fresh_moments(weight: Tensor, steps: int, fused: bool = False) -> dict[str, Tensor]:
    """AdamW's state of a weight after some steps, to be read into."""
    step = torch.tensor(float(steps), device=weight.device if fused else "cpu")
    return {"step": step, MEAN: torch.zeros_like(weight), SQUARE: torch.zeros_like(weight)}


def _read_into(fragments: Sequence[Fragment], held: Fragments) -> None:
    """Fill fragments from a checkpoint; moments that it does not have stay as they are."""
    for fragment in fragments:
        values = held.read(fragment.kind, fragment.name, fragment.first, fragment.values.numel())
        if values is not None:
            fragment.values.copy_(values)
        elif fragment.kind in (WEIGHTS, AVERAGED):
            raise ValueError(f"the checkpoint has no {fragment.kind} of {fragment.name}")


def _set_rates(optimizer: Any, phase: PhaseConfig, scale: float) -> None:
    rate = scale * phase.learning_rate
    for group in optimizer.param_groups:
        group.update(lr=rate, betas=phase.betas, eps=phase.eps, weight_decay=phase.weight_decay)
