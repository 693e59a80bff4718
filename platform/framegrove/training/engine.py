"""Engines, which turn losses into weights: plain torch in one process, or DeepSpeed ZeRO over many workers.

An engine owns the module, the optimizer and the averaged weights. ``update`` is one optimizer step over any number of
forward passes; the rest of training is in loop.py. This is the only file that imports DeepSpeed, and it does so only
when a DeepSpeedEngine is made. What it uses of DeepSpeed beyond the public interface is at the end of the file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from framegrove.config.train import PhaseConfig
from framegrove.flow.objective import StageSample
from framegrove.models.flux import SingleBlock
from framegrove.models.layers import Block
from framegrove.models.mmdit import MMDiT
from framegrove.models.sequence_parallel import SequenceGroup
from framegrove.models.trainer_state import update_average
from framegrove.training.memory import bucket_elements
from framegrove.training.step import Trainable

_STATE, _TAG = "engine.pt", "engine"


@dataclass(frozen=True, eq=False)
class Update:
    """What an optimizer step returns: the loss of each stage-sample, pass by pass, and the norm of the gradient.

    The norm is that of the whole batch's gradient, over all workers, before it is clipped.
    """

    losses: list[Tensor]
    gradient_norm: float


class PlainEngine:
    """One process and float32 weights; forward and backward run under bfloat16 autocast for precision "bf16"."""

    rank, world = 0, 1
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
            (each.sum() / batch).backward()
            losses.append(each.detach())
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, phase.clip)
        _set_rates(self.adamw, phase, learning_rate_scale)
        self.adamw.step()
        if self.muon is not None:
            for group in self.muon.param_groups:
                group["lr"] = learning_rate_scale * (phase.matrix_learning_rate or 0.0)
            self.muon.step()
        self.module.zero_grad(set_to_none=True)
        self.updates += 1
        update_average(self.averaged, self.parameters, phase.ema, self.updates)
        return Update(losses, float(norm))

    def total(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over all workers."""
        return values

    def save(self, folder: Path) -> None:
        """Write everything that ``load`` needs to continue bit for bit."""
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
        """Continue from what ``save`` wrote."""
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
    """One worker of many: ZeRO stage 1, 2 or 3 over the workers' process group, which must exist already.

    Weights are float32, or a bfloat16 compute copy of float32 masters. ZeRO spreads masters, optimizer state and, in
    stages 2 and 3, gradients and weights over the workers; the averaged weights are spread in the same way. A worker
    saves its own part of all these.

    With ``sequence_parallel`` P, neighbouring workers compute each pack in groups of P (see sequence_parallel.py). The
    members of a group are one reader of data, ``data_rank`` of ``data_world``, and must be given the same samples.
    ``parts`` is what cut the weights up while they were loaded, in stage 3; absent: they are cut up here.
    """

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
        self.averaged = [part.clone() for part in _masters(self.adamw)]

    def update(
        self, packs: Sequence[Sequence[StageSample]], batch: int, phase: PhaseConfig, learning_rate_scale: float
    ) -> Update:
        """One optimizer step on a batch of ``batch`` stage-samples, of which ``packs`` are this worker's share."""
        losses = []
        _set_rates(self.adamw, phase, learning_rate_scale)
        _set_clip(self.adamw, phase.clip)
        for index, samples in enumerate(packs):
            self.engine.set_gradient_accumulation_boundary(index + 1 == len(packs))
            each = self.engine(samples)
            self.engine.backward(each.sum() * (self.world / batch))  # gradients are averaged over the workers
            losses.append(each.detach())
        self.engine.step()
        self.updates += 1
        update_average(self.averaged, _masters(self.adamw), phase.ema, self.updates)
        return Update(losses, float(self.engine.get_global_grad_norm() or 0.0))

    def total(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over all readers of data: the members of a sequence group hold the same ones."""
        leads = self.rank % (self.world // self.data_world) == 0
        summed = values.to(self.device) if leads else torch.zeros_like(values, device=self.device)
        dist.all_reduce(summed)
        return summed.cpu()

    def save(self, folder: Path) -> None:
        """Write this worker's part of what ``load`` needs; called by all workers, each with its own folder."""
        (folder / _TAG).mkdir()
        self.engine.save_checkpoint(str(folder), tag=_TAG, save_latest=False, exclude_frozen_parameters=True)
        torch.save({"averaged": self.averaged, "updates": self.updates}, folder / f"averaged-{self.rank:05d}.pt")

    def load(self, folder: Path) -> None:
        """Continue from the parts that all workers saved, merged into one folder."""
        self.engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=False)  # frozen weights are not in it
        held = torch.load(folder / f"averaged-{self.rank:05d}.pt", map_location=self.device, weights_only=True)
        torch._foreach_copy_(self.averaged, held["averaged"])
        self.updates = held["updates"]

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
        for master, average in zip(_masters(self.adamw), self.averaged, strict=True):
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

    _do_without_shared_memory_library(deepspeed)
    deepspeed.init_distributed(dist.get_backend(), verbose=False)
    return deepspeed


def _set_rates(optimizer: Any, phase: PhaseConfig, scale: float) -> None:
    rate = scale * phase.learning_rate
    for group in optimizer.param_groups:
        group.update(lr=rate, betas=phase.betas, eps=phase.eps, weight_decay=phase.weight_decay)


# What follows relies on DeepSpeed 0.19 beyond its public interface, which offers none of it. Should another version
# move these things, the functions say so, and test_engine.py fails.


def _do_without_shared_memory_library(deepspeed: Any) -> None:
    """Have gloo do what DeepSpeed's own library for workers on one machine would: that is compiled for a minute first.

    And it cannot be compiled at all where the path has a space in it.
    """
    name = "deepspeed_shm_comm"
    compatible = deepspeed.ops.__compatible_ops__
    if name not in compatible:
        raise RuntimeError(f"DeepSpeed {deepspeed.__version__} no longer lists {name} in ops.__compatible_ops__")
    compatible[name] = False


def _set_clip(optimizer: Any, norm: float) -> None:
    """Set the largest norm of the gradient, which DeepSpeed otherwise takes from its configuration for good."""
    if not hasattr(optimizer, "clip_grad"):
        raise RuntimeError(f"DeepSpeed's {type(optimizer).__name__} no longer keeps its clipping norm in clip_grad")
    optimizer.clip_grad = norm


# ZeRO 3; ZeRO 1 in bfloat16; all others.
_MASTERS = ("fp32_partitioned_groups_flat", "fp32_groups_flat_partition", "single_partition_of_fp32_groups")


def _masters(optimizer: Any) -> list[Tensor]:
    """This worker's parts of the float32 weights, each flat; writing to them changes the weights."""
    for name in _MASTERS:
        if hasattr(optimizer, name):
            return [part.detach() for part in getattr(optimizer, name)]
    raise RuntimeError(
        f"DeepSpeed's {type(optimizer).__name__} has its float32 weights in none of {', '.join(_MASTERS)}"
    )
