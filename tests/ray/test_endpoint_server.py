"""vLLM's own OpenAI server with the shipped verifier: the endpoint kind scores as the vllm kind does."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import ray

from actors.verifier import VllmVerifier
from framegrove.config.engine import shipped_folder
from framegrove.config.verifier import VerifierConfig, environment, load_panel
from framegrove.digits import world as digits
from framegrove.types import Assessment, ScoreWork
from framegrove.verification.endpoint import EndpointVerifier

if TYPE_CHECKING:
    from framegrove.cluster.session import Cluster

(CONFIG,) = load_panel(None).verifiers
CLIP = digits.clip(5, 0, split="heldout", digits=2)
UNITS = [CLIP.frames[:1], *(CLIP.frames[at : at + 8] for at in range(1, len(CLIP.frames), 8))]
WORKS = [
    ScoreWork((0,), Assessment.IMAGE),
    ScoreWork((0, 0), Assessment.MOTION),
    ScoreWork((0, 0, 0, 0), Assessment.FINAL),
]


@contextmanager
def vllm_server(log: Path) -> Iterator[str]:
    """The address of a server of the shipped verifier, once it is well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "model": str(shipped_folder()),
        "served-model-name": "judge",
        "host": "127.0.0.1",
        "port": str(port),
        "dtype": CONFIG.engine.dtype,
        "max-model-len": str(CONFIG.engine.max_model_len),
        "block-size": str(CONFIG.engine.block_size),
        "limit-mm-per-prompt": f'{{"image": {CONFIG.engine.max_frames}}}',
    }
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
    command += [word for name, value in options.items() for word in (f"--{name}", value)]
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, **environment(CONFIG)}, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 240
        while not _is_well(url):
            assert server.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.2)
        yield f"{url}/v1"
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


def _is_well(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


async def scores(verifier: Any) -> list[Any]:
    return [await verifier.score(work, CLIP.caption, *UNITS[: len(work.path)]) for work in WORKS]


@pytest.mark.timeout(600)
def test_a_served_model_scores_as_one_in_the_actor(cluster: Cluster, tmp_path: Path) -> None:
    actor: Any = ray.remote(VllmVerifier).options(runtime_env={"env_vars": environment(CONFIG)}).remote(CONFIG)
    own = [actor.score.remote(work, CLIP.caption, *UNITS[: len(work.path)]) for work in WORKS]
    with vllm_server(tmp_path / "server.log") as url:
        endpoint = {
            "url": url,
            "model": "judge",
            "max_frames": CONFIG.engine.max_frames,
            "instruction": "",
            "yes_words": CONFIG.engine.yes_words,
            "no_words": CONFIG.engine.no_words,
        }
        data = {"kind": "endpoint", "questions": CONFIG.questions, "endpoint": endpoint}
        served = asyncio.run(scores(EndpointVerifier(VerifierConfig.model_validate(data))))
    for ours, theirs in zip(ray.get(own), served, strict=True):
        assert [question for question, _ in theirs.answers] == [question for question, _ in ours.answers]
        for (question, one), (_, other) in zip(ours.answers, theirs.answers, strict=True):
            assert one == pytest.approx(other, abs=0.005), question
        assert dict(theirs.scores) == pytest.approx(dict(ours.scores), abs=0.005)
    ray.get(actor.close.remote())
    ray.kill(actor)
