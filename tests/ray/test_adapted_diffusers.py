"""Searches along the schedule of a pipeline of diffusers (a tiny random Wan), through the actors that users run."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from typer.testing import CliRunner

from actors.searches import SearchRunner, search_runner
from framegrove.cluster.session import Cluster
from framegrove.config.generator import read_source
from framegrove.config.verifier import load_panel
from framegrove.evaluation.report import SearchRecord
from framegrove.lineage import mutation_of
from framegrove.media.writing import decode_mp4, encode_mp4
from framegrove.search.workers import GENERATORS
from framegrove.types import GenerationRequest, Progress, SampleWork
from jobs import generate
from tests.tiny_diffusers import write_tiny

RED = "verifiers: [{name: red, kind: callable, function: 'tests.fakes:redness'}]\n"
STEPS = 40  # as many as give a test the time to interrupt them
REQUEST = GenerationRequest("a red cloud", 3, 1, 16, 16, policy="pyramid", budget=6.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diffusers")
    options = {**write_tiny(folder / "wan", "wan"), "steps": STEPS, "segments": [10, 10, 20]}
    source = {"kind": "diffusers", "where": str(folder / "wan"), "options": options}
    (folder / "wan.yaml").write_text(json.dumps(source))
    (folder / "panel.yaml").write_text(RED)
    return folder


def searched(folder: Path, out: Path, *more: str) -> dict[str, Any]:
    files = ["--model", str(folder / "wan.yaml"), "--verifier", str(folder / "panel.yaml"), "--out", str(out)]
    result = CliRunner().invoke(generate.app, ["--prompt", REQUEST.prompt, "--seed", "3", *files, *more])
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


@pytest.fixture(scope="module")
def runner(cluster: Cluster, folder: Path) -> Iterator[tuple[asyncio.Runner, SearchRunner]]:
    made = search_runner(read_source(str(folder / "wan.yaml")), load_panel(str(folder / "panel.yaml")))
    with asyncio.Runner() as loop:
        loop.run(made.start())
        yield loop, made
        loop.run(made.close())


@pytest.fixture(scope="module")
def undisturbed(runner: tuple[asyncio.Runner, SearchRunner]) -> SearchRecord:
    loop, made = runner
    return loop.run(made.search(REQUEST))


def once(share: float, act: Callable[[], object]) -> Callable[[Progress], None]:
    acted: list[object] = []

    def watch(progress: Progress) -> None:
        if progress.done >= share and not acted:
            acted.append(act())

    return watch


@pytest.mark.parametrize(
    ("policy", "options"), [("pyramid", {"draft_stages": 1}), ("evo", {"accept": 0.99})], ids=["pyramid", "evo"]
)
def test_the_same_seed_is_the_same_video_on_any_number_of_actors(
    runner: tuple[asyncio.Runner, SearchRunner], folder: Path, tmp_path: Path, policy: str, options: dict[str, Any]
) -> None:
    loop, made = runner
    record = loop.run(made.search(replace(REQUEST, policy=policy, options=options)))
    ((name, value),) = options.items()
    setting = f"options.{policy}.{name}={value}"
    report = searched(folder, tmp_path, "--policy", policy, "--budget", "6x", "--generators", "1", "--set", setting)
    video = (tmp_path / "video.mp4").read_bytes()
    assert video == encode_mp4(record.frames, record.fps)
    if policy == "pyramid":
        drafts = [each for each in report["branches"] if each.get("dropped_by") == "potential"]
        assert len(drafts) > 2, "some are refined, and more are not"
    else:
        assert any(mutation_of(each["path"][0]) for each in report["branches"])
    frames, fps = decode_mp4(video)
    assert (frames.shape, fps) == ((9, 16, 16, 3), 16)


def test_a_generator_that_is_killed_halfway_costs_time_only(
    runner: tuple[asyncio.Runner, SearchRunner], undisturbed: SearchRecord
) -> None:
    loop, made = runner
    pid = int(ray.get(made.crew[GENERATORS].actors[0].pid.remote()))
    record = loop.run(made.search(REQUEST, once(0.4, lambda: os.kill(pid, signal.SIGKILL))))
    assert encode_mp4(record.frames, record.fps) == encode_mp4(undisturbed.frames, undisturbed.fps)
    failed = [span.work for span in record.outcome.spans if span.ending == "failed"]
    assert any(isinstance(work, SampleWork) for work in failed)
    assert record.outcome.winner == undisturbed.outcome.winner


def test_a_search_goes_on_where_it_was_interrupted(
    runner: tuple[asyncio.Runner, SearchRunner], undisturbed: SearchRecord, tmp_path: Path
) -> None:
    loop, made = runner

    async def interrupted() -> None:
        task = asyncio.create_task(made.search(REQUEST, once(0.5, lambda: task.cancel()), tmp_path))
        with pytest.raises(asyncio.CancelledError):
            await task

    loop.run(interrupted())
    record = loop.run(made.search(REQUEST, journal=tmp_path))
    assert record.outcome.restored > 3
    np.testing.assert_array_equal(record.frames, undisturbed.frames)


def test_the_command_resumes_what_was_interrupted(
    cluster: Cluster, folder: Path, undisturbed: SearchRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    arguments = ["--prompt", REQUEST.prompt, "--seed", "3", "--policy", "pyramid", "--budget", "6x", "--out", str(out)]
    arguments += ["--model", str(folder / "wan.yaml"), "--verifier", str(folder / "panel.yaml")]
    with monkeypatch.context() as patch:
        patch.setattr(generate, "write", interrupted)
        assert CliRunner().invoke(generate.app, arguments).exit_code == 130
    result = CliRunner().invoke(generate.app, ["--resume", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert json.loads((out / "report.json").read_text())["restored_works"] > 3
    assert (out / "video.mp4").read_bytes() == encode_mp4(undisturbed.frames, undisturbed.fps)
