"""Chunk-wise causal generators: video diffusion transformers that make a video chunk by chunk over a KV cache.

Such a model (CausVid, arXiv 2412.07772; Self-Forcing, 2506.08009; CausalWan) denoises a chunk of latent frames in a few
steps while it attends to the keys and values of the clean chunks before it. Each chunk is a unit, of one stage. What a
unit keeps (``StageLatent.more``) are the keys and values of its own chunk alone; the cache of a branch is put together
from those of its units where it is needed. So branches share the cache of their common past, nothing is copied where
one divides, and a unit that leads nowhere takes its part of the cache along when it is dropped.

    kind: causal
    where: /shared/models/self-forcing       # handed to the model as it is
    options: {model: my_package.wan:CausalWan, window: 7, sinks: 1}

``model`` names a class with the methods of CausalModel; all options but these three are its own. With a ``window``, a
chunk attends to the latest so many chunks before it (local attention), and besides to the first ``sinks`` ones
(attention sinks, as in LongLive, 2509.22622). No published model has been run through this: it is tested with a small
random transformer that has a KV cache, several denoising steps and a causal decoder.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from framegrove.config.base import ConfigError, imported
from framegrove.config.generator import Form
from framegrove.flow.noise import HashNoise, generator_for
from framegrove.flow.sampler import CancelledSampling, StageLatent
from framegrove.generators.protocol import Frames, OnStep, ShouldStop, Task, UnitPrice, Wanted
from framegrove.lineage import unmutated
from framegrove.types import Path, Sampling

Tensors = Mapping[str, Tensor]

# What a unit keeps besides its latents, by the beginnings of the names.
_KEYS_VALUES, _DECODER, _FRAMES = "kv/", "decoder/", "frames"
_TEXTS = 8  # prompts whose encodings an actor keeps


@dataclass(frozen=True)
class Noise:
    """Where a chunk's noise comes from: a hash of seed and branch, so that any actor draws it again."""

    seed: int
    path: Path

    def normal(self, shape: Sequence[int], step: int = 0) -> Tensor:
        """Standard normal noise, drawn on the CPU; each denoising step that adds noise has its own.

        That of step 0, which a chunk begins from, follows mutations of the branch (framegrove.lineage); at later steps
        a mutated branch has the noise of the one that it was mutated from, and so stays close to it.
        """
        if step == 0:
            return HashNoise().initial(self.seed, self.path, tuple(shape))
        return torch.randn(tuple(shape), generator=generator_for(self.seed, unmutated(self.path), "step", step))


@dataclass(frozen=True)
class Past:
    """What a chunk attends to: the earlier ``chunks`` by number, oldest first, and their keys and values.

    ``keys_values`` has, under each name that ``CausalModel.chunk`` gives, the tokens of these chunks one after the
    other: (tokens, ..), on the model's device. Both are empty for a first chunk.
    """

    chunks: tuple[int, ...]
    keys_values: Tensors


class CausalModel(Protocol):
    """A model behind this adapter. ``where`` is its source's, and ``options`` those that the adapter has not."""

    form: Form  # its units are chunks, its stages 1

    def __init__(self, where: str, **options: Any) -> None:
        """Read what is known without the weights. Raises UserError for options that it has not, or cannot use."""
        ...

    def identity(self) -> Any:
        """JSON values that change whenever its videos do: a fingerprint of the weights, for one."""
        ...

    def price(self, wanted: Wanted, attended: Sequence[int]) -> Sequence[UnitPrice]:
        """The price of each chunk of a video, which attends to so many chunks before it."""
        ...

    def load(self, device: str) -> None:
        """Read the weights."""
        ...

    def encode(self, prompt: str, sampling: Sampling) -> Any:
        """What ``chunk`` is told of a prompt. Called once for each of the latest prompts."""
        ...

    def chunk(
        self, noises: Sequence[Noise], text: Any, past: Past, index: int, wanted: Wanted, step: Callable[[], None]
    ) -> tuple[Tensor, Tensors]:
        """Chunk number ``index`` of a video, once for each of ``noises``, all after the same ``past``.

        The clean latents, (noises, ..), and what later chunks attend to, by any names: the chunk's own keys and values
        at each layer, (noises, tokens, ..), those of the clean latents and not of a denoising step. ``step`` is called
        after each evaluation that ``price`` counts, and raises where the chunk is no longer wanted.
        """
        ...

    def decode(self, latent: Tensor, index: int, state: Tensors) -> tuple[Tensor, Tensors]:
        """The frames of a chunk, uint8 (T, H, W, 3), and the decoder's state after it.

        ``state`` is the one after the chunk before, empty at the first and for decoders that have none.
        """
        ...


class Causal:
    """The adapter (protocol.Adapter) of such a model."""

    def __init__(self, where: str, *, model: str, window: int = 0, sinks: int = 0, **options: Any) -> None:
        """Read what is known without the weights. Raises UserError, as the model does."""
        for name, given in (("window", window), ("sinks", sinks)):
            if not isinstance(given, int) or given < 0:
                raise ConfigError(f"{name} must be a whole number of chunks, 0 or more, not {given!r}")
        if sinks and not window:
            raise ConfigError("sinks are kept beside a window: set window too, or leave sinks out")
        made = imported(model, "model", "class")
        methods = ("identity", "price", "load", "encode", "chunk", "decode")
        missing = [name for name in ("form", *methods) if not hasattr(made, name)]
        if missing:
            raise ConfigError(f"model: {model} has no {' and no '.join(missing)}, see CausalModel")
        self._model: CausalModel = made(where, **options)
        self.form = self._model.form
        if self.form.stages != 1:
            raise ConfigError(f"model: {model} has {self.form.stages} stages, and a chunk-wise causal model has 1")
        self._window, self._sinks = window, sinks
        self._device = "cpu"
        self._encode = functools.lru_cache(_TEXTS)(self._model.encode)

    def identity(self) -> Any:
        """The model's, and what a chunk attends to."""
        return {"model": self._model.identity(), "window": self._window, "sinks": self._sinks}

    def price(self, wanted: Wanted) -> Sequence[UnitPrice]:
        """The model's prices."""
        return self._model.price(wanted, [len(self.attended(index)) for index in range(wanted.units)])

    def load(self, device: str) -> None:
        """Read the weights."""
        self._device = device
        self._model.load(device)

    def attended(self, index: int) -> tuple[int, ...]:
        """The chunks that chunk number ``index`` attends to: with window 2 and sinks 1, chunk 5 to 0, 3 and 4."""
        latest = max(0, index - self._window) if self._window else 0
        return (*range(min(self._sinks, latest)), *range(latest, index))

    def sample(
        self, tasks: Sequence[Task], stages: range, should_stop: ShouldStop, on_step: OnStep
    ) -> list[StageLatent]:
        """Sample chunks, those that go on from the same past in the same evaluations."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        for place, task in enumerate(tasks):
            groups.setdefault((task.wanted, *map(id, task.history)), []).append(place)
        taken = 0

        def step() -> None:
            nonlocal taken
            taken += 1
            if taken % len(groups) == 0:
                on_step()
            if should_stop():
                raise CancelledSampling(taken // len(groups))

        if should_stop():
            raise CancelledSampling(0)
        made: dict[int, StageLatent] = {}
        for places in groups.values():
            made |= dict(zip(places, self._siblings([tasks[place] for place in places], step), strict=True))
        return [made[place] for place in range(len(tasks))]

    def decode(self, tasks: Sequence[Task], latents: Sequence[StageLatent]) -> list[Frames]:
        """The chunks' frames. They were decoded when they were made, for the decoder's state is part of the unit."""
        return [latent.more[_FRAMES].numpy() for latent in latents]

    def _siblings(self, tasks: Sequence[Task], step: Callable[[], None]) -> list[StageLatent]:
        wanted, history = tasks[0].wanted, tasks[0].history
        index, text = len(history), self._encode(wanted.prompt, wanted.sampling)
        noises = [Noise(task.wanted.seed, task.path) for task in tasks]
        latents, keys_values = self._model.chunk(noises, text, self._past(history), index, wanted, step)
        before = self._part(history[-1], _DECODER) if history else {}
        units = []
        for place, latent in enumerate(latents):
            frames, state = self._model.decode(latent, index, before)
            own = {name: tensor[place] for name, tensor in keys_values.items()}
            more = {_KEYS_VALUES + name: _kept(tensor) for name, tensor in own.items()}
            more |= {_DECODER + name: _kept(tensor) for name, tensor in state.items()}
            units.append(StageLatent(0, _kept(latent), {**more, _FRAMES: _kept(frames)}))
        return units

    def _past(self, history: Sequence[StageLatent]) -> Past:
        """The cache of a branch: what its units keep, one after the other."""
        chunks = self.attended(len(history))
        parts = [self._part(history[chunk], _KEYS_VALUES) for chunk in chunks]
        names = parts[0] if parts else ()
        return Past(chunks, {name: torch.cat([part[name] for part in parts]) for name in names})

    def _part(self, unit: StageLatent, beginning: str) -> Tensors:
        """What a unit keeps of one kind, on the model's device."""
        return {
            name.removeprefix(beginning): tensor.to(self._device)
            for name, tensor in unit.more.items()
            if name.startswith(beginning)
        }


def _kept(tensor: Tensor) -> Tensor:
    """A tensor of its own: a part of a larger one would take all of that along, wherever it goes."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
