"""jobs.generate as a command, in a cluster that is there already; searches themselves are tested in test_search.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from framegrove.cluster.session import Cluster
from framegrove.digits import world
from framegrove.media.writing import decode_mp4, encode_mp4
from jobs import generate
from tests.tiny import save_tiny


def test_the_same_command_makes_the_same_video(cluster: Cluster, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    Image.fromarray(world.clip(seed=1, index=0).frames[0]).save(tmp_path / "first.png")
    made = []
    for out, generators in ((tmp_path / "one", 1), (tmp_path / "two", 2)):
        arguments = ["--prompt", "a red 3 moves left and right", "--policy", "none", "--seed", "4", "--units", "3"]
        arguments += ["--image", str(tmp_path / "first.png"), "--generators", str(generators)]
        result = CliRunner().invoke(generate.app, [*arguments, "--model", str(model), "--out", str(out)])
        assert result.exit_code == 0, result.output
        assert sorted(file.name for file in out.iterdir()) == sorted(generate.WRITTEN)
        made.append((out / "video.mp4").read_bytes())
    assert made[0] == made[1]
    assert decode_mp4(made[0])[0].shape == (17, 64, 64, 3)
    report = json.loads((tmp_path / "two" / "report.json").read_text())
    assert report["price"]["search"] == report["price"]["single_sample"]
    assert report["cost"]["total"]["nfe"] == 12


def test_a_video_goes_on_from_a_clip(cluster: Cluster, tmp_path: Path) -> None:
    model, clip = save_tiny(tmp_path / "model"), tmp_path / "clip.mp4"
    clip.write_bytes(encode_mp4(world.clip(seed=1, index=0).frames[:12], 8))
    arguments = ["--prompt", "a red 3 moves left and right", "--policy", "none", "--model", str(model)]
    arguments += ["--extend", str(clip), "--generators", "1", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(generate.app, [*arguments, "--units", "1"])
    assert result.exit_code == 0, result.output
    assert decode_mp4((tmp_path / "out" / "video.mp4").read_bytes())[0].shape == (17, 64, 64, 3)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["units"] == 3
    assert report["cost"]["total"]["nfe"] == 6, "of one unit"
    for more, sentence in (
        (["--image", str(clip)], "--image and --extend both say how the video begins"),
        (["--units", "32"], "--units is 32, which leaves no room for a clip"),
        (["--extend", str(model / "nothing.mp4")], "nothing.mp4 cannot be read"),
    ):
        refused = CliRunner().invoke(generate.app, [*arguments, "--out", str(tmp_path / "other"), *more])
        assert (refused.exit_code, sentence in refused.output.replace("\n", " ")) == (1, True), refused.output


def test_what_was_interrupted_is_resumed_as_it_was_asked_for(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = save_tiny(tmp_path / "model"), tmp_path / "out"
    arguments = ["--prompt", "a red 3 moves left and right", "--policy", "single", "--units", "2"]
    arguments += ["--generators", "1", "--seed", "9"]

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(generate, "write", interrupted)
        assert CliRunner().invoke(generate.app, [*arguments, "--model", str(model), "--out", str(out)]).exit_code == 130
    another = CliRunner().invoke(generate.app, [*arguments[:-1], "8", "--model", str(model), "--out", str(out)])
    assert another.exit_code == 1
    assert "for which seed was 9 and not 8: continue it by --resume" in another.output.replace("\n", " ")
    result = CliRunner().invoke(generate.app, ["--resume", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert f"resuming the search that was interrupted in {out}" in result.output.replace("\n", "")
    report = json.loads((out / "report.json").read_text())
    assert (report["seed"], report["units"], report["policy"]) == (9, 2, "single")
    assert report["restored_works"] == 2
    again = CliRunner().invoke(generate.app, ["--resume", "--out", str(out)])
    assert "there is no interrupted search in" in again.output
