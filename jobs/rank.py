"""Rank finished videos of one prompt by comparing them in pairs.

    python -m jobs.rank --verifier jobs/configs/verifier_pairwise.yaml --prompt "a red balloon" runs/*/video.mp4

The verifier is asked which of two is better, for every pair and in both orders, and its answers become a strength for
each video (Bradley and Terry): log-odds, of which the difference of two says how likely one is better than the other.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from framegrove.errors import UserError
from framegrove.verification.scoring import probability
from jobs.console import Display, LogLevelOption, application, one_line_errors

if TYPE_CHECKING:
    from framegrove.config.verifier import VerifierConfig
    from framegrove.media.frames import Frames

app = application()
_MOST = 64  # videos: 2,016 pairs
_AT_A_TIME = 16  # pairs: each copies frames of both videos for the verifier


@app.command()
def main(
    videos: Annotated[list[Path], typer.Argument(help="Two or more videos, as jobs.generate leaves them.")],
    prompt: Annotated[str, typer.Option(help="What the videos were made for.")],
    verifier: Annotated[
        str, typer.Option(help="A YAML file with one verifier whose score is of kind pairwise.")
    ] = "jobs/configs/verifier_pairwise.yaml",
    out: Annotated[Path | None, typer.Option(help="Also write the ranking there, as JSON.")] = None,
    log_level: LogLevelOption = None,
) -> None:
    """Rank videos by comparing them in pairs, in this process."""
    with one_line_errors(log_level), Display() as display:
        config = comparer(verifier)
        if not 2 <= len(videos) <= _MOST:
            raise UserError(f"two to {_MOST} videos can be ranked, not {len(videos)}")
        display.begin("reading the videos")
        from framegrove.files import write_json
        from framegrove.media.writing import decode_mp4

        clips = [decode_mp4(path)[0] for path in videos]
        display.begin(f"comparing {math.comb(len(clips), 2)} pairs in both orders")
        from rich.table import Table

        found = asyncio.run(_asked(config, prompt, clips))
        table = Table(title=prompt)
        for column in ("video", "strength", "better than an average one"):
            table.add_column(column, justify="left" if column == "video" else "right")
        for at in found.order:
            table.add_row(str(videos[at]), f"{found.strengths[at]:+.2f}", f"{probability(found.strengths[at]):.0%}")
        display.console.print(table)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_json(out, found.as_json(prompt, videos))


def comparer(file: str) -> VerifierConfig:
    """The verifier that compares. Raises UserError unless the file names exactly one of kind pairwise."""
    from framegrove.config.scores import Pairwise
    from framegrove.config.verifier import load_panel

    panel = load_panel(file)
    panel.check_files()
    if len(panel.verifiers) != 1 or not isinstance(panel.verifiers[0].score, Pairwise):
        raise UserError(f"{file} must list one verifier, with score: {{kind: pairwise}}")
    return panel.verifiers[0]


class Comparer(Protocol):
    """A verifier that compares: `actors.verifier.VllmVerifier`, for one."""

    async def compare(self, prompt: str, first: Frames, second: Frames) -> float:
        """Log-odds that the first of two clips is the better one."""
        ...


@dataclass(frozen=True)
class Ranking:
    """``odds[a, b]`` are the log-odds that a is better than b, for a < b; ``strengths`` are in log-odds too."""

    odds: dict[tuple[int, int], float]
    strengths: tuple[float, ...]

    @property
    def order(self) -> list[int]:
        """The videos, best first."""
        return sorted(range(len(self.strengths)), key=lambda at: -self.strengths[at])

    def as_json(self, prompt: str, videos: Sequence[Path]) -> dict[str, object]:
        """What --out holds."""
        return {
            "prompt": prompt,
            "ranking": [{"video": str(videos[at]), "strength": self.strengths[at]} for at in self.order],
            "pairs": [
                {"first": str(videos[a]), "second": str(videos[b]), "first_is_better": probability(odds)}
                for (a, b), odds in self.odds.items()
            ],
        }


async def ranked(verifier: Comparer, prompt: str, clips: Sequence[Frames]) -> Ranking:
    """Compare every two of some clips, uint8 (T, H, W, 3), made for one prompt."""
    from framegrove.verification.bradley_terry import strengths

    pairs = list(itertools.combinations(range(len(clips)), 2))
    turns = asyncio.Semaphore(_AT_A_TIME)

    async def compared(a: int, b: int) -> float:
        async with turns:
            return await verifier.compare(prompt, clips[a], clips[b])

    found = await asyncio.gather(*(compared(a, b) for a, b in pairs))
    odds = dict(zip(pairs, found, strict=True))
    return Ranking(odds, strengths(len(clips), {pair: probability(each) for pair, each in odds.items()}))


async def _asked(config: VerifierConfig, prompt: str, clips: Sequence[Frames]) -> Ranking:
    from actors.verifier_kinds import set_environment, verifier_class

    set_environment([config])
    verifier = verifier_class(config.kind)(config)
    try:
        await verifier.ready()
        assert hasattr(verifier, "compare"), "pairwise scores are for kinds that compare"
        return await ranked(verifier, prompt, clips)
    finally:
        verifier.close()


if __name__ == "__main__":
    app()
