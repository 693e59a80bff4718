"""What web pages of other sites may make a visitor's browser send to the endpoint: nothing, unless they are allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from framegrove.config.serve import ServeConfig
from framegrove.serving.origins import allowed_hosts
from tests.endpoint import PROMPT, Endpoint, serving

FRIEND = "https://studio.example"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://localhost"}, 200),
        ({"Origin": FRIEND}, 200),
        ({"Origin": FRIEND, "Sec-Fetch-Site": "cross-site"}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://localhost:9999"}, 403),
        ({"Origin": "http://studio.example.evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
    ],
)
@pytest.mark.parametrize("form", [False, True])
def test_posts_of_other_sites_are_refused(tmp_path: Path, headers: dict[str, str], status: int, form: bool) -> None:
    body: dict[str, Any] = {"files": {"prompt": (None, PROMPT)}} if form else {"json": {"prompt": PROMPT}}

    async def scene(running: Endpoint) -> None:
        answer = await running.client.post("/v1/videos", headers=headers, **body)
        assert answer.status_code == status, answer.text
        if status == 403:
            assert "a page of another site" in answer.json()["error"]["message"]
            assert not running.store.queued()

    serving(tmp_path, scene, origins=(FRIEND,))


def test_pages_of_allowed_sites_alone_may_read_the_answers(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        for origin, allowed in ((FRIEND, FRIEND), ("http://evil.example", None)):
            answer = await running.client.get("/v1/models", headers={"Origin": origin})
            assert answer.headers.get("access-control-allow-origin") == allowed
            preflight = await running.client.options(
                "/v1/videos",
                headers={
                    "Origin": origin,
                    "Access-Control-Request-Method": "POST",
                    "Access-Control-Request-Headers": "content-type",
                },
            )
            assert preflight.headers.get("access-control-allow-origin") == allowed

    serving(tmp_path, scene, origins=(FRIEND,))


def test_no_site_is_allowed_unless_it_is_named(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        answer = await running.client.get("/v1/models", headers={"Origin": FRIEND})
        assert "access-control-allow-origin" not in answer.headers

    serving(tmp_path, scene)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("videos.example:443", 200),
        ("evil.example", 403),
        ("localhost.evil.example:8000", 403),
        ("127.0.0.1.evil.example", 403),
        ("evil.example@localhost", 403),
        ("[", 403),
        ("", 403),
    ],
)
def test_a_foreign_name_for_this_machine_is_refused(tmp_path: Path, host: str, status: int) -> None:
    """DNS rebinding: a page of evil.example, whose name leads to 127.0.0.1, asks its own site, which is this one."""

    async def scene(running: Endpoint) -> None:
        answer = await running.client.get("/v1/models", headers={"Host": host})
        assert answer.status_code == status
        if status == 403:
            assert "is not served here: use http://localhost, or add the name" in answer.json()["error"]["message"]

    serving(tmp_path, scene, hosts=("videos.example",))


def test_an_address_that_others_reach_has_names_that_nobody_knows(tmp_path: Path) -> None:
    assert allowed_hosts("0.0.0.0", ()) is None
    assert allowed_hosts("10.0.0.7", ()) is None
    assert allowed_hosts("127.0.0.2", ()) == {"localhost", "127.0.0.1", "[::1]", "127.0.0.2"}
    assert allowed_hosts("::1", ["[::2]"]) == {"localhost", "127.0.0.1", "[::1]", "[::2]"}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"origins": ("studio.example",)}, "is not of the form https://example.org"),
        ({"origins": ("*",)}, "is not of the form https://example.org"),
        ({"origins": ("https://studio.example/",)}, "without a path"),
        ({"hosts": ("https://videos.example",)}, "without a scheme or a port"),
    ],
)
def test_what_is_no_site_and_no_name_is_told(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ServeConfig(**setting)
