"""What training on a cluster costs besides the model: CPU time of the same steps by two workers and by the plain loop.

Both are commands, `jobs.train` with either engine, on clips of random latents. All processes below a command count,
Ray's own too, between two logged steps. The plain loop runs twice side by side, so that both cores are busy in any
case: a core whose neighbour rests is faster.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import TYPE_CHECKING, Any

from framegrove.errors import UserError

if TYPE_CHECKING:
    import torch

    from framegrove.evaluation.benches import Finding

_ROOT = Path(__file__).resolve().parents[2]
_CLIPS, _UNITS = 64, 4
_SKIPPED = 2  # first steps, which warm up
_AIM = 1.1


@dataclass(frozen=True)
class Size:
    """A transformer, and how long it is trained."""

    name: str
    layers: int
    heads: int  # of 64
    batch: int
    steps: int


# What comes on top, all-reduce and DeepSpeed's handling of gradients, grows with the weights and not with the batch.
SIZES = (
    Size("11 M", layers=4, heads=4, batch=32, steps=14),
    Size("11 M", layers=4, heads=4, batch=256, steps=7),
    Size("100 M", layers=6, heads=10, batch=16, steps=8),
    Size("100 M", layers=6, heads=10, batch=128, steps=6),
)


def overhead(device: torch.device, repeats: int) -> list[Finding]:
    """CPU seconds of a step, ZeRO 1 and 3 beside the plain loop; the arguments are not heeded."""
    from framegrove.evaluation.benches import Finding

    findings = []
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            config = prepared(Path(folder), size)
            plain = seconds_of([_command(config, Path(folder) / f"plain{n}", "plain") for n in range(2)], size.steps)
            for zero in (1, 3):
                out = Path(folder) / f"zero{zero}"
                ours = seconds_of(
                    [_command(config, out, "deepspeed", "--workers", "2", "--set", f"zero={zero}")], size.steps
                )
                what = (
                    f"CPU time of a training step, {size.name} weights, batch {size.batch}, ZeRO {zero}, 2 workers "
                    "(plain: one process)"
                )
                met = ours <= _AIM * plain
                findings.append(Finding(what, ours, "s", plain, f"<= {_AIM} x plain", met))
    return findings


def prepared(folder: Path, size: Size) -> Path:
    """A configuration in ``folder`` to train a new model of this size, and the clips for it."""
    import yaml

    width = 64 * size.heads
    write_clips(folder / "clips")
    transformer = {
        "num_layers": size.layers,
        "num_attention_heads": size.heads,
        "attention_head_dim": 64,
        "caption_projection_dim": width,
        "pooled_projection_dim": 64,
        "joint_attention_dim": 64,
        "sample_size": 16,
        "pos_embed_max_size": 16,
        "max_num_frames": 32,
    }
    recipe = {"fps": 8, "height": 64, "width": 64, "units": _UNITS}
    phase = {
        "name": "only",
        "sizes": [[64, 64]],
        "units": _UNITS,
        "steps": size.steps,
        "batch": size.batch,
        "warmup": 0,
    }
    config: dict[str, Any] = {
        "data": str(folder / "clips"),
        "model": {"start": None, "vae": "shipped", "transformer": transformer, "text": {"width": 64}, "recipe": recipe},
        "precision": "fp32",
        "log_every": 1,
        "checkpoint_every": 10 * size.steps,
        "tracking": {"to": "none"},
        "phases": [phase],
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def write_clips(folder: Path) -> None:
    """Clips of random latents, which say that the shipped VAE has encoded them."""
    import numpy as np
    import pyarrow.parquet as pq

    from framegrove.data.schema import LatentClip, to_table
    from framegrove.digits import world
    from framegrove.models.pretrained import VAE, embedded_model
    from framegrove.models.vae_files import read_vae
    from framegrove.training.encode import vae_digest

    clips = []
    for index in range(_CLIPS):
        rng = np.random.default_rng(index)
        caption = world.caption(world.draw_objects(rng, split="train"))
        latents = rng.standard_normal((16, _UNITS, 8, 8)).astype(np.float16)
        clips.append(LatentClip(index, caption, 64, 64, 8.0, latents))
    folder.mkdir()
    pq.write_table(to_table(clips, vae_digest(read_vae(embedded_model() / VAE))), folder / "clips.parquet")


def _command(config: Path, out: Path, engine: str, *more: str) -> tuple[list[str], Path]:
    given = ["--config", str(config), "--out", str(out), "--engine", engine, "--threads", "1", *more]
    return [sys.executable, "-m", "jobs.train", *given], out


def seconds_of(commands: Sequence[tuple[Sequence[str], Path]], steps: int) -> float:
    """CPU seconds of a step of each of these commands, which run at the same time; the mean of them.

    A command is said with the folder of its run. Raises UserError where one fails.
    """
    with contextlib.ExitStack() as stack:
        started = [(stack.enter_context(_running(command)), out) for command, out in commands]
        first = _at_step(started, _SKIPPED)
        last = _at_step(started, steps - 1)  # after the last they may be gone
    spent = sum(after - before for before, after in zip(first, last, strict=True))
    return spent / (steps - 1 - _SKIPPED) / len(commands)


@contextlib.contextmanager
def _running(command: Sequence[str]) -> Iterator[Popen[bytes]]:
    with Popen(command, cwd=_ROOT, stdout=DEVNULL, stderr=DEVNULL) as process:
        try:
            yield process
        except BaseException:
            process.terminate()
            raise


def _at_step(started: Sequence[tuple[Popen[bytes], Path]], step: int) -> list[float]:
    """The CPU seconds that each command has taken by the time that it has logged a step."""
    from framegrove.training import curve

    found: dict[int, float] = {}
    while len(found) < len(started):
        for index, (process, out) in enumerate(started):
            if index not in found and len(curve.read(out / curve.LINES)) >= step:
                found[index] = _cpu_seconds(process.pid)
            elif index not in found and process.poll() not in (None, 0):
                raise UserError(
                    f"the bench's training in {out} failed: run jobs.train --config {out.parent}/config.yaml"
                )
        time.sleep(0.02)
    return [found[index] for index in range(len(started))]


def _cpu_seconds(pid: int) -> float:
    """Of a process and all below it."""
    import psutil

    above = psutil.Process(pid)
    seconds = 0.0
    for process in (above, *above.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds += times.user + times.system
    return seconds
