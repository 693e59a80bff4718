"""cluster.yaml against Ray's own schema and checks, and against what the code asks of a cluster."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.aws.config import _configure_from_network_interfaces
from ray.autoscaler._private.providers import _get_node_provider_cls
from ray.autoscaler._private.util import prepare_config, validate_config

from framegrove.cluster import placement
from framegrove.cluster.aws import SpotFirst
from framegrove.cluster.placement import AWAITED_GPU, Role, bundle, fits

TEXT = (Path(__file__).resolve().parents[2] / "cluster.yaml").read_text(encoding="utf-8")
TRAINING = {Role.TRAIN}
SEARCHING = {Role.GENERATE, Role.VERIFY}
VARIANTS = {
    "training": TRAINING,
    "training_h100": TRAINING,
    "searching": SEARCHING,
    "both": TRAINING | SEARCHING,
    "both_h100": TRAINING | SEARCHING,
}
CARDS = {"p4de.24xlarge": 4, "p5.48xlarge": 32}  # network cards of a machine
CPUS = {"p4d.24xlarge": 96, "p4de.24xlarge": 96, "p5.48xlarge": 192}


def variant(name: str) -> dict[str, Any]:
    """cluster.yaml with its one value set to ``name``."""
    text, changed = re.subn(r"^  <<: \*both$", f"  <<: *{name}", TEXT, flags=re.MULTILINE)
    assert changed == 1
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


@pytest.fixture(params=VARIANTS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def groups_of(config: dict[str, Any]) -> dict[str, Any]:
    return {name: group for name, group in config["available_node_types"].items() if name != config["head_node_type"]}


def test_every_variant_is_named_where_it_is_chosen() -> None:
    assert set(variant("both")["metadata"]["variants"]) == set(VARIANTS)
    (told,) = re.findall(r"# The one value: (.*)\.$", TEXT, re.MULTILINE)
    assert set(re.split(r", | or ", told)) == set(VARIANTS)


def test_rays_launcher_accepts_it(name: str) -> None:
    config = prepare_config(variant(name))
    validate_config(config)
    _configure_from_network_interfaces(config)
    assert _get_node_provider_cls(config["provider"]) is SpotFirst


def test_the_checks_above_can_fail() -> None:
    config = variant("both")
    with pytest.raises(jsonschema.ValidationError, match="max_wrokers"):
        validate_config(prepare_config({**config, "max_wrokers": 3}))
    config["available_node_types"]["train"]["node_config"]["SubnetIds"] = ["subnet-1"]
    with pytest.raises(ValueError, match="ONLY be given in each NetworkInterface"):
        _configure_from_network_interfaces(config)


def test_every_role_finds_room_on_its_own_machines_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for as the code does when only the head is up: eight actors with a GPU each fill one machine."""
    config = variant(name)
    head = config["available_node_types"][config["head_node_type"]]["resources"]
    assert {AWAITED_GPU, *Role} <= set(head)
    monkeypatch.setattr(
        placement.ray, "cluster_resources", lambda: {key: value for key, value in head.items() if value}
    )
    groups = groups_of(config)
    for role in Role:
        wanted = [bundle(role, num_gpus=1)] * 8
        homes = {name for name, group in groups.items() if fits(wanted, [group["resources"]])}
        assert homes == {name for name, group in groups.items() if role.value in group["resources"]}
        assert bool(homes) == (role in VARIANTS[name])
        assert not fits(wanted[:1], [head])


def test_nothing_but_the_head_costs_until_a_job_asks(name: str) -> None:
    config = variant(name)
    groups = groups_of(config)
    assert all(group["min_workers"] == 0 and group["max_workers"] for group in groups.values())
    assert sum(group["max_workers"] for group in groups.values()) <= config["max_workers"]
    for group in groups.values():
        assert group["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert group["resources"]["CPU"] == CPUS[group["node_config"]["InstanceType"]]


@pytest.mark.parametrize("name", [name for name, roles in VARIANTS.items() if Role.TRAIN in roles])
def test_machines_that_train_stand_together_and_have_an_interface_on_every_card(name: str) -> None:
    group = variant(name)["available_node_types"]["train"]
    machine = group["node_config"]
    assert machine["Placement"]["GroupName"] in TEXT.partition("create-placement-group")[2].splitlines()[0]
    first, *others = machine["NetworkInterfaces"]
    assert (first["NetworkCardIndex"], first["DeviceIndex"], first["InterfaceType"]) == (0, 0, "efa")
    assert all((card["DeviceIndex"], card["InterfaceType"]) == (1, "efa-only") for card in others)
    assert [card["NetworkCardIndex"] for card in others] == list(range(1, CARDS[machine["InstanceType"]]))
    assert "--device /dev/infiniband" in group["docker"]["worker_run_options"]


def test_images_carry_the_ray_that_is_installed() -> None:
    version = importlib.metadata.version("ray")
    docker = variant("both")["docker"]
    assert f":{version}-" in docker["head_image"]
    assert f":{version}-" in docker["worker_image"]
