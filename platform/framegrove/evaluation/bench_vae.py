"""Speed and memory of the VAE, beside plain implementations.

GPU memory is counted tensor by tensor, so that no GPU is needed; on the device at hand it is measured for one tile.
"""

from __future__ import annotations

import multiprocessing
import resource
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from framegrove.config.vae import VaeConfig
from framegrove.evaluation.benches import Finding, Stopwatch, in_turns
from framegrove.models.pretrained import VAE, embedded_model
from framegrove.models.vae import CausalVideoVae, State
from framegrove.models.vae_files import load_vae
from framegrove.models.vae_tiling import decode_unit, decode_unit_tiled, decode_units, encode_unit

_LARGE = (96, 160)  # a 768p unit
_SMALL = (16, 16)  # a unit of 128x128 pixels
_CLIP = 4  # units whose decoding is counted
_SIBLINGS = 5  # clips that are decoded together


def vae(device: torch.device, repeats: int) -> list[Finding]:
    """Time of the shipped VAE on a CPU, and peak memory of decoding 768p with the public VAE's architecture.

    Memory is without the weights. It is counted for a GPU in bfloat16, tile by tile and unit by unit, beside the whole
    clip at once; and measured on this device, beside what is counted for it: for a 768p unit on a GPU, for a small one
    in float32 on a CPU.
    """
    gpu = (torch.bfloat16, _LARGE)
    one, held = _counted(*gpu, units=2)
    all_units, _ = _counted(*gpu, units=_CLIP)
    whole, _ = _counted(*gpu, units=_CLIP, at_once=True)
    here = gpu if device.type == "cuda" else (torch.float32, _SMALL)
    # In a new process, because a process's peak memory never falls.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        measured, seconds = fresh.submit(_measured, device.type, *here, torch.get_num_threads()).result()
    counted, _ = _counted(*here, units=2, with_host=device.type == "cpu")
    large, small = (f"{8 * width}x{8 * height}" for height, width in (_LARGE, here[1]))
    streamed = f"VAE decode of {_CLIP} units at {large} by tiles, bfloat16: GPU memory, counted"
    return [
        *_vae_on_cpu(repeats),
        Finding(f"{streamed} (plain: the whole clip at once)", all_units, "GiB", whole, "< plain", all_units < whole),
        Finding(f"{streamed} (plain: of 2 units)", all_units, "GiB", one, "= plain", all_units == one),
        Finding(f"what a branch keeps in host memory to go on decoding at {large}, bfloat16", held, "GiB"),
        Finding(f"VAE decode of a unit of 8 frames, {small}: peak memory (plain: counted)", measured, "GiB", counted),
        Finding(f"VAE decode of a unit of 8 frames, {small}", seconds, "s"),
    ]


def _vae_on_cpu(repeats: int) -> list[Finding]:
    """Decoding and encoding a clip with the shipped VAE, beside the convolutions that PyTorch chooses by itself."""
    cpu = torch.device("cpu")
    model, norm = load_vae(embedded_model() / VAE)
    size = 64 // model.config.spatial_factor
    shape = (_SIBLINGS, model.config.decoder_in_channels, _CLIP, size, size)
    siblings = norm.denormalise(torch.randn(shape, generator=torch.Generator().manual_seed(0))).split(1)

    def decode() -> Tensor:
        state, frames = None, []
        for unit in siblings[0].split(1, dim=2):
            part, state = decode_unit(model, unit, state)
            frames.append(part)
        return torch.cat(frames, 2)

    with torch.no_grad():
        video = decode()

    def encode() -> None:
        state = None
        for part in video.split([1] + [model.config.temporal_factor] * (_CLIP - 1), dim=2):
            _, state = encode_unit(model, part, state)

    def one_by_one() -> None:
        state: list[State | None] = [None] * _SIBLINGS
        for units in zip(*(clip.split(1, dim=2) for clip in siblings), strict=True):
            state = [decode_unit(model, unit, held)[1] for unit, held in zip(units, state, strict=True)]

    def together() -> None:
        state: list[State | None] = [None] * _SIBLINGS
        for units in zip(*(clip.split(1, dim=2) for clip in siblings), strict=True):
            state = [after for _, after in decode_units(model, units, state)]

    def ours(work: Callable[[], object]) -> Callable[[], object]:
        return torch.no_grad()(work)

    def plain(work: Callable[[], object]) -> Callable[[], object]:
        return torch.enable_grad()(work)  # weights are frozen: no graph is built, only PyTorch's own choice returns

    findings = []
    for what, quick, slow in (
        (f"VAE decode of {_CLIP} units at 64x64, one clip (plain: PyTorch's choice)", ours(decode), plain(decode)),
        (f"VAE encode of {_CLIP} units at 64x64, one clip (plain: PyTorch's choice)", ours(encode), plain(encode)),
        (f"VAE decode of {_SIBLINGS} siblings (plain: one by one)", ours(together), ours(one_by_one)),
    ):
        first, second = in_turns([quick, slow], repeats, cpu)
        findings.append(Finding.timed(what, first, second, "< plain", first.median < second.median, "ms"))
    return findings


@torch.no_grad()
def _measured(kind: str, dtype: torch.dtype, size: tuple[int, int], threads: int) -> tuple[float, float]:
    """Peak GiB and seconds (see `Stopwatch`) of decoding the second unit of a clip."""
    torch.set_num_threads(threads)
    device = torch.device(kind)
    model = CausalVideoVae(VaeConfig()).to(device, dtype).eval()
    latent = torch.randn(1, model.config.decoder_in_channels, 1, *size, device=device)
    before = _memory(device)
    _, state = decode_unit_tiled(model, latent)
    watch = Stopwatch(device)
    decode_unit_tiled(model, latent, state)
    watch.stop()
    return (_memory(device) - before) / 2**30, watch.seconds()


@torch.no_grad()
def _counted(
    dtype: torch.dtype, size: tuple[int, int], units: int, *, at_once: bool = False, with_host: bool = False
) -> tuple[float, float]:
    """Peak GiB on an imagined GPU, and GiB of the decoder's state, which is kept in host memory.

    With ``with_host`` the peak includes host memory, which on a CPU is the same memory.
    """
    state: list[Tensor] = []
    with torch.device("meta"):
        model = CausalVideoVae(VaeConfig()).to(dtype).eval()
    # The device "meta" stands for the GPU: where torch was built without CUDA, fake CUDA tensors support few operators.
    with FakeTensorMode(allow_non_fake_inputs=True), _Counter(model, with_host) as counter:
        channels = model.config.decoder_in_channels
        if at_once:
            model.decode(torch.empty(1, channels, units, *size, device="meta"))
        for _ in () if at_once else range(units):
            unit = torch.empty(1, channels, 1, *size, device="meta")
            state = decode_unit_tiled(model, unit, state or None)[1]  # the frames are not kept
    return counter.most / 2**30, sum(part.untyped_storage().nbytes() for part in state) / 2**30


class _Counter(TorchDispatchMode):
    """Records in ``most`` the peak of bytes alive on the GPU, not counting the weights of ``model``."""

    def __init__(self, model: CausalVideoVae, with_host: bool) -> None:
        super().__init__()
        self._kinds = ("meta", "cpu") if with_host else ("meta",)
        self._seen = weakref.WeakSet(weight.untyped_storage() for weight in model.parameters())
        self._now = self.most = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.device.type in self._kinds:
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._seen:
            self._seen.add(storage)
            self._add(storage.nbytes())
            weakref.finalize(storage, self._add, -storage.nbytes())

    def _add(self, size: int) -> None:
        self._now += size
        self.most = max(self.most, self._now)


def _memory(device: torch.device) -> int:
    """The most bytes ever held, by this process or on the GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
