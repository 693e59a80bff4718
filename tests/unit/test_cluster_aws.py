"""Spot first, on demand where there is none: Ray's provider against recorded answers of EC2, without AWS."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from botocore.stub import ANY, Stubber
from ray.autoscaler._private.aws.utils import resource_cache
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import TAG_RAY_NODE_NAME

from framegrove.cluster.aws import SpotFirst

SPOT = {"MarketType": "spot"}
GROUP = {"InstanceType": "p4de.24xlarge", "ImageId": "ami-1", "SubnetIds": ["subnet-1"], "InstanceMarketOptions": SPOT}
TAGS = {TAG_RAY_NODE_NAME: "ray-test-worker"}
ASKED = {"MinCount": 1, "MaxCount": 2, "InstanceType": "p4de.24xlarge", "ImageId": "ami-1", "SubnetId": "subnet-1"}
TRIES = 5  # Ray's own, within one attempt to start machines


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[SpotFirst]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    resource_cache.cache_clear()
    yield SpotFirst({"region": "us-east-1", "cache_stopped_nodes": False}, "test")
    resource_cache.cache_clear()


def asked(**more: Any) -> dict[str, Any]:
    return {**ASKED, "TagSpecifications": ANY, **more}


def refuse(ec2: Stubber, code: str, **more: Any) -> None:
    for _ in range(TRIES):
        ec2.add_client_error("run_instances", code, "refused", expected_params=asked(**more))


def give(ec2: Stubber, *ids: str, **more: Any) -> None:
    machines = [{"InstanceId": each, "State": {"Name": "pending"}, "StateReason": {"Message": "x"}} for each in ids]
    ec2.add_response("run_instances", {"Instances": machines}, expected_params=asked(**more))


def test_spot_where_there_is_some(provider: SpotFirst) -> None:
    with Stubber(provider.ec2_fail_fast.meta.client) as ec2:
        give(ec2, "i-1", "i-2", InstanceMarketOptions=SPOT)
        assert set(provider.create_node(GROUP, TAGS, 2)) == {"i-1", "i-2"}
        ec2.assert_no_pending_responses()


def test_on_demand_where_there_is_no_spot(provider: SpotFirst) -> None:
    with Stubber(provider.ec2_fail_fast.meta.client) as ec2:
        refuse(ec2, "InsufficientInstanceCapacity", InstanceMarketOptions=SPOT)
        give(ec2, "i-1", "i-2")
        assert set(provider.create_node(GROUP, TAGS, 2)) == {"i-1", "i-2"}
        ec2.assert_no_pending_responses()


@pytest.mark.parametrize("code", ["InsufficientInstanceCapacity", "VcpuLimitExceeded"])
def test_what_is_refused_on_demand_too_is_told(provider: SpotFirst, code: str) -> None:
    on_demand = {name: value for name, value in GROUP.items() if name != "InstanceMarketOptions"}
    with Stubber(provider.ec2_fail_fast.meta.client) as ec2:
        refuse(ec2, code)
        with pytest.raises(NodeLaunchException) as caught:
            provider.create_node(on_demand, TAGS, 2)
        assert caught.value.category == code


def test_a_mistake_is_no_reason_to_pay_more(provider: SpotFirst) -> None:
    with Stubber(provider.ec2_fail_fast.meta.client) as ec2:
        refuse(ec2, "InvalidAMIID.NotFound", InstanceMarketOptions=SPOT)
        with pytest.raises(NodeLaunchException):
            provider.create_node(GROUP, TAGS, 2)
        ec2.assert_no_pending_responses()
