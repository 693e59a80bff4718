"""What a training run needs of each worker's memory, from shapes alone, before anything is started.

All figures are bytes. What is kept between steps follows from the number of weights, the ZeRO stage and the number of
workers W; activations follow from the tokens of a pass (models/sizes.py). In bfloat16, as DeepSpeed keeps it:

                        ZeRO 1      ZeRO 2      ZeRO 3
    weights              2           2           2 / W      bfloat16
    gradients          4 + 2         4 / W       4 / W      summed over the passes in float32; those of the last pass
    masters              4 / W       4 / W       4 / W
    both moments         8 / W       8 / W       8 / W
    averaged weights     4 / W       4 / W       4 / W
    text encoders        2           2           2          frozen ones, on every worker whole; none where their
                                                            embeddings of all captions are stored
    reference            2           2           2          where pairs are learned from, whole; none beside an adapter

Only the weights have a line for what stays as it is (LoRA, named parts): all else is of trained weights alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from framegrove.config.model import AnyTransformerConfig
from framegrove.config.train import PhaseConfig, TrainConfig
from framegrove.errors import UserError
from framegrove.flow.history import sample_tokens
from framegrove.models.sizes import (
    AUTOCAST,
    PURE_BF16,
    PURE_FP32,
    activation_bytes,
    parameter_count,
    working_bytes,
)

_BUCKET = 500_000_000  # weights whose gradients are sent at once, DeepSpeed's default
_LIVE = 1_000_000_000  # weights that ZeRO 3 holds whole at a time, DeepSpeed's default


def bucket_elements(parameters: int) -> int:
    """How many weights' gradients the deepspeed engine sends at once: its buffer is this large from the start."""
    return min(_BUCKET, parameters)


@dataclass(frozen=True)
class Model:
    """What the estimate needs to know of a model.

    ``text_tokens`` are those of a long prompt, ``stages`` those of the pyramid, ``vae_factor`` is pixels per latent.
    ``frozen`` counts the weights of text encoders that stay as they are and have to be there, ``held`` those of the
    transformer that do, ``added`` those of an adapter. An adapter's own activations are not counted.
    """

    shape: AnyTransformerConfig
    stages: int
    text_tokens: int
    trained_text: int = 0
    frozen: int = 0
    vae_factor: int = 8
    held: int = 0
    added: int = 0

    @cached_property
    def trained(self) -> int:
        """Weights that are trained."""
        return parameter_count(self.shape) - self.held + self.added + self.trained_text

    @property
    def whole(self) -> int:
        """Weights of the module that is trained, those of it that stay as they are included."""
        return self.trained + self.held


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker in one phase, in passes of so many ``tokens``."""

    tokens: int
    weights: int
    gradients: int
    masters: int
    moments: int
    averaged: int
    text: int  # frozen text encoders
    reference: int  # the model of step 0, which pairs are compared by
    buffers: int  # of gradients on their way, and in ZeRO 3 of the weights that are gathered
    activations: int
    working: int

    @property
    def kept(self) -> int:
        """What is there between two steps."""
        trained = self.weights + self.gradients + self.masters + self.moments + self.averaged
        return trained + self.text + self.reference

    @property
    def total(self) -> int:
        """The most that is there at a time."""
        return self.kept + self.buffers + self.activations + self.working


def estimate(config: TrainConfig, phase: PhaseConfig, model: Model, workers: int) -> Memory:
    """What the deepspeed engine needs on each of so many workers."""
    number = 2 if config.precision == "bf16" else 4
    precision = PURE_BF16 if config.precision == "bf16" else PURE_FP32
    spread, trained = -(-model.trained // workers), model.trained
    bucket = bucket_elements(trained)
    gathered = number * min(_LIVE, model.whole) if config.zero == 3 else 0
    tokens = pass_tokens(config, phase, model, workers)
    sharing = config.sequence_parallel
    return Memory(
        tokens=tokens,
        weights=number * (-(-model.whole // workers) if config.zero == 3 else model.whole),
        gradients=(4 + (2 if number == 2 else 0)) * trained if config.zero == 1 else 4 * spread,
        masters=4 * spread,
        moments=8 * spread,
        averaged=4 * spread,
        text=number * model.frozen,
        reference=number * _compared_with(config, model),
        buffers=(4 if config.zero == 1 else number) * bucket + gathered,
        activations=activation_bytes(
            model.shape, tokens, precision, recompute=config.recomputes(phase), workers=sharing
        ),
        working=working_bytes(model.shape, tokens, precision, workers=sharing),
    )


def estimate_plain(config: TrainConfig, phase: PhaseConfig, model: Model) -> Memory:
    """What the plain engine needs: float32 weights, of which autocast makes copies in bfloat16."""
    half = config.precision == "bf16"
    precision = AUTOCAST if half else PURE_FP32
    tokens = pass_tokens(config, phase, model, 1)
    return Memory(
        tokens=tokens,
        weights=4 * model.whole,
        gradients=4 * model.trained,
        masters=0,
        moments=8 * model.trained,
        averaged=4 * model.trained,
        text=(2 if half else 4) * model.frozen,
        reference=4 * _compared_with(config, model),
        buffers=2 * model.whole if half else 0,
        activations=activation_bytes(model.shape, tokens, precision, recompute=config.recomputes(phase)),
        working=working_bytes(model.shape, tokens, precision),
    )


def _compared_with(config: TrainConfig, model: Model) -> int:
    """Weights of the copy of the model that pairs are compared by."""
    compares = any(phase.objective.preference is not None for phase in config.phases)
    return model.whole + model.frozen if compares and config.model.tune.lora is None else 0


def pass_tokens(config: TrainConfig, phase: PhaseConfig, model: Model, workers: int) -> int:
    """Tokens of a full pass, text and all: as many as the phase allows, or where it does not say, a worker's share."""
    if phase.batch is None:
        return phase.pack_tokens or 0
    share = -(-phase.batch * config.sequence_parallel // workers)
    lengths, weights = zip(*_lengths(phase, model), strict=True)
    if phase.pack_tokens is not None:
        return min(phase.pack_tokens, share * max(lengths))
    # Draws are spread evenly over the batch; a share is never lighter than its longest sample.
    mean = sum(length * weight for length, weight in zip(lengths, weights, strict=True)) / sum(weights)
    return max(round(share * mean), max(lengths))


def longest_sample(phase: PhaseConfig, model: Model) -> int:
    """Tokens of the longest sample of a phase, text and all."""
    return max(length for length, _ in _lengths(phase, model))


def _lengths(phase: PhaseConfig, model: Model) -> list[tuple[int, float]]:
    """Tokens of every kind of sample that a phase draws, and how often, for clips of its largest size."""
    if phase.sizes is None:
        raise UserError(f"phase {phase.name} takes clips of every size: name its sizes for an estimate of its memory")
    height, width = max(phase.sizes, key=lambda size: size[0] * size[1])
    unit = (1, height // model.vae_factor, width // model.vae_factor)
    of_stages = phase.objective.stage_weights or (1.0,) * model.stages
    return [
        (
            sample_tokens([unit] * (number + 1), stage, model.stages, model.shape.patch_size) + model.text_tokens,
            of_unit * of_stage,
        )
        for number, of_unit in enumerate(phase.unit_shares)
        for stage, of_stage in enumerate(of_stages)
        if of_unit * of_stage > 0
    ]
