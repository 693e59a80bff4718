"""Whatever is sent to the endpoint, it answers in the terms of its own document, and never fails."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.browser.server import serving
from tests.endpoint import PROMPT, Endpoint, endpoint, picture

FIELDS = ["prompt", "model", "seconds", "size", "seed", "search", "input_reference", "search[budget]", "search[until]"]


class Player:
    """An endpoint in an event loop that goes on from one example to the next."""

    def __init__(self, folder: Path) -> None:
        self.runner = asyncio.Runner()
        self._context = endpoint(folder, waiting=10**6)
        self.running: Endpoint = self.runner.run(self._context.__aenter__())

    def close(self) -> None:
        self.runner.run(self._context.__aexit__(None, None, None))
        self.runner.close()

    def post(self, body: bytes, kind: str, cuts: list[int], broken: bool = False) -> int | None:
        """The status of what is answered to a body that comes in pieces; None where nothing is."""
        return self.runner.run(posted(self.running, body, kind, cuts, broken))


async def posted(running: Endpoint, body: bytes, kind: str, cuts: list[int], broken: bool) -> int | None:
    """Talk ASGI with the application: unlike an HTTP client, that can also end in the middle of a body."""
    edges = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts)})
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": body[start:end], "more_body": True} for start, end in itertools.pairwise(edges)
    ]
    last = {"type": "http.disconnect"} if broken else {"type": "http.request", "body": b"", "more_body": False}
    messages.append(last)
    answers: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        answers.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", kind.encode("latin-1")), (b"transfer-encoding", b"chunked")]
    scope = {"type": "http", "method": "POST", "path": "/v1/videos", "raw_path": b"/v1/videos", "query_string": b""}
    await running.app({**scope, "headers": headers, "scheme": "http", "root_path": ""}, receive, send)
    if not answers:
        return None
    body = b"".join(answer.get("body", b"") for answer in answers[1:])
    assert isinstance(json.loads(body), dict)
    return int(answers[0]["status"])


@pytest.fixture(scope="module")
def player(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Player]:
    player = Player(tmp_path_factory.mktemp("serve"))
    yield player
    player.close()


NOTABLE = [PROMPT, "digits", "4x", "nan", "-inf", "1e400", "64x64", "dfs", "9" * 5000, "data:image/png;base64,"]
letters = st.characters(exclude_categories=())  # lone surrogates included
texts = st.text(letters, max_size=30) | st.sampled_from(NOTABLE)
extremes = st.sampled_from([10**400, -(10**400), 2**63, 1e308, math.inf, math.nan, "\ud800", "a\0b", *NOTABLE])
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts, extremes)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=8
)
LEAVES = [
    *("prompt", "model", "seconds", "size", "seed", "search", "input_reference", "input_reference.image_url"),
    *("search.policy", "search.budget", "search.until", "search.seconds"),
]
inner_names = st.sampled_from(["policy", "budget", "until", "seconds", "image_url"])
sections = st.dictionaries(inner_names | texts, values, max_size=4)
bodies = st.dictionaries(st.sampled_from(FIELDS) | texts, values | sections, max_size=6)
cuts = st.lists(st.integers(0, 10**6), max_size=8)
patches = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 3), st.binary(max_size=4)), max_size=5)
EXAMPLES = settings().max_examples  # of the profile
common = settings(max_examples=2 * EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])


def mutated(body: bytes, patches: list[tuple[int, int, bytes]]) -> bytes:
    for at, gone, new in patches:
        place = at % (len(body) + 1)
        body = body[:place] + new + body[place + gone :]
    return body


def escaped(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields).encode()


@st.composite
def forms(draw: st.DrawFn) -> bytes:
    """Forms of any fields and files, whole."""
    body = b""
    for _ in range(draw(st.integers(0, 5))):
        name = draw(st.sampled_from(FIELDS) | texts).encode("utf-8", "surrogatepass")
        file = b'; filename="a.png"' if draw(st.booleans()) else b""
        content = draw(st.binary(max_size=40) | texts.map(lambda text: text.encode("utf-8", "surrogatepass")))
        head = b'--edge\r\nContent-Disposition: form-data; name="' + name + b'"' + file
        body += head + b"\r\n\r\n" + content + b"\r\n"
    return body + b"--edge--\r\n"


FORM = "multipart/form-data; boundary=edge"
FORM_HEAD = (
    f'--edge\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n{PROMPT}\r\n'
    '--edge\r\nContent-Disposition: form-data; name="input_reference"; filename="a.png"\r\n\r\n'
).encode()
GOOD_FORM = FORM_HEAD + picture() + b"\r\n--edge--"
GOOD_JSON = escaped({"prompt": PROMPT, "seed": 7, "search": {"budget": "2x"}})


@common
@given(bodies, patches, cuts)
def test_no_json_makes_the_endpoint_fail(
    player: Player, fields: dict[str, Any], patches: list[tuple[int, int, bytes]], cuts: list[int]
) -> None:
    status = player.post(mutated(escaped(fields), patches), "application/json", cuts)
    assert status in (200, 400, 404, 413)


@settings(common, max_examples=4 * EXAMPLES)
@given(st.sampled_from(LEAVES), st.booleans().flatmap(lambda simple: scalars if simple else values))
def test_no_field_beside_a_good_prompt_makes_the_endpoint_fail(player: Player, leaf: str, value: Any) -> None:
    section, _, field = leaf.rpartition(".")
    fields = {"prompt": PROMPT} | ({section: {field: value}} if section else {field: value})
    assert player.post(escaped(fields), "application/json", []) in (200, 400, 404, 413)


@common
@given(forms() | st.just(GOOD_FORM), patches, cuts)
def test_no_form_makes_the_endpoint_fail(
    player: Player, body: bytes, patches: list[tuple[int, int, bytes]], cuts: list[int]
) -> None:
    assert player.post(mutated(body, patches), FORM, cuts) in (200, 400, 404, 413)


@common
@given(st.sampled_from([picture(kind, (32, 24)) for kind in ("PNG", "JPEG", "WEBP")]), patches, st.integers(0, 10**4))
def test_no_picture_makes_the_endpoint_fail(
    player: Player, whole: bytes, patches: list[tuple[int, int, bytes]], cut: int
) -> None:
    damaged = mutated(whole, patches)[: max(cut % (2 * len(whole)), 1)]
    assert player.post(FORM_HEAD + damaged + b"\r\n--edge--", FORM, []) in (200, 400)


@common
@given(st.binary(max_size=200), st.text(st.characters(max_codepoint=255), max_size=60), cuts)
def test_nothing_else_makes_the_endpoint_fail(player: Player, body: bytes, kind: str, cuts: list[int]) -> None:
    assert player.post(body, kind, cuts) in (200, 400, 404, 413, 415)


@common
@given(st.sampled_from([(GOOD_JSON, "application/json"), (GOOD_FORM, FORM)]), st.data(), cuts, st.booleans())
def test_a_body_that_is_cut_is_never_accepted(
    player: Player, good: tuple[bytes, str], data: st.DataObject, cuts: list[int], broken: bool
) -> None:
    body, kind = good
    end = data.draw(st.integers(0, len(body) - 1))
    assert player.post(body[:end], kind, cuts, broken) == (None if broken else 400)


@common
@given(st.sampled_from([(GOOD_JSON, "application/json"), (GOOD_FORM, FORM)]), cuts)
def test_a_good_body_is_accepted_in_whatever_pieces(player: Player, good: tuple[bytes, str], cuts: list[int]) -> None:
    assert player.post(*good, cuts) == 200
    assert player.post(*good, cuts, broken=True) is None


DOCUMENT_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]


SPOKEN = ("method", "url", "headers", "params", "data", "files", "json", "cookies")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data"])
def test_answers_are_as_the_document_says(player: Player, kind: str) -> None:
    """Requests made from the OpenAPI document, valid and invalid ones; those that name an id often name a real one."""
    document, video_id = player.runner.run(prepared(player.running))
    bodies = document["paths"]["/v1/videos"]["post"]["requestBody"]
    bodies["content"] = {kind: bodies["content"][kind]}
    for path in document["paths"].values():
        for parameter in path.get("get", {}).get("parameters", []):
            if parameter["name"] == "video_id":
                parameter["schema"] = {"enum": [video_id]}
    statuses: set[int] = set()
    for result in schemathesis.openapi.from_dict(document).get_all_operations():
        answers_as_documented(player, result.ok(), statuses)
    assert {200, 400, 404} <= statuses


def answers_as_documented(player: Player, operation: Any, statuses: set[int]) -> None:
    cases = st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode))

    @settings(max_examples=EXAMPLES // 2, suppress_health_check=list(HealthCheck))
    @given(cases)
    def one(case: Any) -> None:
        answer = player.runner.run(asked(player.running, case.as_transport_kwargs(base_url="http://localhost")))
        case.validate_response(answer, checks=DOCUMENT_CHECKS)
        statuses.add(answer.status_code)

    one()


STATEFUL_CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "use_after_free",
    "ensure_resource_availability",
]


def test_lives_of_videos_are_as_the_document_says(tmp_path: Path) -> None:
    """Made, asked for, remixed, cancelled, deleted in any order, by the document's links from one to another."""
    with serving(tmp_path, waiting=10**4) as server:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}openapi.json", "--phases", "stateful"]
        command += ["--max-examples", "40", "--generation-deterministic", "--mode", "positive"]
        command += ["--exclude-path-regex", "models|healthz|readyz|sync|preview", "--checks", ",".join(STATEFUL_CHECKS)]
        # It keeps what it has found where it stands.
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert passed is not None, done.stdout
    assert int(passed[1]) == int(passed[2]) > 50


async def prepared(running: Endpoint) -> tuple[Any, str]:
    """The OpenAPI document, and the id of a finished video."""
    video = (await running.post(prompt=PROMPT)).json()
    await running.until(video["id"], "completed")
    return (await running.client.get("/openapi.json")).json(), video["id"]


async def asked(running: Endpoint, given: dict[str, Any]) -> httpx.Response:
    """The answer to a request in the terms of the package requests, which schemathesis speaks."""
    sent = requests.Request(**{name: value for name, value in given.items() if name in SPOKEN}).prepare()
    return await running.client.request(sent.method or "GET", sent.url or "", headers=sent.headers, content=sent.body)
