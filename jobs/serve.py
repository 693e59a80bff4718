"""Serve videos over HTTP, in the format of the OpenAI Videos API.

    python -m jobs.serve --port 8000
    curl -s localhost:8000/v1/videos -H 'Content-Type: application/json' -d '{"prompt": "a red 3 moves left and right"}'
    curl -s localhost:8000/v1/videos/ID            # its status and progress
    curl -s localhost:8000/v1/videos/ID/content -o video.mp4

Requests and videos are kept in --folder and outlive the endpoint: what was waiting or in progress when it stopped is
made when it starts again. http://localhost:8000/docs describes the API, with the search policies on offer.

    python -m jobs.serve keys add alice            # a key, without which nobody is let in once there is a file of keys
    python -m jobs.serve --host 0.0.0.0 --keys runs/serve/keys.json

Exit statuses are those of jobs.console, and 3 when the cluster or Ray Serve has gone from under the endpoint: started
again, it goes on.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from framegrove.config.verifier import load_panel
from framegrove.errors import UserError
from jobs import serve_keys
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
    from framegrove.cluster.session import Cluster
    from framegrove.config.serve import ServeConfig

app = application()
app.add_typer(serve_keys.app, name="keys")

log = logging.getLogger(__name__)

GONE = 3  # exit status when what the endpoint runs on is gone, for a supervisor, which then starts it again
NAME = "framegrove"  # the application's name in Ray Serve
_SHUTDOWN_LIMIT = 30.0  # seconds for Ray Serve to end
_SET = (
    "KEY=VALUE, may be repeated. searches: how many videos are made at a time (default: as many as --generators). "
    "pack: units of several videos that a generator samples together (default 1); with pack and searches raised, more "
    "videos are made in an hour and each takes longer, its last bits depend on what was made with it, and nothing is "
    "done ahead. waiting: how many more may wait, others are refused (default 32). most_videos: the "
    "most videos that one request may ask for (default 8). budget: compute for a request that "
    "names none, in multiples of one unsearched sample's FLOPs, decoding included (default 4x). most_budget: the "
    "largest budget that a request may name (default 64x). most_units: the longest video, in units: 1 frame, then 8 "
    "frames per further unit (default 16). body_seconds: how long a request's body may take to arrive (default 30). "
    "reading: how many requests with bodies are read at a time (default 32). origins: web sites whose pages may use "
    "the endpoint, as in [https://example.org]. hosts: further names under which an endpoint on a loopback address is "
    "reached, as in [example.org]. most_work: the largest product of a request's budget, length and size, in samples "
    "of the model's own size and length (default 64). database: postgresql://USER@HOST/NAME for the records (default: "
    "SQLite in the folder). storage: where videos are kept, a folder or a URL such as s3://bucket/videos (default: in "
    "the folder). keep_days, keep_gb: how long finished videos are kept, and how many gigabytes of the newest "
    "(default: for ever, all). open=true: let everybody in without --keys, on an address that other machines reach. "
    "verifier.KEY: any key of a verifier's YAML file."
)


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    folder: Annotated[str, typer.Option(help="Where requests and videos are kept.", metavar="PATH")] = "runs/serve",
    keys: Annotated[
        str | None,
        typer.Option(
            help="File of API keys, made with `python -m jobs.serve keys add`: only those who send one are let in. "
            "Without it everybody is, which is allowed on 127.0.0.1 alone.",
            metavar="PATH",
        ),
    ] = None,
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
    if context.invoked_subcommand is not None:
        return
    with one_line_errors(log_level):
        given = {
            "host": host,
            "port": port,
            "folder": folder,
            "keys": keys,
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
        "keys": config.keys.absolute() if config.keys is not None else None,
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
    _check_keys(config)
    if not os.environ.get("RAY_ADDRESS"):  # another cluster may be listening on that port itself, for this endpoint
        config = _at_free_port(config)
    typer.echo("starting the endpoint ...")
    with connect() as cluster:
        from ray import serve

        running = serve.status()
        if NAME in running.applications:
            raise UserError("this cluster serves Framegrove already: stop that endpoint first (`serve shutdown`)")
        shared = bool(running.proxies)  # other applications are served on this cluster, and stay when this one ends
        if not shared:
            config = _at_free_port(config)
        try:
            _run(config)
            typer.echo(f"serving on http://{config.host}:{config.port}/v1/videos, videos are kept in {config.folder}")
            typer.echo(f"the endpoint logs into {_logs_folder()}/worker-*.err")
            _wait(cluster, config)
        finally:
            if shared:
                serve.delete(NAME)
            else:
                _shut_down()


def _check_keys(config: ServeConfig) -> None:
    """Raise UserError for a file of keys that nobody could use, and warn where nobody needs one."""
    from framegrove.serving.keys import list_keys

    if config.keys is not None:
        if not list_keys(config.keys):
            log.warning("there is no key in %s: nobody is let in until one is added", config.keys)
    elif config.exposed:
        log.warning("open=true: everybody who reaches %s:%d may use the endpoint", config.host, config.port)


def _wait(cluster: Cluster, config: ServeConfig) -> None:
    """Return never: a signal interrupts it, and the process ends when what the endpoint runs on is gone."""
    from framegrove.cluster.health import checks_of, first_gone

    gone = first_gone(checks_of(cluster.address, config.host, config.port, NAME))
    typer.echo(f"error: {gone.gone}; unfinished videos are kept: start the endpoint again", err=True)
    if gone.cluster:
        # Ray's own way out would wait for what is gone. The processes of a local cluster end with this one (head.py).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(GONE)
    raise typer.Exit(GONE)


def _shut_down() -> None:
    """End Ray Serve as ``serve.shutdown`` does, but without retries: a retry is announced on the console.

    The controller never answers the call by which it ends, so that the call always fails.
    """
    import ray
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is not None:
        client.shutdown_cached_handles()
        ending = client._controller.graceful_shutdown.options(max_task_retries=0).remote()
        try:
            ray.get(ending, timeout=_SHUTDOWN_LIMIT)
        except RayError as error:  # that it has died is its answer
            log.debug("Ray Serve has ended: %s", error)
    serve.shutdown()


def _run(config: ServeConfig) -> None:
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


def _at_free_port(config: ServeConfig) -> ServeConfig:
    """The configuration with a port that can be listened on now. Raises UserError if the one it names cannot."""
    host, port = config.host, config.port
    try:
        (family, *_, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(family) as probe:
            # A port that was used a moment ago is free, as for Ray Serve; one on which anybody listens is not.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            chosen: int = probe.getsockname()[1]
    except OSError as error:
        raise UserError(
            f"{host}:{port} cannot be used ({error.strerror}): choose another --port, or 0 for a free one"
        ) from None
    return config.model_copy(update={"port": chosen})


if __name__ == "__main__":
    app()
