"""`python -m jobs.serve keys`: the API keys that an endpoint lets in. One that runs knows of changes at once."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from jobs.console import application, one_line_errors

app = application()
app.info.help = "Add, list and remove the API keys that the endpoint lets in."

KeysOption = Annotated[Path, typer.Option("--keys", help="File of API keys.")]
NameArgument = Annotated[str, typer.Argument(help="Whose key it is; the endpoint knows its owner by this name.")]
DEFAULT = Path("runs/serve/keys.json")


@app.command()
def add(
    name: NameArgument,
    keys: KeysOption = DEFAULT,
    requests_per_minute: Annotated[
        int | None, typer.Option(help="Most requests in any minute. Default: 600.", metavar="N")
    ] = None,
    flops_per_day: Annotated[
        float | None, typer.Option(help="Most FLOPs of its videos in any 24 hours, as in 1e18.", metavar="X")
    ] = None,
    bytes_: Annotated[
        int | None, typer.Option("--bytes", help="Most bytes that its stored videos may take.", metavar="Y")
    ] = None,
) -> None:
    """Add a key and show its secret, this once."""
    with one_line_errors():
        from framegrove.config.base import validated
        from framegrove.serving.keys import Limits, add_key

        given = {"requests_per_minute": requests_per_minute, "flops_per_day": flops_per_day, "bytes": bytes_}
        limits = validated(Limits, {name: value for name, value in given.items() if value is not None}, "the limits")
        typer.echo(add_key(keys, name, limits))
        typer.echo("keep it: it is shown this once, and cannot be read from the file", err=True)


@app.command("list")
def list_(keys: KeysOption = DEFAULT) -> None:
    """List the keys, with when they were made and their limits."""
    with one_line_errors():
        from framegrove.serving.keys import list_keys

        for key in list_keys(keys):
            limits = key.limits
            made = datetime.fromtimestamp(key.created_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
            flops = f"{limits.flops_per_day:g}" if limits.flops_per_day is not None else "any number of"
            size = f"{limits.bytes:,}" if limits.bytes is not None else "any number of"
            typer.echo(
                f"{key.name}: made {made}, {limits.requests_per_minute} requests per minute, {flops} FLOPs per day, "
                f"{size} bytes of videos"
            )


@app.command()
def remove(name: NameArgument, keys: KeysOption = DEFAULT) -> None:
    """Remove a key, which is refused from then on. Videos of its owner stay."""
    with one_line_errors():
        from framegrove.serving.keys import remove_key

        remove_key(keys, name)
        typer.echo(f"removed the key {name}")


if __name__ == "__main__":
    app()
