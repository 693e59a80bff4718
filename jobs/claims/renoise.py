"""The corrected re-noise between stages, on and off: how blocky the samples become (PFM figure 10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.claims.claim import Bench, Claim, Figure, Finding

if TYPE_CHECKING:
    import numpy as np

    from framegrove.flow.noise import NoiseSource

UNITS = 3
CORRECTED, WHITE, NONE = "corrected", "white", "none"
TRUE = "true clips"
_LATENT, _PIXEL = 2, 16  # sides of the blocks that the last jump doubles: in latents, and in pixels behind the VAE
_NEAR = 0.02


def sources() -> dict[str, NoiseSource]:
    """What is added at the jumps: block noise as derived; as much noise that knows no blocks; nothing."""
    import torch
    from torch import Tensor

    from framegrove.flow.noise import HashNoise, generator_for
    from framegrove.types import Path as Branch

    class White(HashNoise):
        """Independent noise of the same variance."""

        def jump(self, seed: int, path: Branch, stage: int, shape: tuple[int, ...]) -> Tensor:
            return torch.randn(shape, generator=generator_for(seed, path, "jump", stage))

    class Nothing(HashNoise):
        """No noise: the doubled state is rescaled alone."""

        def jump(self, seed: int, path: Branch, stage: int, shape: tuple[int, ...]) -> Tensor:
            return torch.zeros(shape)

    return {CORRECTED: HashNoise(), WHITE: White(), NONE: Nothing()}


@dataclass(frozen=True)
class _Read:
    """Of each video: the share of steps on block edges in latents and in pixels, and what the oracle says."""

    latents: list[float]
    pixels: list[float]
    scores: list[float]
    frame: Any  # the last one of some videos, for the picture


def run(bench: Bench) -> Finding:
    """Videos without a search from the same seeds, their stages joined in three ways."""
    from framegrove.digits import world
    from framegrove.digits.oracle import DigitsOracle
    from framegrove.evaluation.curves import bootstrap, compare
    from framegrove.flow.generation import generate
    from framegrove.models.pretrained import load_source

    pipeline, oracle = load_source(bench.model), DigitsOracle()
    asked = world.prompts(bench.prompts, bench.seed)
    seeds = [bench.seed + n for n in range(len(asked))]
    captions = [world.caption(objects) for objects in asked]
    read: dict[str, _Read] = {}
    for number, (name, noise) in enumerate(sources().items()):

        def on_unit(done: int, total: int, number: int = number, name: str = name) -> None:
            bench.display.show((number + done / total) / len(sources()), name)

        videos = generate(pipeline, captions, seeds, units=UNITS, noise=noise, on_unit=on_unit)
        frames = [video.frames for video in videos]
        scores = [oracle.judge(each, objects).score for each, objects in zip(frames, asked, strict=True)]
        read[name] = _read([[unit.cpu().numpy() for unit in video.latents] for video in videos], frames, scores)
    read[TRUE] = _true(pipeline, oracle, asked, bench.seed)

    def by_video(values: Sequence[float]) -> dict[int, float]:
        return dict(enumerate(values))

    figures = []
    for name, each in read.items():
        figures.append(Figure.of(f"share of steps on block edges, latents, {name}", bootstrap(each.latents)))
        figures.append(Figure.of(f"the same in pixels, {name}", bootstrap(each.pixels)))
        figures.append(Figure.of(f"oracle score, {name}", bootstrap(each.scores)))
    more = {
        name: compare(name, CORRECTED, {n: by_video(read[n].latents) for n in (name, CORRECTED)}).difference
        for name in (WHITE, NONE)
    }
    headline = f"share of steps on block edges, latents, {NONE} minus {CORRECTED}"
    figures.append(Figure.of(headline, more[NONE]))
    figures.append(Figure.of(f"share of steps on block edges, latents, {WHITE} minus {CORRECTED}", more[WHITE]))
    off = abs(bootstrap(read[CORRECTED].latents).mean - bootstrap(read[TRUE].latents).mean)
    figures.append(Figure(f"{CORRECTED}, distance from true clips", off))
    remarks = (
        f"{NONE}: the doubled state is rescaled as it is, without noise; {WHITE}: as much noise, of independent values",
        "the same weights and seeds throughout: nothing was trained for the other two",
    )
    met = more[NONE].low > 0 and off <= _NEAR
    return Finding(tuple(figures), headline, met, lambda path: _draw(read, path), remarks)


def _read(latents: Sequence[Sequence[np.ndarray]], frames: Sequence[np.ndarray], scores: list[float]) -> _Read:
    from statistics import fmean

    import numpy as np

    from framegrove.evaluation.blockiness import edge_share

    in_latents = [fmean(edge_share(unit, _LATENT) for unit in video) for video in latents]
    in_pixels = [edge_share(np.moveaxis(video, -1, 1), _PIXEL) for video in frames]
    return _Read(in_latents, in_pixels, scores, [video[-1] for video in frames[:4]])


def _true(pipeline: Any, oracle: Any, asked: Sequence[Any], seed: int) -> _Read:
    """The world's own clips of the same prompts, encoded and decoded."""
    import numpy as np

    from framegrove.digits import world
    from framegrove.digits.clips import seen_through
    from framegrove.digits.teacher_features import reference_clips
    from framegrove.flow.generation import encode_clip

    drawn = list(reference_clips(asked, UNITS, seed))
    shown = list(seen_through(pipeline.vae, np.stack(drawn)))
    latents = [[unit.cpu().numpy() for unit in encode_clip(pipeline, clip, world.SIZE, world.SIZE)] for clip in drawn]
    return _read(
        latents, shown, [oracle.judge(clip, objects).score for clip, objects in zip(shown, asked, strict=True)]
    )


def _draw(read: Mapping[str, _Read], path: Path) -> None:
    import numpy as np

    from framegrove.evaluation.curves import bootstrap
    from framegrove.evaluation.figures import INK, save
    from jobs.claims.drawing import bars, canvas, dress

    figure, panels = canvas(2, title="Stages joined with the corrected noise, with white noise, and with none")
    names = [TRUE, CORRECTED, WHITE, NONE]
    kinds = ("latents", "pixels")
    bars(panels[0], names, {kind: [bootstrap(getattr(read[name], kind)) for name in names] for kind in kinds})
    panels[0].axhline(0.5, color=INK, lw=0.8, ls="--")
    dress(panels[0], x="", y="share of squared steps on block edges", title="0.5: no blocks to be seen")
    sheet = np.concatenate([np.concatenate(read[name].frame, axis=1) for name in names])
    panels[1].imshow(sheet, interpolation="nearest")
    side = len(sheet) / len(names)
    panels[1].set_yticks([side * (row + 0.5) for row in range(len(names))], names, fontsize=8)
    panels[1].set_xticks([])
    panels[1].set_title("the last frame of four videos", loc="left", fontsize=9.5)
    save(figure, path)


CLAIM = Claim(
    name="renoise",
    question="Does the corrected noise at the jumps between stages keep samples free of blocks?",
    source="PFM equation 15 and figure 10",
    measured="share of squared steps between neighbours that lie on the edges of upsampled blocks, of the shipped "
    "model's latents and pixels, with the noise as derived, with white noise and with none; beside true clips",
    aim=f"without noise the share is larger (interval), and with the corrected noise within {_NEAR} of true clips'",
    takes="5 min for 48 prompts",
    run=run,
    missing="models that were trained without the correction; pictures larger than 64 px, whose latents of 8x8 have "
    "sixteen blocks; people's eyes",
    prompts=48,
)
