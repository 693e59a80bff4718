"""The main job from end to end on the embedded digits world; ``make demo`` runs it.

It submits a short three-phase training run that continues from the shipped weights, then generates a video from what
came out, by a depth-first search and judged by the verifier, and holds it against a single sample of the same seed. The
default seed is one at which that goes wrong. Leaves:

    runs/demo/video.mp4                          the search's winner
    runs/demo/tree.png, tree.html, slide.png     its tree, as a picture, as a page to explore, as a slide
    runs/demo/report.json                        costs and scores
    runs/demo/single.mp4                         the same seed without a search
    runs/demo/train/                             loss curve and the newly trained model

Uses the Ray cluster at RAY_ADDRESS, or starts its own and stops just that one.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shlex
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from framegrove.errors import UserError
from framegrove.types import DEFAULT_POLICY
from jobs.console import Display, LogLevelOption, application, make_folder, one_line_errors

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from framegrove.cluster.session import Cluster
    from framegrove.digits.oracle import ObjectReading
    from framegrove.evaluation.report import SearchRecord

app = application()
log = logging.getLogger(__name__)

CONFIG = Path("jobs/configs/digits_demo.yaml")
PROMPT = "a red 3 moves left and right and a blue 7 moves up and down"
SEED = 9  # a single sample of it goes wrong, as a third of them do
CLIPS = 600
_JOBS_PATIENCE = 90.0  # seconds: the job itself says what it waits for
_STOP_LIMIT = 5.0  # seconds for a cluster to take the order to stop a job
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# Ray's own lines: its log, how it starts a job, and its remarks about the number of workers, which are as they must be.
_OF_RAY = re.compile(r"\d{4}-\d\d-\d\d \S+\s+[A-Z]+ |Running entrypoint for job |\(raylet\)|\(autoscaler")


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("runs/demo"),
    prompt: Annotated[str, typer.Option(help="What the video should show.")] = PROMPT,
    seed: Annotated[
        int, typer.Option(min=0, help="Another seed, another video. A single sample of the default one goes wrong.")
    ] = SEED,
    budget: Annotated[str, typer.Option(help="What the search may cost, in samples without a search.")] = "4x",
    log_level: LogLevelOption = None,
) -> None:
    """Train a little, search a lot, and leave a video."""
    began = time.monotonic()
    with one_line_errors(log_level), Display() as display:
        from framegrove.config.request import check_prompt
        from framegrove.config.search import parse_budget
        from framegrove.config.verifier import PanelConfig

        check_prompt(prompt)
        PanelConfig().check_files()
        multiple = parse_budget(budget)
        make_folder(out)
        display.say(
            "This trains a model a little, searches for a video with it, and makes one without a search to compare: "
            f"about three minutes on two CPU cores. Everything goes to {out}, in place of an earlier demo's."
        )
        display.begin("reading the model")
        from actors.model_files import ModelFiles
        from framegrove.config.model import ModelSource

        advice = ModelFiles.read(ModelSource()).recipe.outside(prompt)
        if advice is not None:
            log.warning(advice)
        display.begin("connecting to Ray")
        from framegrove.cluster.session import connect

        with connect() as cluster:
            clips = _clips(out, display)
            model = _train(cluster, clips, out / "train", display)
            searched, single, report = _search(model, prompt, seed, multiple, display)
        _write(searched, single, report, out, display)
        display.say(f"\nDone in {time.monotonic() - began:.0f} s.")


def _clips(out: Path, display: Display) -> Path:
    """Encoded clips to train on: made once for the VAE that is shipped."""
    from framegrove.digits.clips import digits_clips
    from framegrove.models.pretrained import VAE, embedded_model
    from framegrove.models.vae_files import load_vae
    from framegrove.training.encode import vae_digest, write_clips

    vae, _ = load_vae(embedded_model() / VAE)
    digest = vae_digest(vae)
    folder = out / f"clips-{digest[:8]}-{CLIPS}"
    if not folder.exists():
        display.begin(f"encoding {CLIPS} clips")
        clips = digits_clips(vae, CLIPS)
        write_clips(clips, digest, folder, lambda done: display.show(done / CLIPS, f"{done} of {CLIPS}"))
    return folder


def _train(cluster: Cluster, clips: Path, out: Path, display: Display) -> Path:
    """Submit the training run as a job of the cluster, pass on what it prints, and return the trained model."""
    from framegrove.config.train import MODEL

    shutil.rmtree(out, ignore_errors=True)  # a finished run in there would be taken for this one
    if cluster.dashboard_url is None:
        raise UserError(f"the cluster at {cluster.address} takes no jobs: it was started without its dashboard")
    training = ["-m", "jobs.train", "--config", str(CONFIG), "--out", str(out.absolute())]
    training += ["--set", f"data={clips.absolute()}"]
    # With several clusters on a machine Ray may tell a job the address of another one than it was submitted to.
    command = ["env", f"RAY_ADDRESS={cluster.address}", sys.executable if cluster.own else "python", *training]
    display.begin("submitting the training as a job of the cluster")
    _run_job(cluster.dashboard_url, shlex.join(command), display)
    return out / MODEL


def _run_job(url: str, command: str, display: Display) -> None:
    """Do what ``ray job submit`` does, and show what the job prints. Stops the job when it is interrupted.

    Raises UserError when the job fails.
    """
    import asyncio

    from ray.job_submission import JobStatus, JobSubmissionClient

    from framegrove.cluster.session import checkout

    client = JobSubmissionClient(url)
    for chatty in ("dashboard_sdk", "job.sdk"):  # uploads, connections
        logging.getLogger(f"ray.dashboard.modules.{chatty}").setLevel(logging.WARNING)
    name = f"framegrove-demo-{time.strftime('%Y%m%d-%H%M%S')}"

    async def follow() -> None:
        display.begin("training", patience=_JOBS_PATIENCE)
        async for text in client.tail_job_logs(name):
            for line in text.splitlines():
                plain = _COLOURS.sub("", line).rstrip()
                if plain and not _OF_RAY.match(plain):
                    display.say(f"  {plain}")

    try:
        client.submit_job(entrypoint=command, submission_id=name, runtime_env=checkout())
        asyncio.run(follow())
        if client.get_job_status(name) != JobStatus.SUCCEEDED:
            raise UserError("the training job failed: its last lines above say why")
    except BaseException:
        _stop_job(client, name)
        raise


def _stop_job(client: JobSubmissionClient, name: str) -> None:
    """Stop a job if it runs; a cluster that does not answer is not waited for."""

    def stop() -> None:
        with contextlib.suppress(RuntimeError, OSError):  # it may not have been submitted yet, or have ended
            client.stop_job(name)

    stopping = threading.Thread(target=stop, daemon=True)
    stopping.start()
    stopping.join(_STOP_LIMIT)


def _search(
    model: Path, prompt: str, seed: int, budget: float, display: Display
) -> tuple[SearchRecord, SearchRecord, dict[str, Any]]:
    """The searched video, the single sample of the same seed, and the scores of both."""
    import asyncio

    from actors.model_files import ModelFiles
    from actors.searches import search_runner
    from framegrove.config.model import ModelSource
    from framegrove.types import GenerationRequest

    source = ModelSource(name=str(model))
    recipe = ModelFiles.read(source).recipe

    def request(policy: str, budget: float) -> GenerationRequest:
        return GenerationRequest(prompt, seed, recipe.units, recipe.height, recipe.width, policy, budget)

    async def search() -> tuple[SearchRecord, SearchRecord, dict[str, Any]]:
        runner = search_runner(source)
        try:
            display.begin("starting generators and verifier")
            await runner.start()
            display.begin("searching")
            searched = await runner.search(request(DEFAULT_POLICY, budget), lambda p: display.show(p.done, p.note))
            display.begin("sampling once without a search")
            single = await runner.search(request("single", 1.0), lambda p: display.show(p.done, p.note))
            panels = [await runner.judge(record) for record in (searched, single)]
        finally:
            await runner.close()
        return searched, single, _scores(prompt, (searched, single), panels)

    return asyncio.run(search())


def _scores(prompt: str, records: tuple[SearchRecord, ...], panels: list[dict[str, float]]) -> dict[str, Any]:
    """Verifier and oracle on winner and single sample; the oracle reads captions of the digits world only."""
    from framegrove.digits import world
    from framegrove.digits.oracle import DigitsOracle

    objects = world.parse(prompt)
    oracle = DigitsOracle() if objects is not None else None
    scores: dict[str, Any] = {}
    for name, record, panel in zip(("winner", "single_sample"), records, panels, strict=True):
        scores[name] = {"verifier": panel}
        if oracle is not None and objects is not None:
            verdict = oracle.judge(record.frames, objects)
            seen = [_words(reading) for reading in verdict.readings]
            scores[name]["oracle"] = {"score": verdict.score, "fully_right": verdict.fully_right, "sees": seen}
    return scores


def _words(reading: ObjectReading) -> str:
    """What the oracle reads of an object; a question mark is what it cannot tell."""
    digit, motion = ("?" if read is None else read for read in (reading.digit, reading.motion))
    return f"{reading.colour} {digit}, {motion}"


def _write(searched: SearchRecord, single: SearchRecord, scores: dict[str, Any], out: Path, display: Display) -> None:
    from rich.table import Table

    from framegrove.files import replacing
    from framegrove.media.writing import encode_mp4
    from jobs.writing import WRITTEN, report_line, warn, write

    display.begin("drawing the tree")
    write(searched, out, {"scores": scores}, single)
    with replacing(out / "single.mp4") as partial:
        partial.write_bytes(encode_mp4(single.frames, single.fps))
    table = Table(title=searched.request.prompt)
    for column in ("", "verifier", "oracle", "what the oracle sees (?: it cannot tell)"):
        table.add_column(column)
    for name, score in scores.items():
        oracle = score.get("oracle", {"score": float("nan"), "sees": []})
        panel = ", ".join(f"{member} {value:.2f}" for member, value in score["verifier"].items())
        table.add_row(name.replace("_", " "), panel, f"{oracle['score']:.2f}", "; ".join(oracle["sees"]))
    display.console.print(table)
    display.say(report_line(searched))
    warn(searched)
    display.say("\n".join(str(out / name) for name in (*WRITTEN, "single.mp4")))


if __name__ == "__main__":
    app()
