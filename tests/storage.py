"""Servers that tests start on this machine: S3, and Postgres."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.config import conf


@contextlib.contextmanager
def s3_bucket() -> Iterator[str]:
    """An S3 server with an empty bucket, "lab", to which boto3 and fsspec go in the meantime. Gives its address."""
    import boto3
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        server = ThreadedMotoServer(port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        address = f"http://{host}:{port}"
        patch.setenv("AWS_ENDPOINT_URL_S3", address)
        patch.setitem(conf, "s3", {"endpoint_url": address, "skip_instance_cache": True})
        boto3.client("s3", endpoint_url=address).create_bucket(Bucket="lab")
        yield address
        server.stop()


class Postgres:
    """A Postgres server with a database of its own, which any local user may use."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.url = f"postgresql://postgres@127.0.0.1:{self._port}/postgres"
        self._run("initdb", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-sync")

    def start(self) -> None:
        # No test turns the power off.
        options = f"-p {self._port} -k {self._folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run("pg_ctl", "--wait", f"--log={self._folder / 'log'}", f"--options={options}", "start")

    def stop(self) -> None:
        self._run("pg_ctl", "--wait", "--mode=immediate", "stop")

    def _run(self, program: str, *options: str) -> None:
        command = [str(self._programs / program), f"--pgdata={self._folder / 'data'}", *options]
        if os.geteuid() == 0:  # Postgres refuses to run as root; the package has made a user for it
            command = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--", *command]
        # The server would keep a pipe open, and whoever reads it waiting.
        with (self._folder / f"{program}.txt").open("w+") as told:
            done = subprocess.run(command, cwd=self._folder, stdout=told, stderr=subprocess.STDOUT, check=False)
            told.seek(0)
            assert done.returncode == 0, told.read()


@contextlib.contextmanager
def postgres_server() -> Iterator[Postgres]:
    """A Postgres server that is running. Skips the test where Postgres is not installed."""
    programs = _postgres_programs()
    if programs is None:
        pytest.skip("Postgres is not installed: apt-get install postgresql")
    # Not pytest's temporary folder: the user that runs the server may not enter that of root.
    with tempfile.TemporaryDirectory(prefix="framegrove-postgres-") as name:
        if os.geteuid() == 0:
            shutil.chown(name, "postgres", "postgres")
        server = Postgres(programs, Path(name))
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _postgres_programs() -> Path | None:
    """The folder of initdb and pg_ctl; Debian's package does not put it on PATH."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    return next((path.parent for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)), None)
