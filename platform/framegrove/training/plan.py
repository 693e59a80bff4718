"""Whether a run fits its GPUs, decided before anything is started, and which keys to turn where it does not."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from framegrove.config.model import AnyTransformerConfig, Recipe
from framegrove.config.train import SHIPPED, PhaseConfig, TrainConfig
from framegrove.errors import UserError
from framegrove.models.pretrained import read_outline
from framegrove.models.sources import find_model
from framegrove.models.text_public import T5_TOKENS
from framegrove.training import tuning
from framegrove.training.memory import Memory, Model, estimate, estimate_plain, longest_sample, pass_tokens

GB = 10**9
USABLE = 0.92  # of a GPU's memory; the rest is for CUDA, NCCL, and what the allocator cannot put together again

_T5_XXL, _CLIP_L, _CLIP_G, _CLIP_L_PROJECTION = 4_762_310_656, 123_060_480, 694_659_840, 589_824


def model_of(config: TrainConfig, *, download: bool = False, encodes: bool = True) -> tuple[Model, str]:
    """What the estimate needs of the model of step 0, and in words where that was read.

    Frozen text encoders have to be there only where the run ``encodes`` prompts.

    Unless it may ``download``, a ``model.start`` that is not here is taken to have the shape under
    ``model.transformer`` or ``model.flux``, and the text encoders of the public checkpoints. Raises UserError where
    neither is given.
    """
    given = config.model
    if given.start is None:
        small = given.text
        text = small.layers * (12 * small.width + 13) * small.width + small.max_tokens * small.width
        return _model(config, given.shape, given.recipe, small.max_tokens, text), "the shape of the new model"
    if download or given.start == SHIPPED or Path(given.start).exists():
        place = find_model(given.source)
        _, shape, recipe = read_outline(place)
        weights = _text_weights(place.text) or _public_text_weights(shape)
        model = _model(config, shape, recipe, _text_tokens(place.text), weights, encodes)
        return model, f"the shape in {place.transformer}"
    if not given.model_fields_set & {"transformer", "flux"}:
        raise UserError(
            f"no model folder at {given.start}, and the configuration does not say its shape: put the model there, or "
            "give its shape as model.transformer or model.flux ({} for that of the public checkpoints)"
        )
    key = "flux" if given.flux else "transformer"
    shape = given.shape
    where = f"the shape under model.{key}, because {given.start} is not here"
    return _model(config, shape, given.recipe, T5_TOKENS, _public_text_weights(shape), encodes), where


def _model(
    config: TrainConfig, shape: AnyTransformerConfig, recipe: Recipe, text_tokens: int, text: int, encodes: bool = True
) -> Model:
    # A text encoder of which parts are trained is small, and counts as if all of it were.
    trained, frozen = (text, 0) if config.model.trains_text else (0, text if encodes else 0)
    added, held = tuning.weights(config.model.tune, shape)
    return Model(shape, recipe.pyramid.stages, text_tokens, trained, frozen, held=held, added=added)


def _text_tokens(folder: Path) -> int:
    """Most tokens of a prompt: those of a small text encoder, or of T5."""
    path = folder / "text_encoder" / "config.json"
    if (folder / "text_encoder_2").is_dir() or not path.is_file():
        return T5_TOKENS
    return int(json.loads(path.read_text(encoding="utf-8")).get("max_position_embeddings", T5_TOKENS))


def _text_weights(folder: Path) -> int:
    """Weights of a folder's text encoders, 0 where there are none to count."""
    return sum(_elements(path) for path in folder.glob("text_encoder*/*.safetensors"))


def _elements(path: Path) -> int:
    try:
        with safe_open(path, "pt") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 - it is no dict
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}): download or write it again") from None
    return sum(math.prod(shape) for shape in shapes)


def _public_text_weights(shape: AnyTransformerConfig) -> int:
    """T5-XXL with CLIP-L, or with CLIP-L and CLIP-G as SD3 has them."""
    both = shape.pooled_projection_dim == 2048
    return _T5_XXL + _CLIP_L + (_CLIP_L_PROJECTION + _CLIP_G if both else 0)


def check_heads(sequence_parallel: int, shape: AnyTransformerConfig) -> None:
    """Raise UserError where the workers of a sequence group cannot share the attention heads evenly."""
    heads = shape.num_attention_heads
    if heads % sequence_parallel:
        divisors = ", ".join(str(size) for size in range(1, heads + 1) if heads % size == 0)
        raise UserError(
            f"sequence_parallel is {sequence_parallel}, which does not divide the model's {heads} attention heads: "
            f"choose one of {divisors}"
        )


def check_workers(sequence_parallel: int, workers: int) -> None:
    """Raise UserError where so many workers form no sequence groups of that size."""
    if workers % sequence_parallel:
        raise UserError(
            f"{workers} workers cannot share sequences in groups of {sequence_parallel}: use a multiple of "
            f"{sequence_parallel} workers, or set sequence_parallel to a number that divides {workers}"
        )


def check_fits(config: TrainConfig, model: Model, workers: int | None, gpu_bytes: int) -> None:
    """Raise UserError where a phase needs more than a GPU has, naming the keys that would make it fit.

    ``workers`` are those of the deepspeed engine; None stands for the plain engine.
    """

    def needed(changed: TrainConfig, phase: PhaseConfig, count: int) -> Memory:
        return estimate_plain(changed, phase, model) if workers is None else estimate(changed, phase, model, count)

    for phase in config.phases:
        total = needed(config, phase, workers or 1).total
        if total <= USABLE * gpu_bytes:
            continue
        fitting = []
        for changes in _changes(config, phase, model, workers):  # of each key the smallest change that is enough
            for name, changed, changed_phase, count in changes:
                found = needed(changed, changed_phase, count).total
                if found <= USABLE * gpu_bytes:
                    fitting.append(f"{name} ({found / GB:.1f} GB)")
                    break
        advice = (
            f"any of these is enough: {', '.join(fitting)}"
            if fitting
            else "no key alone is enough, combine recompute: true, zero: 3, a smaller pack_tokens of the phase, a "
            "larger sequence_parallel and more workers"
        )
        where = "in this process" if workers is None else f"on each of {workers} workers"
        raise UserError(
            f"phase {phase.name} needs about {total / GB:.1f} GB {where}, and of a GPU's {gpu_bytes / GB:.1f} GB "
            f"{USABLE:.0%} can be used: {advice}"
        )


Change = tuple[str, TrainConfig, PhaseConfig, int]


def _changes(config: TrainConfig, phase: PhaseConfig, model: Model, workers: int | None) -> Iterator[list[Change]]:
    """For each key, what it could be set to, the mildest change first."""
    count = workers or 1
    if not config.recomputes(phase):
        yield [("recompute: true", config, phase.model_copy(update={"recompute": True}), count)]
    tokens, least = pass_tokens(config, phase, model, count), longest_sample(phase, model)
    yield [
        (f"pack_tokens: {fewer}", config, phase.model_copy(update={"pack_tokens": fewer}), count)
        for fewer in (tokens // 2, tokens // 4, tokens // 8)
        if fewer >= least
    ]
    if workers is None:
        return
    yield [
        (f"zero: {stage}", config.model_copy(update={"zero": stage}), phase, count)
        for stage in (2, 3)
        if stage > config.zero
    ]
    yield [
        (f"sequence_parallel: {size}", config.model_copy(update={"sequence_parallel": size}), phase, count)
        for size in range(config.sequence_parallel + 1, 17)
        if model.shape.num_attention_heads % size == 0 and count % size == 0
    ]
    yield [(f"{more} workers", config, phase, more) for more in (2 * count, 4 * count, 8 * count)]
