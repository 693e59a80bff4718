"""Videos ranked by comparisons."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from framegrove.media.writing import encode_mp4
from jobs.rank import app, ranked
from tests.fakes import FakeChatServer
from tests.unit.test_endpoint_verifier import brightness_of, served


def test_the_better_ones_come_first(tmp_path: Path) -> None:
    """A judge that likes bright videos, and the first place, by a fixed number of log-odds."""

    def answer(asked: object) -> list[tuple[str, dict[str, float]]]:
        first, second = brightness_of(asked, 0), brightness_of(asked, -1)
        chance = 1 / (1 + math.exp(-((first - second) / 50 + 1)))
        return [("A", {"A": math.log(chance), "B": math.log(1 - chance)})]

    videos = [tmp_path / f"{level}.mp4" for level in (60, 200, 120)]
    for video in videos:
        video.write_bytes(encode_mp4(np.full((9, 16, 16, 3), int(video.stem), np.uint8), 8))
    with served(FakeChatServer(answer)) as url:
        (tmp_path / "judge.yaml").write_text(
            f"verifiers: [{{kind: endpoint, score: {{kind: pairwise}}, endpoint: {{url: '{url}', model: m}}}}]"
        )
        arguments = [*map(str, videos), "--prompt", "a lamp", "--verifier", str(tmp_path / "judge.yaml")]
        done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "ranking.json")])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "ranking.json").read_text())
    assert [Path(each["video"]).stem for each in found["ranking"]] == ["200", "120", "60"]
    pair = next(each for each in found["pairs"] if each["first"].endswith("60.mp4") and "200" in each["second"])
    assert pair["first_is_better"] == pytest.approx(1 / (1 + math.exp(140 / 50)), abs=0.02)


@pytest.mark.parametrize(
    ("panel", "said"),
    [
        ("verifiers: [{kind: signals}]", "must list one verifier, with score: {kind: pairwise}"),
        ("verifiers: [{score: {kind: pairwise}}]", "two to 64 videos can be ranked, not 1"),
    ],
)
def test_what_cannot_be_ranked_is_told(tmp_path: Path, panel: str, said: str) -> None:
    (tmp_path / "judge.yaml").write_text(panel)
    done = CliRunner().invoke(app, ["a.mp4", "--prompt", "a lamp", "--verifier", str(tmp_path / "judge.yaml")])
    assert done.exit_code == 1
    assert said in done.output


def test_many_pairs_wait_for_their_turn() -> None:
    """Each pair copies frames for the verifier: all 2,016 of 64 videos at a time would fill the memory."""
    going = most = 0

    class Slow:
        async def compare(self, prompt: str, first: Any, second: Any) -> float:
            nonlocal going, most
            going += 1
            most = max(most, going)
            await asyncio.sleep(0)
            going -= 1
            return float(first.mean() - second.mean())

    clips = [np.full((1, 8, 8, 3), level, np.uint8) for level in range(20)]
    found = asyncio.run(ranked(Slow(), "a lamp", clips))
    assert most <= 16
    assert found.order == list(reversed(range(20)))
