"""How fast a run trains: tokens, FLOPs and their share of what the device can do, waiting, memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from framegrove.flow.objective import StageSample
from framegrove.models.flops import Shape, layout_flops, layout_tokens
from framegrove.training.step import Trainable

# FLOPs per second of dense bfloat16 matrix products, from NVIDIA's data sheets, by a part of the device's name. The
# first that fits counts.
_PEAKS = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989.4e12,
    "H200": 989.4e12,
    "L40S": 362e12,
}


class Workers(Protocol):
    """Those who train together."""

    data_world: int
    world: int

    def most(self, count: int) -> int: ...

    def total(self, values: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Speed:
    """How fast all workers together have trained since the last reading.

    ``tokens_per_second`` counts all tokens of the transformer, text and history too. ``flops_per_second`` are those of
    its forward and backward passes, and of a reference's forward ones, without what is recomputed. ``mfu`` is their
    share of what the devices can do in dense bfloat16, None where that is not known. ``data_wait`` is the share of time
    spent waiting for data, the mean of the workers; ``peak_memory`` is in bytes, of the worker with the most: of CUDA
    since the last reading, otherwise the process's resident set since its start.
    """

    seconds: float
    tokens_per_second: float
    flops_per_second: float
    mfu: float | None
    data_wait: float
    peak_memory: int


class Meter:
    """One worker's counters, from reading to reading."""

    def __init__(self, module: Trainable) -> None:
        config = module.transformer.config
        # A backward pass costs two forward passes: gradients of inputs and of weights. Frozen weights need no gradient.
        passes = 3 if all(p.requires_grad for p in module.transformer.parameters()) else 2
        self._text_length = lru_cache(2**16)(lambda prompt: module.text.token_counts([prompt])[0])
        self._tokens = lru_cache(2**16)(lambda *layout: layout_tokens(config, *layout))
        self._flops = lru_cache(2**16)(lambda *layout: layout_flops(config, *layout))
        self._passes = passes
        self.restart()

    def restart(self) -> None:
        """Begin anew: what was done since the last reading was no training."""
        self._began = time.monotonic()
        self.tokens, self.flops, self.waited = 0, 0, 0.0
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def add(self, packs: Sequence[Sequence[StageSample]], waited: float) -> None:
        """Count this worker's share of a step, and the seconds that it was waited for."""
        self.waited += waited
        for sample in (sample for members in packs for sample in members):
            history = tuple(_shape(clip) for clip in sample.history)
            text = len(sample.text.tokens_LD) if sample.text is not None else self._text_length(sample.prompt)
            paired = sample.rival is not None
            layout = text, history, _shape(sample.noisy), 1 + paired
            self.tokens += self._tokens(*layout)
            self.flops += (self._passes + paired) * self._flops(*layout)  # a pair's reference: one forward pass more

    def read(self, workers: Workers) -> Speed:
        """The speed of all workers, who call this together, since this was restarted."""
        seconds = time.monotonic() - self._began
        sums = torch.tensor([self.tokens, self.flops, self.waited], dtype=torch.float64)
        tokens, flops, waited = workers.total(sums).tolist()
        peak = peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
        return Speed(
            seconds,
            tokens / seconds,
            flops / seconds,
            None if peak is None else flops / seconds / (peak * workers.world),
            waited / workers.data_world / seconds,
            workers.most(_peak_memory()),
        )


def peak_flops(device: str) -> float | None:
    """FLOPs per second of dense bfloat16 matrix products of a device by its name; None where that is not known."""
    return next((peak for name, peak in _PEAKS.items() if name in device), None)


def _peak_memory() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _shape(clip_CTHW: Tensor) -> Shape:
    _, units, height, width = clip_CTHW.shape
    return units, height, width
