"""The bench of preparation: clips a second with one decoding task and with two, and how busy the encoder is kept.

Both are streams of `actors.curation` on a cluster of this machine. What goes on before the first clip has come out,
while actors start, does not count.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from framegrove.config.curate import CurateConfig
    from framegrove.evaluation.benches import Finding

_FILMS, _FRAMES, _HEIGHT, _WIDTH = 40, 25, 720, 1280
_BUSY = 0.9


@dataclass(frozen=True)
class Pace:
    """How fast clips came out, per second, and the share of that time in which the encoder encoded."""

    clips: float
    busy: float


def footage(device: torch.device, repeats: int) -> list[Finding]:
    """Preparation of 720p films whose decoding, or whose encoding, takes longer; the arguments are not heeded."""
    from framegrove.config.curate import CurateConfig, MotionConfig, PictureConfig, ShotsConfig
    from framegrove.evaluation.benches import Finding

    looked_at = CurateConfig(
        sizes=((64, 64),), fps=8, shots=ShotsConfig(), motion=MotionConfig(least=0, most=100), picture=PictureConfig()
    )
    encoded = CurateConfig(sizes=((256, 256),), fps=8)
    with tempfile.TemporaryDirectory() as folder:
        write_films(Path(folder))
        one, two = (pace(Path(folder), looked_at.model_copy(update={"decoders": count})) for count in (1, 2))
        slow = pace(Path(folder), encoded.model_copy(update={"decoders": 1}))
    return [
        Finding("preparation, every stage on: two decoding tasks, beside one", two.clips, "clips/s", one.clips),
        Finding(
            f"preparation where encoding is slower ({slow.clips:.2f} clips/s): share of the time that it goes on",
            slow.busy,
            "",
            aim=f">= {_BUSY}",
            met=slow.busy >= _BUSY,
        ),
    ]


def write_films(folder: Path) -> None:
    """Films of noise with structure, which moves sideways: nothing is too still, too blurred or a duplicate."""
    import numpy as np
    from scipy.ndimage import zoom

    from framegrove.media.writing import encode_mp4

    for number in range(_FILMS):
        rng = np.random.default_rng(number)
        picture = zoom(rng.uniform(0, 255, (_HEIGHT // 16, _WIDTH // 16, 3)), (16, 16, 1), order=1).astype(np.uint8)
        frames = np.stack([np.roll(picture, 8 * frame, axis=1) for frame in range(_FRAMES)])
        (folder / f"{number:03}.mp4").write_bytes(encode_mp4(frames, fps=8))


def pace(films: Path, config: CurateConfig) -> Pace:
    """Prepare the films, without keeping anything. Raises UserError where one of them is rejected."""
    from actors import curation
    from framegrove.cluster.session import connect
    from framegrove.curation.clip import Rejection
    from framegrove.curation.collecting import Encoded
    from framegrove.curation.entries import read_entries
    from framegrove.curation.footage import Footage
    from framegrove.errors import UserError
    from framegrove.models.pretrained import VAE, embedded_model
    from framegrove.models.vae_files import read_vae
    from framegrove.training.encode import EncoderFiles, vae_digest

    files = EncoderFiles(embedded_model() / VAE)
    vae = read_vae(files.vae)
    prepared = Footage(config, vae_digest(vae), vae.config.temporal_factor)
    times: list[float] = []
    busy: list[float] = []
    with connect(num_cpus=curation.room(prepared)) as cluster:
        for outcome in curation.outcomes(read_entries(str(films)), prepared, {}, files, cluster):
            if isinstance(outcome, Rejection):
                raise UserError(f"the bench's film {outcome.path} was rejected: {outcome.reason}")
            if isinstance(outcome, Encoded):
                times.append(time.monotonic())
                busy.append(outcome.busy)
    seconds = times[-1] - times[0]
    return Pace((len(times) - 1) / seconds, sum(busy[1:]) / seconds)
