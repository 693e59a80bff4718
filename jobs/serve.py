"""Serve videos over HTTP, in the format of the OpenAI Videos API.

    python -m jobs.serve --port 8000
    curl -s localhost:8000/v1/videos -H 'Content-Type: application/json' -d '{"prompt": "a red 3 moves left and right"}'
    curl -s localhost:8000/v1/videos/ID            # its status and progress
    curl -s localhost:8000/v1/videos/ID/content -o video.mp4

Requests and videos are kept in --folder and outlive the endpoint: what was waiting or in progress when it stopped is
made when it starts again. http://localhost:8000/docs describes the API, with the search policies on offer.

    python -m jobs.serve keys add alice            # a key, without which nobody is let in once there is a file of keys
    python -m jobs.serve --host 0.0.0.0 --keys runs/serve/keys.json
    python -m jobs.serve backup DEST               # a copy of requests and videos, while the endpoint runs

Exit statuses are those of jobs.console, and 3 when the cluster or Ray Serve has gone from under the endpoint: started
again, it goes on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from framegrove.config.pool import PoolSize
from framegrove.config.verifier import load_panel
from framegrove.errors import UserError
from framegrove.files import InUse
from jobs import serve_keys
from jobs.console import (
    DtypeOption,
    GeneratorsOption,
    LogLevelOption,
    PickleOption,
    VariantOption,
    VerifierOption,
    any_source,
    application,
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
ModelsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        help="Model folder, hub id (owner/name), or YAML file of another system. Default: the embedded model. May be "
        "repeated: a request picks one by its name in the field `model`, and gets the first if it names none. "
        "--variant, --dtype and --allow-pickle apply to all of them.",
    ),
]
_SET = (
    "KEY=VALUE, may be repeated. searches: how many videos of a model are made at a time (default: as many as "
    "--generators). pack: units of several videos that a generator samples together (default 1); with pack and "
    "searches raised, more videos are made in an hour and each takes longer, its last bits depend on what was made "
    "with it, and nothing is done ahead. waiting: how many more may wait, others are refused (default 32). "
    "most_videos: the most videos that one request may ask for (default 8). budget: compute for a request that names "
    "none, in multiples of one unsearched sample's FLOPs, decoding included (default 4x). most_budget: the largest "
    "budget that a request may name (default 64x). most_units: the longest video, in units: 1 frame, then 8 frames "
    "per further unit (default 16). body_seconds: how long a request's body may take to arrive (default 30). reading: "
    "how many requests with bodies are read at a time (default 32). origins: web sites whose pages may use the "
    "endpoint, as in [https://example.org]. hosts: further names under which an endpoint on a loopback address is "
    "reached, as in [example.org]. most_work: the largest product of a request's budget, length and size, in samples "
    "of the model's own size and length (default 64). database: postgresql://USER@HOST/NAME for the records (default: "
    "SQLite in the folder). storage: where videos are kept, a folder or a URL such as s3://bucket/videos (default: in "
    "the folder). keep_days, keep_gb: how long finished videos are kept, and how many gigabytes of the newest "
    "(default: for ever, all). open=true: let everybody in without --keys, on an address that other machines reach. "
    "verifier.KEY: any key of a verifier's YAML file. models.0.variant, models.1.dtype and so on: of the first and "
    "the second --model alone."
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
    model: ModelsOption = None,
    variant: VariantOption = None,
    dtype: DtypeOption = "float32",
    allow_pickle: PickleOption = False,
    verifier: VerifierOption = None,
    generators: GeneratorsOption = "2",
    set_: Annotated[list[str] | None, typer.Option("--set", help=_SET)] = None,
    log_level: LogLevelOption = None,
) -> None:
    """Serve videos over HTTP, in the format of the OpenAI Videos API, until Ctrl-C.

    What is waiting or in progress then is made when the endpoint starts again with the same --folder.
    """
    if context.invoked_subcommand is not None:
        with one_line_errors(log_level):
            _refuse_options_before_a_command(context, context.invoked_subcommand)
        return
    with one_line_errors(log_level):
        given = {
            "host": host,
            "port": port,
            "folder": folder,
            "keys": keys,
            "models": [
                any_source(name, variant, dtype, allow_pickle).model_dump(mode="json") for name in model or (None,)
            ],
            "verifier": load_panel(verifier).model_dump(mode="json"),
            "generators": str(PoolSize.option("--generators", generators)),
        }
        _serve(configured(given, set_ or ()))


@app.command()
def backup(
    target: Annotated[Path, typer.Argument(help="New folder for the copy.", metavar="DEST")],
    folder: Annotated[Path, typer.Option(help="Where requests and videos are kept.")] = Path("runs/serve"),
    storage: Annotated[
        str, typer.Option(help="Where videos are kept, if the endpoint has --set storage.", metavar="PLACE")
    ] = "",
    keys: Annotated[Path | None, typer.Option(help="File of API keys, to be copied too.")] = None,
    log_level: LogLevelOption = None,
) -> None:
    """Copy requests and videos while the endpoint runs. To restore them, serve with the copy as --folder."""
    with one_line_errors(log_level):
        from framegrove.serving.backup import back_up

        back_up(folder, target, storage=storage, keys=keys)
        typer.echo(f"copied {folder} to {target}")


def _refuse_options_before_a_command(context: typer.Context, command: str) -> None:
    """Raise UserError: options of the endpoint would mean nothing to one of its commands."""
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if source is not None and source.name == "COMMANDLINE":
            raise UserError(
                f"{option.opts[0]} stands before `{command}`, which it does not reach: give options after the command, "
                f"see `python -m jobs.serve {command} --help`"
            )


def configured(given: dict[str, Any], overrides: Iterable[str]) -> ServeConfig:
    """The endpoint's configuration, with absolute paths: the options, then ``KEY=VALUE`` overrides.

    Raises UserError, in one sentence.
    """
    from framegrove.config.base import absolute, absolute_place, load
    from framegrove.config.serve import ServeConfig

    settings = [f"{name}={json.dumps(value)}" for name, value in given.items()]
    config = load(ServeConfig, None, [*settings, *overrides])
    paths = {
        "folder": config.folder.expanduser().absolute(),
        "keys": config.keys.expanduser().absolute() if config.keys is not None else None,
        "storage": absolute_place(config.storage),
        "models": tuple(each.model_copy(update={"name": absolute(each.name)}) for each in config.models),
        "verifier": config.verifier.at_absolute_paths(),
    }
    return config.model_copy(update=paths)


def _serve(config: ServeConfig) -> None:
    from actors.ingress import read_models
    from framegrove.cluster.priority import let_others_give_way
    from framegrove.cluster.serving import only_driver, prepare_haproxy
    from framegrove.cluster.session import connect

    # Mistakes are reported before Ray starts, and in this process: a replica could only fail.
    read_models(config.models)
    config.verifier.check_files()
    _check_keys(config)
    in_use = _check_folder(config)
    if not os.environ.get("RAY_ADDRESS"):  # another cluster may be listening on that port itself, for this endpoint
        if in_use is not None:
            raise in_use
        config = _at_free_port(config)
        prepare_haproxy()
    let_others_give_way()
    typer.echo("starting the endpoint ...")
    with (
        connect(num_cpus=max(8, _actors(config))) as cluster,
        contextlib.nullcontext() if cluster.own else only_driver(),
    ):
        _serve_on(cluster, config, in_use)


def _serve_on(cluster: Cluster, config: ServeConfig, in_use: InUse | None) -> None:
    """Serve until the process is interrupted, or what it runs on is gone."""
    from ray import serve

    from framegrove.cluster.serving import applications, is_from_a_file, shut_down

    running = applications()
    left = (running or {}).get(NAME)
    if left is not None and is_from_a_file(left):
        raise UserError(
            "this cluster serves Framegrove already, by `serve deploy`: change its file and deploy it again, or end it "
            "with `serve shutdown`"
        )
    if left is None and in_use is not None:
        raise in_use
    config = _at_free_port(config) if running is None else _at_its_address(config)
    if left is not None:
        typer.echo("a driver that was killed has left its endpoint running: this one takes its place")
    alone = set(running or {}) <= {NAME}  # other applications that are served on this cluster stay when this one ends
    try:
        _run(config)
        typer.echo(f"serving on http://{config.host}:{config.port}/v1/videos, videos are kept in {config.folder}")
        typer.echo(f"the endpoint logs into {_logs_folder()}/worker-*.err")
        _wait(cluster, config)
    finally:
        if alone:
            shut_down()
        else:
            serve.delete(NAME)


def _check_folder(config: ServeConfig) -> InUse | None:
    """Raise UserError where videos cannot be kept; return what another process that keeps its own there means."""
    from framegrove.serving.store import VideoStore

    try:
        VideoStore(config.folder, database=config.database, storage=config.storage).close()
    except InUse as error:
        return error  # it may be the endpoint of a driver that was killed, whose place this one takes
    return None


def _actors(config: ServeConfig) -> int:
    """How many actors there are at most, each of which takes a logical CPU."""
    verifiers = sum(each.actors.most for each in config.verifier.verifiers)
    return len(config.models) * (config.generators.most + verifiers)


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


def _run(config: ServeConfig) -> None:
    from ray import serve

    from actors.ingress import application

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(http_options={"host": config.host, "port": config.port})
    serve.run(application(config), name=NAME)


def _at_its_address(config: ServeConfig) -> ServeConfig:
    """The configuration with the port on which this cluster serves already. Raises UserError for another address."""
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    assert client is not None, "it has applications"
    listening = client.http_config  # it keeps its address, and would merely log a warning
    if listening.host != config.host or config.port not in (0, listening.port):
        raise UserError(
            f"this cluster serves on {listening.host}:{listening.port} already, and has no second address: "
            f"give --host {listening.host} --port {listening.port}"
        )
    return config.model_copy(update={"port": listening.port})


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
