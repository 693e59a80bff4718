"""What the engine uses of DeepSpeed 0.19 beyond its public interface, which offers none of it.

Should another version move these things, the functions say so, and test_engine.py fails. DeepSpeed
itself is not imported here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn


def do_without_shared_memory_library(deepspeed: Any) -> None:
    """Have gloo do what DeepSpeed's own library for workers on one machine would: that is compiled for a minute first.

    And it cannot be compiled at all where the path has a space in it.
    """
    name = "deepspeed_shm_comm"
    compatible = deepspeed.ops.__compatible_ops__
    if name not in compatible:
        raise RuntimeError(f"DeepSpeed {deepspeed.__version__} no longer lists {name} in ops.__compatible_ops__")
    compatible[name] = False


def set_clip(optimizer: Any, norm: float) -> None:
    """Set the largest norm of the gradient, which DeepSpeed otherwise takes from its configuration for good."""
    if not hasattr(optimizer, "clip_grad"):
        raise RuntimeError(f"DeepSpeed's {type(optimizer).__name__} no longer keeps its clipping norm in clip_grad")
    optimizer.clip_grad = norm


# ZeRO 3; ZeRO 1 in bfloat16; all others.
_MASTERS = ("fp32_partitioned_groups_flat", "fp32_groups_flat_partition", "single_partition_of_fp32_groups")


def masters(optimizer: Any) -> list[Tensor]:
    """This worker's parts of the float32 weights, each flat; writing to them changes the weights."""
    return [part.detach() for part in master_parameters(optimizer)]


def master_parameters(optimizer: Any) -> list[Tensor]:
    """The same as the optimizer inside DeepSpeed's knows them."""
    for name in _MASTERS:
        if hasattr(optimizer, name):
            return list(getattr(optimizer, name))
    raise RuntimeError(
        f"DeepSpeed's {type(optimizer).__name__} has its float32 weights in none of {', '.join(_MASTERS)}"
    )


def optimizer_state(optimizer: Any) -> dict[Tensor, dict[str, Tensor]]:
    """AdamW's state by this worker's parts of the float32 weights."""
    return optimizer.optimizer.state


@dataclass(frozen=True)
class Piece:
    """Values ``start`` to ``start + length`` of a part of the masters are a parameter's from ``first`` on."""

    name: str
    part: int
    start: int
    first: int
    length: int


def pieces(optimizer: Any, module: nn.Module) -> list[Piece]:
    """Where this worker's part of every trained parameter lies in its masters, padding left out."""
    found = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        whole = getattr(parameter, "ds_numel", None)
        if whole is not None:  # ZeRO 3 cuts every parameter by itself
            part, start, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
            first = length * dist.get_rank()
            piece = Piece(name, part, start, first, min(length, whole - first))
        elif (
            mapping := getattr(parameter, "_hp_mapping", None)
        ) is not None:  # ZeRO 1 and 2 cut what they have strung together
            address, of = mapping.hp_fragment_address, mapping.lp_fragment_address
            piece = Piece(name, mapping.param_group_index, address.start, of.start, address.numel)
        else:
            continue
        if piece.length > 0:
            found.append(piece)
    return found


def publish_masters(optimizer: Any) -> None:
    """Have the weights that forward passes use follow masters that were written to."""
    if not hasattr(optimizer, "grad_position"):
        optimizer.update_lp_params()
        return
    optimizer.checkpoint_event_prologue()  # sets the small weights free that every worker holds whole
    for part in range(len(optimizer.fp32_partitioned_groups_flat)):
        optimizer._reassign_or_swap_out_partitioned_parameters(part)
    optimizer.checkpoint_event_epilogue()  # and gathers them again
