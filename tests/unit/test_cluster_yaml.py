"""cluster.yaml against Ray's own schema and checks, and against what the code asks of a cluster."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from framegrove.cluster.placement import Role

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    return loaded


def test_rays_launcher_accepts_it(config: dict[str, Any]) -> None:
    validate_config(prepare_config(config))


def test_the_check_above_can_fail(config: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError, match="max_wrokers"):
        validate_config(prepare_config({**config, "max_wrokers": 3}))


def test_every_role_has_its_group_of_gpus(config: dict[str, Any]) -> None:
    groups = config["available_node_types"]
    for role in Role:
        homes = [group["resources"] for group in groups.values() if role.value in group["resources"]]
        assert homes, f"no group of cluster.yaml offers {role.value}"
        assert all(home["GPU"] == 8 for home in homes)
    assert groups[config["head_node_type"]]["resources"]["CPU"] == 0


def test_images_carry_the_ray_that_is_installed(config: dict[str, Any]) -> None:
    version = importlib.metadata.version("ray")
    assert f":{version}-" in config["docker"]["head_image"]
    assert f":{version}-" in config["docker"]["worker_image"]
