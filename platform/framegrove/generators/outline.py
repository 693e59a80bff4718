"""What a pipeline costs and needs, counted from its configurations alone.

The pipeline's own call runs with networks whose tensors have shapes and no numbers: what goes into a network becomes
such a tensor, and what comes out becomes zeros, so that the loop, the scheduler and the decoding around the networks
are the real ones, whatever the pipeline. FLOPs are those of matrix products, convolutions and attention
(torch.utils.flop_counter), for a prompt of full length. Text encoders, and the VAE's encoding of a first picture, are
not counted: once a video, they are hundreds of times less than its denoising.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from framegrove.generators.segments import Stretch

ONE_AT_A_TIME = threading.Lock()


class _Decoded(Exception):
    """The VAE has been counted, and the frames are of no interest."""


class _WholePrompts(TorchFunctionMode):
    """Where a network picks a prompt's tokens by its mask (Mochi), these are all there are: it has no numbers."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.nonzero:
            return torch.arange(args[0].numel())[:, None]
        return function(*args, **(kwargs or {}))


@dataclass
class Meter:
    """FLOPs so far, elements of the largest tensor that came out of a layer, and bytes of a branch after a step."""

    flops: int = 0
    largest: int = 0
    carried: int = 0
    shapes: FakeTensorMode = field(default_factory=lambda: FakeTensorMode(allow_non_fake_inputs=True))

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Count what is done in this block."""
        handle = register_module_forward_hook(self._look)
        try:
            with (
                FlopCounterMode(display=False) as counter,
                self.shapes,
                torch.no_grad(),
                _WholePrompts(),
                sdpa_kernel(SDPBackend.MATH),  # as matrix products, all of which are counted
            ):
                yield
        finally:
            handle.remove()
        self.flops += counter.get_total_flops()

    def shape(self, value: Any) -> Any:
        """A tensor's shape, as a tensor without numbers; anything else as it is."""
        return self.shapes.from_tensor(value) if isinstance(value, Tensor) else value

    def _look(self, module: nn.Module, given: Any, made: Any) -> None:
        if isinstance(made, Tensor):
            self.largest = max(self.largest, made.numel())


@dataclass
class Outline:
    """A pipeline without weights. What is counted is one call at a time: threads take turns by ``ONE_AT_A_TIME``."""

    pipe: Any
    meter: Meter = field(default_factory=Meter)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Transformers and the VAE, by their names in the pipeline."""
        return {name: it for name, it in self.pipe.components.items() if isinstance(it, nn.Module)}

    def step(self, arguments: Mapping[str, Any]) -> Meter:
        """What one denoising step of a video takes, with guidance where it is on."""
        return self._run(range(1), {**arguments, "output_type": "latent"})

    def decoding(self, arguments: Mapping[str, Any]) -> Meter:
        """What decoding a video takes."""
        return self._run(range(0), {**arguments, "output_type": "np"})

    def _run(self, steps: range, arguments: Mapping[str, Any]) -> Meter:
        meter = self.meter
        meter.flops = meter.largest = 0
        generator = torch.Generator()
        self.pipe.stretch = stretch = Stretch(steps, [generator])
        with contextlib.suppress(_Decoded):
            given = {**arguments, **self._embedded(arguments)}
            self.pipe(**given, generator=generator, callback_on_step_end=stretch.stepped)
        state = (stretch.latents, *stretch.state(self.pipe, 0).values()) if stretch.latents is not None else ()
        return Meter(meter.flops, meter.largest, sum(tensor.numel() * tensor.element_size() for tensor in state))

    def _embedded(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments in which embeddings of prompts are handed to the call, by the names that it has for them."""
        taken = inspect.signature(type(self.pipe).__call__).parameters
        config = self.pipe.transformer.config
        width = config.get("text_embed_dim") or config.get("text_dim") or config.get("caption_channels")
        tokens = arguments.get("max_sequence_length") or taken["max_sequence_length"].default
        text, mask = torch.zeros(1, tokens, width), torch.ones(1, tokens, dtype=torch.bool)
        made: dict[str, Any] = {"prompt_embeds": text, "prompt_attention_mask": mask}
        if "pooled_projection_dim" in config:
            made["pooled_prompt_embeds"] = torch.zeros(1, config["pooled_projection_dim"])
        made.update({f"negative_{name}": tensor for name, tensor in made.items()})
        return {**{name: it for name, it in made.items() if name in taken}, "prompt": None, "negative_prompt": None}


def outlined(
    pipeline: type, networks: Mapping[str, tuple[type, Mapping[str, Any]]], others: Mapping[str, Any]
) -> Outline:
    """A pipeline of ``networks`` (class and configuration of each, by name) without numbers, and of its ``others``."""
    meter = Meter()
    with meter.shapes:
        made = {
            name: _counted(kind, meter).from_config(dict(config)).eval()  # type: ignore[attr-defined]
            for name, (kind, config) in networks.items()
        }
    own = made["vae"]._buffers  # of some VAEs the scale of latents, which the pipeline computes with
    own.update({name: torch.ones(buffer.shape) for name, buffer in own.items() if buffer is not None})
    place: dict[str, Any] = {
        "_execution_device": property(lambda self: torch.device("cpu")),
        "__module__": pipeline.__module__,
    }
    if hasattr(pipeline, "encode_image"):
        place["encode_image"] = _picture_embedded
    pipe = type(pipeline.__name__, (pipeline,), place)(**made, **others)
    pipe.set_progress_bar_config(disable=True)
    return Outline(pipe, meter)


def _counted(kind: type, meter: Meter) -> type:
    """The class of a network that computes shapes alone and counts."""
    made: dict[str, Callable[..., Any]] = {}
    if hasattr(kind, "decode"):
        plain_decode, plain_encode = kind.decode, kind.encode  # type: ignore[attr-defined]

        def decode(self: Any, latents: Tensor, *args: Any, **kwargs: Any) -> None:
            with meter.counting():
                plain_decode(self, *tree_map(meter.shape, (latents, *args)), **tree_map(meter.shape, kwargs))
            raise _Decoded

        def encode(self: Any, clip: Tensor, *args: Any, **kwargs: Any) -> Any:
            with meter.shapes, torch.no_grad():
                found = plain_encode(self, meter.shape(clip), *args, **kwargs)
            known = type(found.latent_dist)(torch.zeros(found.latent_dist.parameters.shape))
            return type(found)(latent_dist=known)

        made = {"decode": decode, "encode": encode}
    else:
        plain = kind.forward  # type: ignore[attr-defined]

        @functools.wraps(plain)
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            with meter.counting():
                found = plain(self, *tree_map(meter.shape, args), **tree_map(meter.shape, kwargs))
            return tree_map(_zeros, found)

        made = {"forward": forward}
    return type(kind.__name__, (kind,), {**made, "__module__": kind.__module__})


def _picture_embedded(pipe: Any, image: Any, device: Any = None) -> Tensor:
    """As wide as what CLIP's ViT-H/14 makes of a picture, which is Wan 2.1's."""
    return torch.zeros(1, 257, pipe.transformer.config.image_dim)


def _zeros(value: Any) -> Any:
    return torch.zeros(value.shape, dtype=value.dtype) if isinstance(value, Tensor) else value
