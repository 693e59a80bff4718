"""What jobs.serve makes of its options."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from framegrove.config.pool import PoolSize
from framegrove.config.serve import ServeConfig
from framegrove.config.verifier import load_panel
from framegrove.errors import UserError
from framegrove.serving.keys import KeyRing, Limits, add_key, remove_key
from framegrove.serving.quotas import Quotas
from framegrove.serving.store import VideoStore
from jobs import serve
from jobs.console import model_source
from tests.endpoint import PROMPT, Endpoint, serving


def test_paths_become_absolute_wherever_they_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("model", "verifier", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "verifier.yaml").write_text("verifiers: [{engine: {model: verifier}}]")
    panels = [load_panel(name) for name in ("verifier.yaml", "verifier", "owner/name")]
    models = [panel.verifiers[0].engine.model for panel in panels]
    assert models == [str(tmp_path / "verifier"), str(tmp_path / "verifier"), "owner/name"]
    given = {
        "models": [model_source("model", "384p", "bfloat16", True).model_dump()],
        "folder": "videos",
        "generators": 3,
    }
    config = serve.configured(
        given, ["verifier.verifiers=[{engine: {model: other}}]", "models.0.variant=768p", "most_budget=8x"]
    )
    (model,) = config.models
    assert model.model_dump(exclude_none=True) == {
        "name": str(tmp_path / "model"),
        "variant": "768p",
        "dtype": "bfloat16",
        "allow_pickle": True,
    }
    assert (config.folder, config.verifier.verifiers[0].engine.model) == (tmp_path / "videos", str(tmp_path / "other"))
    assert (str(config.generators), config.most_budget) == ("3", "8x")


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ("", ""),
        ("s3://bucket/videos", "s3://bucket/videos"),
        ("videos", "{here}/videos"),
        ("~/videos", "{home}/videos"),
        ("file://{here}/videos", "{here}/videos"),
    ],
)
def test_storage_is_one_place_for_every_process(
    given: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    where = {"here": tmp_path, "home": tmp_path / "home"}
    config = serve.configured({}, [f"storage={json.dumps(given.format(**where))}", "folder=~/serve"])
    assert (config.storage, config.folder) == (place.format(**where), tmp_path / "home/serve")


def test_help_names_every_setting() -> None:
    told = CliRunner().invoke(serve.app, ["--help"], env={"COLUMNS": "200"}).output
    assert not [name for name in ServeConfig.model_fields if name not in told]


def run(*words: str) -> Result:
    return CliRunner().invoke(serve.app, list(words), env={"COLUMNS": "200", "RAY_ADDRESS": ""})


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[ServeConfig]:
    """The configurations with which the endpoint would have been started."""
    configurations: list[ServeConfig] = []
    monkeypatch.setattr(serve, "_serve", configurations.append)
    return configurations


def test_keys_are_added_listed_and_removed(tmp_path: Path, started: list[ServeConfig]) -> None:
    path = tmp_path / "keys.json"
    words = ("--keys", str(path))
    added = run(
        "keys", "add", "alice", *words, "--requests-per-minute", "7", "--flops-per-day", "1e18", "--bytes", "9000"
    )
    assert added.exit_code == 0
    secret = added.stdout.strip()
    key = KeyRing(path).check(secret)
    assert key is not None
    assert (key.name, key.limits) == ("alice", Limits(requests_per_minute=7, flops_per_day=1e18, bytes=9000))
    run("keys", "add", "bob", *words)
    told = run("keys", "list", *words).stdout.splitlines()
    assert "7 requests per minute, 1e+18 FLOPs per day, 9,000 bytes of videos" in told[0]
    assert "600 requests per minute, any number of FLOPs per day, any number of bytes" in told[1]
    assert secret not in "".join(told)
    assert run("keys", "remove", "alice", *words).exit_code == 0
    assert KeyRing(path).check(secret) is None
    assert not started, "no endpoint is started by the way"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("add", "a b"), "the name 'a b' cannot be used"),
        (("add", "alice", "--bytes", "0"), "bytes must be greater than 0, not 0"),
        (("add", "alice", "--flops-per-day", "nan"), "flops_per_day must be"),
        (("remove", "alice"), "there is no key 'alice' in"),
        (("list",), "there is no keys file at"),
    ],
)
def test_mistakes_about_keys_are_told(words: tuple[str, ...], says: str, tmp_path: Path) -> None:
    told = run("keys", *words, "--keys", str(tmp_path / "keys.json"))
    assert told.exit_code == 1
    assert told.stderr.startswith("error: ")
    assert told.stderr.count("\n") == 1
    assert says in told.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--folder", "x", "keys", "list"), "--folder stands before `keys`"),
        (("--keys", "x", "keys", "add", "alice"), "--keys stands before `keys`"),
        (("--folder", "x", "backup", "y"), "--folder stands before `backup`"),
        (("--set", "waiting=3", "backup", "y"), "--set stands before `backup`"),
    ],
)
def test_options_before_a_command_are_refused(words: tuple[str, ...], says: str, started: list[ServeConfig]) -> None:
    """They would be lost: the endpoint has other options than its commands."""
    told = run(*words)
    assert (told.exit_code, told.stdout) == (1, "")
    assert told.stderr.count("\n") == 1
    assert says in told.stderr
    assert not started


def test_a_copy_is_restored_by_serving_it(tmp_path: Path) -> None:
    """Made while the endpoint runs; another endpoint on the copy lists the same videos and finishes the rest."""
    keys, copy, listed = tmp_path / "keys.json", tmp_path / "copy", list[dict[str, Any]]()
    secret = add_key(keys, "alice", Limits(flops_per_day=1e18))

    async def asked(running: Endpoint) -> None:
        running.client.headers["Authorization"] = f"Bearer {secret}"
        running.runner.gates[2] = asyncio.Event()  # the second one is never finished
        first, second = [(await running.post(prompt=PROMPT, seed=seed)).json()["id"] for seed in (1, 2)]
        await running.until(first, "completed")
        await running.until(second, "in_progress")
        told = run("backup", str(copy), "--folder", str(tmp_path / "serve"), "--keys", str(keys))
        assert told.exit_code == 0, told.output
        listed.extend((await running.client.get("/v1/videos")).json()["data"])

    async def restored(running: Endpoint) -> None:
        running.client.headers["Authorization"] = f"Bearer {secret}"
        found = (await running.client.get("/v1/videos")).json()["data"]
        assert [video["id"] for video in found] == [video["id"] for video in listed]
        content = await running.client.get(f"/v1/videos/{found[1]['id']}/content")
        assert content.content == f"{PROMPT} from 1".encode()
        await running.until(found[0]["id"], "completed")

    serving(tmp_path / "serve", asked, keys=keys)
    serving(copy, restored, keys=copy / "keys.json")
    used = [Quotas(folder / "usage.sqlite", KeyRing(keys)).flops_of("alice") for folder in (tmp_path / "serve", copy)]
    assert used[0] == used[1] > 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--folder", "nowhere"), "no records of videos are in nowhere: name the endpoint's --folder"),
        (("--folder", "serve", "--keys", "k.json"), "there is no keys file at k.json"),
        (("--folder", "serve"), "copy is there already: choose a new folder"),
    ],
)
def test_mistakes_about_copies_are_told(
    words: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    VideoStore(tmp_path / "serve").close()
    (tmp_path / "copy").mkdir()
    told = run("backup", "copy", *words)
    assert told.exit_code == 1
    assert told.stderr.count("\n") == 1
    assert says in told.stderr
    assert not list((tmp_path / "copy").iterdir())


def test_models_and_ranges_are_read_from_options(started: list[ServeConfig], tmp_path: Path) -> None:
    models = [str(tmp_path / name) for name in ("a", "b")]
    words = ["--model", models[0], "--model", models[1], "--set", "models.1.variant=384p", "--generators", "1:4"]
    assert run(*words).exit_code == 0
    (config,) = started
    assert [(model.name, model.variant) for model in config.models] == [(models[0], None), (models[1], "384p")]
    assert config.generators == PoolSize(1, 4)
    assert serve._actors(config) == 2 * (4 + 1)


def test_without_a_subcommand_it_serves(started: list[ServeConfig], tmp_path: Path) -> None:
    assert run("--port", "8123", "--keys", "k.json", "--folder", str(tmp_path)).exit_code == 0
    (config,) = started
    assert (config.port, config.folder, config.keys) == (8123, tmp_path, Path("k.json").absolute())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--host", "0.0.0.0"), "host 0.0.0.0 can be reached from other machines"),
        (("--host", "::"), "host :: can be reached"),
        (("--host", "example.org"), "host example.org can be reached"),
        (("--folder", ""), "folder: a path must not be empty"),
        (("--keys", ""), "keys: a path must not be empty"),
        (("--set", "most_budget=abc"), "most_budget: a budget is a number of unsearched samples"),
        (("--set", "budget=0.5"), "budget: a budget below 1x"),
        (("--set", "budget=65x"), "budget is 65x, more than most_budget, which is 64x"),
        (("--generators", "4:1"), "--generators must be a number as 4 or a range as 2:8, not '4:1'"),
        (("--generators", "0"), "--generators must be a number"),
        (("--set", "keep_days=.inf"), "keep_days must be at most 36500"),
        (("--set", "keep_gb=.inf"), "keep_gb must be at most 1e+09"),
        (("--set", "most_budget=2"), "budget is 4x, more than most_budget, which is 2"),
    ],
)
def test_mistakes_are_told_at_the_start(words: tuple[str, ...], says: str, started: list[ServeConfig]) -> None:
    told = run(*words)
    assert told.exit_code == 1
    assert says in told.stderr
    assert not started


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_keys(host: str) -> None:
    assert not ServeConfig(host=host).exposed


def test_other_addresses_do_with_keys_or_by_choice() -> None:
    assert ServeConfig(host="0.0.0.0", keys=Path("keys.json")).exposed
    assert ServeConfig(host="0.0.0.0", open=True).exposed


def test_an_open_endpoint_and_a_file_without_keys_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    serve._check_keys(ServeConfig(host="0.0.0.0", open=True))
    assert "everybody who reaches 0.0.0.0:8000 may use the endpoint" in caplog.text
    path = tmp_path / "keys.json"
    with pytest.raises(UserError, match="there is no keys file"):
        serve._check_keys(ServeConfig(keys=path))
    add_key(path, "alice")
    remove_key(path, "alice")
    serve._check_keys(ServeConfig(keys=path))
    assert f"there is no key in {path}" in caplog.text


@pytest.mark.parametrize("theirs", ["0.0.0.0", "127.0.0.1", "::"])
@pytest.mark.parametrize("ours", ["127.0.0.1", "0.0.0.0"])
def test_a_busy_port_is_told(theirs: str, ours: str) -> None:
    family = socket.AF_INET6 if theirs == "::" else socket.AF_INET
    with socket.create_server((theirs, 0), family=family, dualstack_ipv6=theirs == "::") as other:
        port = other.getsockname()[1]
        config = ServeConfig(host=ours, port=port, open=True)
        with pytest.raises(UserError, match=f"{ours}:{port} cannot be used .Address already in use.: choose another"):
            serve._at_free_port(config)
    assert serve._at_free_port(config).port == port


def test_a_port_is_chosen_and_a_strange_host_refused() -> None:
    assert serve._at_free_port(ServeConfig(port=0)).port > 0
    with pytest.raises(UserError, match=r"no\.such\.host:8000 cannot be used"):
        serve._at_free_port(ServeConfig(host="no.such.host", open=True))


def test_haproxys_administration_is_this_accounts_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from framegrove.cluster.serving import HAPROXY, prepare_haproxy

    folder = tmp_path / "haproxy"
    prepare_haproxy(folder)
    assert not folder.exists(), "Ray Serve's own proxy is used"
    monkeypatch.setenv(HAPROXY, "1")
    for name in ("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "FORWARDED_ALLOW_IPS"):
        monkeypatch.setenv(name, "given")  # stays, and is put back after the test
    folder.mkdir(mode=0o755)
    prepare_haproxy(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()
    folder.write_text("somebody else's")
    with pytest.raises(UserError, match=r"haproxy is not this account's"):
        prepare_haproxy(folder)
