"""What an endpoint with a real model and panel refuses while the caller still waits for the answer."""

from __future__ import annotations

from typing import Any

import pytest

from actors.ingress import served
from actors.model_files import ModelFiles
from framegrove.config.model import ModelSource
from framegrove.config.verifier import PanelConfig
from framegrove.errors import UserError
from framegrove.serving.offers import ServedModel
from framegrove.types import GenerationRequest
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    """A tiny model, judged by one verifier that sees everything and by one that sees whole videos alone."""
    panel = PanelConfig.model_validate(
        {
            "verifiers": [
                {"name": "eye", "kind": "callable", "function": "jobs.oracle_score:score"},
                {"name": "last", "kind": "signals", "judges": ["final"]},
            ]
        }
    )
    return served(ModelFiles.read(ModelSource(name=str(save_tiny(tmp_path_factory.mktemp("tiny"))))), panel)


def request(**asked: Any) -> GenerationRequest:
    given: dict[str, Any] = {"prompt": "a red 3", "seed": 1, "units": 3, "height": 64, "width": 64, "budget": 4.0}
    return GenerationRequest(**given | asked)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"policy": "beam", "until": 0.9}, "the policy beam does not stop at a video that is right"),
        ({"policy": "dfs", "options": {"depth": 3}}, "depth"),
        (
            {"policy": "dfs", "verifiers": {"last": 1.0}},
            "search.verifiers: none of last makes the image assessment, which this search asks for: add eye",
        ),
    ],
)
def test_what_no_search_could_do_is_refused(model: ServedModel, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        model.check(request(**asked))


@pytest.mark.parametrize(
    "asked",
    [
        {"policy": "dfs", "until": 0.9},
        {"policy": "dfs", "verifiers": {"eye": 1.0}},
        {"policy": "linear", "verifiers": {"last": 1.0}},
        {"policy": "single", "verifiers": {"last": 1.0}},
    ],
)
def test_what_a_search_can_do_is_accepted(model: ServedModel, asked: dict[str, Any]) -> None:
    model.check(request(**asked))
