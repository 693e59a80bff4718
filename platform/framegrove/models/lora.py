"""Low-rank adapters on the transformer's linear layers, made by peft and kept in its layout.

Beside a layer's W x stands (alpha / rank) B A x, where A is rank x inputs and random, and B is outputs x rank and zero
at first, so that a fresh adapter changes nothing (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language
Models", section 4.1). The folder of an adapter:

    DIR/adapter_config.json, adapter_model.safetensors     as PeftModel.save_pretrained writes them
    DIR/base.json                                          which model it is for

Attention computes several layers by one matrix product and never calls them: see `layers.projected`, which adds what
adapters give.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from framegrove.config.base import absolute
from framegrove.config.model import ModelSource
from framegrove.config.tune import LoraConfig
from framegrove.errors import UserError
from framegrove.files import replacing
from framegrove.models.files import write_json
from framegrove.models.layers import Block
from framegrove.models.sources import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE, digest_of
from framegrove.models.transformers import Transformer

if TYPE_CHECKING:
    import peft

_NAME = "default"  # peft's name of an adapter, in the names of parameters but not in those of files
_FILE_PREFIX = "base_model.model."  # peft's, of names in files


def targets(transformer: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Names of the linear layers that match any of some glob patterns, in order, but for one whose result is unused.

    Raises UserError for a pattern that matches none.
    """
    linear = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    for pattern in patterns:
        if not matching(linear, [pattern]):
            raise UserError(
                f"model.tune.lora.targets: {pattern!r} matches no linear layer of the transformer, which has "
                f"{', '.join(kinds(linear))}"
            )
    blocks = dict(transformer.named_modules())
    idle = {
        f"{name}.attn.add_q_proj" for name, module in blocks.items() if isinstance(module, Block) and module.last
    }  # no token of the text asks anything in the last block
    return [name for name in matching(linear, patterns) if name not in idle]


def matching(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The names that match any of some glob patterns, in which * stands for dots, too."""
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def kinds(names: Iterable[str]) -> list[str]:
    """Names with * for the numbers in them, each once: what there is, for a message."""
    starred = (".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names)
    return list(dict.fromkeys(starred))


def attach(transformer: nn.Module, config: LoraConfig, seed: int) -> None:
    """Freeze a transformer and put a fresh adapter, drawn from ``seed``, on its layers, in place.

    Only the adapter requires gradients. Raises UserError as `targets` does.
    """
    from peft import inject_adapter_in_model

    names = targets(transformer, config.targets)
    transformer.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(_peft_config(config, names), transformer, _NAME)


@contextlib.contextmanager
def switched_off(transformer: nn.Module) -> Iterator[None]:
    """Inside the block the transformer is what it was before `attach`.

    Scales of 0, and no parameter that is frozen and released again: engines have counted those that are trained.
    """
    from peft.tuners.lora import LoraLayer

    layers = [module for module in transformer.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.set_scale(_NAME, 0.0)
    try:
        yield
    finally:
        for layer in layers:
            layer.set_scale(_NAME, 1.0)


def reference(base: ModelSource) -> dict[str, Any]:
    """How an adapter names the model that it is for, and tells it from others."""
    held = base.model_dump(exclude={"dtype", "allow_pickle"}, exclude_none=True) | {"name": absolute(base.name)}
    return held | {"weights": digest_of(base)}


def save_adapter(
    folder: Path, config: LoraConfig, names: Sequence[str], weights: Mapping[str, Tensor], base: Mapping[str, Any]
) -> None:
    """Write the folder of an adapter on the layers ``names``: ``weights`` by the names that `attach` gave them.

    ``base`` is the `reference` of the model that it is for. A folder under that name is always whole; one that is
    already there is replaced.
    """
    given = _peft_config(config, names).to_dict() | {
        "base_model_name_or_path": base["name"],
        "inference_mode": True,
        "target_modules": sorted(names),  # peft keeps a set: sorted, equal adapters are equal files
    }
    state = {_FILE_PREFIX + name.replace(f".{_NAME}.", "."): value.contiguous() for name, value in weights.items()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as partial:
        partial.mkdir()
        save_file(state, partial / ADAPTER_WEIGHTS, {"format": "pt"})
        write_json(partial / ADAPTER_CONFIG, given)
        write_json(partial / BASE, base)


def merged(transformer: Transformer, folder: Path) -> Transformer:
    """The transformer with an adapter's products added to its weights, in place: W + (alpha / rank) B A.

    Sums are made in float32 and rounded once. Raises UserError for an adapter that does not fit.
    """
    from peft import PeftConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
    from peft.tuners.lora import LoraLayer
    from safetensors.torch import load_file

    try:
        config = PeftConfig.from_pretrained(str(folder))
        kind = getattr(config.peft_type, "value", config.peft_type)
        if kind != "LORA":
            raise UserError(f"{folder} is an adapter of the kind {kind}: only LORA can be used")
        inject_adapter_in_model(config, transformer, _NAME)
        held = {key.removeprefix(_FILE_PREFIX): value for key, value in load_file(folder / ADAPTER_WEIGHTS).items()}
        needed = get_peft_model_state_dict(transformer, save_embedding_layers=False).keys()
        if held.keys() != needed:
            raise UserError(
                f"{folder} does not fit its model: {len(needed - held.keys())} keys are missing and "
                f"{len(held.keys() - needed)} unknown, for example {min(needed ^ held.keys())}"
            )
        set_peft_model_state_dict(transformer, held, _NAME)
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder} cannot be used as an adapter of this model ({reason})") from None
    for name, layer in list(transformer.named_modules()):
        if isinstance(layer, LoraLayer):
            for part in (layer.lora_A, layer.lora_B):
                part.float()
            layer.merge()
            transformer.set_submodule(name, layer.get_base_layer())
    del transformer.peft_config  # it has no adapter any more, as far as peft is concerned
    return transformer


def _peft_config(config: LoraConfig, names: Sequence[str]) -> peft.LoraConfig:
    import peft

    scale: Any = config.alpha  # peft takes fractions, though it does not say so
    return peft.LoraConfig(
        r=config.rank, lora_alpha=scale, lora_dropout=config.dropout, target_modules=list(names), bias="none"
    )
