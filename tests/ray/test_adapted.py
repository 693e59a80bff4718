"""Searches of other systems, through the very actors and the job that users run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from framegrove.cluster.session import Cluster
from framegrove.media.writing import decode_mp4
from jobs import generate

CLOUDS = "kind: callable\nwhere: framegrove.generators.example:Clouds\noptions: {drift: 2}\n"
RED = "verifiers: [{name: red, kind: callable, function: 'tests.fakes:redness'}]\n"


@pytest.fixture
def asked(tmp_path: Path) -> list[str]:
    (tmp_path / "clouds.yaml").write_text(CLOUDS)
    (tmp_path / "panel.yaml").write_text(RED)
    model = ["--model", str(tmp_path / "clouds.yaml"), "--verifier", str(tmp_path / "panel.yaml")]
    return ["--prompt", "red clouds", *model]


def made(arguments: list[str], out: Path, status: int = 0) -> str:
    result = CliRunner().invoke(generate.app, [*arguments, "--out", str(out)])
    assert result.exit_code == status, result.output
    return " ".join(result.output.split())


def test_a_search_over_units_and_stages_is_the_same_on_any_number_of_actors(
    cluster: Cluster, asked: list[str], tmp_path: Path
) -> None:
    videos = []
    for generators in ("1", "2"):
        out = tmp_path / generators
        made([*asked, "--policy", "tree", "--budget", "6x", "--generators", generators], out)
        videos.append((out / "video.mp4").read_bytes())
    assert videos[0] == videos[1]
    frames, fps = decode_mp4(videos[0])
    assert (frames.shape, fps) == ((17, 64, 64, 3), 8)
    report = json.loads((tmp_path / "2" / "report.json").read_text())
    assert report["cost"]["total"]["nfe"] > 36, "of more than one sample"
    assert {len(each["path"]) for each in report["branches"]} == {1, 2, 3}


def test_drafts_are_judged_before_they_are_finished(cluster: Cluster, asked: list[str], tmp_path: Path) -> None:
    made([*asked, "--policy", "pyramid", "--budget", "4x"], tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert any("potential" in each["verifier"] for each in report["branches"])


def test_what_such_a_system_cannot_make_is_told_before_anything_starts(asked: list[str], tmp_path: Path) -> None:
    for more, sentence in (
        (["--units", "31"], "a video of 31 units cannot be made: Clouds makes 1 to 30"),
        (["--size", "60x64"], "the sides of Clouds's are multiples of 8"),
        (["--variant", "768p"], "--variant and --allow-pickle are for model folders"),
    ):
        assert sentence in made([*asked, *more], tmp_path / "out", status=1)
    (tmp_path / "clouds.yaml").write_text(CLOUDS.replace("drift", "draft"))
    assert "Clouds: framegrove.generators.example:Clouds cannot be made with these options" in made(
        asked, tmp_path / "out", status=1
    )
