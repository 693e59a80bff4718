"""Serve videos over HTTP, in the format of the OpenAI Videos API.

    python -m jobs.serve --port 8000
    curl -s localhost:8000/v1/videos -H 'Content-Type: application/json' -d '{"prompt": "a red 3 moves left and right"}'
    curl -s localhost:8000/v1/videos/ID            # its status and progress
    curl -s localhost:8000/v1/videos/ID/content -o video.mp4

Requests and videos are kept in --folder and outlive the endpoint: what was waiting or in progress when it stopped is
made when it starts again. http://localhost:8000/docs describes the API, with the search policies on offer.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from framegrove.config.verifier import load_panel
from framegrove.errors import UserError
from jobs.console import (
    DtypeOption,
    LogLevelOption,
    ModelOption,
    PickleOption,
    VariantOption,
    VerifierOption,
    application,
    model_source,
    one_line_errors,
)

if TYPE_CHECKING:
    from framegrove.config.serve import ServeConfig

app = application()

NAME = "framegrove"  # the application's name in Ray Serve
_SET = (
    "KEY=VALUE, may be repeated. searches: how many videos are made at a time (default: as many as --generators). "
    "pack: units of several videos that a generator samples together (default 1); with pack and searches raised, more "
    "videos are made in an hour and each takes longer, its last bits depend on what was made with it, and nothing is "
    "done ahead. waiting: how many more may wait, others are refused (default 32). budget: compute for a request that "
    "names none, in multiples of one unsearched sample's FLOPs, decoding included (default 4x). most_budget: the "
    "largest budget that a request may name (default 64x). most_units: the longest video, in units: 1 frame, then 8 "
    "frames per further unit (default 16). body_seconds: how long a request's body may take to arrive (default 30). "
    "reading: how many requests with bodies are read at a time (default 32). origins: web sites whose pages may use "
    "the endpoint, as in [https://example.org]. hosts: further names under which an endpoint on a loopback address is "
    "reached, as in [example.org]. most_work: the largest product of a request's budget, length and size, in samples "
    "of the model's own size and length (default 64). database: postgresql://USER@HOST/NAME for the records (default: "
    "SQLite in the folder). storage: where videos are kept, a folder or a URL such as s3://bucket/videos (default: in "
    "the folder). keep_days, keep_gb: how long finished videos are kept, and how many gigabytes of the newest "
    "(default: for ever, all). "
    "verifier.KEY: any key of a verifier's YAML file."
)


@app.command()
def main(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    folder: Annotated[Path, typer.Option(help="Where requests and videos are kept.")] = Path("runs/serve"),
    model: ModelOption = None,
    variant: VariantOption = None,
    dtype: DtypeOption = "float32",
    allow_pickle: PickleOption = False,
    verifier: VerifierOption = None,
    generators: Annotated[int, typer.Option(min=1, help="Number of generator actors.")] = 2,
    set_: Annotated[list[str] | None, typer.Option("--set", help=_SET)] = None,
    log_level: LogLevelOption = None,
) -> None:
    """Serve videos over HTTP, in the format of the OpenAI Videos API, until Ctrl-C.

    What is waiting or in progress then is made when the endpoint starts again with the same --folder.
    """
    with one_line_errors(log_level):
        given = {
            "host": host,
            "port": port,
            "folder": str(folder),
            "model": model_source(model, variant, dtype, allow_pickle).model_dump(mode="json"),
            "verifier": load_panel(verifier).model_dump(mode="json"),
            "generators": generators,
        }
        _serve(configured(given, set_ or ()))


def configured(given: dict[str, Any], overrides: Iterable[str]) -> ServeConfig:
    """The endpoint's configuration, with absolute paths: the options, then ``KEY=VALUE`` overrides.

    Raises UserError, in one sentence.
    """
    from framegrove.config.base import absolute, load
    from framegrove.config.serve import ServeConfig

    settings = [f"{name}={json.dumps(value)}" for name, value in given.items()]
    config = load(ServeConfig, None, [*settings, *overrides])
    paths = {
        "folder": config.folder.absolute(),
        "model": config.model.model_copy(update={"name": absolute(config.model.name)}),
        "verifier": config.verifier.at_absolute_paths(),
    }
    return config.model_copy(update=paths)


def _serve(config: ServeConfig) -> None:
    from actors.model_files import ModelFiles
    from framegrove.cluster.session import connect
    from framegrove.serving.store import VideoStore

    # Mistakes are reported before Ray starts, and in this process: a replica could only fail.
    ModelFiles.read(config.model)
    config.verifier.check_files()
    VideoStore(config.folder, database=config.database, storage=config.storage).close()
    typer.echo("starting the endpoint ...")
    with connect():
        from ray import serve

        running = serve.status()
        if NAME in running.applications:
            raise UserError("this cluster serves Framegrove already: stop that endpoint first (`serve shutdown`)")
        shared = bool(running.proxies)  # other applications are served on this cluster, and stay when this one ends
        if not shared:
            config = config.model_copy(update={"port": _free_port(config.host, config.port)})
        try:
            _run(config)
            typer.echo(f"serving on http://{config.host}:{config.port}/v1/videos, videos are kept in {config.folder}")
            typer.echo(f"the endpoint logs into {_logs_folder()}/worker-*.err")
            threading.Event().wait()
        finally:
            if shared:
                serve.delete(NAME)
            else:
                serve.shutdown()


def _run(config: ServeConfig) -> None:
    import logging

    from ray import serve
    from ray.serve.context import _get_global_client

    from actors.ingress import application

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(http_options={"host": config.host, "port": config.port})
    client = _get_global_client()
    assert client is not None, "it has just been started"
    listening = client.http_config  # a cluster that serves already keeps its address, and merely logs a warning
    if (listening.host, listening.port) != (config.host, config.port):
        raise UserError(
            f"this cluster serves on {listening.host}:{listening.port} already, and has no second address: "
            f"give --host {listening.host} --port {listening.port}"
        )
    serve.run(application(config), name=NAME)


def _logs_folder() -> str:
    """Where Ray keeps on this machine, on which the replica runs, what its workers write to standard error."""
    from ray._private.worker import global_worker

    assert global_worker.node is not None, "this process is connected to a cluster"
    folder: str = global_worker.node.get_logs_dir_path()
    return folder


def _free_port(host: str, port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"{host}:{port} cannot be used ({error.strerror}): choose another --port, or 0 for a free one"
            ) from None
        chosen: int = probe.getsockname()[1]
    return chosen


if __name__ == "__main__":
    app()
