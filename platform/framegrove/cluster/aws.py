"""Machines from AWS for Ray's cluster launcher: on the spot market first, on demand where it has none.

cluster.yaml names this class as its provider. Ray's own one asks for a refused spot machine again and again: the
autoscaler lowers the priority of a group whose machines do not come up, but not of one that is refused at once.
"""

from __future__ import annotations

import logging
from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

# EC2's answers to a spot request that an on-demand one need not share.
# https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html
_NO_SPOT = {
    "InsufficientInstanceCapacity",
    "MaxSpotInstanceCountExceeded",
    "SpotMaxPriceTooLow",
    "UnfulfillableCapacity",
    "Unsupported",
}

log = logging.getLogger(__name__)


class SpotFirst(AWSNodeProvider):
    """Ray's provider for AWS, except that a group with ``InstanceMarketOptions`` does without them when refused."""

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """Start up to ``count`` machines, all of one kind; returns them by their ids. Raises NodeLaunchException.

        EC2 may give fewer than it is asked for. The autoscaler then asks again, and so may get spot machines beside
        on-demand ones.
        """
        try:
            return dict(super().create_node(node_config, tags, count))
        except NodeLaunchException as refused:
            if "InstanceMarketOptions" not in node_config or refused.category not in _NO_SPOT:
                raise
            log.warning(
                "no spot machines of type %s (%s): asking for %d on demand",
                node_config["InstanceType"],
                refused.category,
                count,
            )
        on_demand = {name: value for name, value in node_config.items() if name != "InstanceMarketOptions"}
        return dict(super().create_node(on_demand, tags, count))
