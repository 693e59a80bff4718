"""What turns losses into weights: plain torch in one process, or DeepSpeed ZeRO over many workers.

An engine owns the module, the optimizer and the averaged weights. ``update`` is one optimizer step over any number of
forward passes; everything else of training is the loop's. The only file that imports DeepSpeed, and only when asked to.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from framegrove.config.train import PhaseConfig
from framegrove.models.flux import SingleBlock
from framegrove.models.layers import Block
from framegrove.models.mmdit import MMDiT
from framegrove.training.curriculum import StageSample
from framegrove.training.step import Trainable

_STATE, _TAG = "engine.pt", "engine"


@dataclass(frozen=True, eq=False)
class Update:
    """What an optimizer step found: the loss of each stage-sample, pass by pass, and the gradient's norm."""

    losses: list[Tensor]
    gradient_norm: float


class PlainEngine:
    """One process, float32 weights, forward and backward under bfloat16 autocast where asked for."""

    rank, world = 0, 1

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

    def update(self, packs: Sequence[Sequence[StageSample]], batch: int, phase: PhaseConfig, pace: float) -> Update:
        """One optimizer step on a batch of ``batch`` stage-samples that is spread over ``packs``."""
        losses = []
        for samples in packs:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                each = self.module(samples)
            (each.sum() / batch).backward()
            losses.append(each.detach())
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, phase.clip)
        _pace(self.adamw, phase, pace)
        self.adamw.step()
        if self.muon is not None:
            for group in self.muon.param_groups:
                group["lr"] = pace * (phase.matrix_learning_rate or 0.0)
            self.muon.step()
        self.module.zero_grad(set_to_none=True)
        self.updates += 1
        _average(self.averaged, self.parameters, phase.ema, self.updates)
        return Update(losses, float(norm))

    def most(self, count: int) -> int:
        """The largest ``count`` of all workers."""
        return count

    def total(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over all workers."""
        return values

    def save(self, folder: Path) -> None:
        """Write everything that ``load`` needs to go on to the bit."""
        torch.save(
            {
                "weights": [p.detach() for p in self.parameters],
                "averaged": self.averaged,
                "adamw": self.adamw.state_dict(),
                "muon": self.muon and self.muon.state_dict(),
                "updates": self.updates,
            },
            folder / _STATE,
        )

    def load(self, folder: Path) -> None:
        """Go on from what ``save`` wrote."""
        held: dict[str, Any] = torch.load(folder / _STATE, map_location=self.device, weights_only=True)
        with torch.no_grad():
            torch._foreach_copy_(list[Tensor](self.parameters), held["weights"])
            torch._foreach_copy_(self.averaged, held["averaged"])
        self.adamw.load_state_dict(held["adamw"])
        if self.muon is not None:
            self.muon.load_state_dict(held["muon"])
        self.updates = held["updates"]

    def averaged_weights(self) -> dict[str, Tensor]:
        """The averaged weights by name, of all parameters that are trained."""
        names = [name for name, p in self.module.named_parameters() if p.requires_grad]
        return dict(zip(names, self.averaged, strict=True))


class DeepSpeedEngine:
    """One worker of many: ZeRO of any stage over the workers' process group, which must exist already.

    Weights are float32, or bfloat16 with float32 masters that are spread over the workers like everything else that
    ZeRO spreads; so are the averaged weights. A worker's part of all that is what it saves.
    """

    def __init__(
        self, module: Trainable, precision: Literal["bf16", "fp32"], device: torch.device, zero: Literal[1, 2, 3]
    ) -> None:
        if device.type == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed
        from deepspeed.utils import safe_set_full_fp32_param, set_z3_leaf_modules

        # Gloo does what is needed; without this DeepSpeed would compile a library of its own for a minute, and could
        # not in a path with a space in it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist.get_backend(), verbose=False)
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.device, self.updates = device, 0
        # They read the weights of layers inside them without calling those, so ZeRO 3 must be told to gather them.
        set_z3_leaf_modules(module, [Block, SingleBlock])
        if isinstance(module.transformer, MMDiT):
            for weight in module.transformer.pos_embed.parameters():
                deepspeed.zero.register_external_parameter(module.transformer.pos_embed, weight)
        parameters = [p for p in module.parameters() if p.requires_grad]
        exact = [p.detach().clone() for p in parameters] if precision == "bf16" else []
        self.engine, self.adamw, _, _ = deepspeed.initialize(
            model=module.to(device),
            # DeepSpeed's own AdamW would be compiled, too.
            optimizer=torch.optim.AdamW(parameters),
            config={
                "train_micro_batch_size_per_gpu": 1,
                "bf16": {"enabled": precision == "bf16"},
                # Sums of many passes would lose their later ones in bfloat16.
                "data_types": {"grad_accum_dtype": "fp32"},
                "zero_optimization": {"stage": zero},
                "zero_allow_untested_optimizer": True,
                "gradient_clipping": 1.0,  # stands for "clip": each phase has its own norm
                "steps_per_print": None,
            },
            dist_init_required=False,
        )
        self.module: Trainable = self.engine.module
        if precision == "bf16":
            for buffer in self.module.buffers():
                if buffer.is_floating_point():
                    buffer.data = buffer.bfloat16()
        for parameter, value in zip(parameters, exact, strict=False):  # the masters came from rounded weights
            safe_set_full_fp32_param(parameter, value)
        self.averaged = [part.clone() for part in self._masters]

    def update(self, packs: Sequence[Sequence[StageSample]], batch: int, phase: PhaseConfig, pace: float) -> Update:
        """One optimizer step on a batch of ``batch`` stage-samples, of which ``packs`` are this worker's."""
        losses = []
        _pace(self.adamw, phase, pace)
        self.adamw.clip_grad = phase.clip
        for index, samples in enumerate(packs):
            self.engine.set_gradient_accumulation_boundary(index + 1 == len(packs))
            each = self.engine(samples)
            self.engine.backward(each.sum() * (self.world / batch))  # gradients are averaged over the workers
            losses.append(each.detach())
        self.engine.step()
        self.updates += 1
        _average(self.averaged, self._masters, phase.ema, self.updates)
        return Update(losses, float(self.engine.get_global_grad_norm() or 0.0))

    def most(self, count: int) -> int:
        """The largest ``count`` of all workers."""
        largest = torch.tensor(count, device=self.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def total(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over all workers."""
        summed = values.to(self.device)
        dist.all_reduce(summed)
        return summed.cpu()

    def save(self, folder: Path) -> None:
        """Write this worker's part of what ``load`` needs; called by all workers, each with its own folder."""
        (folder / _TAG).mkdir()
        self.engine.save_checkpoint(str(folder), tag=_TAG, save_latest=False, exclude_frozen_parameters=True)
        torch.save({"averaged": self.averaged, "updates": self.updates}, folder / f"averaged-{self.rank:05d}.pt")

    def load(self, folder: Path) -> None:
        """Go on from the parts that all workers saved, merged into one folder."""
        self.engine.load_checkpoint(str(folder), tag=_TAG)
        held = torch.load(folder / f"averaged-{self.rank:05d}.pt", map_location=self.device, weights_only=True)
        torch._foreach_copy_(self.averaged, held["averaged"])
        self.updates = held["updates"]

    def averaged_weights(self) -> dict[str, Tensor]:
        """The averaged weights by name, whole, in float32, on the CPU; called by all workers."""
        from deepspeed.utils import safe_get_full_fp32_param

        self._exchange()
        named = [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]
        whole = {name: safe_get_full_fp32_param(parameter).cpu() for name, parameter in named}
        self._exchange()
        return whole

    @property
    def _masters(self) -> list[Tensor]:
        """This worker's parts of the float32 weights, flat."""
        # Each of DeepSpeed's optimizers has its own name for them: ZeRO 3, ZeRO 1 in bfloat16, all others.
        names = ("fp32_partitioned_groups_flat", "fp32_groups_flat_partition", "single_partition_of_fp32_groups")
        parts = next(getattr(self.adamw, name) for name in names if hasattr(self.adamw, name))
        return [part.detach() for part in parts]

    def _exchange(self) -> None:
        """Exchange the masters and their average."""
        for master, average in zip(self._masters, self.averaged, strict=True):
            held = master.clone()
            master.copy_(average)
            average.copy_(held)


def _pace(optimizer: Any, phase: PhaseConfig, pace: float) -> None:
    for group in optimizer.param_groups:
        group.update(lr=pace * phase.learning_rate, betas=phase.betas, eps=phase.eps, weight_decay=phase.weight_decay)


def _average(averaged: list[Tensor], weights: Sequence[Tensor], decay: float, updates: int) -> None:
    """Exponential average of the weights, shorter in the first steps, when old weights are worth nothing."""
    decay = min(decay, updates / (9 + updates))
    with torch.no_grad():
        torch._foreach_lerp_(averaged, [weight.detach() for weight in weights], 1 - decay)
