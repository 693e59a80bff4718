"""Serve videos over HTTP, in the shapes of the OpenAI Videos API.

    python -m jobs.serve --port 8000
    curl -s localhost:8000/v1/videos -H 'Content-Type: application/json' -d '{"prompt": "a red 3 moves left and right"}'
    curl -s localhost:8000/v1/videos/ID            # its status and progress
    curl -s localhost:8000/v1/videos/ID/content -o video.mp4

Videos are kept in --folder and outlive the endpoint: what was waiting or half made is made when it starts again.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from framegrove.errors import UserError
from jobs.console import (
    DtypeOption,
    LogLevelOption,
    ModelOption,
    PickleOption,
    VariantOption,
    VerifierOption,
    application,
    engine_config,
    model_source,
    one_line_errors,
)

if TYPE_CHECKING:
    from framegrove.config.serve import ServeConfig

app = application()

NAME = "framegrove"  # of the application in Ray Serve
_SET = (
    "A setting, as in waiting=8 (videos that may wait), budget=2x (where a request names none), most_budget=16x, "
    "most_units=8 (longest video), or verifier.KEY with any KEY of the verifier's file."
)


@app.command()
def main(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    folder: Annotated[Path, typer.Option(help="Keeps the videos.")] = Path("runs/serve"),
    model: ModelOption = None,
    variant: VariantOption = None,
    dtype: DtypeOption = "float32",
    allow_pickle: PickleOption = False,
    verifier: VerifierOption = None,
    generators: Annotated[int, typer.Option(min=1, help="Generator actors.")] = 2,
    set_: Annotated[list[str] | None, typer.Option("--set", help=_SET)] = None,
    log_level: LogLevelOption = None,
) -> None:
    """Start the endpoint, and stop it on Ctrl-C."""
    with one_line_errors(log_level):
        given = {
            "host": host,
            "port": port,
            "folder": str(folder),
            "model": model_source(model, variant, dtype, allow_pickle).model_dump(mode="json"),
            "verifier": engine_config(verifier).model_dump(mode="json"),
            "generators": generators,
        }
        _serve(configured(given, set_ or ()))


def configured(given: dict[str, Any], overrides: Iterable[str]) -> ServeConfig:
    """The endpoint's configuration, at absolute paths. Raises UserError, in one sentence."""
    from framegrove.config.base import absolute, load
    from framegrove.config.serve import ServeConfig

    settings = [f"{name}={json.dumps(value)}" for name, value in given.items()]
    config = load(ServeConfig, None, [*settings, *overrides])
    places = {
        "folder": config.folder.absolute(),
        "model": config.model.model_copy(update={"name": absolute(config.model.name)}),
        "verifier": config.verifier.model_copy(update={"model": absolute(config.verifier.model)}),
    }
    return config.model_copy(update=places)


def _serve(config: ServeConfig) -> None:
    from actors.model_files import ModelFiles
    from framegrove.cluster.session import connect
    from framegrove.config.verifier import model_folder
    from framegrove.serving.store import VideoStore

    ModelFiles.read(config.model)
    model_folder(config.verifier)
    VideoStore(config.folder).close()
    typer.echo("starting the endpoint ...")
    with connect():
        from ray import serve

        running = serve.status()
        if NAME in running.applications:
            raise UserError("this cluster serves Framegrove already: end that one, with `serve shutdown` if need be")
        shared = bool(running.proxies)  # somebody else serves on this cluster, and goes on after us
        if not shared:
            config = config.model_copy(update={"port": _free_port(config.host, config.port)})
        try:
            _run(config)
            typer.echo(f"serving on http://{config.host}:{config.port}/v1/videos, videos are kept in {config.folder}")
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
    listening = client.http_config  # a cluster that serves already keeps its own, and only warns
    if (listening.host, listening.port) != (config.host, config.port):
        raise UserError(
            f"this cluster serves on {listening.host}:{listening.port} already, and on nothing else: "
            f"give --host {listening.host} --port {listening.port}"
        )
    try:
        serve.run(application(config), name=NAME)
    except RuntimeError as error:
        raise UserError(f"the endpoint could not be started: {' '.join(str(error).split())[:500]}") from error


def _free_port(host: str, port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"{host}:{port} cannot be listened on ({error.strerror}): choose another --port, 0 takes a free one"
            ) from None
        chosen: int = probe.getsockname()[1]
    return chosen


if __name__ == "__main__":
    app()
